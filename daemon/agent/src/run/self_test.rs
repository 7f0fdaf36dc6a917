//! When the self-test runs.

use std::time::Duration;

use hauberk_datapath::Pins;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::observe::MapReader;
use crate::state::SharedState;

/// Between self-tests after one that passed, and after one that failed.
const SELF_TEST: Duration = Duration::from_secs(60);
const FAILED_SELF_TEST: Duration = Duration::from_secs(2);
/// How often to look whether something new needs a self-test.
const LOOK_FOR_SELF_TEST: Duration = Duration::from_millis(250);

/// Runs the self-test until it passes, then periodically, and at once when something new needs it.
pub(super) async fn prove(agent: SharedState, map_reader: MapReader, pins: Pins) {
    let mut last = Instant::now();
    loop {
        let (running, begun, due) = {
            let agent = agent.read();
            let due = match agent.self_test.outcome() {
                None => true,
                Some(Err(_)) => last.elapsed() > FAILED_SELF_TEST,
                Some(Ok(())) => last.elapsed() > SELF_TEST,
            };
            (agent.running.clone(), agent.self_test.begin(), due)
        };
        if let Some(running) = running.filter(|_| due) {
            let outcome =
                crate::observe::self_test::run(&running.devices, running.backend.as_ref(), &map_reader, &pins).await;
            last = Instant::now();
            let passed = outcome.is_ok();
            if let Err(reason) = &outcome {
                warn!(%reason, "the self-test failed");
            }
            let is_news = agent.write().self_test.end(begun, outcome);
            if passed && is_news {
                info!("ready: the self-test passed");
            }
        }
        tokio::time::sleep(LOOK_FOR_SELF_TEST).await;
    }
}
