//! STATUS: whether ADD would work now.

use std::time::Duration;

use hauberk_api::ATTACHMENTS_STORE;
use hauberk_api::client::Readiness;

use crate::agent::Agent;
use crate::config::NetworkConfig;
use crate::error::CniError;

/// The runtime asks often and waits for the answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Succeeds if ADD would work.
pub(super) async fn status(config: &NetworkConfig) -> Result<(), CniError> {
    match Agent::within(config, LIMIT).call(async |client| client.readiness().await).await {
        Ok(Readiness::Ready) => room(config).await,
        Ok(Readiness::NotReady(why)) => Err(CniError::NotReady(format!("the agent says: {why}"))),
        Err(CniError::TryAgain(why) | CniError::Agent(why)) => Err(CniError::NotReady(why)),
        Err(error) => Err(error),
    }
}

/// Succeeds unless the agent cannot put pods on record, for example because its disk is full.
async fn room(config: &NetworkConfig) -> Result<(), CniError> {
    let status = Agent::within(config, LIMIT).call(async |client| client.status().await).await;
    // The agent said a moment ago that it is ready.
    let Ok(status) = status else { return Ok(()) };
    match status.problems.into_iter().find(|problem| problem.object == ATTACHMENTS_STORE) {
        Some(problem) => Err(CniError::NotReady(format!("the agent says: {}: {}", problem.object, problem.message))),
        None => Ok(()),
    }
}
