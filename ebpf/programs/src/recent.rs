//! What was decided a moment ago about a packet of the same flow, so that the next one does without most look-ups.
//!
//! It is void as soon as anything changes that verdicts follow from ([`generation`]), and after [`LIFETIME`] at the latest:
//! the host's routes are not ours to watch, and an agent may die between a change and saying so. Only what is usual is
//! remembered: packets that pass between two known parties; what is refused, translated, tagged or on a detour is looked at
//! each time. A table for each CPU, without chains: another flow in the same slot only means asking again.

use aya_ebpf::programs::TcContext;
use hauberk_abi::{
    flow::FlowKey,
    judge::Verdict,
    layout::{Attachment, Hook, Peer, generation},
    packet::Packet,
};

use crate::carry::has_tag;
use crate::maps::{GENERATIONS, RECENT};
use crate::record::{self, Scratch};
use crate::route::Way;

/// Slots of the table; a power of two.
pub const SLOTS: u32 = 128;
/// How long a decision is remembered, nanoseconds.
const LIFETIME: u64 = 20_000_000;

/// A decision. Everything that [`record`] says of the packets that follow it is in here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Recent {
    key: FlowKey,
    generations: [u64; 2],
    until: u64,
    interface: u32,
    /// The other end's node.
    pub node: u32,
    /// Its tunnel.
    pub tunnel: Peer,
    /// What was decided.
    pub verdict: Verdict,
    /// The pod it goes to, if it goes straight into one.
    pub pod: Attachment,
    /// The way it takes, if it leaves by the host's routes.
    pub way: Way,
}

/// The slot of a packet's flow, and the moment in which the packet came.
pub struct Memory {
    /// What was decided: of this flow only if it [holds](Memory::holds).
    pub decision: &'static mut Recent,
    /// The flow's name.
    pub flow: &'static mut Scratch,
    generations: [u64; 2],
    now: u64,
    /// The interface it is seen on.
    pub interface: u32,
    usual: bool,
}

impl Memory {
    /// Of a packet's flow. To be asked before anything is looked up: what changes in between voids what is remembered.
    #[inline(always)]
    pub fn of(context: &TcContext, interface: u32, hook: Hook, packet: &Packet) -> Option<Memory> {
        let flow = record::name(interface, hook, packet)?;
        let slot = RECENT.get_ptr_mut(slot(&flow.key))?;
        // SAFETY: the slot belongs to this CPU and to the program that runs on it.
        let decision = unsafe { &mut *slot };
        let generations = [*GENERATIONS.get(generation::AGENT)?, *GENERATIONS.get(generation::PROGRAMS)?];
        let usual = !packet.tagged && !packet.detour && !has_tag(context);
        Some(Memory { decision, flow, generations, now: record::now(), interface, usual })
    }

    /// Whether what was decided still holds, for this packet too.
    #[inline(always)]
    pub fn holds(&self) -> bool {
        self.usual
            && self.decision.until > self.now
            && self.decision.generations[0] == self.generations[0]
            && self.decision.generations[1] == self.generations[1]
            && self.decision.interface == self.interface
            && is_same(&self.decision.key, &self.flow.key)
    }

    /// Remembers a decision; where the packet goes is for the caller to add.
    #[inline(always)]
    pub fn remember(self, verdict: &Verdict, node: u32, tunnel: &Peer) -> &'static mut Recent {
        let Memory { decision: slot, flow, generations, now, interface, usual } = self;
        record::put(&mut slot.key.source, &flow.key.source);
        record::put(&mut slot.key.destination, &flow.key.destination);
        slot.key.source_port = flow.key.source_port;
        slot.key.destination_port = flow.key.destination_port;
        slot.key.protocol = flow.key.protocol;
        slot.key.hook = flow.key.hook;
        slot.key.reserved = 0;
        slot.generations = generations;
        slot.until = if usual { now + LIFETIME } else { 0 };
        slot.interface = interface;
        slot.node = node;
        slot.tunnel = *tunnel;
        slot.verdict = *verdict;
        slot
    }
}

/// Spreads flows over the table. Whoever makes them collide makes them slower, nothing else.
#[inline(always)]
fn slot(key: &FlowKey) -> u32 {
    let fold = |[a, b, c, d]: [u32; 4]| a ^ b ^ c ^ d;
    let ports = (u32::from(key.source_port) << 16) | u32::from(key.destination_port);
    let mixed = fold(key.source.words())
        ^ fold(key.destination.words()).rotate_left(11)
        ^ ports.wrapping_mul(0x85eb_ca6b)
        ^ u32::from(key.hook);
    mixed.wrapping_mul(0x9e37_79b1) >> (32 - SLOTS.trailing_zeros())
}

#[inline(always)]
fn is_same(one: &FlowKey, other: &FlowKey) -> bool {
    let [a, b, c, d] = one.source.words();
    let [e, f, g, h] = one.destination.words();
    let [i, j, k, l] = other.source.words();
    let [m, n, o, p] = other.destination.words();
    d == l
        && h == p
        && one.source_port == other.source_port
        && one.destination_port == other.destination_port
        && one.protocol == other.protocol
        && one.hook == other.hook
        && (a, b, c) == (i, j, k)
        && (e, f, g) == (m, n, o)
}
