//! CHECK: whether the pod's network is still as ADD set it up. Compares the agent's record, the
//! kept result and both namespaces; additions by later plugins are ignored.

use std::net::IpAddr;

use hauberk_api::{Attachment, MacAddress};

use crate::agent::Agent;
use crate::config::NetworkConfig;
use crate::environment::PodInterface;
use crate::error::CniError;
use crate::network::namespace::Namespace;
use crate::network::netlink::Network;
use crate::plan::PodPlan;
use crate::result::PreviousResult;

/// The first difference found, as an error.
pub(super) async fn check(config: &NetworkConfig, request: &PodInterface) -> Result<(), CniError> {
    let previous = config.previous.as_ref().ok_or_else(|| {
        CniError::Config(
            "prevResult is missing: CHECK compares with the result of ADD, which the runtime keeps".to_string(),
        )
    })?;
    let previous = PreviousResult::parse(previous)?;
    let attachment = attachment(config, request).await?;
    let plan = PodPlan::new(&attachment.reservation)?;
    let attached = attachment.attach.ok_or_else(|| {
        different(format!("the agent has reserved addresses for {}, but attached nothing", request.container))
    })?;
    compare_result(&previous, &plan, request, attached.pod_mac)?;

    let node = Network::of_node()?;
    let host = node.link(&plan.host_interface).await?;
    let host = host.ok_or_else(|| different(format!("the host side {} is gone", plan.host_interface)))?;
    if !host.up || host.index != attached.host_index {
        return Err(different(format!("the host side {} is down or was replaced", plan.host_interface)));
    }
    compare_pod(request, &plan, attached.pod_mac, attached.host_mac).await
}

async fn attachment(config: &NetworkConfig, request: &PodInterface) -> Result<Attachment, CniError> {
    let attachments = Agent::new(config).call(async |client| client.attachments().await).await?;
    attachments
        .into_iter()
        .find(|known| known.request.container == request.container && known.request.interface == request.interface)
        .ok_or_else(|| {
            different(format!("the agent knows nothing of {} in container {}", request.interface, request.container))
        })
}

fn compare_result(
    previous: &PreviousResult,
    plan: &PodPlan,
    request: &PodInterface,
    pod_mac: MacAddress,
) -> Result<(), CniError> {
    let kept = previous.interfaces.iter().find(|kept| kept.name == request.interface && !kept.sandbox.is_empty());
    let kept = kept.ok_or_else(|| different(format!("the kept result does not name {}", request.interface)))?;
    if !kept.mac.is_empty() && !kept.mac.eq_ignore_ascii_case(&pod_mac.to_string()) {
        return Err(different(format!("the agent says its MAC address is {pod_mac}, the kept result {}", kept.mac)));
    }
    for address in &plan.addresses {
        if !previous.ips.iter().any(|kept| kept.address.addr() == address.addr()) {
            return Err(different(format!("the agent says its address is {address}, the kept result does not")));
        }
    }
    Ok(())
}

async fn compare_pod(
    request: &PodInterface,
    plan: &PodPlan,
    pod_mac: MacAddress,
    host_mac: MacAddress,
) -> Result<(), CniError> {
    let namespace = Namespace::open(&request.netns)?;
    let pod = Network::of_pod(&namespace)?;
    let interface = &request.interface;
    let link = pod.link(interface).await?;
    let link =
        link.filter(|link| link.veth).ok_or_else(|| different(format!("{interface} is gone from {namespace}")))?;
    if !link.up {
        return Err(different(format!("{interface} is down")));
    }
    if link.mtu != plan.mtu {
        return Err(different(format!("the MTU of {interface} is {}, not {}", link.mtu, plan.mtu)));
    }
    if link.mac != Some(pod_mac) {
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        return Err(different(format!("the MAC address of {interface} is {mac}, not {pod_mac}")));
    }
    let addresses = pod.addresses(link.index).await?;
    if let Some(missing) = plan.addresses.iter().find(|address| !addresses.contains(address)) {
        return Err(different(format!("{interface} has lost its address {missing}")));
    }
    let routes = pod.routes(link.index).await?;
    if let Some(missing) = plan.routes.iter().find(|route| !routes.contains(route)) {
        return Err(different(format!("the route to {} is gone or changed", missing.destination)));
    }
    let neighbours = pod.permanent_neighbours(link.index).await?;
    let told = |gateway: &IpAddr| neighbours.contains(&(*gateway, host_mac));
    match plan.gateways.iter().find(|gateway| !told(gateway)) {
        Some(gateway) => Err(different(format!("the neighbour entry of the gateway {gateway} is gone or changed"))),
        None => Ok(()),
    }
}

fn different(what: String) -> CniError {
    CniError::Different(what)
}
