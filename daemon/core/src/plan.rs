//! The steps from what the kernel and the tunnel hold to what they should hold.
//!
//! The order matters: first everything that denies more, then the pods' interfaces, then tunnels
//! and routes, then everything that denies less or is removed, and last the SYNCED flag, which says
//! that the node knows the whole cluster. A plan that stops at any step leaves every address judged
//! at least as strictly as before the plan or as after it; the next plan continues from there.
//! Until the sources have been read completely, the second half is left out.

mod identities;
mod peers;
mod scope;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::Identity;
use hauberk_abi::layout;
use ipnet::IpNet;

use crate::desired::{Desired, LocalPod, Peer, Route};
use crate::explain::{identity_in_words as in_words, prefix_in_words};
use crate::model::{AttachmentKey, NodeNumber};
use crate::plan::identities::Order;

pub use scope::Scope;

/// One operation of the reconciler. Each can fail and be repeated. Each leaves a state that is no
/// more open than the state before it or the state the plan leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// ENDPOINTS: this address has that identity.
    PutEndpoint(Address, Identity),
    /// ENDPOINTS: no party is known to have this address any more; its range decides.
    RemoveEndpoint(Address),
    /// RANGES: an address in this range that is no endpoint has that identity.
    PutRange(Prefix, Identity),
    /// RANGES: remove the range.
    RemoveRange(Prefix),
    /// A pod on this node: programs on its interface, ATTACHMENTS and INTERFACES entries, host
    /// routes, neighbours.
    PutAttachment(LocalPod),
    /// The pod's interface is gone: remove what `PutAttachment` made. A map entry or route that now
    /// belongs to another interface stays.
    RemoveAttachment(LocalPod),
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
    /// SETTINGS: whether every source has been read once.
    SetSynced(bool),
    /// Destinations that netfilter must not masquerade.
    SetUntranslated(BTreeSet<IpNet>),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::PutEndpoint(address, identity) => write!(f, "put endpoint {address}: {}", in_words(*identity)),
            Step::RemoveEndpoint(address) => write!(f, "remove endpoint {address}"),
            Step::PutRange(prefix, identity) => {
                write!(f, "put range {}: {}", prefix_in_words(*prefix), in_words(*identity))
            }
            Step::RemoveRange(prefix) => write!(f, "remove range {}", prefix_in_words(*prefix)),
            Step::PutAttachment(pod) => write!(f, "put interface {} ({})", pod.key(), pod.host_interface),
            Step::RemoveAttachment(pod) => write!(f, "remove interface {} ({})", pod.key(), pod.host_interface),
            Step::PutPeer(peer) => write!(f, "put peer {} (number {})", peer.name, peer.number),
            Step::RemovePeer(number) => write!(f, "remove peer number {number}"),
            Step::PutPeerEntry(number, entry) => {
                write!(f, "put peer entry {number}: flags {:#x}, epoch {}", entry.flags, entry.epoch)
            }
            Step::RemovePeerEntry(number) => write!(f, "remove peer entry {number}"),
            Step::PutRoute(route) => write!(f, "put route {} via {}", route.destination, route.via),
            Step::RemoveRoute(route) => write!(f, "remove route {} via {}", route.destination, route.via),
            Step::SetSynced(synced) => write!(f, "set synced to {synced}"),
            Step::SetUntranslated(untranslated) => write!(f, "exempt {} prefixes from translation", untranslated.len()),
        }
    }
}

/// What the kernel and the tunnel hold: as read back at start, with possible leftovers of an older
/// run, and as changed by every step since.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Actual {
    /// ENDPOINTS.
    pub endpoints: BTreeMap<Address, Identity>,
    /// RANGES.
    pub ranges: BTreeMap<Prefix, Identity>,
    /// Pods' interfaces. A leftover whose container is not known may have any unused key.
    pub attachments: BTreeMap<AttachmentKey, LocalPod>,
    /// The tunnel's peers.
    pub peers: BTreeMap<NodeNumber, Peer>,
    /// PEERS.
    pub peer_entries: BTreeMap<NodeNumber, layout::Peer>,
    /// Routes to other nodes' pod ranges that an agent made, by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// `flag::SYNCED` in SETTINGS.
    pub synced: bool,
    /// Destinations that netfilter does not masquerade.
    pub untranslated: BTreeSet<IpNet>,
}

/// The steps from `actual` to `desired`. If they are carried out in order, no step leaves an
/// address weaker than both before and after the plan. Once all are carried out, the next plan is
/// empty.
pub fn plan(actual: &Actual, desired: &Desired) -> Vec<Step> {
    plan_within(actual, desired, &Scope::everything())
}

/// The same steps, for callers who know that the two differ only within the scope.
pub fn plan_within(actual: &Actual, desired: &Desired, scope: &Scope) -> Vec<Step> {
    let identities = identities::order(actual, desired, scope);
    let peers = if scope.has_peers() { peers::order(actual, desired, scope) } else { Order::default() };
    let mut steps = identities.stricter;
    let untranslated = scope.is_everything() || scope.untranslated;
    if untranslated && !desired.untranslated.is_subset(&actual.untranslated) {
        steps.push(Step::SetUntranslated(actual.untranslated.union(&desired.untranslated).copied().collect()));
    }
    let attachments = scope.is_everything() || scope.attachments;
    if attachments {
        put_attachments(actual, desired, &mut steps);
    }
    steps.extend(peers.stricter);
    if scope.has_nodes() {
        let routes = desired.routes.values().filter(|route| actual.routes.get(&route.destination) != Some(route));
        steps.extend(routes.copied().map(Step::PutRoute));
    }
    if desired.prune {
        steps.extend(identities.weaker);
        if attachments {
            weaken_attachments(actual, desired, &mut steps);
        }
        steps.extend(peers.weaker);
        if scope.has_nodes() {
            let gone = actual.routes.values().filter(|route| !desired.routes.contains_key(&route.destination));
            steps.extend(gone.copied().map(Step::RemoveRoute));
        }
        if untranslated && !actual.untranslated.is_subset(&desired.untranslated) {
            steps.push(Step::SetUntranslated(desired.untranslated.clone()));
        }
        if !actual.synced {
            steps.push(Step::SetSynced(true));
        }
    }
    steps
}

/// Puts every interface in its desired state, but makes none less protected than it is. An old
/// interface that shares an address or the index with a new one is removed first, even before the
/// sources are read: a later removal would delete the new interface's entries.
fn put_attachments(actual: &Actual, desired: &Desired, steps: &mut Vec<Step>) {
    let mut puts = Vec::new();
    let mut addresses = BTreeSet::new();
    let mut interfaces = BTreeSet::new();
    for (key, pod) in &desired.attachments {
        let before = actual.attachments.get(key);
        let protection = before.map_or(pod.protection, |before| before.protection.max(pod.protection));
        let put = LocalPod { protection, ..pod.clone() };
        if before != Some(&put) {
            addresses.extend(put.addresses.iter().copied());
            interfaces.insert(put.host_index);
            puts.push(put);
        }
    }
    let replaced = |pod: &&LocalPod| {
        interfaces.contains(&pod.host_index) || pod.addresses.iter().any(|address| addresses.contains(address))
    };
    let leftovers = actual.attachments.values().filter(|pod| !desired.attachments.contains_key(&pod.key()));
    steps.extend(leftovers.filter(replaced).cloned().map(Step::RemoveAttachment));
    steps.extend(puts.into_iter().map(Step::PutAttachment));
}

fn weaken_attachments(actual: &Actual, desired: &Desired, steps: &mut Vec<Step>) {
    let already_removed: BTreeSet<AttachmentKey> = steps
        .iter()
        .filter_map(|step| match step {
            Step::RemoveAttachment(pod) => Some(pod.key()),
            _ => None,
        })
        .collect();
    for (key, before) in &actual.attachments {
        match desired.attachments.get(key) {
            Some(pod) if pod.protection < before.protection => steps.push(Step::PutAttachment(pod.clone())),
            None if !already_removed.contains(key) => steps.push(Step::RemoveAttachment(before.clone())),
            _ => {}
        }
    }
}

impl Actual {
    /// Records that a step has been carried out.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::PutEndpoint(address, identity) => {
                self.endpoints.insert(*address, *identity);
            }
            Step::RemoveEndpoint(address) => {
                self.endpoints.remove(address);
            }
            Step::PutRange(prefix, identity) => {
                self.ranges.insert(*prefix, *identity);
            }
            Step::RemoveRange(prefix) => {
                self.ranges.remove(prefix);
            }
            Step::PutAttachment(pod) => {
                self.attachments.insert(pod.key(), pod.clone());
            }
            Step::RemoveAttachment(pod) => {
                self.attachments.remove(&pod.key());
            }
            Step::PutPeer(peer) => {
                self.peers.insert(peer.number, peer.clone());
            }
            Step::RemovePeer(number) => {
                self.peers.remove(number);
            }
            Step::PutPeerEntry(number, entry) => {
                self.peer_entries.insert(*number, *entry);
            }
            Step::RemovePeerEntry(number) => {
                self.peer_entries.remove(number);
            }
            Step::PutRoute(route) => {
                self.routes.insert(route.destination, *route);
            }
            Step::RemoveRoute(route) => {
                self.routes.remove(&route.destination);
            }
            Step::SetSynced(synced) => self.synced = *synced,
            Step::SetUntranslated(untranslated) => self.untranslated.clone_from(untranslated),
        }
    }
}

#[cfg(test)]
mod tests;
