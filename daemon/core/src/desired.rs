//! What this node's kernel and tunnel should hold, derived from the whole model.
//!
//! Objects are written by many hands and may contradict each other. Where they do, the answer is the protected one: the
//! stricter label holds, a range that two nodes claim is nobody's, a key that two nodes publish is refused. Each such
//! decision is an event that names the objects.

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
use crate::model::{AttachmentKey, Model, NodeNumber, PodName};

pub use addresses::Contest;
pub use incremental::{Followed, Incremental};

/// What the configuration says about the cluster and this node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// This node's name.
    pub node: String,
    /// Ranges pods' addresses come from, cluster-wide.
    pub cluster_ranges: Vec<IpNet>,
    /// Ranges that hold nodes: an unknown address in there is not the world.
    pub node_ranges: Vec<IpNet>,
    /// Whether a pod's label may weaken its namespace's choice.
    pub allow_pod_opt_out: bool,
    /// How pods are protected where neither their namespace nor they have a label.
    pub default_protection: Protection,
    /// This node's public keys: whoever publishes one of them is refused.
    pub own_keys: Vec<[u8; 32]>,
    /// MTU of routes to other nodes' pods, bytes; none leaves the device's.
    pub route_mtu: Option<u32>,
    /// Another CNI plugin routes to pods: no routes of ours to other nodes' pod ranges.
    pub chained: bool,
    /// Every address that a device of this node has, whether its object tells it or not.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Addresses of other nodes at which nobody answers, each with the one at which the tunnel hears that node.
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
    /// Routes to other nodes' pod ranges, and to their pods outside of those, by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// Destinations netfilter must not masquerade.
    pub untranslated: BTreeSet<IpNet>,
    /// Whether every source has been read once: until then nothing is removed and nothing weakened.
    pub prune: bool,
    /// What to acknowledge in the annotation `hauberk.io/enforced` once the plan is carried out, by namespace; none
    /// while `prune` is false: the annotation then stays as it is.
    pub enforced: Option<BTreeMap<String, String>>,
    /// Number of ENDPOINTS that are permissive pods'.
    pub permissive_endpoints: usize,
    /// Addresses that several nodes claim, so that no node has them.
    pub contested: BTreeMap<IpAddr, Contest>,
    /// How objects stand to each other and should not. All that hold now: what was not in here before is news.
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
    /// Another CNI plugin made the interface: only programs and map entries are ours.
    pub adopted: bool,
}

impl LocalPod {
    /// Which container, which interface inside it.
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
    /// Its other addresses, those of the other family first: asked as well while the endpoint does not answer.
    pub fallbacks: Vec<SocketAddr>,
    /// What it may speak for, and what is sealed for it. No prefix is in two peers.
    pub allowed: BTreeSet<IpNet>,
}

/// A route to another node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The pod range, or a pod's address.
    pub destination: IpNet,
    /// An address of that node.
    pub via: IpAddr,
    /// MTU, bytes; none leaves the device's.
    pub mtu: Option<u32>,
}

/// The state to reach, from scratch. Pure: the same model and policy give the same answer. Who sees the model change keeps
/// an [`Incremental`] instead.
pub fn desired(model: &Model, policy: &Policy) -> Desired {
    Incremental::computed(model, policy)
}

impl Policy {
    /// Whether the prefix lies inside the cluster's pod ranges.
    fn in_cluster(&self, prefix: IpNet) -> bool {
        self.cluster_ranges.iter().any(|range| range.contains(&prefix))
    }

    /// Whether the address can be a pod's alone: it is in the cluster's pod ranges, and no longer one of the ranges that hold
    /// nodes has it.
    fn is_for_pods(&self, address: IpAddr) -> bool {
        let longest =
            |ranges: &[IpNet]| ranges.iter().filter(|range| range.contains(&address)).map(IpNet::prefix_len).max();
        longest(&self.cluster_ranges).is_some_and(|pods| Some(pods) >= longest(&self.node_ranges))
    }

    /// Whether the address can be a node's: it is in the ranges that hold nodes, or there are none of its family.
    fn is_for_nodes(&self, address: IpAddr) -> bool {
        let mut of_family =
            self.node_ranges.iter().filter(|range| range.addr().is_ipv4() == address.is_ipv4()).peekable();
        of_family.peek().is_none() || of_family.any(|range| range.contains(&address))
    }

    /// Whether it is the same but for what is seen of this node's devices and of others' addresses.
    fn is_alike(&self, other: &Policy) -> bool {
        let settled =
            |policy: &Policy| Policy { host_addresses: BTreeSet::new(), detours: BTreeMap::new(), ..policy.clone() };
        settled(self) == settled(other)
    }
}

impl Desired {
    /// What the datapath takes an address for: its endpoint, else the longest range that holds it, else the world.
    pub fn identity(&self, address: IpAddr) -> Identity {
        let address = Address::from(address);
        let endpoint = self.endpoints.get(&address).copied();
        endpoint.unwrap_or_else(|| Ranges::new(&self.ranges).identity(address))
    }

    /// Who has the address, if somebody is known to.
    pub fn owner(&self, model: &Model, policy: &Policy, address: Address) -> Option<Owner> {
        let identity = self.endpoints.get(&address)?;
        if identity.is_node() {
            return model.node_name(NodeNumber(identity.node)).map(|name| Owner::Node(name.to_owned()));
        }
        claims::owner(model, policy, address)
    }

    /// The nodes that claim the address, if several do and it is nobody's therefore.
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
