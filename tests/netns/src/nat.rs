//! Other people's address translation on a node: what kube-proxy or an administrator would have put there.

use std::net::IpAddr;

use anyhow::Result;

use crate::node::Node;
use crate::party::Family;

/// The address of the service with this number; outside every range of pods and nodes.
pub fn service_address(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 96, 0, number]),
        Family::V6 => IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(number)]),
    }
}

/// On `node`, sends what is for `service` to `backend`, same port: for packets that pass the node and for its own.
///
/// # Errors
/// What `nft` says.
pub fn add_service(node: &Node, service: IpAddr, backend: IpAddr) -> Result<()> {
    let family = if service.is_ipv4() { "ip" } else { "ip6" };
    let rule = format!("{family} daddr {service} meta l4proto {{ tcp, udp }} dnat to {backend}");
    node.netns.nft(&format!(
        "table {family} services {{
            chain prerouting {{ type nat hook prerouting priority -100; policy accept; {rule}; }}
            chain output {{ type nat hook output priority -100; policy accept; {rule}; }}
        }}"
    ))
}

/// On `node`, gives packets to `destination` the node's own address, as kube-proxy does for services it masquerades.
///
/// # Errors
/// What `nft` says.
pub fn masquerade_to(node: &Node, destination: IpAddr) -> Result<()> {
    let family = if destination.is_ipv4() { "ip" } else { "ip6" };
    node.netns.nft(&format!(
        "table {family} masquerading {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                {family} daddr {destination} masquerade
            }}
        }}"
    ))
}
