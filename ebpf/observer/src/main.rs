//! Observes the packets that leave a node, behind the guard, and finds those that the guard should
//! have stopped.
//!
//! It shares no code with the guard, so that it does not repeat a mistake in the guard's parser or
//! rules. It reads identities from the maps that the guard reads, by their layout. It returns
//! `NEXT` for every packet and changes none.
#![no_std]
#![no_main]

mod maps;
mod read;

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::classifier,
    programs::TcContext,
};

use maps::{FOUND, Found, Identity, Inside};

/// The action that passes the packet to the next program, or to the device.
const NEXT: i32 = -1;

/// Of the packets that do not open a TCP connection, one in this many is checked; a power of two.
const ONE_IN: u32 = 64;

/// For a device whose packets have Ethernet headers.
#[classifier]
pub fn observe(context: TcContext) -> i32 {
    look(&context, true);
    NEXT
}

/// For a device whose packets begin with their IP header.
#[classifier]
pub fn observe_ip(context: TcContext) -> i32 {
    look(&context, false);
    NEXT
}

#[inline(always)]
fn look(context: &TcContext, ethernet: bool) {
    let node = maps::node();
    if node == 0 {
        return;
    }
    let Some(found) = FOUND.get_ptr_mut(0) else { return };
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let found = unsafe { &mut *found };
    // SAFETY: plain helper call.
    let sampled = unsafe { bpf_get_prandom_u32() } & (ONE_IN - 1) == 0;
    let start = if ethernet { read::after_ethernet(context, 0) } else { Some(0) };
    let Some(start) = start else { return };
    if !read::packet(context, start, found) {
        return;
    }
    if (sampled || found.opens) && leaks(found, node) {
        return note(context, found);
    }
    // Packets inside another plugin's overlay are in the clear too.
    let at = found.inside_at;
    let start = match found.inside {
        Inside::NOTHING => None,
        Inside::FRAME => read::after_ethernet(context, at),
        _ => Some(at),
    };
    let Some(start) = start else { return };
    if read::packet(context, start, found) && (sampled || found.opens) && leaks(found, node) {
        note(context, found);
    }
}

/// Whether the packet should have been encrypted.
#[inline(always)]
fn leaks(found: &Found, node: u32) -> bool {
    let source = maps::identity(&found.leak.source);
    let destination = maps::identity(&found.leak.destination);
    // A packet to a party of this node does not leave the node, whatever device it goes to.
    let arrives = destination.node == node && destination.kind != Identity::WORLD;
    (source.is_protected() || destination.is_protected())
        && source.kind != Identity::WORLD
        && destination.kind != Identity::WORLD
        && !arrives
}

#[inline(always)]
fn note(context: &TcContext, found: &mut Found) {
    // SAFETY: the context is valid while the program runs.
    let device = unsafe { (*context.skb.skb).ifindex };
    found.leak.device = device;
    maps::count(device);
    // SAFETY: plain helper call.
    let now = unsafe { bpf_ktime_get_ns() };
    maps::keep(&found.leak, now);
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// The kernel offers its GPL-only helpers to programs that declare a GPL-compatible license.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
