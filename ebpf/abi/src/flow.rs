//! Flows: what the kernel keeps of each, and what it tells the agent.
//!
//! A flow is one direction of a conversation as seen at one hook. Fragments after the first have no ports and count to a
//! flow with ports 0.

use crate::address::Address;

/// A flow's key (40 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, host order; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port, host order; for ICMP type and code.
    pub destination_port: u16,
    /// IP protocol number of the transport header.
    pub protocol: u8,
    /// A [`crate::layout::Hook`].
    pub hook: u8,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 40);

/// What is kept of a flow (56 bytes): encryption state and accounting in one entry, so that they cannot disagree.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// First packet, nanoseconds of the monotonic clock.
    pub first: u64,
    /// Last packet, nanoseconds of the monotonic clock.
    pub last: u64,
    /// Packets (a GSO super-packet counts once).
    pub packets: u64,
    /// Bytes of IP.
    pub bytes: u64,
    /// The other node's number; 0 where there is none.
    pub node: u32,
    /// The other node's key epoch when the flow began.
    pub epoch: u32,
    /// A [`crate::reason::Encryption`].
    pub encryption: u8,
    /// A [`crate::reason::Why`].
    pub why: u8,
    /// A [`crate::reason::DropReason`]; 0 unless refused.
    pub drop: u8,
    /// TCP flags seen, or-ed.
    pub tcp_flags: u8,
    /// Interface the packets were seen on.
    pub interface: u32,
    /// Room for the accounting to come.
    pub reserved: u64,
}

const _: () = assert!(size_of::<Flow>() == 56);

/// A flow's packets that are not in its entry yet (96 bytes).
///
/// A program that knows a flow from a moment ago gathers its packets, each CPU its own, and adds them to the entry together. Whoever
/// reads entries has to add what is gathered: `packets` and `bytes` are what is missing, `first` is when the programs last looked at the
/// flow anew, `last` its last packet; the rest is as in the entry.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Which flow.
    pub key: FlowKey,
    /// What is missing in its entry; no packets if nothing is.
    pub flow: Flow,
}

const _: () = assert!(size_of::<Tally>() == 96);

impl Flow {
    /// Whether both say the same of what happened to the packets.
    #[inline(always)]
    pub fn is_judged_as(&self, other: &Flow) -> bool {
        self.encryption == other.encryption && self.why == other.why && self.drop == other.drop
    }
}

/// What an event tells.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// First packet of a flow, or the first with another verdict.
    Start = 1,
    /// TCP said FIN or RST.
    End = 2,
    /// First refused packet of a flow.
    Refused = 3,
}

/// An event on the ring buffer (104 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEvent {
    /// An [`EventKind`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// Which flow.
    pub key: FlowKey,
    /// Its entry at that moment.
    pub flow: Flow,
}

const _: () = assert!(size_of::<FlowEvent>() == 104);

/// TCP FIN (RFC 9293 section 3.1).
pub const TCP_FIN: u8 = 0x01;
/// TCP RST.
pub const TCP_RST: u8 = 0x04;
