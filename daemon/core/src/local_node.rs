//! What a node knows without any object of the cluster: its configuration, and what it reads from
//! its own kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::identity::Protection;
use ipnet::IpNet;

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LocalNode {
    /// Its name.
    pub name: String,
    /// What the configuration says about the cluster.
    pub settings: Settings,
    /// Its public keys: another node that publishes one of them is refused.
    pub keys: Vec<[u8; 32]>,
    /// MTU of routes to other nodes' pods, bytes; none keeps the device's.
    pub route_mtu: Option<u32>,
    /// Every address of its devices, whether or not its object lists it.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses of other nodes that do not answer, each with the address at which the tunnel hears
    /// that node.
    pub detours: BTreeMap<IpAddr, IpAddr>,
}

/// What the configuration says about the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// Ranges that pods' addresses come from, cluster-wide.
    pub cluster_ranges: Vec<IpNet>,
    /// Ranges that hold nodes: an unknown address in one of them does not count as the world.
    pub node_ranges: Vec<IpNet>,
    /// Whether a pod's label may weaken its namespace's choice.
    pub allow_pod_opt_out: bool,
    /// How pods are protected if neither their namespace nor they have a label.
    pub default_protection: Protection,
    /// Another CNI plugin routes to pods, so the agent makes no routes to other nodes' pod ranges.
    pub chained: bool,
    /// Connections to services are led to a backend.
    pub services: bool,
    /// So are packets of clients outside the cluster.
    pub services_outside: bool,
    /// How many of them there is room for; none if that does not matter.
    pub services_room: Option<ServicesRoom>,
}

/// Room for services, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicesRoom {
    /// For addresses and ports.
    pub frontends: usize,
    /// For backends, counted once for each set they are in.
    pub backends: usize,
}

impl LocalNode {
    /// Whether both are the same apart from their addresses and detours.
    pub(crate) fn is_alike(&self, other: &LocalNode) -> bool {
        let rest =
            |local: &LocalNode| LocalNode { addresses: BTreeSet::new(), detours: BTreeMap::new(), ..local.clone() };
        rest(self) == rest(other)
    }
}

impl Settings {
    /// Whether the prefix lies inside the cluster's pod ranges.
    pub(crate) fn in_cluster(&self, prefix: IpNet) -> bool {
        self.cluster_ranges.iter().any(|range| range.contains(&prefix))
    }

    /// Whether only a pod can have the address: it is in the cluster's pod ranges, and no longer
    /// prefix of the node ranges contains it.
    pub(crate) fn is_for_pods(&self, address: IpAddr) -> bool {
        let longest =
            |ranges: &[IpNet]| ranges.iter().filter(|range| range.contains(&address)).map(IpNet::prefix_len).max();
        longest(&self.cluster_ranges).is_some_and(|pods| Some(pods) >= longest(&self.node_ranges))
    }

    /// Whether a node can have the address: it is in the node ranges, or none of these is of its
    /// family.
    pub(crate) fn is_for_nodes(&self, address: IpAddr) -> bool {
        let mut of_family =
            self.node_ranges.iter().filter(|range| range.addr().is_ipv4() == address.is_ipv4()).peekable();
        of_family.peek().is_none() || of_family.any(|range| range.contains(&address))
    }
}
