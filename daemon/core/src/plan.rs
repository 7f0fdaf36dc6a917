//! The steps from what the kernel and the tunnel hold to what they should.

use std::collections::{BTreeMap, BTreeSet};

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::Identity;
use hauberk_abi::layout;
use ipnet::IpNet;

use crate::desired::{Desired, LocalPod, Peer, Route};
use crate::model::{AttachmentKey, NodeNumber};

/// One operation of the reconciler. Each can fail and be repeated; each leaves a state that is no more open than the one
/// before or the one the plan leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// ENDPOINTS: this address is that party.
    PutEndpoint(Address, Identity),
    /// ENDPOINTS: nothing is known of this address any more; its range decides.
    RemoveEndpoint(Address),
    /// RANGES: an address in here that is no endpoint is that.
    PutRange(Prefix, Identity),
    /// RANGES: forget the range.
    RemoveRange(Prefix),
    /// A pod on this node: programs on its interface, ATTACHMENTS and INTERFACES entries, host routes, neighbours.
    PutAttachment(LocalPod),
    /// The pod's interface is no more: take away what `PutAttachment` made. A map entry or route that by now belongs to
    /// another interface stays.
    RemoveAttachment(LocalPod),
    /// The tunnel has this peer, and no other state of it. A key or an allowed prefix that another peer still holds
    /// moves here.
    PutPeer(Peer),
    /// The tunnel no longer has the peer.
    RemovePeer(NodeNumber),
    /// PEERS: what the datapath may expect of the tunnel.
    PutPeerEntry(NodeNumber, layout::Peer),
    /// PEERS: packets for this node are dropped.
    RemovePeerEntry(NodeNumber),
    /// The main routing table: replaces a route to the same destination.
    PutRoute(Route),
    /// The main routing table: away with it.
    RemoveRoute(Route),
    /// SETTINGS: whether every source has been read once.
    SetSynced(bool),
    /// Destinations netfilter must not masquerade.
    SetUntranslated(BTreeSet<IpNet>),
}

/// What the kernel and the tunnel hold, as read back at start (it may hold leftovers of an older run) and as changed by
/// every step since.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Actual {
    /// ENDPOINTS.
    pub endpoints: BTreeMap<Address, Identity>,
    /// RANGES.
    pub ranges: BTreeMap<Prefix, Identity>,
    /// Pods' interfaces. A leftover whose container is not known may go under any unused name.
    pub attachments: BTreeMap<AttachmentKey, LocalPod>,
    /// The tunnel's peers.
    pub peers: BTreeMap<NodeNumber, Peer>,
    /// PEERS.
    pub peer_entries: BTreeMap<NodeNumber, layout::Peer>,
    /// Routes to other nodes' pod ranges that an agent made, by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// `flag::SYNCED` in SETTINGS.
    pub synced: bool,
    /// Destinations netfilter does not masquerade.
    pub untranslated: BTreeSet<IpNet>,
}

/// The steps from `actual` to `desired`. Carried out in order, none leaves an address weaker than both before and after.
pub fn plan(actual: &Actual, desired: &Desired) -> Vec<Step> {
    let _ = (actual, desired);
    Vec::new()
}

impl Actual {
    /// Takes note that a step has been carried out.
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
                for other in self.peers.values_mut().filter(|other| other.number != peer.number) {
                    other.allowed.retain(|prefix| !peer.allowed.contains(prefix));
                    other.keys.retain(|(_, key)| !peer.keys.iter().any(|(_, moved)| moved == key));
                }
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
