//! The tunnel to other nodes: its peers, PEERS, and the routes into it.

pub(crate) mod derive;
mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hauberk_abi::layout;
use hauberk_keyring::PublicKey;
use ipnet::IpNet;

use crate::names::NodeNumber;
use crate::scope::Keys;

pub(crate) use order::order;

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
    pub(crate) fn apply(&mut self, step: &TunnelStep) {
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

/// Another node's tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's number.
    pub number: NodeNumber,
    /// The node's name.
    pub name: String,
    /// Its public keys with their epochs, newest first: one or two.
    pub keys: Vec<PublicKey>,
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
    pub(crate) fn object(&self) -> String {
        match self {
            TunnelStep::PutPeer(peer) => format!("node/{}", peer.name),
            TunnelStep::RemovePeer(number)
            | TunnelStep::PutPeerEntry(number, _)
            | TunnelStep::RemovePeerEntry(number) => format!("node number/{}", number.0),
            TunnelStep::PutRoute(route) | TunnelStep::RemoveRoute(route) => format!("route/{}", route.destination),
        }
    }

    /// Whether the step changes the tunnel's peers.
    pub(crate) fn is_peers(&self) -> bool {
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

/// Where the tunnel and the routes into it may differ from what they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The tunnel's peers, and PEERS.
    pub(crate) peers: Keys<NodeNumber>,
    pub(crate) routes: bool,
}

impl Scope {
    pub(crate) fn everything() -> Scope {
        Scope { peers: Keys::All, routes: true }
    }

    pub(crate) fn extend(&mut self, other: Scope) {
        self.peers.extend(other.peers);
        self.routes |= other.routes;
    }
}
