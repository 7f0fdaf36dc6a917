//! Services at a device: a packet that arrives for a service gets a backend as its destination, and
//! the backend's answer gets back the address that the client knows. What goes on from here is
//! judged by who its two ends are, and by the addresses that it has from then on.
//!
//! Clients outside the cluster come by the uplinks, and clients of other nodes' pods by the tunnel.
//! Pods of this node come here if their sockets were not led to a backend: see [`crate::socket`].

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    identity::{Identity, Protection},
    judge::{self, Need, Origin, Verdict, is_here},
    layout::{Hook, Settings, flag, mark, token},
    packet::{Fragment, Packet, protocol},
    reason::{DropReason, Encryption},
};

use crate::answer;
use crate::carry::{self, came_by, drop, has_tag, interface, pass, say, segment, set_marks, skb};
use crate::connection::{self, ELSEWHERE, NONE, OF_BACKEND, REFUSED};
use crate::lookup::{NO_PEER, at_hand, attachment, identity, peer, place, tunnel};
use crate::maps::BALANCE;
use crate::quoted;
use crate::record::{name, record};
use crate::refusal;
use crate::rewrite::rewrite;
use crate::route;
use crate::too_big;

/// Says that the packet is no service's: it is judged like all others.
pub const NOT_OURS: i32 = -100;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// The action for the packet at hand, which arrived at `hook`; [`NOT_OURS`] if it is no service's.
#[inline(always)]
pub fn arrived(context: &TcContext, settings: &Settings, packet: &Packet, hook: Hook, ethernet: bool) -> i32 {
    if settings.flags & flag::TRANSLATES == 0 || !may_be_ours(context, settings, packet) {
        return NOT_OURS;
    }
    lead(skb(context), hook as u32, u32::from(ethernet))
}

/// The node itself sent the packet at hand: if it is the answer of a backend on this node, it gets
/// the address that the client knows. 0 if it must be dropped.
#[inline(always)]
pub fn sent(context: &TcContext, settings: &Settings, packet: &Packet, ethernet: bool) -> u32 {
    if settings.flags & flag::TRANSLATES == 0 || came_by(context) != 0 || !may_be_ours(context, settings, packet) {
        return 1;
    }
    answer_of_node(skb(context), u32::from(ethernet))
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answer_of_node(skb: *mut __sk_buff, ethernet: u32) -> u32 {
    let offset = if ethernet != 0 { ETHERNET } else { 0 };
    if find(skb, offset) != OF_BACKEND {
        return 1;
    }
    remember_datagram();
    translate(skb, offset)
}

/// Finds what the packet at hand becomes; see [`connection::find`].
#[inline(always)]
fn find(skb: *mut __sk_buff, offset: u32) -> u32 {
    match at_hand() {
        Some((_, packet)) if packet.is_icmp_error() => quoted::find_quoted(skb, offset),
        _ => connection::find(),
    }
}

/// Makes it of the packet; 0 if it must be dropped.
#[inline(always)]
fn translate(skb: *mut __sk_buff, offset: u32) -> u32 {
    match at_hand() {
        Some((_, packet)) if packet.is_icmp_error() => quoted::rewrite_quoted(skb, offset),
        _ => rewrite(skb, offset),
    }
}

#[inline(always)]
fn may_be_ours(context: &TcContext, settings: &Settings, packet: &Packet) -> bool {
    match packet.protocol {
        protocol::TCP => {}
        // No service takes what the tunnel sealed.
        protocol::UDP if settings.tunnel_port == 0 || u32::from(packet.destination_port) != settings.tunnel_port => {}
        protocol::ICMP | protocol::ICMPV6 if packet.is_icmp_error() && matches!(packet.fragment, Fragment::Whole) => {}
        _ => return false,
    }
    !packet.detour && !packet.tagged && !has_tag(context) && !packet.destination.is_link_scope()
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lead(skb: *mut __sk_buff, hook: u32, ethernet: u32) -> i32 {
    let Some((settings, packet)) = at_hand() else { return NOT_OURS };
    let context = &TcContext::new(skb);
    let from = match hook {
        0 => Hook::FromPod,
        2 => Hook::FromTunnel,
        _ => Hook::FromWire,
    };
    let source = identity(&packet.source);
    if !is_genuine(context, settings, packet, from, &source) {
        return NOT_OURS;
    }
    let mut found = find(skb, if ethernet != 0 { ETHERNET } else { 0 });
    if found == NONE && !packet.is_icmp_error() {
        found = connection::begin(hook);
    }
    match found {
        NONE => return NOT_OURS,
        ELSEWHERE => return refuse(context, from, DropReason::NoBackend),
        refused if refused > REFUSED => {
            let reason = DropReason::from_u8((refused - REFUSED) as u8);
            if matches!(reason, DropReason::NoBackend) && ethernet != 0 {
                return refusal::answer(context, settings, from);
            }
            return refuse(context, from, reason);
        }
        _ => {}
    }
    remember_datagram();
    send_on(skb, hook | ethernet << 8, source.to_bits())
}

/// Whether the packet may come this way from its source. All other packets are judged, and refused,
/// where packets are judged that are no service's.
#[inline(always)]
fn is_genuine(context: &TcContext, settings: &Settings, packet: &Packet, from: Hook, source: &Identity) -> bool {
    match from {
        Hook::FromPod => match attachment(&packet.source) {
            Some(own) => own.interface == interface(context),
            None => false,
        },
        Hook::FromTunnel => {
            let destination = identity(&packet.destination);
            let need = judge::need(source, &destination, &place(settings, 0));
            !judge::arriving_decrypted(need, source, &destination, settings.node).is_refused()
                && answer::remember(settings, packet, need, source.node, destination.is_pod())
        }
        // A protected pod's packets never come in the clear, nor do this node's own by a wire.
        _ => {
            source.protection() != Protection::Enabled
                && !is_here(source, settings.node)
                && !packet.source.is_no_source()
        }
    }
}

/// The first fragment of a datagram tells the direction of the others.
#[inline(always)]
fn remember_datagram() {
    if let Some((_, packet)) = at_hand() {
        if matches!(packet.fragment, Fragment::First) {
            connection::remember_datagram();
        }
    }
}

/// Rewrites the packet at hand and sends it on, if the verdict on it allows that. `way`: the hook,
/// and whether there is an Ethernet header in bit 8. `source`: who sent the packet. Verified by
/// itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send_on(skb: *mut __sk_buff, way: u32, source: u64) -> i32 {
    let (Some((settings, _)), Some(balance)) = (at_hand(), BALANCE.get(0)) else {
        return drop(DropReason::NotReady);
    };
    let destination = identity(&balance.wanted.destination);
    if is_here(&destination, settings.node) {
        if destination.is_node() {
            return into_node(skb, way, source);
        }
        return into_pod(skb, way, source, destination.to_bits());
    }
    leave(skb, way, source, destination.to_bits())
}

#[inline(always)]
fn hook_of(way: u32) -> Hook {
    match way & 0xff {
        0 => Hook::FromPod,
        2 => Hook::FromTunnel,
        _ => Hook::FromWire,
    }
}

/// Bytes before the IP header.
#[inline(always)]
fn link(way: u32) -> u32 {
    if way >> 8 != 0 { ETHERNET } else { 0 }
}

/// To the node itself: the stack delivers it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn into_node(skb: *mut __sk_buff, way: u32, source: u64) -> i32 {
    let Some((settings, _)) = at_hand() else { return drop(DropReason::NotReady) };
    let context = &TcContext::new(skb);
    let source = Identity::from_bits(source);
    if translate(skb, link(way)) == 0 {
        return drop(DropReason::Malformed);
    }
    pass_up(context, settings, hook_of(way), &source)
}

/// Passes a packet up the stack, with the token by which later programs know where it came from.
#[inline(always)]
fn pass_up(context: &TcContext, settings: &Settings, from: Hook, source: &Identity) -> i32 {
    let protected = if source.protection() == Protection::Enabled { mark::PROTECTED } else { 0 };
    match from {
        Hook::FromPod => set_marks(context, settings, mark::SEEN | protected, token::FROM_POD),
        Hook::FromTunnel => {
            set_marks(context, settings, mark::DECRYPTED | mark::SEEN | protected, token::FROM_TUNNEL);
        }
        _ => say(context, token::FROM_WIRE | of_cluster(source)),
    }
    pass()
}

/// To a pod of this node.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn into_pod(skb: *mut __sk_buff, way: u32, source: u64, destination: u64) -> i32 {
    let (Some((settings, packet)), Some(balance)) = (at_hand(), BALANCE.get(0)) else {
        return drop(DropReason::NotReady);
    };
    let context = &TcContext::new(skb);
    let (source, destination) = (Identity::from_bits(source), Identity::from_bits(destination));
    let from = hook_of(way);
    let origin = match from {
        Hook::FromPod => Origin::Pod,
        Hook::FromTunnel => Origin::Tunnel,
        _ if of_cluster(&source) != 0 => Origin::Cluster,
        _ => Origin::Wire,
    };
    let need = judge::need(&source, &destination, &place(settings, 0));
    let direct = settings.flags & flag::WORLD_DIRECT != 0;
    let verdict = judge::entering_pod(need, &source, &destination, origin, direct);
    let Some(pod) = attachment(&balance.wanted.destination) else {
        return refuse(context, from, DropReason::NotLocal);
    };
    if verdict.is_refused() {
        return refuse(context, from, verdict.drop);
    }
    if translate(skb, link(way)) == 0 {
        return drop(DropReason::Malformed);
    }
    let tunnel = if matches!(from, Hook::FromTunnel) { peer(source.node) } else { NO_PEER };
    if name(interface(context), from, packet).is_some() {
        record(from, &verdict, source.node, &tunnel);
    }
    if way >> 8 != 0 {
        carry::frame_to_pod(context, settings, pod)
    } else {
        carry::packet_to_pod(context, settings, pod, packet)
    }
}

/// On to another node, or out of the cluster.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leave(skb: *mut __sk_buff, way: u32, source: u64, destination: u64) -> i32 {
    let (Some((settings, packet)), Some(balance)) = (at_hand(), BALANCE.get(0)) else {
        return drop(DropReason::NotReady);
    };
    let context = &TcContext::new(skb);
    let (sender, destination) = (Identity::from_bits(source), Identity::from_bits(destination));
    let from = hook_of(way);
    let protected = sender.protection() == Protection::Enabled;
    let marks = if protected { mark::PROTECTED } else { 0 };
    let need = judge::need(&identity(&balance.wanted.source), &destination, &place(settings, marks));
    if matches!(need, Need::World) && protected && settings.flags & flag::SYNCED == 0 {
        return refuse(context, from, DropReason::NotReady);
    }
    let is_in_clear = matches!(from, Hook::FromWire);
    if is_in_clear && of_cluster(&sender) != 0 && destination.protection() == Protection::Enabled {
        // It came in the clear, and would be sealed only from here on.
        return refuse(context, from, DropReason::PlaintextToProtected);
    }
    let tunnel = tunnel(need, destination.node);
    let verdict = judge::outgoing(need, &destination, &tunnel);
    if verdict.is_refused() {
        return refuse(context, from, verdict.drop);
    }
    let sealed = matches!(verdict.encryption, Encryption::Encrypted);
    if sealed && matches!(packet.fragment, Fragment::Whole) && !packet.fits(settings.tunnel_mtu, segment(context)) {
        return match from {
            Hook::FromPod => too_big::refuse(context, settings, packet, true),
            Hook::FromWire if way >> 8 != 0 => refusal::too_big(context, settings),
            _ => refuse(context, from, DropReason::TooBig),
        };
    }
    if translate(skb, link(way)) == 0 {
        return drop(DropReason::Malformed);
    }
    if (sender.is_pod() || destination.is_pod()) && name(interface(context), from, packet).is_some() {
        record(from, &verdict, destination.node, &tunnel);
    }
    if sealed {
        return carry::to_tunnel(context, settings, destination.node);
    }
    let origin = match from {
        Hook::FromPod => token::FROM_POD,
        Hook::FromTunnel => token::FROM_TUNNEL,
        _ => token::FROM_WIRE | of_cluster(&sender),
    };
    route::send(context, settings, marks, origin, link(way))
}

/// What the token says of a sender whose packets came in the clear.
#[inline(always)]
fn of_cluster(source: &Identity) -> u32 {
    if source.is_pod() || source.is_node() { token::FROM_CLUSTER } else { 0 }
}

#[inline(always)]
pub fn refuse(context: &TcContext, from: Hook, reason: DropReason) -> i32 {
    if let Some((_, packet)) = at_hand() {
        if name(interface(context), from, packet).is_some() {
            record(from, &Verdict::refuse(reason), 0, &NO_PEER);
        }
    }
    drop(reason)
}
