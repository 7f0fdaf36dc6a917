//! STATUS: whether ADD would work now.

use std::time::Duration;

use hauberk_api::client::Readiness;

use crate::agent::Agent;
use crate::config::NetworkConfig;
use crate::error::CniError;

/// The runtime asks often and waits for the answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Succeeds if ADD would work.
pub(super) async fn status(config: &NetworkConfig) -> Result<(), CniError> {
    match Agent::within(config, LIMIT).call(async |client| client.readiness().await).await {
        Ok(Readiness::Ready) => Ok(()),
        Ok(Readiness::NotReady(why)) => Err(CniError::NotReady(format!("the agent says: {why}"))),
        Err(CniError::TryAgain(why) | CniError::Agent(why)) => Err(CniError::NotReady(why)),
        Err(error) => Err(error),
    }
}
