//! The hook behind the tunnel device: packets that the backend has decrypted.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    address::Address,
    identity::Protection,
    judge,
    layout::{Hook, flag, mark, probe, token},
    reason::DropReason,
};

use crate::answer;
use crate::balance::{self, NOT_OURS};
use crate::carry::{self, drop, interface, pass, said, set_marks, skb};
use crate::lookup::{at_hand, attachment, ends, is_translated, peer, place, settings};
use crate::read::{Read, read};
use crate::recent::Memory;
use crate::record::record;

/// Decrypted packets: they go directly into the pod, or up the stack where addresses may have to be
/// translated back.
#[inline(always)]
pub fn from_tunnel(context: &TcContext) -> i32 {
    let Some(settings) = settings() else { return drop(DropReason::NotReady) };
    let Read::Ip(packet) = read::<false>(context) else { return drop(DropReason::Malformed) };
    if packet.destination == Address::v6(probe::DROP) {
        return drop(DropReason::SelfTest);
    }
    // The node's own "too big" message is no TCP and no UDP.
    match balance::arrived(context, settings, packet, Hook::FromTunnel, false) {
        NOT_OURS => judge_from_tunnel(skb(context)),
        action => action,
    }
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_from_tunnel(skb: *mut __sk_buff) -> i32 {
    let Some((settings, packet)) = at_hand() else { return drop(DropReason::NotReady) };
    let context = &TcContext::new(skb);
    // The node's own "too big" message. Packets that the tunnel itself writes have no token.
    if said(context) & mark::DECRYPTED != 0 {
        return pass();
    }
    let Some(mut memory) = Memory::of(context, interface(context), Hook::FromTunnel, packet) else {
        return drop(DropReason::NotReady);
    };
    if memory.holds(packet) {
        memory.record(packet);
        return carry::packet_to_pod(context, settings, &memory.decision.pod, packet);
    }
    let Some(undecided) = memory.leave(packet) else { return drop(DropReason::NotReady) };
    let (source, destination) = ends();
    let need = judge::need(&source, &destination, &place(settings, 0));
    let verdict = judge::arriving_decrypted(need, &source, &destination, settings.node);
    let tunnel = peer(source.node);
    record(Hook::FromTunnel, &verdict, source.node, &tunnel);
    if verdict.is_refused() {
        return drop(verdict.drop);
    }
    if !answer::remember(settings, packet, need, source.node, destination.is_pod()) {
        return drop(DropReason::SealedFull);
    }
    let pod = attachment(&packet.destination);
    if destination.is_pod() && pod.is_none() {
        return drop(DropReason::NotLocal);
    }
    if settings.flags & flag::STACK == 0
        && judge::is_answered_past_the_stack(need, &source, &tunnel, true)
        && !is_translated(&packet.source, &packet.destination)
    {
        if let Some(pod) = pod {
            undecided.remember(&verdict, source.node, &tunnel).pod = *pod;
            return carry::packet_to_pod(context, settings, pod, packet);
        }
    }
    // The token stays on the packet while the stack forwards it, so that a packet that is
    // translated to yet another node is still known to be protected.
    let protected = source.protection() == Protection::Enabled || destination.protection() == Protection::Enabled;
    let bits = mark::DECRYPTED | mark::SEEN | if protected { mark::PROTECTED } else { 0 };
    set_marks(context, settings, bits, token::FROM_TUNNEL);
    pass()
}
