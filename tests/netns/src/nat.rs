//! Address translation on a node, as kube-proxy or an administrator would set it up.

use std::net::IpAddr;

use anyhow::Result;

use crate::node::Node;
use crate::party::Family;

/// The address of the service with this number. It is outside every range of pods and nodes.
pub fn service_address(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 96, 0, number]),
        Family::V6 => IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(number)]),
    }
}

/// On `node`, redirects packets for `service` to the same port of `backend`: forwarded packets and
/// the node's own.
///
/// # Errors
/// `nft` fails; the message is its own.
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

/// On `node`, masquerades packets to `destination` with the node's own address, as kube-proxy does
/// for some services.
///
/// # Errors
/// `nft` fails; the message is its own.
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
