//! Recent decisions per flow, so that the next packet of a flow needs few look-ups.
//!
//! A decision is void as soon as any data changes that verdicts follow from ([`generation`]), and
//! after [`LIFETIME`] at the latest: hauberk does not watch the host's routes, and an agent may die
//! between a change and its announcement. Only the common case is remembered: packets that pass
//! between two known parties. Packets that are refused, translated, tagged or on a detour are
//! judged each time. Each CPU has its own table, without chains: if another flow uses the slot, the
//! packet is judged again.

use aya_ebpf::programs::TcContext;
use hauberk_abi::{
    flow::{FlowKey, Tally},
    judge::Verdict,
    layout::{Attachment, Hook, Peer, generation},
    packet::Packet,
};

use crate::carry::has_tag;
use crate::maps::{GENERATIONS, RECENT, TALLIES};
use crate::record::{self, add_gathered};
use crate::route::Way;

/// Slots of the table; a power of two.
pub const SLOTS: u32 = 128;
/// How long a decision is remembered, nanoseconds.
const LIFETIME: u64 = 20_000_000;

/// A decision. Its packets are counted in the [`Tally`] of the same slot.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Recent {
    key: FlowKey,
    generations: [u64; 2],
    until: u64,
    interface: u32,
    /// The node of the other end.
    pub node: u32,
    /// What was decided.
    pub verdict: Verdict,
    /// The pod the packets go to, if they go directly into one.
    pub pod: Attachment,
    /// The way the packets take, if they leave by the host's routes.
    pub way: Way,
}

/// The slot of a packet's flow, and the time at which the packet came.
pub struct Memory {
    /// The decision in the slot: it applies to this flow only if it [holds](Memory::holds).
    pub decision: &'static mut Recent,
    tally: &'static mut Tally,
    generations: [u64; 2],
    now: u64,
    slot: u32,
    interface: u32,
    hook: Hook,
    usual: bool,
}

/// A packet that must be judged.
pub struct Undecided {
    /// The flow's key.
    pub flow: &'static mut Tally,
    memory: Memory,
}

impl Memory {
    /// The memory for a packet's flow. Call it before any look-up, so that a change in between
    /// voids the decision that is then remembered.
    #[inline(always)]
    pub fn of(context: &TcContext, interface: u32, hook: Hook, packet: &Packet) -> Option<Memory> {
        let slot = slot(hook, packet);
        // SAFETY: the slots belong to this CPU and to the program that runs on it.
        let (decision, tally) = unsafe { (&mut *RECENT.get_ptr_mut(slot)?, &mut *TALLIES.get_ptr_mut(slot)?) };
        let generations = [*GENERATIONS.get(generation::AGENT)?, *GENERATIONS.get(generation::PROGRAMS)?];
        let usual = !packet.tagged && !packet.detour && !has_tag(context);
        Some(Memory { decision, tally, generations, now: record::now(), slot, interface, hook, usual })
    }

    /// Whether the decision still holds, and for this packet. The tally is checked too: it is
    /// pinned, so another program load may have written it.
    #[inline(always)]
    pub fn holds(&self, packet: &Packet) -> bool {
        self.usual
            && self.decision.until > self.now
            && self.decision.generations[0] == self.generations[0]
            && self.decision.generations[1] == self.generations[1]
            && self.decision.interface == self.interface
            && is_of(&self.decision.key, self.hook, packet)
            && is_of(&self.tally.key, self.hook, packet)
    }

    /// Records a packet for which the decision holds.
    #[inline(always)]
    pub fn record(&mut self, packet: &Packet) {
        record::gather(self.tally, self.slot, self.hook, packet, &self.decision.verdict, self.now);
    }

    /// Gives up the decision in the slot: the packet belongs to another flow, or must be judged
    /// again.
    #[inline(always)]
    pub fn leave(self, packet: &Packet) -> Option<Undecided> {
        add_gathered(self.tally, self.slot, self.now);
        let flow = record::name(self.interface, self.hook, packet)?;
        Some(Undecided { flow, memory: self })
    }
}

impl Undecided {
    /// The interface the packet is seen on.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        self.memory.interface
    }

    /// Remembers a decision. The caller adds where the packet goes.
    #[inline(always)]
    pub fn remember(self, verdict: &Verdict, node: u32, tunnel: &Peer) -> &'static mut Recent {
        let Undecided { flow: Tally { key, .. }, memory } = self;
        let Memory { decision: slot, tally, generations, now, interface, usual, .. } = memory;
        record::put_key(&mut slot.key, key);
        slot.generations = generations;
        slot.until = if usual { now + LIFETIME } else { 0 };
        slot.interface = interface;
        slot.node = node;
        slot.verdict = *verdict;
        record::put_key(&mut tally.key, key);
        record::judged(&mut tally.flow, verdict, node, tunnel, now);
        tally.flow.tcp_flags = 0;
        tally.flow.interface = interface;
        slot
    }
}

/// Spreads flows over the table. A sender that makes flows collide only makes them slower.
#[inline(always)]
fn slot(hook: Hook, packet: &Packet) -> u32 {
    let fold = |[a, b, c, d]: [u32; 4]| a ^ b ^ c ^ d;
    let ports = (u32::from(packet.source_port) << 16) | u32::from(packet.destination_port);
    let mixed = fold(packet.source.words())
        ^ fold(packet.destination.words()).rotate_left(11)
        ^ ports.wrapping_mul(0x85eb_ca6b)
        ^ hook as u32;
    mixed.wrapping_mul(0x9e37_79b1) >> (32 - SLOTS.trailing_zeros())
}

#[inline(always)]
fn is_of(key: &FlowKey, hook: Hook, packet: &Packet) -> bool {
    let [a, b, c, d] = key.source.words();
    let [e, f, g, h] = key.destination.words();
    let [i, j, k, l] = packet.source.words();
    let [m, n, o, p] = packet.destination.words();
    d == l
        && h == p
        && key.source_port == packet.source_port
        && key.destination_port == packet.destination_port
        && key.protocol == packet.protocol
        && key.hook == hook as u8
        && (a, b, c) == (i, j, k)
        && (e, f, g) == (m, n, o)
}
