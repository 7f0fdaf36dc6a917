//! Addresses that no pod and no node of a cluster can have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why an address is refused; none if it may belong to a pod or a node.
pub(crate) fn address(address: IpAddr) -> Option<&'static str> {
    SPACES.iter().find(|(space, _)| space.contains(&address)).map(|(_, what)| *what)
}

/// Why a range is refused: it lies in, or contains, addresses that no pod or node can have.
pub(crate) fn range(range: IpNet) -> Option<&'static str> {
    let overlaps = |space: &IpNet| space.contains(&range) || range.contains(space);
    SPACES.iter().find(|(space, _)| overlaps(space)).map(|(_, what)| *what)
}

/// The special-purpose registries of RFC 6890, those parts that can never be a pod's or node's own
/// address.
const SPACES: [(IpNet, &str); 11] = [
    (v4([0, 0, 0, 0], 8), "unspecified"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([255, 255, 255, 255], 32), "broadcast"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    // The datapath would take a mapped address for the IPv4 address in it: hauberk_abi::address.
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "an IPv4-mapped address"),
    // The agent's self-test sends to this range: hauberk_abi::layout::probe.
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discarded (RFC 6666)"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

const fn v4(o: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(o[0], o[1], o[2], o[3]), length))
}

const fn v6(s: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), length))
}
