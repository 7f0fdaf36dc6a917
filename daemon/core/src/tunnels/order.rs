//! The order of changes to the tunnel's peers, the PEERS map and the routes into the tunnel.
//!
//! No key and no prefix is ever in two peers. One that moves is first removed from the old peer,
//! then added to the new one.

use std::collections::BTreeMap;

use hauberk_abi::layout::{self, peer_flag};
use ipnet::IpNet;

use crate::names::NodeNumber;
use crate::order::Order;
use crate::scope::Keys;
use crate::tunnels::{Peer, Scope, TunnelStep, Tunnels, apply};

/// Peers come before routes, and routes go after peers.
pub(crate) fn order(actual: &Tunnels, desired: &Tunnels, prune: bool, scope: &Scope) -> Order<TunnelStep> {
    let mut order = if scope.peers.is_empty() { Order::default() } else { peers(actual, desired, prune, &scope.peers) };
    if scope.routes {
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
fn peers(actual: &Tunnels, desired: &Tunnels, prune: bool, scope: &Keys<NodeNumber>) -> Order<TunnelStep> {
    let scope = if prune { scope } else { &Keys::All };
    let mut order = Order::default();
    let owners = Owners::of(desired, scope);
    let mut peers: BTreeMap<NodeNumber, Peer> =
        scope.of(&actual.peers).map(|(number, peer)| (*number, peer.clone())).collect();
    for (_, peer) in scope.of(&actual.peers) {
        if let Some(step) = give_up(peer, desired, prune, &owners) {
            apply(&mut peers, &step);
            order.stricter.push(step);
        }
    }
    for (number, peer) in scope.of(&desired.peers) {
        let put = if prune { peer.clone() } else { keep_allowed(peer, peers.get(number), &owners) };
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
    fn of(desired: &Tunnels, scope: &Keys<NodeNumber>) -> Owners {
        let peers = || scope.of(&desired.peers).map(|(_, peer)| peer);
        let prefixes = peers().flat_map(|peer| peer.allowed.iter().map(|prefix| (*prefix, peer.number)));
        let keys = peers().flat_map(|peer| peer.keys.iter().map(|key| (key.bytes, peer.number)));
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
fn give_up(peer: &Peer, desired: &Tunnels, prune: bool, owners: &Owners) -> Option<TunnelStep> {
    let mut rest = peer.clone();
    rest.allowed.retain(|prefix| !owners.is_anothers_prefix(prefix, peer.number));
    rest.keys.retain(|key| !owners.is_anothers_key(&key.bytes, peer.number));
    if rest == *peer {
        return None;
    }
    let goes = rest.keys.is_empty() || (prune && !desired.peers.contains_key(&peer.number));
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
fn entries(actual: &Tunnels, desired: &Tunnels, scope: &Keys<NodeNumber>, order: &mut Order<TunnelStep>) {
    for (number, entry) in scope.of(&desired.peer_entries) {
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
    let gone = scope.of(&actual.peer_entries).filter(|(number, _)| !desired.peer_entries.contains_key(number));
    order.weaker.extend(gone.map(|(number, _)| TunnelStep::RemovePeerEntry(*number)));
}
