//! The answer to a packet that came sealed is sealed too, whatever its addresses are by then. A
//! node's address may stand for a protected pod behind another node's masquerading, and the answer
//! to it goes from node to node.
//!
//! A request that came out of the tunnel is remembered, and the last guard looks up each packet
//! that concerns no protected pod. Pods answer from the address and port of the request, and so
//! does TCP. For other protocols a node may answer from another address or port, as a UDP server
//! with two addresses or TFTP does, so everything that goes to the requester's port is sealed.
//! Fragments have no ports: the first fragment tells where the others belong. ICMP errors quote
//! packets: all ICMP to an address that sent sealed requests is sealed, and so are a node's own
//! errors about requests to one of its pods.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    address::Address,
    judge::Need,
    layout::{Answer, AnswerKey, Settings, generation},
    packet::{Fragment, Packet, protocol},
};

use crate::encapsulated::{are_protected, ends_at, start};
use crate::lookup::{Skb, at_hand, ends};
use crate::maps::{ASKED, FRAGMENTS, GENERATIONS, SEALED};
use crate::record::{add, now};

/// Age of the stored time of the last request, in nanoseconds, from which on it is written again.
const FRESH: u64 = 1_000_000_000;
/// TCP's SYN flag: set in a connection's first segment.
const TCP_SYN: u8 = 0x02;
/// TCP's ACK flag: set in every later segment.
const TCP_ACK: u8 = 0x10;
/// Bytes before the packet that an ICMP error quotes.
const ICMP_HEADER: u32 = 8;

/// Remembers that the answers to a packet out of `node`'s tunnel must be sealed, unless their
/// addresses alone require that. `of_pod`: the request went to a pod. False if there is no room for
/// the entry.
#[inline(always)]
pub fn remember(settings: &Settings, packet: &Packet, need: Need, node: u32, of_pod: bool) -> bool {
    if matches!(need, Need::Encrypt(_) | Need::Prefer) {
        return true;
    }
    // A tunnel's own messages never go inside a tunnel: an answer would loop.
    let own = u32::from(packet.destination_port) == settings.tunnel_port && packet.protocol == protocol::UDP;
    if own || matches!(packet.fragment, Fragment::Later) {
        return true;
    }
    keep(node, u32::from(of_pod)) != 0
}

/// Remembers it for the packet at hand; 0 if there is no room. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep(node: u32, of_pod: u32) -> u32 {
    let of_pod = of_pod != 0;
    let (Some((_, packet)), Some(key)) = (at_hand(), ASKED.get_ptr_mut(0)) else { return 0 };
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let key = unsafe { &mut *key };
    let (here, asker) = (&packet.destination, &packet.source);
    name(key, packet.protocol, of_pod, (here, packet.destination_port), (asker, packet.source_port));
    // Only a first segment starts a new flow: a later one follows segments that may have gone in
    // the clear.
    let new_flow = packet.protocol == protocol::TCP && packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if !put(key, node, new_flow) {
        return 0;
    }
    if is_icmp(packet.protocol) {
        return 1;
    }
    name(key, protocol::ICMP, of_pod, (here, 0), (asker, 0));
    u32::from(put(key, node, false))
}

/// The node to which the packet at hand must go sealed, because it answers a sealed packet from
/// that node; 0 if there is none. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn asked() -> u32 {
    let (Some((_, packet)), Some(key)) = (at_hand(), ASKED.get_ptr_mut(0)) else { return 0 };
    // SAFETY: as above.
    let key = unsafe { &mut *key };
    if matches!(packet.fragment, Fragment::Later) {
        name_fragment(key, packet);
        // SAFETY: a number is read.
        return match unsafe { FRAGMENTS.get(&*key) } {
            Some(node) => *node,
            None => 0,
        };
    }
    let (here, asker) = (&packet.source, &packet.destination);
    name(key, packet.protocol, true, (here, packet.source_port), (asker, packet.destination_port));
    let mut node = sealed_to(key);
    if node == 0 {
        key.source = Address::UNSPECIFIED;
        key.source_port = 0;
        node = sealed_to(key);
    }
    // Neighbour discovery belongs to the nodes' own link, and without it sealed packets cannot be
    // sent.
    if node == 0 || packet.is_neighbour_discovery() {
        return 0;
    }
    if !matches!(packet.fragment, Fragment::Whole) {
        name_fragment(key, packet);
        // A full least-recently-used map evicts an entry.
        let _ = FRAGMENTS.insert(&*key, &node, 0);
    }
    node
}

/// The same for an ICMP error of this node about a packet that came sealed or had to: the error
/// quotes that packet. 0 if the error may go in the clear. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn quoted(skb: *mut __sk_buff) -> u32 {
    let (Some((settings, packet)), Some(key)) = (at_hand(), ASKED.get_ptr_mut(0)) else { return u32::MAX };
    let bytes = Skb(&TcContext::new(skb));
    let Some((asker, here)) = ends_at(&bytes, start(&bytes, packet) + packet.header_length + ICMP_HEADER) else {
        return 0;
    };
    if are_protected(settings, &asker, &here) {
        let (_, destination) = ends();
        // No node has the number `u32::MAX`: an error without a node to seal it for is refused.
        return if destination.node == 0 { u32::MAX } else { destination.node };
    }
    // SAFETY: as above.
    let key = unsafe { &mut *key };
    name(key, protocol::ICMP, true, (&here, 0), (&packet.destination, 0));
    sealed_to(key)
}

/// The node that is remembered for this key, or 0.
#[inline(always)]
fn sealed_to(key: &AnswerKey) -> u32 {
    // SAFETY: an entry may be replaced while it is read; its node number is read in one load.
    match unsafe { SEALED.get(key) } {
        Some(answer) => answer.node,
        None => 0,
    }
}

/// Makes the later fragments of a datagram be dropped after its first one was refused: they are to
/// be sealed for `u32::MAX`, which no node has as its number.
#[inline(always)]
pub fn stop_fragments(packet: &Packet) {
    if matches!(packet.fragment, Fragment::Whole) {
        return;
    }
    let Some(key) = ASKED.get_ptr_mut(0) else { return };
    // SAFETY: as above.
    let key = unsafe { &mut *key };
    name_fragment(key, packet);
    let _ = FRAGMENTS.insert(&*key, &u32::MAX, 0);
}

#[inline(always)]
fn put(key: &AnswerKey, node: u32, new_flow: bool) -> bool {
    let now = now();
    if let Some(answer) = SEALED.get_ptr_mut(key) {
        // SAFETY: a live map value. The stores are single; any CPU's value is right.
        unsafe {
            if (*answer).node == node {
                if now.saturating_sub((*answer).last) > FRESH {
                    (*answer).last = now;
                }
                return true;
            }
        }
    }
    if SEALED.insert(key, &Answer { node, reserved: 0, last: now }, 0).is_err() {
        return false;
    }
    // Until now answers may have gone in the clear, and programs may remember that for their flow.
    if !new_flow {
        if let Some(generation) = GENERATIONS.get_ptr_mut(generation::PROGRAMS) {
            // SAFETY: a live, aligned map value.
            unsafe { add(generation, 1) };
        }
    }
    true
}

/// Writes into `key` the answers from `here` to `asker`. The source is left open if they may come
/// from another address or port.
#[inline(always)]
fn name(key: &mut AnswerKey, protocol: u8, of_pod: bool, here: (&Address, u16), asker: (&Address, u16)) {
    let (exact, icmp) = (of_pod || protocol == protocol::TCP, is_icmp(protocol));
    key.source = if exact { *here.0 } else { Address::UNSPECIFIED };
    key.source_port = if exact && !icmp { here.1 } else { 0 };
    key.destination = *asker.0;
    key.destination_port = if icmp { 0 } else { asker.1 };
    key.protocol = if icmp { 0 } else { u32::from(protocol) };
}

/// Writes into `key` what the fragments of a datagram have in common.
#[inline(always)]
fn name_fragment(key: &mut AnswerKey, packet: &Packet) {
    key.source = packet.source;
    key.destination = packet.destination;
    key.source_port = 0;
    key.destination_port = 0;
    key.protocol = packet.identification;
}

#[inline(always)]
fn is_icmp(protocol: u8) -> bool {
    protocol == protocol::ICMP || protocol == protocol::ICMPV6
}
