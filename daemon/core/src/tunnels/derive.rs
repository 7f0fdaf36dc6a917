//! The other nodes' tunnels: keys, endpoints and allowed IPs; and the routes to their pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use hauberk_abi::layout::{self, peer_flag};
use hauberk_keyring::PublicKey;
use ipnet::IpNet;

use crate::annotations::addresses::is_possible;
use crate::events::{Collector, reason};
use crate::identities::addresses::{NodeAddresses, NodeClaim, Places};
use crate::identities::ranges::PodRanges;
use crate::local_node::LocalNode;
use crate::model::{Held, Model};
use crate::names::NodeNumber;
use crate::objects::NodeObject;
use crate::tunnels::{Peer, Route, Tunnels};
use crate::words::read_from;

impl Tunnels {
    /// Derived from the nodes' objects and the outcome of their claims.
    pub(crate) fn derive(
        model: &Model,
        local: &LocalNode,
        places: &Places,
        speakers: &Speakers,
        events: &mut Collector,
    ) -> Tunnels {
        let Places { ranges, nodes } = places;
        let holders = Holders::collect(model);
        let mut allowed = speakers.by_node();
        let own = model.nodes.get(model.node()).and_then(|node| nodes.reached_at(&node.object).next());
        let families = Families::of_own_node(model, local);
        let mut tunnels = Tunnels::default();
        for (name, node) in model.nodes.iter().filter(|(name, _)| *name != model.node()) {
            let number = model.node_number(name).unwrap_or_default();
            if !local.settings.chained {
                tunnels.route(local, &families, &node.object, ranges, nodes, events);
            }
            let Some(held) = &node.held else { continue };
            let keys = holders.usable(local, &node.object, held, events);
            let Some(epoch) = keys.first().map(|key| key.epoch) else { continue };
            let endpoint = endpoint(local, &node.object, own, places, held.published.port);
            let fallbacks = endpoint.map(|endpoint| fallbacks(&node.object, places, endpoint)).unwrap_or_default();
            if endpoint.is_none() {
                events.warn(reason::NO_ENDPOINT, [object(&node.object)], || no_endpoint(&node.object));
            }
            let entry = layout::Peer { flags: flags(endpoint.is_some(), model.ready.contains(name)), epoch };
            let allowed = allowed.remove(&number).unwrap_or_default();
            tunnels.peer_entries.insert(number, entry);
            tunnels.peers.insert(number, Peer { number, name: name.clone(), keys, endpoint, fallbacks, allowed });
        }
        // Also where this single address is some node's whole range: the route leads to the node
        // that the pod is on.
        for (prefix, node) in &speakers.pods {
            match node.and_then(|node| route_to_pod(model, local, nodes, prefix.addr(), node)) {
                Some(route) => tunnels.routes.insert(*prefix, route),
                None => tunnels.routes.remove(prefix),
            };
        }
        tunnels
    }

    /// Adds routes to the node's pod ranges, by its address of the same family.
    fn route(
        &mut self,
        local: &LocalNode,
        families: &Families,
        node: &NodeObject,
        ranges: &PodRanges,
        nodes: &NodeAddresses,
        events: &mut Collector,
    ) {
        for destination in ranges.of(&node.name).filter(|range| families.has(range.addr())) {
            // An address inside the range would itself be reached by the route.
            let usable = |via: &IpAddr| same_family(*via, destination.addr()) && !destination.contains(via);
            match way(local, nodes, node, usable) {
                Some(via) => {
                    self.routes.insert(destination, Route { destination, via, mtu: local.route_mtu });
                }
                None => events.warn(reason::NO_ROUTE, [object(node)], || no_route(node, destination)),
            }
        }
    }
}

/// The address families that this node has. A node with one family needs no route to the other
/// family's pods.
struct Families {
    ipv4: bool,
    ipv6: bool,
}

impl Families {
    /// The families of its object and its devices; both while its object does not exist.
    fn of_own_node(model: &Model, local: &LocalNode) -> Families {
        let Some(own) = model.node_object(model.node()) else { return Families { ipv4: true, ipv6: true } };
        let ranges = own.pod_ranges.iter().map(IpNet::addr);
        let addresses = own.addresses.iter().map(|address| address.address);
        let devices = local.addresses.iter().copied().filter(|address| is_possible(*address));
        let (ipv4, ipv6): (Vec<IpAddr>, Vec<IpAddr>) =
            ranges.chain(addresses).chain(devices).partition(IpAddr::is_ipv4);
        Families { ipv4: !ipv4.is_empty(), ipv6: !ipv6.is_empty() }
    }

    fn has(&self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }
}

/// The route to a pod outside its node's ranges, for example a pod that kept its address when the
/// range changed. There is none outside `clusterRanges`: a Pod object must not redirect the world's
/// traffic to its node.
pub(crate) fn route_to_pod(
    model: &Model,
    local: &LocalNode,
    nodes: &NodeAddresses,
    pod: IpAddr,
    node: NodeNumber,
) -> Option<Route> {
    let node = model.node_name(node).filter(|name| *name != model.node()).and_then(|name| model.node_object(name))?;
    if local.settings.chained || !local.settings.is_for_pods(pod) {
        return None;
    }
    let via = way(local, nodes, node, |via| same_family(*via, pod))?;
    Some(Route { destination: pod.into(), via, mtu: local.route_mtu })
}

/// Which nodes publish which key, and since when.
struct Holders<'a>(HashMap<[u8; 32], Vec<Holder<'a>>>);

struct Holder<'a> {
    node: &'a NodeObject,
    arrival: u64,
}

impl<'a> Holders<'a> {
    fn collect(model: &'a Model) -> Holders<'a> {
        let mut holders: HashMap<[u8; 32], Vec<Holder<'a>>> = HashMap::new();
        // This node's own object is no claim: its keys are known locally.
        for (name, node) in model.nodes.iter().filter(|(name, _)| *name != model.node()) {
            for (key, arrival) in node.held.iter().flat_map(|held| &held.arrival) {
                debug_assert_eq!(*name, node.object.name);
                holders.entry(*key).or_default().push(Holder { node: &node.object, arrival: *arrival });
            }
        }
        Holders(holders)
    }

    /// The node's usable keys, newest first. Left out are this node's own keys, and keys that
    /// another node had before or came with at the same time.
    fn usable(&self, local: &LocalNode, node: &NodeObject, held: &Held, events: &mut Collector) -> Vec<PublicKey> {
        let mut usable = Vec::new();
        for key in &held.published.keys {
            if local.keys.contains(&key.bytes) {
                let objects = [object(node), format!("Node/{}", local.name)];
                events.warn(reason::KEY_REFUSED, objects, || own_key(local, node, key.epoch));
            } else if let Some(other) = self.earlier_or_equal(node, &key.bytes) {
                let objects = [object(node), object(other.node)];
                events.warn(reason::KEY_REFUSED, objects, || taken_key(node, key.epoch, other, held, &key.bytes));
            } else {
                usable.push(*key);
            }
        }
        usable
    }

    /// Another node that had the key before this one, or came with it at the same time, when
    /// neither can be believed.
    fn earlier_or_equal(&self, node: &NodeObject, key: &[u8; 32]) -> Option<&Holder<'a>> {
        let holders = self.0.get(key)?;
        let own = holders.iter().find(|holder| holder.node.name == node.name)?;
        holders
            .iter()
            .filter(|holder| holder.node.name != node.name && holder.arrival <= own.arrival)
            .min_by_key(|holder| holder.arrival)
    }
}

/// Which prefix is in which node's allowed IPs. Unique by construction: a prefix occurs once in
/// each map, and the more certain source, a pod's own object, comes first.
#[derive(Debug, Default)]
pub(crate) struct Speakers {
    /// The nodes' own ranges and addresses.
    nodes: BTreeMap<IpNet, NodeNumber>,
    /// Pods' addresses outside their node's ranges. A pod without a node is in no peer's allowed
    /// IPs, even if its address alone is some node's whole range.
    pods: BTreeMap<IpNet, Option<NodeNumber>>,
}

impl Speakers {
    /// Replaces the ranges and addresses of the nodes.
    pub(crate) fn set_nodes(&mut self, model: &Model, places: &Places) {
        self.nodes.clear();
        for node in model.nodes() {
            let number = model.node_number(&node.name).unwrap_or_default();
            self.nodes.extend(places.ranges.of(&node.name).map(|range| (range, number)));
        }
        let number = |node| model.node_number(node).unwrap_or_default();
        self.nodes.extend(places.nodes.owned().map(|(address, node)| (IpNet::from(address), number(node))));
    }

    /// Sets or removes a pod's address. Returns the previous and the present node for it, if they
    /// differ.
    pub(crate) fn set_pod(
        &mut self,
        address: IpAddr,
        outside: Option<Option<NodeNumber>>,
    ) -> Option<[Option<NodeNumber>; 2]> {
        let prefix = IpNet::from(address);
        let before = self.of(&prefix);
        match outside {
            Some(node) => self.pods.insert(prefix, node),
            None => self.pods.remove(&prefix),
        };
        let now = self.of(&prefix);
        (before != now).then_some([before, now])
    }

    fn of(&self, prefix: &IpNet) -> Option<NodeNumber> {
        self.pods.get(prefix).copied().unwrap_or_else(|| self.nodes.get(prefix).copied())
    }

    fn by_node(&self) -> HashMap<NodeNumber, BTreeSet<IpNet>> {
        let mut allowed: HashMap<NodeNumber, BTreeSet<IpNet>> = HashMap::new();
        let nodes = self.nodes.iter().filter(|(prefix, _)| !self.pods.contains_key(prefix));
        let pods = self.pods.iter().filter_map(|(prefix, node)| Some((prefix, node.as_ref()?)));
        for (prefix, node) in nodes.chain(pods) {
            allowed.entry(*node).or_default().insert(*prefix);
        }
        allowed
    }
}

/// Where the node's tunnel listens: preferably an address of the family of this node's own first
/// address. The last choice is an external address outside `nodeRanges`: an address translator may
/// have it, and the handshake proves who is behind it.
fn endpoint(
    local: &LocalNode,
    node: &NodeObject,
    own: Option<IpAddr>,
    places: &Places,
    port: u16,
) -> Option<SocketAddr> {
    let internal = |address: &IpAddr| node.addresses.iter().any(|other| other.internal && other.address == *address);
    let other_family = |address: &IpAddr| own.is_some_and(|own| !same_family(own, *address));
    let best = places.nodes.reached_at(node).min_by_key(|address| (!internal(address), other_family(address)));
    let outside = |address: &IpAddr| {
        is_possible(*address) && !places.are_pods(local, *address) && places.nodes.claim((*address).into()).is_none()
    };
    let external = || {
        let external = node.addresses.iter().filter(|address| !address.internal).map(|address| address.address);
        external.filter(outside).min_by_key(other_family)
    };
    best.or_else(external).map(|address| SocketAddr::new(address, port))
}

/// The node's other addresses, those of the other family first: a firewall or a router may carry
/// only one family.
fn fallbacks(node: &NodeObject, places: &Places, endpoint: SocketAddr) -> Vec<SocketAddr> {
    let mut others: Vec<IpAddr> = places.nodes.reached_at(node).filter(|address| *address != endpoint.ip()).collect();
    others.sort_by_key(|address| same_family(*address, endpoint.ip()));
    others.into_iter().map(|address| SocketAddr::new(address, endpoint.port())).collect()
}

/// The node's address that routes go via: the first one that `may` accepts. If that one does not
/// answer, it is the address at which the tunnel hears the node, if it is the node's own, else
/// another address of its status.
fn way(local: &LocalNode, nodes: &NodeAddresses, node: &NodeObject, may: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let first = nodes.reached_at(node).find(&may)?;
    let Some(heard) = local.detours.get(&first) else { return Some(first) };
    let is_own =
        |address: IpAddr| matches!(nodes.claim(address.into()), Some(NodeClaim::Of(owner)) if *owner == node.name);
    if may(heard) && is_own(*heard) {
        return Some(*heard);
    }
    let other = nodes.reached_at(node).find(|other| may(other) && !local.detours.contains_key(other));
    Some(other.unwrap_or(first))
}

pub(crate) fn flags(reachable: bool, ready: bool) -> u32 {
    match (reachable, ready) {
        (false, _) => 0,
        (true, false) => peer_flag::KEY,
        (true, true) => peer_flag::KEY | peer_flag::READY,
    }
}

fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

fn object(node: &NodeObject) -> String {
    format!("Node/{}", node.name)
}

fn own_key(local: &LocalNode, node: &NodeObject, epoch: u32) -> String {
    format!(
        "Node {}{}: its key of epoch {epoch} is refused: it is this node's ({}) own; its state directory may be a copy of \
         this node's - give it one of its own",
        node.name,
        read_from(&node.origin),
        local.name
    )
}

fn taken_key(node: &NodeObject, epoch: u32, other: &Holder<'_>, held: &Held, key: &[u8; 32]) -> String {
    let together = held.arrival.get(key) == Some(&other.arrival);
    let consequence = if together {
        "nobody can tell whose it is, so it is refused for both"
    } else {
        "that node had it first and keeps it"
    };
    format!(
        "Node {}{}: its key of epoch {epoch} is refused: Node {}{} publishes the same, {consequence}; one's state \
         directory may be a copy of the other's - give it one of its own",
        node.name,
        read_from(&node.origin),
        other.node.name,
        read_from(&other.node.origin)
    )
}

fn no_endpoint(node: &NodeObject) -> String {
    format!(
        "Node {}{} has keys but no address of its own: no tunnel can reach it, what must be encrypted to it is dropped; \
         complete status.addresses",
        node.name,
        read_from(&node.origin)
    )
}

fn no_route(node: &NodeObject, range: IpNet) -> String {
    format!(
        "Node {}{} has pod range {range}, but no address of that family outside the range: there is no route to its pods; \
         complete status.addresses",
        node.name,
        read_from(&node.origin)
    )
}
