//! Limits what a pod can make its node write into the neighbour table. The table is small and
//! shared by all pods. A pod gets entries for its own addresses, for some link-local ones, and for
//! some unknown neighbours.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    address::{Address, GATEWAY_V6},
    layout::{
        Brought, NeighbourKey,
        neighbours::{DESTINATIONS, ROOM, SOURCES, WHILE},
    },
    neighbour::{claim, parse_arp},
    reason::DropReason,
};

use crate::carry::{drop, interface, pass};
use crate::lookup::{Skb, at_hand, attachment};
use crate::maps::{NEIGHBOUR, NEIGHBOURS};
use crate::record::{now, put};

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// The action for an ARP message at `offset`, sent by a pod. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn arp(skb: *mut __sk_buff, offset: u32) -> i32 {
    let context = &TcContext::new(skb);
    let Ok(arp) = parse_arp(&Skb(context), offset) else { return drop(DropReason::Malformed) };
    if is_own(interface(context), &arp.claim()) { pass() } else { drop(DropReason::SpoofedNeighbour) }
}

/// The reason to refuse the packet at hand, which a pod sends to its link: a [`DropReason`]'s
/// number, or 0 if it is not refused. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refuses(skb: *mut __sk_buff, interface: u32) -> u32 {
    let Some((_, packet)) = at_hand() else { return DropReason::NotReady as u32 };
    let discovery = packet.is_neighbour_discovery();
    let spoofed = if discovery { DropReason::SpoofedNeighbour } else { DropReason::SpoofedSource } as u32;
    let refused = speaks(interface, &packet.source, spoofed);
    if refused != 0 {
        return refused;
    }
    if discovery {
        let Some(claim) = claim(&Skb(&TcContext::new(skb)), ETHERNET, packet) else { return spoofed };
        let refused = speaks(interface, &claim, spoofed);
        if refused != 0 {
            return refused;
        }
    }
    if may_bring_up(&packet.destination) && !has_room(interface, DESTINATIONS, &packet.destination) {
        return DropReason::NeighbourLimit as u32;
    }
    0
}

/// The reason, if any, why the pod behind the interface may not speak from `address` on its link: a
/// [`DropReason`]'s number, or 0. The unspecified address is allowed.
#[inline(always)]
fn speaks(interface: u32, address: &Address, spoofed: u32) -> u32 {
    if address.is_unspecified() || is_own(interface, address) {
        return 0;
    }
    if !may_bring_up(address) {
        return spoofed;
    }
    if has_room(interface, SOURCES, address) { 0 } else { DropReason::NeighbourLimit as u32 }
}

/// Whether any host on the link may have the address. That excludes the address of the pods'
/// gateway.
#[inline(always)]
fn may_bring_up(address: &Address) -> bool {
    address.is_link_local() && *address != Address::v6(GATEWAY_V6)
}

#[inline(always)]
fn is_own(interface: u32, address: &Address) -> bool {
    match attachment(address) {
        Some(own) => own.interface == interface,
        None => false,
    }
}

/// 1 if there is room for the destination of the packet at hand. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn has_room_to_ask(interface: u32) -> u32 {
    let Some((_, packet)) = at_hand() else { return 0 };
    u32::from(has_room(interface, DESTINATIONS, &packet.destination))
}

/// Whether the interface has room for one more address of this kind ([`SOURCES`] or
/// [`DESTINATIONS`]), or has this address already. Two CPUs at the same time may count two
/// addresses as one.
#[inline(always)]
fn has_room(interface: u32, kind: u32, address: &Address) -> bool {
    let Some(key) = NEIGHBOUR.get_ptr_mut(0) else { return false };
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let key = unsafe { &mut *key };
    key.interface = interface;
    key.kind = kind;
    put(&mut key.address, address);
    has_room_for_named() != 0
}

/// 1 if there is room for the address in `NEIGHBOUR`. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn has_room_for_named() -> u32 {
    let Some(key) = NEIGHBOUR.get_ptr_mut(0) else { return 0 };
    // SAFETY: as above.
    let key = unsafe { &mut *key };
    let when = (now() >> WHILE) as u32;
    if brought(key, when) != 0 {
        return 1;
    }
    let address = key.address;
    put(&mut key.address, &Address::UNSPECIFIED);
    let count = brought(key, when);
    if count >= ROOM {
        return 0;
    }
    // A full least-recently-used map evicts an entry.
    let _ = NEIGHBOURS.insert(&*key, &Brought { when, count: count + 1 }, 0);
    put(&mut key.address, &address);
    let _ = NEIGHBOURS.insert(&*key, &Brought { when, count: 1 }, 0);
    1
}

#[inline(always)]
fn brought(key: &NeighbourKey, when: u32) -> u32 {
    // SAFETY: two numbers are read; a torn pair miscounts by one address.
    match unsafe { NEIGHBOURS.get(key) } {
        Some(brought) if brought.when == when => brought.count,
        _ => 0,
    }
}
