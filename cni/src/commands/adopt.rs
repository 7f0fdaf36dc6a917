//! ADD and CHECK after another plugin: its interface is guarded. Nothing else about it changes
//! except the size of packets that the pod sends.

use hauberk_api::{Adopt, Attach, MacAddress};
use serde_json::Value;

use crate::agent::Agent;
use crate::commands::UNDO_LIMIT;
use crate::config::NetworkConfig;
use crate::environment::PodInterface;
use crate::error::CniError;
use crate::network::namespace::Namespace;
use crate::network::netlink::{Link, Network};
use crate::result::PreviousResult;

/// Lets the agent guard the interface that the previous plugins made. Returns their result,
/// unchanged except for its version.
pub(super) async fn add(config: &NetworkConfig, request: &PodInterface) -> Result<String, CniError> {
    let previous = previous(config)?;
    let addresses = PreviousResult::parse(previous)?.addresses_of(&request.interface);
    if addresses.is_empty() {
        let interface = &request.interface;
        return Err(CniError::Config(format!(
            "prevResult has no address of {interface}: there is nothing to protect it by"
        )));
    }
    let ends = Ends::find(request).await?;
    let adopt = Adopt {
        request: request.reserve(),
        addresses,
        host_interface: ends.host.name.clone(),
        attach: Attach { host_index: ends.host.index, host_mac: mac(&ends.host)?, pod_mac: mac(&ends.pod)? },
    };
    let adopted = Agent::new(config).call(async |client| client.adopt(&adopt).await).await?;
    // Packets to neighbours on the pod's own link never go through the tunnel, so only the routes
    // are limited.
    if let Err(error) = ends.inside.limit_route_mtu(ends.pod.index, adopted.route_mtu).await {
        let agent = Agent::within(config, UNDO_LIMIT);
        let detached = agent.call(async |client| client.detach(&request.container, &request.interface).await).await;
        return Err(match detached {
            Ok(()) => error,
            Err(remains) => CniError::NotUndone {
                first: Box::new(error),
                remains: format!("{} is still guarded: {remains}", ends.host.name),
            },
        });
    }
    let mut result = previous.clone();
    result["cniVersion"] = Value::from(config.version.as_str());
    Ok(result.to_string())
}

/// Checks that the interface guarded by ADD is still guarded.
pub(super) async fn check(config: &NetworkConfig, request: &PodInterface) -> Result<(), CniError> {
    let addresses = PreviousResult::parse(previous(config)?)?.addresses_of(&request.interface);
    let ends = Ends::find(request).await?;
    let attachments = Agent::new(config).call(async |client| client.attachments().await).await?;
    let known = attachments
        .iter()
        .find(|known| known.request.container == request.container && known.request.interface == request.interface)
        .ok_or_else(|| {
            let (interface, container) = (&request.interface, &request.container);
            CniError::Different(format!("the agent knows nothing of {interface} in container {container}"))
        })?;
    let host = &ends.host;
    if known.attach.as_ref().map(|attach| attach.host_index) != Some(host.index) {
        return Err(CniError::Different(format!(
            "the agent guards {}, but the pod's host side is {} (index {})",
            known.reservation.host_interface, host.name, host.index
        )));
    }
    let guarded = |address: &std::net::IpAddr| known.reservation.addresses.iter().any(|known| known.addr() == *address);
    match addresses.iter().find(|address| !guarded(address)) {
        Some(address) => Err(CniError::Different(format!("the agent does not know the pod's address {address}"))),
        None => Ok(()),
    }
}

fn previous(config: &NetworkConfig) -> Result<&Value, CniError> {
    let missing = "prevResult is missing, but the configuration says `chained`: hauberk-cni must stand behind the plugin that \
                   connects the pod, in a list of plugins (*.conflist)";
    config
        .previous
        .as_ref()
        .filter(|previous| previous.is_object())
        .ok_or_else(|| CniError::Config(missing.to_string()))
}

/// Both ends of the pod's pair.
struct Ends {
    inside: Network,
    pod: Link,
    host: Link,
}

impl Ends {
    /// The host side is looked up from the pod's side: a result does not always name it, and may be
    /// wrong.
    async fn find(request: &PodInterface) -> Result<Ends, CniError> {
        let namespace = Namespace::open(&request.netns)?;
        let inside = Network::of_pod(&namespace)?;
        let pod = inside.existing_link(&request.interface).await?;
        let not_a_pair = || {
            CniError::Config(format!(
                "{} in {namespace} is not one end of a veth pair whose other end is on the node: hauberk cannot guard it; \
                 the plugin before hauberk-cni must connect pods by such pairs, as bridge and ptp do",
                request.interface
            ))
        };
        let index = pod.peer.filter(|_| pod.veth).ok_or_else(not_a_pair)?;
        let host = Network::of_node()?.link_at(index).await?;
        // An index is unique only within its namespace, so the other end must name this one as its
        // peer.
        let host = host.filter(|host| host.veth && host.peer == Some(pod.index)).ok_or_else(not_a_pair)?;
        Ok(Ends { inside, pod, host })
    }
}

fn mac(link: &Link) -> Result<MacAddress, CniError> {
    link.mac.ok_or_else(|| CniError::Config(format!("{} has no MAC address: hauberk cannot guard it", link.name)))
}
