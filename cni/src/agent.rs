//! The agent, as the plugin calls it: a call is repeated until the agent is available or the time
//! is up. A pod that starts while its node's agent is still starting must wait; it must neither
//! fail nor run without the agent.

use std::time::Duration;

use hauberk_api::client::{Client, ClientError};
use tokio::time::Instant;

use crate::config::NetworkConfig;
use crate::error::CniError;

/// The first pause between attempts; each later one is twice as long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The agent, with a deadline for all calls.
pub(crate) struct Agent {
    client: Client,
    timeout: Duration,
    deadline: Instant,
}

impl Agent {
    /// With the configured timeout, from now on.
    pub(crate) fn new(config: &NetworkConfig) -> Agent {
        Agent::within(config, config.timeout)
    }

    /// With a timeout of at most `limit`, from now on.
    pub(crate) fn within(config: &NetworkConfig, limit: Duration) -> Agent {
        let timeout = config.timeout.min(limit);
        Agent { client: Client::new(&config.socket), timeout, deadline: Instant::now() + timeout }
    }

    /// Repeats `call` while the agent is unavailable.
    pub(crate) async fn call<T>(&self, call: impl AsyncFn(&Client) -> Result<T, ClientError>) -> Result<T, CniError> {
        let mut pause = SHORTEST_PAUSE;
        loop {
            // Even at the deadline, an agent that is there gets some time to answer.
            let remaining = self.deadline.saturating_duration_since(Instant::now()).max(SHORTEST_PAUSE);
            let error = match call(&self.client.clone().with_deadline(remaining)).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_unavailable() => error,
                Err(error) => return Err(CniError::Agent(error.to_string())),
            };
            if Instant::now() + pause >= self.deadline {
                return Err(CniError::TryAgain(format!("waited {} s for the agent: {error}", self.timeout.as_secs())));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
