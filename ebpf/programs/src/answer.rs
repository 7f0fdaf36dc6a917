//! What came sealed is answered sealed, whatever the addresses say by then: a node's address may stand for a protected pod behind
//! another node's masquerading, and the answer to it goes from node to node.
//!
//! A question that came out of the tunnel is remembered by its flow, and the last guard asks of each packet that concerns no
//! protected pod whether it is an answer. Fragments have no ports: the first says of the others whose they are. Errors of
//! ICMP quote what they are about, so between two addresses of which one asked sealed all of ICMP is sealed.

use hauberk_abi::{
    address::Address,
    judge::Need,
    layout::{Answer, AnswerKey, Settings, generation},
    packet::{Fragment, Packet, protocol},
};

use crate::maps::{ASKED, FRAGMENTS, GENERATIONS, SEALED};
use crate::record::{add, now};

/// How old the time of the last question may be, nanoseconds, before it is written again.
const FRESH: u64 = 1_000_000_000;
/// TCP's flag of a connection's first segment.
const TCP_SYN: u8 = 0x02;

/// Remembers that the answers to a packet out of `node`'s tunnel must be sealed, if their addresses alone do not say so. False if
/// there is no room for it.
#[inline(always)]
pub fn remember(settings: &Settings, packet: &Packet, need: Need, node: u32) -> bool {
    if matches!(need, Need::Encrypt(_) | Need::Prefer) {
        return true;
    }
    // A tunnel's own messages are never inside a tunnel: an answer would go in circles.
    let own = u32::from(packet.destination_port) == settings.tunnel_port && packet.protocol == protocol::UDP;
    if own || matches!(packet.fragment, Fragment::Later) {
        return true;
    }
    keep(packet, node)
}

#[inline(never)]
fn keep(packet: &Packet, node: u32) -> bool {
    let Some(key) = ASKED.get_ptr_mut(0) else { return false };
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let key = unsafe { &mut *key };
    name(key, &packet.destination, &packet.source);
    let exact = packet.protocol != protocol::ICMP && packet.protocol != protocol::ICMPV6;
    if exact {
        key.source_port = packet.destination_port;
        key.destination_port = packet.source_port;
        key.protocol = u32::from(packet.protocol);
        if !put(key, node, packet.protocol == protocol::TCP && packet.tcp_flags & TCP_SYN != 0) {
            return false;
        }
        key.source_port = 0;
        key.destination_port = 0;
        key.protocol = 0;
    }
    put(key, node, false)
}

/// The node to which the packet must go sealed, if it answers what came from there sealed.
#[inline(never)]
pub fn asked(packet: &Packet) -> u32 {
    let Some(key) = ASKED.get_ptr_mut(0) else { return 0 };
    // SAFETY: as above.
    let key = unsafe { &mut *key };
    name(key, &packet.source, &packet.destination);
    let fragment = !matches!(packet.fragment, Fragment::Whole);
    if matches!(packet.fragment, Fragment::Later) {
        key.protocol = packet.identification;
        // SAFETY: a number is read.
        return match unsafe { FRAGMENTS.get(&*key) } {
            Some(node) => *node,
            None => 0,
        };
    }
    if packet.protocol != protocol::ICMP && packet.protocol != protocol::ICMPV6 {
        key.source_port = packet.source_port;
        key.destination_port = packet.destination_port;
        key.protocol = u32::from(packet.protocol);
    }
    // SAFETY: an entry may be replaced while it is read; its number is read at once.
    let node = match unsafe { SEALED.get(&*key) } {
        Some(answer) => answer.node,
        None => return 0,
    };
    if fragment {
        key.source_port = 0;
        key.destination_port = 0;
        key.protocol = packet.identification;
        // A full least-recently-used map makes room.
        let _ = FRAGMENTS.insert(&*key, &node, 0);
    }
    node
}

#[inline(always)]
fn put(key: &AnswerKey, node: u32, new_flow: bool) -> bool {
    let now = now();
    if let Some(answer) = SEALED.get_ptr_mut(key) {
        // SAFETY: a live map value; single stores, whose last writer is as right as any.
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
    // Answers may have gone in the clear until now, and what is remembered of their flow says that they may.
    if !new_flow {
        if let Some(generation) = GENERATIONS.get_ptr_mut(generation::PROGRAMS) {
            // SAFETY: a live, aligned map value.
            unsafe { add(generation, 1) };
        }
    }
    true
}

#[inline(always)]
fn name(key: &mut AnswerKey, source: &Address, destination: &Address) {
    key.source = *source;
    key.destination = *destination;
    key.source_port = 0;
    key.destination_port = 0;
    key.protocol = 0;
}
