//! What a client of a service is told whose packet cannot go on. The answer takes the way back that
//! the packet came by, and comes from the address that the client knows.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    layout::{Hook, Settings, token},
    packet::{Fragment, protocol},
    reason::DropReason,
    too_big::{HEAD_V4, HEAD_V6, UNREACHABLE},
};

use crate::balance::refuse;
use crate::carry::{self, drop, skb};
use crate::lookup::{at_hand, attachment};
use crate::maps::{BALANCE, PACKET};
use crate::record::put;
use crate::route;
use crate::too_big::{turn, turn_into_answer};

/// Bytes that are quoted: the IP header, and as much of the transport header as the kernel lets a
/// packet be cut to whose checksum is not computed yet.
const TCP_V4: usize = 40;
const UDP_V4: usize = 28;
const TCP_V6: usize = 60;
const UDP_V6: usize = 48;

/// Refuses the packet at hand: nobody serves at its port.
#[inline(always)]
pub fn answer(context: &TcContext, settings: &Settings, from: Hook) -> i32 {
    let action = refuse(context, from, DropReason::NoBackend);
    let Some((_, packet)) = at_hand() else { return action };
    if !matches!(packet.fragment, Fragment::Whole) || turn_into_refusal(skb(context)) == 0 {
        return action;
    }
    match from {
        Hook::FromPod => match attachment(&packet.source) {
            Some(pod) => carry::frame_to_pod(context, settings, pod),
            None => action,
        },
        _ => send_back(context, settings),
    }
}

/// Tells the client of the packet at hand what would fit the tunnel.
#[inline(always)]
pub fn too_big(context: &TcContext, settings: &Settings) -> i32 {
    let action = drop(DropReason::TooBig);
    let Some((_, packet)) = at_hand() else { return action };
    if turn_into_answer(skb(context), u32::from(packet.source.is_v4()), settings.tunnel_mtu) == 0 {
        return action;
    }
    send_back(context, settings)
}

/// Sends the answer that the packet at hand has become.
#[inline(always)]
fn send_back(context: &TcContext, settings: &Settings) -> i32 {
    let (Some(packet), Some(balance)) = (PACKET.get_ptr_mut(0), BALANCE.get_ptr_mut(0)) else {
        return drop(DropReason::NotReady);
    };
    // SAFETY: the slots belong to this CPU and to the program that runs on it.
    let (packet, spare) = unsafe { (&mut *packet, &mut (*balance).wanted.source) };
    put(spare, &packet.source);
    put(&mut packet.source, &packet.destination.clone());
    put(&mut packet.destination, spare);
    packet.protocol = if spare.is_v4() { protocol::ICMP } else { protocol::ICMPV6 };
    packet.source_port = 0;
    packet.destination_port = 0;
    packet.hop_limit = 64;
    route::send(context, settings, 0, token::FROM_WIRE, 14)
}

/// Turns the packet at hand into the answer; 1 if that succeeded. Verified by itself: see
/// [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn turn_into_refusal(skb: *mut __sk_buff) -> u32 {
    let Some((_, packet)) = at_hand() else { return 0 };
    let [v4, v6] = UNREACHABLE;
    u32::from(match (packet.source.is_v4(), packet.protocol) {
        (true, protocol::TCP) => turn::<HEAD_V4, { HEAD_V4 + TCP_V4 }>(skb, v4, 0),
        (true, _) => turn::<HEAD_V4, { HEAD_V4 + UDP_V4 }>(skb, v4, 0),
        (false, protocol::TCP) => turn::<HEAD_V6, { HEAD_V6 + TCP_V6 }>(skb, v6, 0),
        (false, _) => turn::<HEAD_V6, { HEAD_V6 + UDP_V6 }>(skb, v6, 0),
    })
}
