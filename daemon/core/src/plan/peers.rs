//! The order of changes to the tunnel's peers and the PEERS map.
//!
//! No key and no prefix is ever in two peers. One that moves is first removed from the old peer,
//! then added to the new one.

use std::collections::BTreeMap;

use hauberk_abi::layout::{self, peer_flag};
use ipnet::IpNet;

use crate::desired::{Desired, Peer};
use crate::model::NodeNumber;
use crate::plan::identities::Order;
use crate::plan::{Actual, Scope, Step};

/// The steps from one set of peers to the other. A peer out of scope is as desired, so it has
/// nothing that belongs to another. But before every source has been read, the plan keeps peers
/// that are not desired, and any of them may have something that another peer should get.
pub(super) fn order(actual: &Actual, desired: &Desired, scope: &Scope) -> Order {
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
            order.stricter.push(Step::PutPeer(put));
        }
    }
    entries(actual, desired, scope, &mut order);
    let gone = peers.keys().filter(|number| !desired.peers.contains_key(number));
    order.weaker.extend(gone.copied().map(Step::RemovePeer));
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
fn give_up(peer: &Peer, desired: &Desired, owners: &Owners) -> Option<Step> {
    let mut rest = peer.clone();
    rest.allowed.retain(|prefix| !owners.is_anothers_prefix(prefix, peer.number));
    rest.keys.retain(|(_, key)| !owners.is_anothers_key(key, peer.number));
    if rest == *peer {
        return None;
    }
    let goes = rest.keys.is_empty() || (desired.prune && !desired.peers.contains_key(&peer.number));
    Some(if goes { Step::RemovePeer(peer.number) } else { Step::PutPeer(rest) })
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
fn entries(actual: &Actual, desired: &Desired, scope: &Scope, order: &mut Order) {
    for (number, entry) in scope.peers_of(&desired.peer_entries) {
        let before = actual.peer_entries.get(number);
        let kept = before.map_or(0, |before| before.flags & (peer_flag::KEY | peer_flag::READY));
        let first = layout::Peer { flags: entry.flags | kept, ..*entry };
        if before != Some(&first) {
            order.stricter.push(Step::PutPeerEntry(*number, first));
        }
        if first != *entry {
            order.weaker.push(Step::PutPeerEntry(*number, *entry));
        }
    }
    let gone = scope.peers_of(&actual.peer_entries).filter(|(number, _)| !desired.peer_entries.contains_key(number));
    order.weaker.extend(gone.map(|(number, _)| Step::RemovePeerEntry(*number)));
}

fn apply(peers: &mut BTreeMap<NodeNumber, Peer>, step: &Step) {
    match step {
        Step::PutPeer(peer) => {
            peers.insert(peer.number, peer.clone());
        }
        Step::RemovePeer(number) => {
            peers.remove(number);
        }
        _ => {}
    }
}
