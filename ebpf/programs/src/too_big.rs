//! Tells the sender of a packet that is too big for the tunnel what size would have fitted. Where
//! another CNI plugin routes to pods, no route tells it before.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use hauberk_abi::{
    layout::{Settings, mark},
    packet::Packet,
    reason::DropReason,
    too_big::{HEAD_V4, HEAD_V6, Kind, QUOTE, TOO_BIG, head_v4, head_v6},
};

use crate::carry::{drop, has_tag, set_marks, skb};
use crate::maps::ANSWER;
use crate::record::count_drop;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// `BPF_ADJ_ROOM_MAC` (linux/bpf.h): makes room behind the Ethernet header.
const BEHIND_ETHERNET: u32 = 1;

/// Drops the packet, and turns it into the answer where possible. The answer goes up the stack from
/// the tunnel device, so that translated addresses in it are translated back.
#[inline(always)]
pub fn refuse(context: &TcContext, settings: &Settings, packet: &Packet, ethernet: bool) -> i32 {
    // The answer is made in place, behind an Ethernet header. A packet without one did not come
    // from a pod's interface.
    let answerable = ethernet && !packet.tagged && !packet.detour && !has_tag(context) && settings.tunnel != 0;
    if !answerable || turn_into_answer(skb(context), u32::from(packet.source.is_v4()), settings.tunnel_mtu) == 0 {
        return drop(DropReason::TooBig);
    }
    count_drop(DropReason::TooBig);
    // No other packet has only this bit.
    set_marks(context, settings, mark::DECRYPTED, 0);
    // SAFETY: plain helper call. The kernel drops a packet that it does not redirect.
    unsafe { bpf_redirect(settings.tunnel, u64::from(BPF_F_INGRESS)) as i32 }
}

/// Turns the packet into the answer; 1 if that succeeded. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn turn_into_answer(skb: *mut __sk_buff, v4: u32, mtu: u32) -> u32 {
    let kind = TOO_BIG[usize::from(v4 == 0)];
    let turned = if v4 != 0 {
        turn::<HEAD_V4, { HEAD_V4 + QUOTE }>(skb, kind, mtu)
    } else {
        turn::<HEAD_V6, { HEAD_V6 + QUOTE }>(skb, kind, mtu)
    };
    u32::from(turned)
}

/// Turns a packet behind an Ethernet header into a message about itself, with `HEAD` bytes of
/// headers and `LENGTH` bytes in all.
#[inline(always)]
pub fn turn<const HEAD: usize, const LENGTH: usize>(skb: *mut __sk_buff, kind: Kind, value: u32) -> bool {
    let Some(buffer) = ANSWER.get_ptr_mut(0) else { return false };
    let quote = (LENGTH - HEAD) as u32;
    // SAFETY: the slot belongs to this CPU and to the program that runs on it. It is at least
    // `LENGTH` bytes long, all accesses are inside it, and helpers get constant lengths.
    unsafe {
        let bytes = buffer.cast::<u8>();
        if bpf_skb_load_bytes(skb.cast(), ETHERNET, bytes.add(HEAD).cast(), quote) != 0 {
            return false;
        }
        let answer = &mut *buffer.cast::<[u8; LENGTH]>();
        if HEAD == HEAD_V4 {
            head_v4(answer, kind, value);
        } else {
            head_v6(answer, kind, value);
        }
        bpf_skb_change_tail(skb, ETHERNET + quote, 0) == 0
            && bpf_skb_adjust_room(skb, HEAD as i32, BEHIND_ETHERNET, 0) == 0
            && bpf_skb_store_bytes(skb, ETHERNET, bytes.cast(), HEAD as u32, u64::from(BPF_F_RECOMPUTE_CSUM)) == 0
    }
}
