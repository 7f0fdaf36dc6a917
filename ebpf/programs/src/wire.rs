//! The two hooks on the uplinks. `to_wire` is the last guard: whatever program sent a packet, it is
//! judged here by the addresses it would have on the wire.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    address::Address,
    identity::{Identity, Protection},
    judge::{self, Need, Verdict, is_here},
    layout::{Attachment, Hook, Settings, flag, mark, probe, token},
    packet::{Fragment, Packet},
    reason::{DropReason, Encryption, Why},
};

use crate::answer;
use crate::balance::{self, NOT_OURS};
use crate::carry::{self, came_by, drop, has_tag, interface, pass, said, say, segment, skb};
use crate::detour::leads_to_protected;
use crate::encapsulated::{hides_protected, labels_hide_protected, may_hold_another};
use crate::lookup::{NO_PEER, at_hand, attachment, ends, is_translated, place, remember_translated, settings, tunnel};
use crate::read::{Read, read};
use crate::recent::Memory;
use crate::record::record;
use crate::too_big;

/// hauberk does not judge packets that concern no pod.
const OF_NODES: Verdict = Verdict::pass(Encryption::Plain, Why::NotOptedIn);

/// Arriving packets. Plaintext to or from opted-in pods is dropped. Plaintext from pods to plain
/// pods goes directly into the pod. Packets from nodes and the world to pods go up the stack, as
/// the pods' answers do.
#[inline(always)]
pub fn from_wire(context: &TcContext) -> i32 {
    arrived::<true>(context)
}

/// The same as [`from_wire`] on a device whose packets begin with their IP header.
#[inline(always)]
pub fn from_wire_ip(context: &TcContext) -> i32 {
    arrived::<false>(context)
}

#[inline(always)]
fn arrived<const ETHERNET: bool>(context: &TcContext) -> i32 {
    let Some(settings) = settings() else { return pass() };
    say(context, token::FROM_WIRE);
    let packet = match read::<ETHERNET>(context) {
        Read::Ip(packet) => packet,
        Read::Arp(_) | Read::Other => return pass(),
        Read::Malformed => return drop(DropReason::Malformed),
    };
    if packet.destination == Address::v6(probe::TURN) {
        return drop(DropReason::SelfTest);
    }
    match balance::arrived(context, settings, packet, Hook::FromWire, ETHERNET) {
        NOT_OURS => judge_from_wire(skb(context), u32::from(ETHERNET)),
        action => action,
    }
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_from_wire(skb: *mut __sk_buff, ethernet: u32) -> i32 {
    let ethernet = ethernet != 0;
    let Some((settings, packet)) = at_hand() else { return drop(DropReason::NotReady) };
    let context = &TcContext::new(skb);
    let Some(mut memory) = Memory::of(context, interface(context), Hook::FromWire, packet) else {
        return drop(DropReason::NotReady);
    };
    if memory.holds(packet) {
        if memory.decision.pod.interface == 0 {
            return up_the_stack(context, memory.decision.node != 0);
        }
        memory.record(packet);
        return to_pod(context, settings, &memory.decision.pod, packet, ethernet);
    }
    let Some(undecided) = memory.leave(packet) else { return drop(DropReason::NotReady) };
    let (source, destination) = ends();
    if !source.is_pod() && !destination.is_pod() {
        let of_cluster = in_cluster(&source);
        undecided.remember(&OF_NODES, u32::from(of_cluster), &NO_PEER).pod.interface = 0;
        return up_the_stack(context, of_cluster);
    }
    if source.protection() == Protection::Enabled && packet.destination.is_multicast() {
        return refuse(Hook::FromWire, DropReason::PlaintextFromProtected, source.node);
    }
    if is_unadopted(settings, packet, &source) && destination.protection() != Protection::Enabled {
        return pass();
    }
    let need = judge::need(&source, &destination, &place(settings, 0));
    let direct = settings.flags & flag::WORLD_DIRECT != 0;
    let verdict = judge::arriving_in_clear(need, &source, &destination, settings.node, direct);
    record(Hook::FromWire, &verdict, source.node, &NO_PEER);
    if verdict.is_refused() {
        return drop(verdict.drop);
    }
    // The packet that an error message is about bypassed the stack. If its addresses had been
    // translated instead, the error would be addressed to the node.
    let past = || {
        let peer = tunnel(need, source.node);
        packet.is_icmp_error() || judge::is_answered_past_the_stack(need, &source, &peer, ethernet)
    };
    if settings.flags & flag::STACK == 0
        && is_here(&destination, settings.node)
        && !has_tag(context)
        && !packet.tagged
        && past()
    {
        if let Some(pod) = attachment(&packet.destination) {
            if !is_translated(&packet.source, &packet.destination) {
                undecided.remember(&verdict, source.node, &NO_PEER).pod = *pod;
                return to_pod(context, settings, pod, packet, ethernet);
            }
        }
    }
    up_the_stack(context, in_cluster(&source))
}

/// Passes the packet to the stack. It may translate the addresses, and then they no longer show who
/// sent the packet; the token does.
#[inline(always)]
fn up_the_stack(context: &TcContext, of_cluster: bool) -> i32 {
    if of_cluster {
        say(context, token::FROM_WIRE | token::FROM_CLUSTER);
    }
    pass()
}

/// Leaving packets: encrypted if either end asks for it, dropped if encryption is not possible.
#[inline(always)]
pub fn to_wire(context: &TcContext) -> i32 {
    leaves::<true>(context)
}

/// The same as [`to_wire`] on a device whose packets begin with their IP header.
#[inline(always)]
pub fn to_wire_ip(context: &TcContext) -> i32 {
    leaves::<false>(context)
}

#[inline(always)]
fn leaves<const ETHERNET: bool>(context: &TcContext) -> i32 {
    let Some(settings) = settings() else { return pass() };
    let packet = match read::<ETHERNET>(context) {
        Read::Ip(packet) => packet,
        // A packet that was mirrored from a device without Ethernet headers cannot be parsed here,
        // but its token can be read.
        Read::Other if said(context) & (mark::PROTECTED | mark::DECRYPTED) != 0 => {
            return drop(DropReason::PlaintextLeaving);
        }
        Read::Other if ETHERNET && labels_hide_protected(skb(context)) != 0 => {
            return drop(DropReason::PlaintextLeaving);
        }
        Read::Arp(_) | Read::Other => return pass(),
        Read::Malformed => return drop(DropReason::Malformed),
    };
    if packet.destination.words()[0] == Address::v6(probe::DROP).words()[0] {
        if packet.destination == Address::v6(probe::DROP) {
            return drop(DropReason::SelfTest);
        }
        if packet.destination == Address::v6(probe::TURN) {
            return carry::turn_round(context);
        }
        if packet.destination == Address::v6(probe::TUNNEL) {
            return carry::to_tunnel(context, settings, 0);
        }
    }
    if balance::sent(context, settings, packet, ETHERNET) == 0 {
        return drop(DropReason::Malformed);
    }
    judge_to_wire(skb(context), u32::from(ETHERNET))
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_to_wire(skb: *mut __sk_buff, ethernet: u32) -> i32 {
    let ethernet = ethernet != 0;
    let Some((settings, packet)) = at_hand() else { return drop(DropReason::NotReady) };
    let context = &TcContext::new(skb);
    let said = said(context);
    let marked = said & mark::ALL;
    let Some(memory) = Memory::of(context, interface(context), Hook::ToWire, packet) else {
        return drop(DropReason::NotReady);
    };
    // A token applies to one packet only, so a packet with marks is judged by itself. So is an ICMP
    // error: it is judged by the packet that it quotes.
    let unmarked = marked & !mark::STACK == 0 && !packet.is_icmp_error();
    if unmarked && memory.holds(packet) {
        return pass();
    }
    let Some(undecided) = memory.leave(packet) else { return drop(DropReason::NotReady) };
    let (source, mut destination) = ends();
    let carries = marked & mark::PROTECTED != 0;
    let mut need = judge::need(&source, &destination, &place(settings, marked));
    // One end is a node, or was one when the request came.
    if matches!(need, Need::Clear | Need::Shelter | Need::World) && !(source.is_pod() && destination.is_pod()) {
        let mut node = answer::asked();
        if node == 0 && packet.is_icmp_error() {
            node = answer::quoted(skb);
        }
        if node != 0 {
            need = Need::Encrypt(Why::AnswersSealed);
            destination.node = node;
        }
    }
    if packet.detour && !matches!(need, Need::Encrypt(_)) && leads_to_protected(skb) != 0 {
        answer::stop_fragments(packet);
        let node = destination.node;
        return refuse(Hook::ToWire, DropReason::PlaintextLeaving, node);
    }
    if !source.is_pod() && !destination.is_pod() && !carries && !matches!(need, Need::Encrypt(_)) {
        // The next packet of the flow may carry a different one, so the verdict is not remembered.
        if may_hold_another(packet) {
            if hides_protected(skb) == 0 {
                return pass();
            }
            answer::stop_fragments(packet);
            let node = destination.node;
            return refuse(Hook::ToWire, DropReason::PlaintextLeaving, node);
        }
        if unmarked {
            undecided.remember(&OF_NODES, 0, &NO_PEER);
        }
        return pass();
    }
    if said & token::FROM_CLUSTER != 0 && destination.protection() == Protection::Enabled {
        // The packet came in the clear, to another address, and would be sealed only from here on.
        let node = destination.node;
        return refuse(Hook::ToWire, DropReason::PlaintextToProtected, node);
    }
    let protected = source.protection() == Protection::Enabled || carries;
    if matches!(need, Need::Local) {
        if !protected && destination.protection() != Protection::Enabled && is_unadopted_here(settings, packet) {
            return pass();
        }
        // Both ends are on this node, yet the packet leaves it: the pod is gone and a default route
        // matched.
        return refuse(Hook::ToWire, DropReason::NotLocal, 0);
    }
    if matches!(need, Need::World) && protected {
        if packet.destination.is_multicast() {
            return refuse(Hook::ToWire, DropReason::Multicast, 0);
        }
        if settings.flags & flag::SYNCED == 0 {
            return refuse(Hook::ToWire, DropReason::NotReady, 0);
        }
    }
    if matches!(need, Need::World) && destination.protection() == Protection::Enabled {
        if is_here(&destination, settings.node) {
            return refuse(Hook::ToWire, DropReason::NotLocal, 0);
        }
        // The source is this node's own address that is not known as such yet, or this node
        // forwards a packet from the world. Either way the packet would go from node to node in the
        // clear.
        if came_by(context) == 0 || settings.flags & flag::WORLD_DIRECT == 0 {
            let node = destination.node;
            return refuse(Hook::ToWire, DropReason::UnknownSource, node);
        }
    }
    if settings.flags & flag::STACK == 0 && marked & mark::SEEN != 0 && in_cluster(&destination) {
        // The packet left its pod towards the world, and netfilter translated that destination to a
        // party of the cluster: the reply must take the same way.
        remember_translated(&packet.source, &packet.destination);
    }
    let tunnel = tunnel(need, destination.node);
    let verdict = judge::outgoing(need, &destination, &tunnel);
    // Plain pods' packets were recorded when they left the pod, unless the stack decides.
    if settings.flags & flag::STACK != 0 || !matches!(verdict.encryption, Encryption::Plain | Encryption::World) {
        record(Hook::ToWire, &verdict, destination.node, &tunnel);
    }
    match verdict.encryption {
        Encryption::Refused => drop(verdict.drop),
        Encryption::Encrypted if packet.tagged || has_tag(context) => drop(DropReason::PlaintextLeaving),
        // The sender did not make this fragment too big, so telling the sender would not help: a
        // node's netfilter reassembles fragments and cuts them again for the outgoing device. The
        // fragment is sealed as it is, and the sealed packet is fragmented.
        Encryption::Encrypted
            if !packet.fits(settings.tunnel_mtu, segment(context)) && matches!(packet.fragment, Fragment::Whole) =>
        {
            too_big::refuse(context, settings, packet, ethernet)
        }
        Encryption::Encrypted => carry::to_tunnel(context, settings, destination.node),
        Encryption::Plain if unmarked && settings.flags & flag::STACK == 0 => {
            undecided.remember(&verdict, destination.node, &tunnel);
            pass()
        }
        _ => pass(),
    }
}

/// Puts the packet directly into a pod of this node.
#[inline(always)]
fn to_pod(context: &TcContext, settings: &Settings, pod: &Attachment, packet: &Packet, ethernet: bool) -> i32 {
    if ethernet {
        carry::frame_to_pod(context, settings, pod)
    } else {
        carry::packet_to_pod(context, settings, pod, packet)
    }
}

/// Whether the source is a plain pod of this node whose interface is not known as a pod's (yet).
/// Beside another CNI plugin the pod may send through a device that has an uplink's guard.
#[inline(always)]
fn is_unadopted(settings: &Settings, packet: &Packet, source: &Identity) -> bool {
    settings.flags & flag::CHAINED != 0
        && source.is_pod()
        && is_here(source, settings.node)
        && source.protection() != Protection::Enabled
        && attachment(&packet.source).is_none()
}

/// Whether the destination, a pod of this node, has no interface that is known as a pod's (yet).
#[inline(always)]
fn is_unadopted_here(settings: &Settings, packet: &Packet) -> bool {
    settings.flags & flag::CHAINED != 0 && attachment(&packet.destination).is_none()
}

#[inline(always)]
fn in_cluster(identity: &Identity) -> bool {
    identity.is_pod() || identity.is_node()
}

#[inline(always)]
fn refuse(hook: Hook, reason: DropReason, node: u32) -> i32 {
    record(hook, &Verdict::refuse(reason), node, &NO_PEER);
    drop(reason)
}
