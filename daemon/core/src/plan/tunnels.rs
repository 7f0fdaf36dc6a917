//! The order of changes to the tunnel's peers, the PEERS map and the routes into the tunnel.
//!
//! No key and no prefix is ever in two peers. One that moves is first removed from the old peer,
//! then added to the new one.

use std::collections::BTreeMap;
use std::fmt;

use hauberk_abi::layout::{self, peer_flag};
use ipnet::IpNet;

use crate::desired::{Desired, Peer, Route};
use crate::names::NodeNumber;
use crate::plan::{Order, Scope};

/// A change of the tunnel, or of the routes into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelStep {
    /// The tunnel has exactly this state of the peer. Consecutive steps may be carried out as one
    /// batch, so that a prefix that moves from one peer to another always has an owner.
    PutPeer(Peer),
    /// The tunnel no longer has the peer.
    RemovePeer(NodeNumber),
    /// PEERS: what the datapath may expect of the tunnel.
    PutPeerEntry(NodeNumber, layout::Peer),
    /// PEERS: packets for this node are dropped.
    RemovePeerEntry(NodeNumber),
    /// The main routing table: add the route, or replace the one to the same destination.
    PutRoute(Route),
    /// The main routing table: remove the route.
    RemoveRoute(Route),
}

impl TunnelStep {
    pub(super) fn object(&self) -> String {
        match self {
            TunnelStep::PutPeer(peer) => format!("node/{}", peer.name),
            TunnelStep::RemovePeer(number)
            | TunnelStep::PutPeerEntry(number, _)
            | TunnelStep::RemovePeerEntry(number) => format!("node number/{}", number.0),
            TunnelStep::PutRoute(route) | TunnelStep::RemoveRoute(route) => format!("route/{}", route.destination),
        }
    }

    /// Whether the step changes the tunnel's peers.
    pub(super) fn is_peers(&self) -> bool {
        matches!(self, TunnelStep::PutPeer(_) | TunnelStep::RemovePeer(_))
    }
}

impl fmt::Display for TunnelStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TunnelStep::PutPeer(peer) => write!(f, "put peer {} (number {})", peer.name, peer.number),
            TunnelStep::RemovePeer(number) => write!(f, "remove peer number {number}"),
            TunnelStep::PutPeerEntry(number, entry) => {
                write!(f, "put peer entry {number}: flags {:#x}, epoch {}", entry.flags, entry.epoch)
            }
            TunnelStep::RemovePeerEntry(number) => write!(f, "remove peer entry {number}"),
            TunnelStep::PutRoute(route) => write!(f, "put route {} via {}", route.destination, route.via),
            TunnelStep::RemoveRoute(route) => write!(f, "remove route {} via {}", route.destination, route.via),
        }
    }
}

/// What the kernel and the tunnel hold about other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tunnels {
    /// The tunnel's peers.
    pub peers: BTreeMap<NodeNumber, Peer>,
    /// PEERS.
    pub peer_entries: BTreeMap<NodeNumber, layout::Peer>,
    /// Routes to other nodes' pod ranges that an agent made, by destination.
    pub routes: BTreeMap<IpNet, Route>,
}

impl Tunnels {
    pub(super) fn apply(&mut self, step: &TunnelStep) {
        match step {
            TunnelStep::PutPeer(_) | TunnelStep::RemovePeer(_) => apply(&mut self.peers, step),
            TunnelStep::PutPeerEntry(number, entry) => {
                self.peer_entries.insert(*number, *entry);
            }
            TunnelStep::RemovePeerEntry(number) => {
                self.peer_entries.remove(number);
            }
            TunnelStep::PutRoute(route) => {
                self.routes.insert(route.destination, *route);
            }
            TunnelStep::RemoveRoute(route) => {
                self.routes.remove(&route.destination);
            }
        }
    }
}

/// Peers come before routes, and routes go after peers.
pub(super) fn order(actual: &Tunnels, desired: &Desired, scope: &Scope) -> Order<TunnelStep> {
    let mut order = if scope.has_peers() { peers(actual, desired, scope) } else { Order::default() };
    if scope.has_nodes() {
        let routes = desired.routes.values().filter(|route| actual.routes.get(&route.destination) != Some(route));
        order.stricter.extend(routes.copied().map(TunnelStep::PutRoute));
        let gone = actual.routes.values().filter(|route| !desired.routes.contains_key(&route.destination));
        order.weaker.extend(gone.copied().map(TunnelStep::RemoveRoute));
    }
    order
}

/// The steps from one set of peers to the other. A peer out of scope is as desired, so it has
/// nothing that belongs to another. But before every source has been read, the plan keeps peers
/// that are not desired, and any of them may have something that another peer should get.
fn peers(actual: &Tunnels, desired: &Desired, scope: &Scope) -> Order<TunnelStep> {
    let all = Scope::all_nodes();
    let scope = if desired.prune { scope } else { &all };
    let mut order = Order::default();
    let owners = Owners::of(desired, scope);
    let mut peers: BTreeMap<NodeNumber, Peer> =
        scope.peers_of(&actual.peers).map(|(number, peer)| (*number, peer.clone())).collect();
    for (_, peer) in scope.peers_of(&actual.peers) {
        if let Some(step) = give_up(peer, desired, &owners) {
            apply(&mut peers, &step);
            order.stricter.push(step);
        }
    }
    for (number, peer) in scope.peers_of(&desired.peers) {
        let put = if desired.prune { peer.clone() } else { keep_allowed(peer, peers.get(number), &owners) };
        if peers.get(number) != Some(&put) {
            order.stricter.push(TunnelStep::PutPeer(put));
        }
    }
    entries(actual, desired, scope, &mut order);
    let gone = peers.keys().filter(|number| !desired.peers.contains_key(number));
    order.weaker.extend(gone.copied().map(TunnelStep::RemovePeer));
    order
}

/// The desired owner of each key and prefix.
struct Owners {
    prefixes: BTreeMap<IpNet, NodeNumber>,
    keys: BTreeMap<[u8; 32], NodeNumber>,
}

impl Owners {
    fn of(desired: &Desired, scope: &Scope) -> Owners {
        let peers = || scope.peers_of(&desired.peers).map(|(_, peer)| peer);
        let prefixes = peers().flat_map(|peer| peer.allowed.iter().map(|prefix| (*prefix, peer.number)));
        let keys = peers().flat_map(|peer| peer.keys.iter().map(|(_, key)| (*key, peer.number)));
        Owners { prefixes: prefixes.collect(), keys: keys.collect() }
    }

    fn is_anothers_prefix(&self, prefix: &IpNet, number: NodeNumber) -> bool {
        self.prefixes.get(prefix).is_some_and(|owner| *owner != number)
    }

    fn is_anothers_key(&self, key: &[u8; 32], number: NodeNumber) -> bool {
        self.keys.get(key).is_some_and(|owner| *owner != number)
    }
}

/// The step that removes from a peer what another peer should have, if there is any.
fn give_up(peer: &Peer, desired: &Desired, owners: &Owners) -> Option<TunnelStep> {
    let mut rest = peer.clone();
    rest.allowed.retain(|prefix| !owners.is_anothers_prefix(prefix, peer.number));
    rest.keys.retain(|(_, key)| !owners.is_anothers_key(key, peer.number));
    if rest == *peer {
        return None;
    }
    let goes = rest.keys.is_empty() || (desired.prune && !desired.peers.contains_key(&peer.number));
    Some(if goes { TunnelStep::RemovePeer(peer.number) } else { TunnelStep::PutPeer(rest) })
}

/// The peer with its desired prefixes and those it already has that no other peer should get: while
/// the source is being read, the object that gives them to it may still come.
fn keep_allowed(peer: &Peer, before: Option<&Peer>, owners: &Owners) -> Peer {
    let mut kept = peer.clone();
    let allowed = before.into_iter().flat_map(|before| &before.allowed);
    kept.allowed.extend(allowed.filter(|prefix| !owners.is_anothers_prefix(prefix, peer.number)));
    kept
}

/// Removing a flag lets permissive traffic out in the clear, so it comes late. A new flag waits
/// until the peer is put.
fn entries(actual: &Tunnels, desired: &Desired, scope: &Scope, order: &mut Order<TunnelStep>) {
    for (number, entry) in scope.peers_of(&desired.peer_entries) {
        let before = actual.peer_entries.get(number);
        let kept = before.map_or(0, |before| before.flags & (peer_flag::KEY | peer_flag::READY));
        let first = layout::Peer { flags: entry.flags | kept, ..*entry };
        if before != Some(&first) {
            order.stricter.push(TunnelStep::PutPeerEntry(*number, first));
        }
        if first != *entry {
            order.weaker.push(TunnelStep::PutPeerEntry(*number, *entry));
        }
    }
    let gone = scope.peers_of(&actual.peer_entries).filter(|(number, _)| !desired.peer_entries.contains_key(number));
    order.weaker.extend(gone.map(|(number, _)| TunnelStep::RemovePeerEntry(*number)));
}

fn apply(peers: &mut BTreeMap<NodeNumber, Peer>, step: &TunnelStep) {
    match step {
        TunnelStep::PutPeer(peer) => {
            peers.insert(peer.number, peer.clone());
        }
        TunnelStep::RemovePeer(number) => {
            peers.remove(number);
        }
        _ => {}
    }
}
