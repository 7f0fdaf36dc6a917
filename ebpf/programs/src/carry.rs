//! Carries out a verdict: drop, pass, redirect. A packet that the kernel does not redirect is
//! dropped and counted.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_peer, bpf_skb_change_head},
    programs::TcContext,
};
use hauberk_abi::{
    layout::{Attachment, QUEUE_BITS, Settings, mark, token},
    packet::Packet,
    reason::DropReason,
};

use crate::record::count_drop;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

#[inline(always)]
pub fn skb(context: &TcContext) -> *mut __sk_buff {
    context.skb.skb
}

/// Index of the interface that the program runs on.
#[inline(always)]
pub fn interface(context: &TcContext) -> u32 {
    // SAFETY: the verifier knows the context's type; fields are read through it.
    unsafe { (*skb(context)).ifindex }
}

/// Payload of one GSO segment, bytes; 0 if the packet is no super-packet.
#[inline(always)]
pub fn segment(context: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*skb(context)).gso_size }
}

/// Whether the packet's metadata holds a VLAN tag.
#[inline(always)]
pub fn has_tag(context: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*skb(context)).vlan_present != 0 }
}

/// The device by which the packet came in; 0 if this node made the packet.
#[inline(always)]
pub fn came_by(context: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*skb(context)).ingress_ifindex }
}

/// What an earlier program on this node stored about the packet; 0 if none did.
#[inline(always)]
pub fn said(context: &TcContext) -> u32 {
    // SAFETY: as above.
    let word = unsafe { (*skb(context)).tc_index };
    if word & token::MAGIC_BITS == token::MAGIC { word & !token::MAGIC_BITS & 0xffff } else { 0 }
}

/// Stores `bits` about the packet for later programs, in place of what was stored before.
#[inline(always)]
pub fn say(context: &TcContext, bits: u32) {
    // SAFETY: as above; `tc_index` is writable for tc programs.
    unsafe { (*skb(context)).tc_index = token::MAGIC | bits };
}

/// Replaces hauberk's bits of the packet's mark and leaves the other bits. Netfilter's rules read
/// these bits from the mark. Later programs read them from the token, which also says by `origin`
/// where the packet came from.
#[inline(always)]
pub fn set_marks(context: &TcContext, settings: &Settings, bits: u32, origin: u32) {
    let shift = settings.mark_shift & 31;
    say(context, bits | origin);
    // SAFETY: as above; `mark` is writable for tc programs.
    unsafe {
        let others = (*skb(context)).mark & !(mark::ALL << shift);
        (*skb(context)).mark = others | (bits << shift);
    }
}

/// Lets the packet pass: to other programs on the device, then to the stack or the wire.
#[inline(always)]
pub fn pass() -> i32 {
    TC_ACT_UNSPEC
}

/// Drops and counts the packet.
#[inline(always)]
pub fn drop(reason: DropReason) -> i32 {
    count_drop(reason);
    TC_ACT_SHOT as i32
}

/// Hands the packet to the tunnel device, where the backend reads it. The queue is that of the
/// thread that serves the peer `node`.
#[inline(always)]
pub fn to_tunnel(context: &TcContext, settings: &Settings, node: u32) -> i32 {
    if settings.tunnel == 0 {
        return drop(DropReason::PlaintextLeaving);
    }
    // Another program may copy the packet at the tunnel device. The token tells the last guard that
    // the copy is protected.
    set_marks(context, settings, 0, mark::PROTECTED);
    // SAFETY: the context is valid while the program runs, and the field is writable. The device's
    // own program reads it there.
    unsafe { (*skb(context)).queue_mapping = node & QUEUE_BITS };
    // SAFETY: plain helper call. If the interface index no longer exists the kernel drops the
    // packet.
    redirected(unsafe { bpf_redirect(settings.tunnel, 0) })
}

/// Redirects the packet from an uplink's egress to the same uplink's ingress. For the self-test.
#[inline(always)]
pub fn turn_round(context: &TcContext) -> i32 {
    // SAFETY: plain helper call.
    redirected(unsafe { bpf_redirect(interface(context), BPF_F_INGRESS as u64) })
}

/// Puts a frame that has an Ethernet header directly into a pod of this node.
#[inline(always)]
pub fn frame_to_pod(context: &TcContext, settings: &Settings, pod: &Attachment) -> i32 {
    if context.store(0, &pod.macs, 0).is_err() {
        return drop(DropReason::RedirectFailed);
    }
    peer_redirect(context, settings, pod)
}

/// Puts a packet without an Ethernet header (the tunnel device has none) directly into a pod of
/// this node.
///
/// The header is added first. Without it the pod's packet sockets and tc programs would see no link
/// layer, and `bpf_redirect` would drop the packet.
#[inline(always)]
pub fn packet_to_pod(context: &TcContext, settings: &Settings, pod: &Attachment, packet: &Packet) -> i32 {
    if add_link_header(context, packet, &pod.macs) {
        peer_redirect(context, settings, pod)
    } else {
        drop(DropReason::RedirectFailed)
    }
}

/// Adds an Ethernet header with these MAC addresses, destination first. Returns whether that
/// succeeded.
#[inline(always)]
pub fn add_link_header(context: &TcContext, packet: &Packet, macs: &[[u8; 6]; 2]) -> bool {
    let ethertype = if packet.source.is_v4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    // SAFETY: plain helper call.
    let made = unsafe { bpf_skb_change_head(skb(context), 14, 0) } == 0;
    made && context.store(0, macs, 0).is_ok() && context.store(12, &ethertype, 0).is_ok()
}

#[inline(always)]
fn peer_redirect(context: &TcContext, settings: &Settings, pod: &Attachment) -> i32 {
    // Otherwise the mark would stay on the packet inside the pod.
    set_marks(context, settings, 0, 0);
    // SAFETY: plain helper call.
    redirected(unsafe { bpf_redirect_peer(pod.interface, 0) })
}

/// Checks a redirection helper's result: a packet that the kernel does not redirect is dropped.
#[inline(always)]
pub fn redirected(action: i64) -> i32 {
    if action as i32 == TC_ACT_REDIRECT as i32 { action as i32 } else { drop(DropReason::RedirectFailed) }
}
