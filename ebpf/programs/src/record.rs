//! Evidence: a counter for every verdict and a flow entry for every packet that concerns a pod.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use hauberk_abi::{
    address::Address,
    flow::{EventKind, Flow, FlowEvent, FlowKey, TCP_FIN, TCP_RST, Tally},
    judge::Verdict,
    layout::{COUNTER_SLOTS, Hook, LOST_EVENTS, Peer, counter_slot},
    packet::{Packet, protocol},
    reason::{DropReason, Encryption},
};

use crate::lookup::at_hand;
use crate::maps::{COUNTERS, DROPS, EVENTS, FLOWS, SCRATCH, TALLIES};
use crate::recent::SLOTS;

/// Counts a dropped packet.
#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(slot) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: the slot belongs to this CPU, where tc programs do not preempt one another.
        unsafe { *slot += 1 };
    }
}

/// Stores the key of a packet's flow and the interface it is seen on, for the rest of this program
/// run. It is in a map because a program's stack has only 512 bytes.
#[inline(always)]
pub fn name(interface: u32, hook: Hook, packet: &Packet) -> Option<&'static mut Tally> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let scratch = unsafe { &mut *scratch };
    put(&mut scratch.key.source, &packet.source);
    put(&mut scratch.key.destination, &packet.destination);
    scratch.key.source_port = packet.source_port;
    scratch.key.destination_port = packet.destination_port;
    scratch.key.protocol = packet.protocol;
    scratch.key.hook = hook as u8;
    scratch.key.reserved = 0;
    scratch.flow.interface = interface;
    Some(scratch)
}

/// The coarse monotonic clock, nanoseconds: it costs a seventh of the exact one.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: plain helper call.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Records `verdict` for the packet at hand, whose flow key [`name`] has stored: the counters, the
/// flow, and an event if the flow starts, ends, changes its verdict or is refused for the first
/// time. `node` is the other end's node, `tunnel` that node's tunnel.
#[inline(always)]
pub fn record(hook: Hook, verdict: &Verdict, node: u32, tunnel: &Peer) {
    let verdict_bytes = u32::from_le_bytes(bytes(verdict));
    record_named(counter_slot(hook, verdict.encryption), verdict_bytes, node, tunnel.epoch);
}

/// A verdict as a flow entry stores it: encryption, why, drop reason, zero.
#[inline(always)]
fn bytes(verdict: &Verdict) -> [u8; 4] {
    [verdict.encryption as u8, verdict.why as u8, verdict.drop as u8, 0]
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn record_named(slot: u32, verdict: u32, node: u32, epoch: u32) -> u32 {
    let (Some((_, packet)), Some(scratch)) = (at_hand(), SCRATCH.get_ptr_mut(0)) else { return 0 };
    if slot < COUNTER_SLOTS {
        count(slot, packet.length);
    }
    let now = now();
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let flow = unsafe { &mut (*scratch).flow };
    set(flow, verdict.to_le_bytes(), node, epoch, now);
    flow.packets = 1;
    flow.bytes = u64::from(packet.length);
    flow.tcp_flags = if packet.protocol == protocol::TCP { packet.tcp_flags } else { 0 };
    flow.reserved = 0;
    account(SLOTS, now)
}

/// Writes the verdict on the current packet into its flow.
#[inline(always)]
pub fn judged(flow: &mut Flow, verdict: &Verdict, node: u32, tunnel: &Peer, now: u64) {
    set(flow, bytes(verdict), node, tunnel.epoch, now);
}

#[inline(always)]
fn set(flow: &mut Flow, [encryption, why, drop, _]: [u8; 4], node: u32, epoch: u32, now: u64) {
    flow.first = now;
    flow.last = now;
    flow.node = node;
    // Volatile, so that the compiler does not merge the store with its neighbours where all are
    // zero: that would be a call of `memset`, byte by byte.
    // SAFETY: a field of a live value.
    unsafe { (&raw mut flow.epoch).write_volatile(epoch) };
    flow.encryption = encryption;
    flow.why = why;
    flow.drop = drop;
}

/// Records a packet that goes the same way as earlier packets of its flow: it is counted now, and
/// added to the flow's entry later, together with others.
#[inline(always)]
pub fn gather(tally: &mut Tally, slot: u32, hook: Hook, packet: &Packet, verdict: &Verdict, now: u64) {
    count(counter_slot(hook, verdict.encryption), packet.length);
    tally.flow.packets += 1;
    tally.flow.bytes += u64::from(packet.length);
    tally.flow.last = now;
    if packet.protocol == protocol::TCP {
        let fresh = packet.tcp_flags & !tally.flow.tcp_flags;
        tally.flow.tcp_flags |= fresh;
        // The end of a flow is reported at once, with all of its packets so far.
        if fresh & (TCP_FIN | TCP_RST) != 0 {
            add_gathered(tally, slot, now);
        }
    }
}

/// Adds the counts in `slot` to the flow's entry.
#[inline(always)]
pub fn add_gathered(tally: &mut Tally, slot: u32, now: u64) {
    if tally.flow.packets != 0 {
        account(slot, now);
        tally.flow.packets = 0;
        // Separate from its neighbour, as in `set`.
        // SAFETY: a field of a live value.
        unsafe { (&raw mut tally.flow.bytes).write_volatile(0) };
    }
}

/// Copies a flow's key, see [`put`].
#[inline(always)]
pub fn put_key(slot: &mut FlowKey, key: &FlowKey) {
    put(&mut slot.source, &key.source);
    put(&mut slot.destination, &key.destination);
    slot.source_port = key.source_port;
    slot.destination_port = key.destination_port;
    slot.protocol = key.protocol;
    slot.hook = key.hook;
    slot.reserved = 0;
}

/// Copies an address word by word. The compiler turns a plain copy into a call of `memmove`, which
/// goes byte by byte here.
#[inline(always)]
pub fn put(slot: &mut Address, address: &Address) {
    let slot = (&raw mut *slot).cast::<u32>();
    let [a, b, c, d] = address.words();
    // SAFETY: an address is four words.
    unsafe {
        slot.write_volatile(a);
        slot.add(1).write_volatile(b);
        slot.add(2).write_volatile(c);
        slot.add(3).write_volatile(d);
    }
}

/// Adds packets of a flow to its entry: the counts in `slot`, or, if that is [`SLOTS`], the packet
/// at hand. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn account(slot: u32, now: u64) -> u32 {
    let gathered = slot < SLOTS;
    let seen = if gathered { TALLIES.get(slot) } else { SCRATCH.get(0) };
    let (Some(seen), Some((settings, _))) = (seen, at_hand()) else { return 0 };
    let new = &seen.flow;
    let limit = u64::from(settings.flow_idle_ms) * 1_000_000;
    let refused = new.encryption == Encryption::Refused as u8;
    if let Some(flow) = FLOWS.get_ptr_mut(&seen.key) {
        // SAFETY: the pointer is to a live map value. Other CPUs may write it too: counters are
        // added to atomically, and the other fields are written in single stores, where any CPU's
        // value is right.
        unsafe {
            let idle = !gathered && new.last.saturating_sub((*flow).last) > limit;
            if (*flow).is_judged_as(new) && !idle {
                add(&raw mut (*flow).packets, new.packets);
                add(&raw mut (*flow).bytes, new.bytes);
                if (*flow).last < new.last {
                    (*flow).last = new.last;
                }
                let fresh = new.tcp_flags & !(*flow).tcp_flags;
                if fresh != 0 {
                    (*flow).tcp_flags |= fresh;
                }
                if fresh & (TCP_FIN | TCP_RST) != 0 && !refused {
                    tell(EventKind::End, &seen.key, &*flow);
                }
                return 0;
            }
        }
        // Another CPU has since restarted the entry with another verdict: these packets are older.
        if gathered {
            return 0;
        }
    } else if gathered && now.saturating_sub(new.last) > limit {
        // The last packet is so old that the agent has already ended the flow, with these packets.
        return 0;
    }
    // A full least-recently-used map evicts an entry. A failure here loses accounting, never the
    // verdict.
    let _ = FLOWS.insert(&seen.key, new, 0);
    tell(if refused { EventKind::Refused } else { EventKind::Start }, &seen.key, new);
    0
}

/// Adds to a counter that other CPUs may add to as well. `AtomicU64::fetch_add` does not exist for
/// this target: it needs compare-and-swap, which BPF has only since v3. Atomic add has always been
/// there.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: the caller passes a pointer to a live, aligned map value.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}

#[inline(always)]
fn count(slot: u32, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the slot belongs to this CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

#[inline(always)]
fn tell(kind: EventKind, key: &FlowKey, flow: &Flow) {
    match EVENTS.reserve::<FlowEvent>(0) {
        Some(mut entry) => {
            let event = entry.as_mut_ptr();
            // SAFETY: the entry is reserved for a whole `FlowEvent`, and every field is written
            // before it is submitted.
            unsafe {
                (&raw mut (*event).kind).write(kind as u32);
                (&raw mut (*event).reserved).write(0);
                (&raw mut (*event).key).write(*key);
                (&raw mut (*event).flow).write(*flow);
            }
            entry.submit(0);
        }
        None => count(LOST_EVENTS, 0),
    }
}
