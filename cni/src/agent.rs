//! The agent, as the plugin needs it: a call is repeated until the agent is there and able, or time is up. A pod that starts
//! while its node's agent is still starting has to wait, not to fail and not to run without one.

use std::time::Duration;

use hauberk_api::client::{Client, ClientError};
use tokio::time::Instant;

use crate::config::NetworkConfig;
use crate::error::CniError;

/// The first pause between attempts; each one is twice as long as the one before.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The agent, until a point in time.
pub(crate) struct Agent {
    client: Client,
    timeout: Duration,
    deadline: Instant,
}

impl Agent {
    /// For as long as the configuration says, from now on.
    pub(crate) fn new(config: &NetworkConfig) -> Agent {
        Agent::within(config, config.timeout)
    }

    /// For `limit` at most, from now on.
    pub(crate) fn within(config: &NetworkConfig, limit: Duration) -> Agent {
        let timeout = config.timeout.min(limit);
        Agent { client: Client::new(&config.socket), timeout, deadline: Instant::now() + timeout }
    }

    /// Repeats `call` while the agent is unavailable.
    pub(crate) async fn call<T>(&self, call: impl AsyncFn(&Client) -> Result<T, ClientError>) -> Result<T, CniError> {
        let mut pause = SHORTEST_PAUSE;
        loop {
            // Even when time is up, an agent that is there gets the chance to answer.
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
