//! Which address belongs to which node: by its object's status, by what its agent reads from its
//! kernel and publishes, and on this node by its own devices.
//!
//! - An address of a device here is this node's, whatever others claim.
//! - Nodes' addresses must lie in `nodeRanges`, if these have ranges of the family, and in no pod
//!   range. Only a device's address may lie in its own node's pod range: the bridge or overlay of
//!   another plugin has one there.
//! - An address that a node had until recently belongs to no node and is closed: if it counted as
//!   the world's, packets of protected pods that are still on their way would leave in the clear.
//! - An address that two nodes claim belongs to no node and is closed: believing one could give it
//!   the other's traffic.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::address::Address;

use crate::annotations::addresses::is_possible;
use crate::events::{Collector, reason};
use crate::identities::ranges::PodRanges;
use crate::local_node::LocalNode;
use crate::model::Model;
use crate::objects::NodeObject;
use crate::reserved;
use crate::words::read_from;

/// The most objects that one event names.
const NAMED: usize = 8;

/// What the nodes have: pod ranges and addresses.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) ranges: PodRanges,
    pub(crate) nodes: NodeAddresses,
}

/// The nodes' addresses.
#[derive(Debug, Default)]
pub(crate) struct NodeAddresses {
    claims: BTreeMap<Address, NodeClaim>,
    /// Addresses that several nodes claim and that no device of this node has.
    contests: BTreeMap<IpAddr, Contest>,
    /// Claimed addresses that belong to a pod instead.
    lost: BTreeSet<Address>,
}

/// The outcome of the nodes' claims to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeClaim {
    /// Only this node claims it.
    Of(String),
    /// Several nodes claim it; this is one of them.
    Contested(String),
    /// No node claims it now; this node was the last to have it.
    Departed(String),
}

/// A node that claims an address.
struct Claimant<'a> {
    name: &'a str,
    origin: &'a str,
    /// Whether its object's status lists the address, rather than its devices alone.
    by_status: bool,
}

/// Nodes that claim one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contest {
    /// Their names, at most the first eight.
    pub nodes: Vec<String>,
    /// How many they are.
    pub count: usize,
}

impl Contest {
    fn of(claimants: &[Claimant<'_>]) -> Contest {
        let nodes = claimants.iter().take(NAMED).map(|claimant| claimant.name.to_owned()).collect();
        Contest { nodes, count: claimants.len() }
    }

    /// Their names, and the number of the others.
    pub fn nodes_in_words(&self) -> String {
        let named = self.nodes.join(" and ");
        match self.count.saturating_sub(self.nodes.len()) {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    }
}

impl Places {
    /// The claims of the nodes, without those to addresses and ranges that they cannot have.
    pub(crate) fn claimed(model: &Model, local: &LocalNode, events: &mut Collector) -> Places {
        let ranges = PodRanges::claimed(model, local, events);
        let nodes = NodeAddresses::claimed(model, local, &ranges, events);
        Places { ranges, nodes }
    }

    /// Whether a pod's claim to the address outweighs a node's: the address is in a pod range.
    pub(crate) fn are_pods(&self, local: &LocalNode, address: IpAddr) -> bool {
        local.settings.is_for_pods(address) || self.ranges.hold(address)
    }
}

impl NodeAddresses {
    fn claimed(model: &Model, local: &LocalNode, ranges: &PodRanges, events: &mut Collector) -> NodeAddresses {
        let mut claimants: BTreeMap<IpAddr, Vec<Claimant<'_>>> = BTreeMap::new();
        for node in model.nodes.values() {
            let object = &node.object;
            let mut claim = |address: IpAddr, by_status: bool| {
                let claimants = claimants.entry(address).or_default();
                match claimants.iter_mut().find(|other| other.name == object.name) {
                    Some(own) => own.by_status |= by_status,
                    None => claimants.push(Claimant { name: &object.name, origin: &object.origin, by_status }),
                }
            };
            let is_own = object.name == model.node();
            // This node's annotation is no claim: the node reads its own devices directly and
            // trusts them.
            let devices = if is_own { &local.addresses } else { &node.devices };
            let believed = |address: &IpAddr| is_own || can_be_a_devices(local, ranges, object, *address);
            devices.iter().filter(|address| believed(address)).for_each(|address| claim(*address, false));
            for given in &object.addresses {
                let address = given.address;
                match refusal(local, ranges, address) {
                    None => claim(address, true),
                    Some(_) if devices.contains(&address) && can_be_a_devices(local, ranges, object, address) => {}
                    // An external address outside the node ranges often belongs to an address
                    // translator.
                    Some(Refusal::OutsideNodeRanges) if !given.internal => {}
                    Some(refusal) => {
                        events.warn(reason::ADDRESS_REFUSED, [name(object)], || refused(object, address, &refusal));
                    }
                }
            }
        }
        let mut claims = BTreeMap::new();
        let mut contests = BTreeMap::new();
        for (address, claimants) in &claimants {
            let Some(first) = claimants.first() else { continue };
            let is_contested = claimants.len() > 1;
            if is_contested {
                let is_here = local.addresses.contains(address);
                tell_contest(*address, claimants, is_here, events);
                if !is_here {
                    contests.insert(*address, Contest::of(claimants));
                }
            }
            let first = first.name.to_owned();
            let claim = if is_contested { NodeClaim::Contested(first) } else { NodeClaim::Of(first) };
            claims.insert((*address).into(), claim);
        }
        // Addresses kept over a restart count as departed only after the model has synced, when no
        // object claims them.
        for (address, node) in model.departed.iter().filter(|_| model.synced()) {
            if refusal(local, ranges, address).is_none() && !local.addresses.contains(&address) {
                let vacant = claims.entry(address.into());
                if let Entry::Vacant(vacant) = vacant {
                    vacant.insert(NodeClaim::Departed(node.to_owned()));
                    tell_departure(address, node, events);
                }
            }
        }
        // This node's devices have their addresses before its object exists, and after it is gone.
        let here = local.addresses.iter().filter(|address| is_possible(**address));
        claims.extend(here.map(|address| ((*address).into(), NodeClaim::Of(model.node().to_owned()))));
        tell_unusable(model, local, ranges, events);
        NodeAddresses { claims, contests, lost: BTreeSet::new() }
    }

    /// Takes over the nodes' present claims. Returns the addresses whose claim has changed.
    pub(crate) fn replace(&mut self, now: NodeAddresses) -> BTreeSet<Address> {
        let before = std::mem::replace(&mut self.claims, now.claims);
        self.contests = now.contests;
        let other = |address: &Address| before.get(address) != self.claims.get(address);
        before.keys().chain(self.claims.keys()).copied().filter(other).collect()
    }

    /// Addresses that several nodes claim.
    pub(crate) fn contests(&self) -> &BTreeMap<IpAddr, Contest> {
        &self.contests
    }

    /// Every address that a node claims, lost or not.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.claims.keys().copied()
    }

    /// Which address belongs to which node's allowed IPs.
    pub(crate) fn owned(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.claims.iter().filter_map(|(address, claim)| match claim {
            NodeClaim::Of(node) if !self.lost.contains(address) => Some((IpAddr::from(*address), node.as_str())),
            _ => None,
        })
    }

    /// Addresses in the node's status to reach it at, internal ones first, each kind in its
    /// object's order. They include addresses that another node also claims: the tunnel proves who
    /// answers there, and a false claim must not cut a node off.
    pub(crate) fn reached_at(&self, node: &NodeObject) -> impl Iterator<Item = IpAddr> {
        let of_kind = |internal| node.addresses.iter().filter(move |address| address.internal == internal);
        of_kind(true).chain(of_kind(false)).map(|address| address.address).filter(|address| {
            let address = Address::from(*address);
            let may = match self.claims.get(&address) {
                Some(NodeClaim::Of(owner)) => *owner == node.name,
                Some(NodeClaim::Contested(_)) => true,
                Some(NodeClaim::Departed(_)) | None => false,
            };
            may && !self.lost.contains(&address)
        })
    }

    /// Records whether the address belongs to a pod rather than to the claiming node. Returns
    /// whether that has changed.
    pub(crate) fn note(&mut self, address: Address, lost: bool) -> bool {
        if lost { self.lost.insert(address) } else { self.lost.remove(&address) }
    }

    /// The outcome of the nodes' claims to the address.
    pub(crate) fn claim(&self, address: Address) -> Option<&NodeClaim> {
        self.claims.get(&address)
    }
}

impl NodeClaim {
    /// A node that claims the address.
    pub(crate) fn node(&self) -> &str {
        match self {
            NodeClaim::Of(node) | NodeClaim::Contested(node) | NodeClaim::Departed(node) => node,
        }
    }
}

/// Why no node can have an address.
enum Refusal {
    Reserved(&'static str),
    OutsideNodeRanges,
    InClusterRanges,
    InPodRange,
}

fn refusal(local: &LocalNode, ranges: &PodRanges, address: IpAddr) -> Option<Refusal> {
    if let Some(what) = reserved::address(address) {
        Some(Refusal::Reserved(what))
    } else if local.settings.is_for_pods(address) {
        Some(Refusal::InClusterRanges)
    } else if ranges.hold(address) {
        Some(Refusal::InPodRange)
    } else if !local.settings.is_for_nodes(address) {
        Some(Refusal::OutsideNodeRanges)
    } else {
        None
    }
}

/// A device may also have an address in its own node's pod range.
fn can_be_a_devices(local: &LocalNode, ranges: &PodRanges, node: &NodeObject, address: IpAddr) -> bool {
    let in_own_range = ranges.owner(address) == Some(&node.name);
    is_possible(address) && (in_own_range || refusal(local, ranges, address).is_none())
}

fn refused(node: &NodeObject, address: IpAddr, refusal: &Refusal) -> String {
    let (what, advice) = match refusal {
        Refusal::Reserved(what) => (*what, "correct status.addresses"),
        Refusal::OutsideNodeRanges => (
            "outside nodeRanges, so that packets to it count as the world's",
            "correct status.addresses, or add its range to nodeRanges on every node",
        ),
        Refusal::InClusterRanges => (
            "in clusterRanges, where pods are",
            "correct status.addresses, or name the part that holds nodes in nodeRanges on every node",
        ),
        Refusal::InPodRange => ("in a node's pod range, where pods are", "correct status.addresses or spec.podCIDRs"),
    };
    format!("Node {}{}: address {address} is refused: it is {what}; {advice}", node.name, read_from(&node.origin))
}

/// One event for each address, however many nodes claim it. It is no warning if only devices have
/// the address: for some addresses several nodes' devices normally do.
fn tell_contest(address: IpAddr, claimants: &[Claimant<'_>], is_here: bool, events: &mut Collector) {
    let warning = claimants.iter().any(|claimant| claimant.by_status);
    let reason = if warning { reason::ADDRESS_CONFLICT } else { reason::ADDRESS_SHARED };
    let objects = || claimants.iter().take(NAMED).map(|claimant| format!("Node/{}", claimant.name)).collect();
    events.add(warning, reason, objects, || {
        let named = claimants.iter().take(NAMED).map(|it| format!("Node {}{}", it.name, read_from(it.origin)));
        let mut named = named.collect::<Vec<_>>().join(" and ");
        if claimants.len() > NAMED {
            named.push_str(&format!(" and {} more", claimants.len() - NAMED));
        }
        let whose = if is_here {
            "a device here has it, so here it is this node's; elsewhere it is nobody's"
        } else {
            "it is nobody's: packets of protected pods to and from it are dropped"
        };
        if warning {
            format!("{named} claim {address}: {whose}; correct status.addresses, or take it off the other's device")
        } else {
            format!(
                "devices of {named} have {address}: {whose}; nothing needs to be done where that is meant, as for bridges \
                 of container engines"
            )
        }
    });
}

fn tell_departure(address: IpAddr, node: &str, events: &mut Collector) {
    events.add(false, reason::ADDRESS_DEPARTED, || vec![format!("Node/{node}")], || {
        format!(
            "Node {node} has {address} no longer: packets of protected pods to and from it are dropped for an hour, or until another \
             node has it"
        )
    });
}

/// Other nodes accept only some addresses as this node's; the event names the rest.
fn tell_unusable(model: &Model, local: &LocalNode, ranges: &PodRanges, events: &mut Collector) {
    let Some(own) = model.node_object(model.node()) else { return };
    let unusable = || local.addresses.iter().filter(|it| !can_be_a_devices(local, ranges, own, **it));
    if unusable().next().is_none() {
        return;
    }
    events.add(false, reason::ADDRESS_UNUSABLE, || vec![name(own)], || {
        let mut named = unusable().take(NAMED).map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        if unusable().count() > NAMED {
            named.push_str(&format!(" and {} more", unusable().count() - NAMED));
        }
        format!(
            "devices of Node {}{} have addresses that are outside nodeRanges or in pod ranges other than its own: {named}; \
             other nodes do not take them for its own and drop what comes from them to protected pods; nothing needs to be \
             done if no packet leaves this node with one, else widen nodeRanges on every node",
            own.name,
            read_from(&own.origin)
        )
    });
}

fn name(node: &NodeObject) -> String {
    format!("Node/{}", node.name)
}
