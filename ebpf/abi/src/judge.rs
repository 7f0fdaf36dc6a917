//! The rules: which packets must be encrypted, which are delivered, which are dropped and why. They
//! are pure functions, so that the kernel, the agent's `explain` and the tests cannot disagree.
//!
//! [`need`] says what two parties ask for. [`outgoing`], [`arriving_in_clear`] and
//! [`arriving_decrypted`] say what that means for a packet that is about to leave this node, came
//! from the wire, or came out of the tunnel.

use crate::identity::{Identity, Kind, Protection};
use crate::layout::{Peer, peer_flag};
use crate::reason::{DropReason, Encryption, Why};

/// What a pair of parties asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Both parties are on this node: nothing to encrypt.
    Local,
    /// One party is outside the cluster: hauberk does not encrypt that traffic.
    World,
    /// Neither party is opted in.
    Clear,
    /// Encrypted or dropped.
    Encrypt(Why),
    /// Encrypted once a handshake with the peer has succeeded; plaintext is accepted.
    Prefer,
    /// One party is a node's address that may stand for a protected pod, because another program
    /// translates addresses. Encrypted if the peer has a key: a peer with a key runs hauberk and
    /// may have such a pod.
    Shelter,
}

/// What [`need`] must know about the node it decides for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// This node's number.
    pub node: u32,
    /// `hostRouting: stack`.
    pub stack: bool,
    /// The packet is marked as traffic of an opted-in pod, whatever its addresses are now.
    pub carries_protected: bool,
}

/// The decision about a packet, as flow records show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// What happens to the packet between nodes.
    pub encryption: Encryption,
    /// The rule that decided.
    pub why: Why,
    /// The reason if the packet is dropped, else `Unspecified`.
    pub drop: DropReason,
}

impl Verdict {
    /// A verdict that lets the packet pass.
    #[inline(always)]
    pub const fn pass(encryption: Encryption, why: Why) -> Verdict {
        Verdict { encryption, why, drop: DropReason::Unspecified }
    }

    /// A verdict that drops the packet.
    #[inline(always)]
    pub const fn refuse(drop: DropReason) -> Verdict {
        Verdict { encryption: Encryption::Refused, why: Why::Dropped, drop }
    }

    /// Whether the packet is dropped.
    #[inline(always)]
    pub fn is_refused(&self) -> bool {
        matches!(self.encryption, Encryption::Refused)
    }
}

/// Whether `identity` is a pod or node on the node with the number `node`.
#[inline(always)]
pub fn is_here(identity: &Identity, node: u32) -> bool {
    identity.node == node && (identity.is_pod() || identity.is_node())
}

/// What the two parties ask for.
#[inline(always)]
pub fn need(source: &Identity, destination: &Identity, place: &Place) -> Need {
    if is_here(source, place.node) && is_here(destination, place.node) {
        return Need::Local;
    }
    if source.is_world() || destination.is_world() {
        // An opted-in pod's packet whose source was translated to an address that is not known yet.
        if place.carries_protected && !destination.is_world() {
            return Need::Encrypt(Why::Translated);
        }
        return Need::World;
    }
    if source.protection() == Protection::Enabled && !is_unknown(source) {
        return Need::Encrypt(Why::SourceOptedIn);
    }
    if destination.protection() == Protection::Enabled && !is_unknown(destination) {
        return Need::Encrypt(Why::DestinationOptedIn);
    }
    if source.protection() == Protection::Enabled || destination.protection() == Protection::Enabled {
        return Need::Encrypt(Why::UnknownIsProtected);
    }
    if place.carries_protected {
        return Need::Encrypt(Why::Translated);
    }
    if source.protection() == Protection::Permissive || destination.protection() == Protection::Permissive {
        return Need::Prefer;
    }
    if place.stack && (is_known_node(source) && destination.is_pod() || source.is_pod() && is_known_node(destination)) {
        return Need::Shelter;
    }
    Need::Clear
}

#[inline(always)]
fn is_known_node(identity: &Identity) -> bool {
    matches!(identity.kind(), Kind::Node)
}

#[inline(always)]
fn is_unknown(identity: &Identity) -> bool {
    matches!(identity.kind(), Kind::UnknownPod)
}

/// The verdict on a packet that is about to leave this node for `destination`. `peer` is the tunnel
/// of the destination's node.
///
/// `Encrypted` means that the caller hands the packet to the tunnel. `Local` and `World` packets
/// pass.
#[inline(always)]
pub fn outgoing(need: Need, destination: &Identity, peer: &Peer) -> Verdict {
    let key = peer.flags & peer_flag::KEY != 0;
    match need {
        Need::Local => Verdict::pass(Encryption::Local, Why::SameNode),
        Need::World => Verdict::pass(Encryption::World, Why::OutsideCluster),
        Need::Clear => Verdict::pass(Encryption::Plain, Why::NotOptedIn),
        Need::Encrypt(_) if destination.node == 0 => Verdict::refuse(DropReason::UnknownDestination),
        Need::Encrypt(_) if !key => Verdict::refuse(DropReason::NoPeer),
        Need::Encrypt(why) => Verdict::pass(Encryption::Encrypted, why),
        Need::Prefer if key && peer.flags & peer_flag::READY != 0 => {
            Verdict::pass(Encryption::Encrypted, Why::PermissivePeerReady)
        }
        Need::Prefer => Verdict::pass(Encryption::Plain, Why::PermissivePeerNotReady),
        Need::Shelter if key => Verdict::pass(Encryption::Encrypted, Why::Translated),
        Need::Shelter => Verdict::pass(Encryption::Plain, Why::NotOptedIn),
    }
}

/// Whether, with `hostRouting: bpf`, a pod's answer to a packet from `source` bypasses the host's
/// stack. `peer` is the tunnel of the source's node. Only then may the packet itself bypass the
/// stack: if connection tracking sees an answer but not the packet before it, it treats the answer
/// as invalid, or as a new connection that it masquerades.
///
/// `by_uplink`: the packet came in by a device by which the answer may leave without the stack.
#[inline(always)]
pub fn is_answered_past_the_stack(need: Need, source: &Identity, peer: &Peer, by_uplink: bool) -> bool {
    match outgoing(need, source, peer).encryption {
        // A refused packet gets no answer.
        Encryption::Encrypted | Encryption::Refused => true,
        Encryption::Plain => source.is_pod() && by_uplink,
        Encryption::World | Encryption::Local => false,
    }
}

/// The verdict on a packet that came from the wire in the clear.
///
/// `world_direct`: packets from outside the cluster may be addressed directly to an opted-in pod.
#[inline(always)]
pub fn arriving_in_clear(
    need: Need,
    source: &Identity,
    destination: &Identity,
    node: u32,
    world_direct: bool,
) -> Verdict {
    match need {
        // The source address is one of this node, yet the packet came from the wire.
        Need::Local if source.is_pod() || destination.is_pod() => Verdict::refuse(DropReason::Martian),
        Need::Local => Verdict::pass(Encryption::Plain, Why::NotOptedIn),
        Need::World
            if source.is_world()
                && is_here(destination, node)
                && destination.protection() == Protection::Enabled
                && !world_direct =>
        {
            Verdict::refuse(DropReason::WorldToProtected)
        }
        Need::World if is_here(source, node) && source.is_pod() => Verdict::refuse(DropReason::Martian),
        Need::World => Verdict::pass(Encryption::World, Why::OutsideCluster),
        Need::Encrypt(_) if destination.protection() == Protection::Enabled => {
            Verdict::refuse(DropReason::PlaintextToProtected)
        }
        Need::Encrypt(_) => Verdict::refuse(DropReason::PlaintextFromProtected),
        // Packets from a pod of this node never come from the wire, whatever the pod's protection.
        Need::Prefer | Need::Clear | Need::Shelter if is_here(source, node) && source.is_pod() => {
            Verdict::refuse(DropReason::Martian)
        }
        Need::Prefer => Verdict::pass(Encryption::Plain, Why::PermissivePeerNotReady),
        Need::Clear | Need::Shelter => Verdict::pass(Encryption::Plain, Why::NotOptedIn),
    }
}

/// The verdict on a packet that came out of the tunnel. The tunnel has checked that the source
/// belongs to the peer that sealed the packet. This check only requires that the source belongs to
/// another node.
#[inline(always)]
pub fn arriving_decrypted(need: Need, source: &Identity, destination: &Identity, node: u32) -> Verdict {
    if source.node == node || source.node == 0 || !(source.is_pod() || source.is_node()) {
        return Verdict::refuse(DropReason::TunnelSource);
    }
    if !is_here(destination, node) {
        return Verdict::refuse(DropReason::NotLocal);
    }
    let why = match need {
        Need::Encrypt(why) => why,
        Need::Prefer => Why::PermissivePeerReady,
        Need::Shelter => Why::Translated,
        Need::Local | Need::World | Need::Clear => Why::Decrypted,
    };
    Verdict::pass(Encryption::Encrypted, why)
}

/// Where a packet entered this node's stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From a pod's interface on this node; the pod owns the source address.
    Pod,
    /// From a socket of the node itself.
    Node,
    /// Out of the tunnel.
    Tunnel,
    /// In the clear from a guarded device.
    Wire,
    /// As `Wire`, and sent by a party of the cluster: its addresses may have been translated since.
    Cluster,
    /// By a device without a guard.
    Unguarded,
}

/// The verdict on a packet that is about to enter a pod of this node.
///
/// This is the last check before the pod, for packets that went through the host's stack. Packets
/// that came from the wire in the clear have already been judged there.
#[inline(always)]
pub fn entering_pod(
    need: Need,
    source: &Identity,
    destination: &Identity,
    origin: Origin,
    world_direct: bool,
) -> Verdict {
    let decrypted = matches!(origin, Origin::Tunnel);
    let protected = destination.protection() == Protection::Enabled;
    if protected && matches!(origin, Origin::Cluster) {
        return Verdict::refuse(DropReason::PlaintextToProtected);
    }
    match need {
        Need::Local if decrypted => Verdict::pass(Encryption::Encrypted, Why::Decrypted),
        // Only a pod's interface and the node itself prove that a packet was on no wire. A pod's
        // address from any other device is spoofed. The node's own address is legitimate:
        // masquerading gives it to packets from the world.
        Need::Local
            if (protected || source.protection() == Protection::Enabled)
                && (matches!(origin, Origin::Unguarded)
                    || (matches!(origin, Origin::Wire | Origin::Cluster) && source.is_pod())) =>
        {
            Verdict::refuse(DropReason::Martian)
        }
        Need::Local => Verdict::pass(Encryption::Local, Why::SameNode),
        Need::World if protected && source.is_world() && matches!(origin, Origin::Unguarded) && !world_direct => {
            Verdict::refuse(DropReason::WorldToProtected)
        }
        Need::World => Verdict::pass(Encryption::World, Why::OutsideCluster),
        Need::Encrypt(why) if decrypted => Verdict::pass(Encryption::Encrypted, why),
        Need::Encrypt(_) if protected => Verdict::refuse(DropReason::PlaintextToProtected),
        Need::Encrypt(_) => Verdict::refuse(DropReason::PlaintextFromProtected),
        _ if decrypted => Verdict::pass(Encryption::Encrypted, Why::Decrypted),
        Need::Prefer => Verdict::pass(Encryption::Plain, Why::PermissivePeerNotReady),
        Need::Clear | Need::Shelter => Verdict::pass(Encryption::Plain, Why::NotOptedIn),
    }
}

#[cfg(test)]
mod tests;
