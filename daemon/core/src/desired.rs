//! What this node's kernel and tunnel should hold, derived from the whole model.
//!
//! Several people and programs write the objects, and these may contradict each other. Then the
//! protected answer wins: the stricter label holds, a range that two nodes claim belongs to no
//! node, a key that two nodes publish is refused. An event reports each such decision and names the
//! objects.

mod addresses;
mod attachments;
mod claims;
mod incremental;
mod ranges;
mod standing;
mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::{Identity, Kind, Protection};
use hauberk_abi::layout;
use ipnet::IpNet;

use crate::events::NewEvent;
use crate::lookup::Ranges;
use crate::model::Model;
use crate::names::{AttachmentKey, NodeNumber, PodName};

pub use addresses::Contest;
pub use incremental::{Followed, Incremental};

/// What the configuration says about the cluster and this node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// This node's name.
    pub node: String,
    /// Ranges that pods' addresses come from, cluster-wide.
    pub cluster_ranges: Vec<IpNet>,
    /// Ranges that hold nodes: an unknown address in one of them does not count as the world.
    pub node_ranges: Vec<IpNet>,
    /// Whether a pod's label may weaken its namespace's choice.
    pub allow_pod_opt_out: bool,
    /// How pods are protected if neither their namespace nor they have a label.
    pub default_protection: Protection,
    /// This node's public keys: another node that publishes one of them is refused.
    pub own_keys: Vec<[u8; 32]>,
    /// MTU of routes to other nodes' pods, bytes; none keeps the device's.
    pub route_mtu: Option<u32>,
    /// Another CNI plugin routes to pods, so the agent makes no routes to other nodes' pod ranges.
    pub chained: bool,
    /// Every address of this node's devices, whether or not its object lists it.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Addresses of other nodes that do not answer, each with the address at which the tunnel hears
    /// that node.
    pub detours: BTreeMap<IpAddr, IpAddr>,
}

/// The state to reach.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Desired {
    /// This node's number, for SETTINGS.
    pub node: NodeNumber,
    /// ENDPOINTS.
    pub endpoints: BTreeMap<Address, Identity>,
    /// RANGES.
    pub ranges: BTreeMap<Prefix, Identity>,
    /// Pods' interfaces on this node.
    pub attachments: BTreeMap<AttachmentKey, LocalPod>,
    /// The tunnel's peers.
    pub peers: BTreeMap<NodeNumber, Peer>,
    /// PEERS.
    pub peer_entries: BTreeMap<NodeNumber, layout::Peer>,
    /// Routes to other nodes' pod ranges, and to pods of other nodes outside those ranges, by
    /// destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// Destinations that netfilter must not masquerade.
    pub untranslated: BTreeSet<IpNet>,
    /// Whether every source has been read once. Until then the plan removes and weakens nothing.
    pub prune: bool,
    /// What to acknowledge in the annotation `hauberk.io/enforced` once the plan is carried out, by
    /// namespace. None while `prune` is false: then the annotation stays as it is.
    pub enforced: Option<BTreeMap<String, String>>,
    /// Number of ENDPOINTS entries of permissive pods.
    pub permissive_endpoints: usize,
    /// Addresses that several nodes claim, so they belong to no node.
    pub contested: BTreeMap<IpAddr, Contest>,
    /// Conflicts between objects: all that exist now. An event that was not in the previous set is
    /// new.
    pub events: BTreeSet<NewEvent>,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A pod.
    Pod(PodName),
    /// A pod's interface on this node that came without the pod's name.
    Attachment(AttachmentKey),
    /// A node, by name.
    Node(String),
}

/// A pod's interface on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The runtime's container (sandbox) id.
    pub container: String,
    /// The interface's name inside the pod.
    pub interface: String,
    /// The host side's name.
    pub host_interface: String,
    /// The host side's interface index.
    pub host_index: u32,
    /// MAC address of the host side.
    pub host_mac: [u8; 6],
    /// MAC address inside the pod.
    pub pod_mac: [u8; 6],
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The strictest protection of any of them.
    pub protection: Protection,
    /// Another CNI plugin made the interface: hauberk owns only the programs and map entries.
    pub adopted: bool,
}

impl LocalPod {
    /// The container, and the interface inside it.
    pub fn key(&self) -> AttachmentKey {
        AttachmentKey { container: self.container.clone(), interface: self.interface.clone() }
    }
}

/// Another node's tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's number.
    pub number: NodeNumber,
    /// The node's name.
    pub name: String,
    /// Its public keys with their epochs, newest first: one or two.
    pub keys: Vec<(u32, [u8; 32])>,
    /// Where its tunnel listens.
    pub endpoint: Option<SocketAddr>,
    /// Its other addresses, those of the other family first: the tunnel also tries them while the
    /// endpoint does not answer.
    pub fallbacks: Vec<SocketAddr>,
    /// Its allowed IPs: the sources it may send from, and the destinations that are encrypted to
    /// it. No prefix belongs to two peers.
    pub allowed: BTreeSet<IpNet>,
}

/// A route to another node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The pod range, or a pod's address.
    pub destination: IpNet,
    /// An address of that node.
    pub via: IpAddr,
    /// MTU, bytes; none keeps the device's.
    pub mtu: Option<u32>,
}

/// The state to reach, computed from scratch. Pure: the same model and policy give the same answer.
/// A caller that sees the model change keeps an [`Incremental`] instead.
pub fn desired(model: &Model, policy: &Policy) -> Desired {
    Incremental::computed(model, policy)
}

impl Policy {
    /// Whether the prefix lies inside the cluster's pod ranges.
    fn in_cluster(&self, prefix: IpNet) -> bool {
        self.cluster_ranges.iter().any(|range| range.contains(&prefix))
    }

    /// Whether only a pod can have the address: it is in the cluster's pod ranges, and no longer
    /// prefix of the node ranges contains it.
    fn is_for_pods(&self, address: IpAddr) -> bool {
        let longest =
            |ranges: &[IpNet]| ranges.iter().filter(|range| range.contains(&address)).map(IpNet::prefix_len).max();
        longest(&self.cluster_ranges).is_some_and(|pods| Some(pods) >= longest(&self.node_ranges))
    }

    /// Whether a node can have the address: it is in the node ranges, or none of these is of its
    /// family.
    fn is_for_nodes(&self, address: IpAddr) -> bool {
        let mut of_family =
            self.node_ranges.iter().filter(|range| range.addr().is_ipv4() == address.is_ipv4()).peekable();
        of_family.peek().is_none() || of_family.any(|range| range.contains(&address))
    }

    /// Whether both are the same apart from `host_addresses` and `detours`.
    fn is_alike(&self, other: &Policy) -> bool {
        let settled =
            |policy: &Policy| Policy { host_addresses: BTreeSet::new(), detours: BTreeMap::new(), ..policy.clone() };
        settled(self) == settled(other)
    }
}

impl Desired {
    /// The datapath's identity for an address: that of its endpoint, else of the longest range that
    /// holds it, else the world.
    pub fn identity(&self, address: IpAddr) -> Identity {
        let address = Address::from(address);
        let endpoint = self.endpoints.get(&address).copied();
        endpoint.unwrap_or_else(|| Ranges::new(&self.ranges).identity(address))
    }

    /// The owner of the address, if one is known.
    pub fn owner(&self, model: &Model, policy: &Policy, address: Address) -> Option<Owner> {
        let identity = self.endpoints.get(&address)?;
        if identity.is_node() {
            return model.node_name(NodeNumber(identity.node)).map(|name| Owner::Node(name.to_owned()));
        }
        claims::owner(model, policy, address)
    }

    /// The nodes that claim the address, if several do and it therefore belongs to none of them.
    pub fn contest(&self, address: IpAddr) -> Option<&Contest> {
        self.contested.get(&address).filter(|_| self.identity(address).kind() == Kind::UnknownNode)
    }

    /// The longest range that holds the address.
    pub fn range_of(&self, address: IpAddr) -> Option<Prefix> {
        Ranges::new(&self.ranges).longest(address.into()).map(|(prefix, _)| prefix)
    }
}

#[cfg(test)]
mod tests;
