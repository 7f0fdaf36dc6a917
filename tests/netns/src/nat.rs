//! Other people's address translation on a node: what kube-proxy or an administrator would have put there.

use std::net::{IpAddr, SocketAddr};

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

/// On `node`, sends TCP and UDP for `service` to `backend`: for packets that pass the node and for its own.
///
/// # Errors
/// What `nft` says.
pub fn add_service(node: &Node, service: SocketAddr, backend: SocketAddr) -> Result<()> {
    let (family, word) = if service.is_ipv4() { ("ip", "ip") } else { ("ip6", "ip6") };
    let (address, port) = (service.ip(), service.port());
    let rule = format!("{word} daddr {address} meta l4proto {{ tcp, udp }} th dport {port} dnat to {backend}");
    node.netns.nft(&format!(
        "table {family} services {{
            chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; {rule}; }}
            chain output {{ type nat hook output priority dstnat; policy accept; {rule}; }}
        }}"
    ))
}

/// On `node`, gives packets to `destination` the node's own address, as kube-proxy does for services it masquerades.
///
/// # Errors
/// What `nft` says.
pub fn masquerade_to(node: &Node, destination: IpAddr) -> Result<()> {
    let (family, word) = if destination.is_ipv4() { ("ip", "ip") } else { ("ip6", "ip6") };
    node.netns.nft(&format!(
        "table {family} masquerading {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                {word} daddr {destination} masquerade
            }}
        }}"
    ))
}
