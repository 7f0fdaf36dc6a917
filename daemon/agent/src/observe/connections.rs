//! Connections of clients outside the cluster to services, as the kernel remembers them.

use std::collections::BTreeMap;
use std::time::Duration;

use hauberk_core::services::SetNumber;
use hauberk_datapath::DatapathError;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::MapReader;
use crate::state::SharedState;

/// Between looks for those that are over.
const SWEEP: Duration = Duration::from_secs(10);

/// Removes connections that are over or have been silent for too long, until the runtime ends. Also
/// where clients outside the cluster are not led any more: an earlier agent may have left some.
pub async fn forget(agent: SharedState, map_reader: MapReader) {
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        sweep.tick().await;
        let map_reader = map_reader.clone();
        // A full table takes a good part of a second.
        let swept = tokio::task::spawn_blocking(move || map_reader.maps().forget_connections(hauberk_datapath::now()));
        match swept.await {
            Ok(Ok(left)) => agent.write().connections = Some(left),
            Ok(Err(error)) => {
                agent.write().connections = None;
                warn!(%error, "cannot forget connections to services that are over; the table may fill up");
            }
            Err(error) => warn!(%error, "the search for connections to services that are over broke off"),
        }
    }
}

/// How many there are now, by the set that their backend was chosen from.
///
/// # Errors
/// [`DatapathError`] if they cannot be read.
pub fn by_set(map_reader: &MapReader) -> Result<BTreeMap<SetNumber, u64>, DatapathError> {
    let mut counts = BTreeMap::new();
    for (_, connection) in map_reader.maps().connections()? {
        *counts.entry(connection.set).or_default() += 1;
    }
    Ok(counts)
}
