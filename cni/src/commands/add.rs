//! ADD: reserve, create the pair, let the agent attach its programs, and only then set the pod's
//! end up.

use hauberk_api::{Attach, MacAddress};

use crate::agent::Agent;
use crate::commands::{ALIAS_PREFIX, UNDO_LIMIT};
use crate::config::NetworkConfig;
use crate::environment::PodInterface;
use crate::error::CniError;
use crate::network::mac;
use crate::network::namespace::Namespace;
use crate::network::netlink::{Network, Pair};
use crate::plan::PodPlan;
use crate::result::{AddResult, Side};

/// Gives the pod its interface; after a failure, leaves nothing behind.
pub(super) async fn add(config: &NetworkConfig, request: &PodInterface) -> Result<AddResult, CniError> {
    refuse_result(config)?;
    let agent = Agent::new(config);
    let ends = Ends::open(request)?;
    // Checked before the reservation: undoing must not touch a working attachment.
    if ends.pod.link(&request.interface).await?.is_some() {
        let (interface, place) = (request.interface.clone(), ends.namespace.to_string());
        return Err(CniError::InterfaceExists { interface, place });
    }
    let reserve = request.reserve();
    let reservation = agent.call(async |client| client.reserve(&reserve).await).await?;
    let connected = match PodPlan::new(&reservation) {
        Ok(plan) => connect(config, request, &agent, &ends, &plan).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok(result) => Ok(result),
        // Another ADD of the same container made it, so it must not be undone here.
        Err(error @ CniError::InterfaceExists { .. }) => Err(error),
        Err(error) => Err(undo(config, request, &ends, &reservation.host_interface, error).await),
    }
}

/// A previous result means that the pod already has its interface.
fn refuse_result(config: &NetworkConfig) -> Result<(), CniError> {
    match &config.previous {
        None => Ok(()),
        Some(_) => Err(CniError::Config(
            "prevResult is given, so another plugin has connected the pod, but hauberk-cni is told to do that itself: set \
             \"chained\": true to have it guard that plugin's interface, or put it first in the list"
                .to_string(),
        )),
    }
}

/// The two namespaces that the pair connects.
struct Ends {
    namespace: Namespace,
    pod: Network,
    node: Network,
}

impl Ends {
    fn open(request: &PodInterface) -> Result<Ends, CniError> {
        let namespace = Namespace::open(&request.netns)?;
        Ok(Ends { pod: Network::of_pod(&namespace)?, node: Network::of_node()?, namespace })
    }
}

async fn connect(
    config: &NetworkConfig,
    request: &PodInterface,
    agent: &Agent,
    ends: &Ends,
    plan: &PodPlan,
) -> Result<AddResult, CniError> {
    let (host_mac, pod_mac) = (mac::random()?, mac::random()?);
    let pair = Pair { host_name: &plan.host_interface, host_mac, pod_name: &request.interface, pod_mac, mtu: plan.mtu };
    ends.node.add_pair(&pair, &ends.namespace).await?;
    let host_index = ends.node.existing_link(&plan.host_interface).await?.index;
    let pod_index = ends.pod.existing_link(&request.interface).await?.index;
    ends.pod.set_alias(pod_index, &format!("{ALIAS_PREFIX}{}", plan.host_interface)).await?;
    ends.node.set_alias(host_index, &format!("{ALIAS_PREFIX}{}/{}", request.container, request.interface)).await?;

    // Both ends are down, so no packet can be sent before the programs are attached.
    let attach = Attach { host_index, host_mac, pod_mac };
    agent.call(async |client| client.attach(&request.container, &request.interface, &attach).await).await?;

    ends.node.set_up(host_index).await?;
    configure_pod(ends, request, plan, pod_index, host_mac).await?;

    let host = Side { name: &plan.host_interface, mac: host_mac.to_string() };
    let pod = Side { name: &request.interface, mac: pod_mac.to_string() };
    Ok(AddResult::new(config.version, plan, host, pod, &request.netns, config.dns.clone()))
}

async fn configure_pod(
    ends: &Ends,
    request: &PodInterface,
    plan: &PodPlan,
    index: u32,
    host_mac: MacAddress,
) -> Result<(), CniError> {
    if plan.has_ipv6() {
        // Only the plugin sets routes and addresses, and the addresses are unique: no
        // advertisements, no duplicate detection.
        for (key, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0"), ("autoconf", "0")] {
            ends.namespace.set_interface_sysctl("ipv6", &request.interface, key, value)?;
        }
    }
    if plan.gso_max_size > 0 {
        ends.pod.set_gso_max_size(index, plan.gso_max_size).await?;
    }
    for address in &plan.addresses {
        ends.pod.add_address(index, address).await?;
    }
    for gateway in &plan.gateways {
        ends.pod.add_neighbour(index, *gateway, host_mac).await?;
    }
    // Only routes need the link to be up.
    ends.pod.set_up(index).await?;
    for route in &plan.routes {
        ends.pod.add_route(index, route).await?;
    }
    Ok(())
}

/// Undoes what was done; returns the first error, with what could not be undone.
async fn undo(
    config: &NetworkConfig,
    request: &PodInterface,
    ends: &Ends,
    host_interface: &str,
    first: CniError,
) -> CniError {
    let mut remains = Vec::new();
    let removed = match ends.node.link(host_interface).await {
        Ok(Some(link)) => ends.node.remove_link(link.index).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    remains.extend(removed.err().map(|error| format!("interface {host_interface} remains: {error}")));

    let agent = Agent::within(config, UNDO_LIMIT);
    let detached = agent.call(async |client| client.detach(&request.container, &request.interface).await).await;
    remains.extend(detached.err().map(|error| format!("the reservation remains: {error}")));

    if remains.is_empty() {
        return first;
    }
    CniError::NotUndone { first: Box::new(first), remains: remains.join("; ") }
}
