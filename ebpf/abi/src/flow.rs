//! Flows: what the kernel records of each flow, and what it reports to the agent.
//!
//! A flow is one direction of a conversation as seen at one hook. Fragments after the first have no
//! ports, so they are counted in a flow with ports 0.

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
    /// Destination port, host order; for ICMP, type << 8 | code.
    pub destination_port: u16,
    /// IP protocol number of the transport header.
    pub protocol: u8,
    /// A [`crate::layout::Hook`].
    pub hook: u8,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 40);

/// What the kernel records of a flow (56 bytes). Encryption state and accounting share one entry,
/// so that they cannot disagree.
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
    /// Number of the other node; 0 if there is none.
    pub node: u32,
    /// The other node's key epoch when the flow began.
    pub epoch: u32,
    /// A [`crate::reason::Encryption`].
    pub encryption: u8,
    /// A [`crate::reason::Why`].
    pub why: u8,
    /// A [`crate::reason::DropReason`]; 0 unless refused.
    pub drop: u8,
    /// All TCP flags seen so far, or-ed together.
    pub tcp_flags: u8,
    /// Interface the packets were seen on.
    pub interface: u32,
    /// Room for accounting to come.
    pub reserved: u64,
}

const _: () = assert!(size_of::<Flow>() == 56);

/// A flow's packets that are not in its entry yet (96 bytes).
///
/// A program that remembers a recent flow first counts the flow's packets per CPU, and adds them to
/// the entry later, all at once. A reader of the entries has to add these counts: `packets` and
/// `bytes` are what the entry lacks, `first` is when a program last judged the flow in full,
/// `last` is the time of its last packet. The other fields are as in the entry.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// The flow.
    pub key: FlowKey,
    /// What its entry lacks; `packets` is 0 if it lacks nothing.
    pub flow: Flow,
}

const _: () = assert!(size_of::<Tally>() == 96);

impl Flow {
    /// Whether both record the same verdict.
    #[inline(always)]
    pub fn is_judged_as(&self, other: &Flow) -> bool {
        self.encryption == other.encryption && self.why == other.why && self.drop == other.drop
    }
}

/// What an event reports.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// First packet of a flow, or first packet with a different verdict.
    Start = 1,
    /// A TCP FIN or RST was seen.
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
    /// The flow.
    pub key: FlowKey,
    /// The flow's entry at that moment.
    pub flow: Flow,
}

const _: () = assert!(size_of::<FlowEvent>() == 104);

/// TCP FIN (RFC 9293 section 3.1).
pub const TCP_FIN: u8 = 0x01;
/// TCP RST.
pub const TCP_RST: u8 = 0x04;
