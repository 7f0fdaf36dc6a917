//! DEL: removes the pair first, so that nothing is sent any more, then the agent's reservation. Can
//! be repeated.

use std::path::Path;
use std::time::Duration;

use crate::agent::Agent;
use crate::commands::ALIAS_PREFIX;
use crate::config::NetworkConfig;
use crate::error::CniError;
use crate::network::namespace::Namespace;
use crate::network::netlink::Network;

/// The runtime repeats a DEL that failed, so it need not wait long for an unavailable agent.
/// Reporting success instead would leak the pod's addresses.
const AGENT_LIMIT: Duration = Duration::from_secs(5);

/// Removes the interface and releases its addresses.
pub(super) async fn delete(
    config: &NetworkConfig,
    container: &str,
    interface: &str,
    netns: Option<&Path>,
) -> Result<(), CniError> {
    let removed = match netns.and_then(Namespace::open_if_there) {
        Some(namespace) => remove_from(&namespace, interface).await,
        // The kernel has removed the pair with the namespace.
        None => Ok(()),
    };
    let agent = Agent::within(config, AGENT_LIMIT);
    let detached = agent.call(async |client| client.detach(container, interface).await).await;
    match detached {
        // There is no reservation to leak, and the agent forgets interfaces that are gone, so pods
        // can be deleted without it.
        Err(CniError::TryAgain(_)) if config.chained => removed,
        detached => removed.and(detached),
    }
}

async fn remove_from(namespace: &Namespace, interface: &str) -> Result<(), CniError> {
    let pod = Network::of_pod(namespace)?;
    match pod.link(interface).await? {
        Some(link) if link.veth && link.alias.starts_with(ALIAS_PREFIX) => pod.remove_link(link.index).await,
        _ => Ok(()),
    }
}
