//! Which node owns which pod range, and the identity of an address in a range that no party is
//! known to have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::address::Prefix;
use hauberk_abi::identity::{Identity, Kind, Protection};
use ipnet::IpNet;

use crate::events::{Collector, reason};
use crate::local_node::LocalNode;
use crate::model::Model;
use crate::objects::NodeObject;
use crate::reserved;
use crate::words::read_from;

/// The nodes' pod ranges.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PodRanges {
    /// Each node's own, by node name. No two of different nodes overlap.
    owned: BTreeMap<String, BTreeSet<IpNet>>,
    /// The owner of each range.
    owners: BTreeMap<IpNet, String>,
    /// The prefix lengths that occur among them, as (is IPv4, length).
    lengths: BTreeSet<(bool, u8)>,
    /// Ranges that overlap another node's.
    contested: BTreeSet<IpNet>,
}

impl PodRanges {
    /// The ranges that nodes claim, without those they cannot have.
    ///
    /// A range that overlaps another node's belongs to neither, whichever claimed it first: a guess
    /// could give one node's traffic to another. Pods in it are still reached by their own
    /// addresses; only addresses without a Pod object are not.
    pub(crate) fn claimed(model: &Model, local: &LocalNode, events: &mut Collector) -> PodRanges {
        let mut claims: BTreeMap<IpNet, Vec<&NodeObject>> = BTreeMap::new();
        for node in model.nodes() {
            for range in node.pod_ranges.iter().map(IpNet::trunc) {
                if let Some(what) = reserved::range(range) {
                    events.warn(reason::RANGE_REFUSED, [object(node)], || refused(node, range, what));
                    continue;
                }
                if !local.settings.in_cluster(range) {
                    events.warn(reason::RANGE_OUTSIDE_CLUSTER, [object(node)], || outside_cluster(node, range));
                }
                let nodes = claims.entry(range).or_default();
                if !nodes.iter().any(|other| other.name == node.name) {
                    nodes.push(node);
                }
            }
        }
        let contested = contested(&claims, events);
        let mut ranges = PodRanges { contested, ..PodRanges::default() };
        for (range, nodes) in &claims {
            for node in nodes.iter().filter(|_| !ranges.contested.contains(range)) {
                ranges.owned.entry(node.name.clone()).or_default().insert(*range);
                ranges.owners.insert(*range, node.name.clone());
                ranges.lengths.insert((range.addr().is_ipv4(), range.prefix_len()));
            }
        }
        ranges
    }

    /// The node whose own range holds the address. There is at most one: ranges of two nodes do not
    /// overlap.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&str> {
        let of_family = self.lengths.iter().filter(|(is_ipv4, _)| *is_ipv4 == address.is_ipv4());
        let mut ranges = of_family.filter_map(|(_, length)| Some(IpNet::new(address, *length).ok()?.trunc()));
        ranges.find_map(|range| self.owners.get(&range)).map(String::as_str)
    }

    /// Whether it is a node's own range.
    pub(crate) fn is_owned(&self, range: &IpNet) -> bool {
        self.owners.contains_key(range)
    }

    /// Whether the address is in any node's range, contested or not.
    pub(crate) fn hold(&self, address: IpAddr) -> bool {
        self.owner(address).is_some() || self.contested.iter().any(|range| range.contains(&address))
    }

    /// The node's own ranges.
    pub(crate) fn of(&self, node: &str) -> impl Iterator<Item = IpNet> {
        self.owned.get(node).into_iter().flatten().copied()
    }

    /// Whether the address is in one of the node's own ranges.
    pub(crate) fn covers(&self, node: &str, address: IpAddr) -> bool {
        self.of(node).any(|range| range.contains(&address))
    }

    /// Every range, contested or not.
    pub(crate) fn all(&self) -> impl Iterator<Item = IpNet> {
        self.owned.values().flatten().chain(&self.contested).copied()
    }

    /// The content of the RANGES map.
    pub(crate) fn identities(&self, model: &Model, local: &LocalNode) -> BTreeMap<Prefix, Identity> {
        let unknown_node = Identity::new(Kind::UnknownNode, Protection::None, 0);
        let unknown_pod = |node: u32| Identity::new(Kind::UnknownPod, Protection::Enabled, node);
        let mut identities = BTreeMap::new();
        // If two of these are the same prefix, the later one counts: pods before nodes, owned
        // before unowned.
        identities.extend(local.settings.node_ranges.iter().map(|range| (prefix(*range), unknown_node)));
        identities.extend(local.settings.cluster_ranges.iter().map(|range| (prefix(*range), unknown_pod(0))));
        identities.extend(self.contested.iter().map(|range| (prefix(*range), unknown_pod(0))));
        for (node, ranges) in &self.owned {
            let number = model.node_number(node).unwrap_or_default();
            identities.extend(ranges.iter().map(|range| (prefix(*range), unknown_pod(number.0))));
        }
        identities
    }
}

/// The ranges that overlap another node's. Two prefixes are either nested or disjoint, and sorted
/// order puts the outer one first.
fn contested(claims: &BTreeMap<IpNet, Vec<&NodeObject>>, events: &mut Collector) -> BTreeSet<IpNet> {
    let mut contested = BTreeSet::new();
    let mut enclosing: Vec<(&IpNet, &Vec<&NodeObject>)> = Vec::new();
    for (range, nodes) in claims {
        while enclosing.last().is_some_and(|(outer, _)| !outer.contains(range)) {
            enclosing.pop();
        }
        enclosing.push((range, nodes));
        for (outer, others) in &enclosing {
            for node in nodes {
                if let Some(other) = others.iter().find(|other| other.name != node.name) {
                    contested.extend([**outer, *range]);
                    // Within one prefix, each pair comes up from both sides: report it once.
                    if *outer != range || other.name < node.name {
                        let objects = [object(other), object(node)];
                        events.warn(reason::RANGE_OVERLAP, objects, || overlap(other, outer, node, range));
                    }
                }
            }
        }
    }
    contested
}

fn prefix(range: IpNet) -> Prefix {
    Prefix::new(range.network(), range.prefix_len())
}

fn object(node: &NodeObject) -> String {
    format!("Node/{}", node.name)
}

fn refused(node: &NodeObject, range: IpNet, what: &str) -> String {
    format!(
        "Node {}{}: pod range {range} is refused: it holds addresses that are {what} and no pod's; correct spec.podCIDRs",
        node.name,
        read_from(&node.origin)
    )
}

fn outside_cluster(node: &NodeObject, range: IpNet) -> String {
    format!(
        "Node {}{}: pod range {range} is outside clusterRanges: its pods are protected only from when the Node object is \
         read; add the range to clusterRanges on every node",
        node.name,
        read_from(&node.origin)
    )
}

fn overlap(one: &NodeObject, one_range: &IpNet, other: &NodeObject, other_range: &IpNet) -> String {
    format!(
        "Node {}{} has pod range {one_range} and Node {}{} has {other_range}, which overlap: neither is used, packets to \
         addresses in there go only to pods whose objects are known; correct spec.podCIDRs of one",
        one.name,
        read_from(&one.origin),
        other.name,
        read_from(&other.origin)
    )
}
