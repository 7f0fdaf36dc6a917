//! Map values that are neither identities nor flows: the node's settings, pod attachments, peers, marks.

use crate::address::Address;

/// Every map's name, as pinned.
pub mod map {
    /// Array of one [`super::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// Hash of [`crate::address::Address`] to [`crate::identity::Identity`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Longest-prefix trie of [`crate::address::Address`] to [`crate::identity::Identity`].
    pub const RANGES: &str = "RANGES";
    /// Hash of [`crate::address::Address`] to [`super::Attachment`].
    pub const ATTACHMENTS: &str = "ATTACHMENTS";
    /// Hash of interface index to [`super::Interface`].
    pub const INTERFACES: &str = "INTERFACES";
    /// Hash of the interface index of every guarded uplink to 1.
    pub const UPLINKS: &str = "UPLINKS";
    /// Hash of node number to [`super::Peer`].
    pub const PEERS: &str = "PEERS";
    /// Array of two numbers, see [`super::generation`].
    pub const GENERATIONS: &str = "GENERATIONS";
    /// Least-recently-used hash of [`super::Pair`] to nanoseconds: pairs whose packets netfilter translated.
    pub const TRANSLATED: &str = "TRANSLATED";
    /// Hash of [`super::AnswerKey`] to [`super::Answer`]: packets that have to be sealed because they answer what came sealed.
    pub const SEALED: &str = "SEALED";
    /// Per-CPU array of packets by drop reason.
    pub const DROPS: &str = "DROPS";
    /// Per-CPU array of [`super::Counter`] by [`super::counter_slot`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Least-recently-used hash of [`crate::flow::FlowKey`] to [`crate::flow::Flow`].
    pub const FLOWS: &str = "FLOWS";
    /// Per-CPU array of [`crate::flow::Tally`]: packets that are not in `FLOWS` yet.
    pub const TALLIES: &str = "TALLIES";
    /// Ring buffer of [`crate::flow::FlowEvent`].
    pub const EVENTS: &str = "EVENTS";
}

/// Where in the kernel a program is attached. Also the flow records' observation point.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Hook {
    /// tc ingress, host side of a pod's veth.
    FromPod = 0,
    /// tc egress, host side of a pod's veth.
    ToPod = 1,
    /// tc ingress, tunnel device.
    FromTunnel = 2,
    /// tc ingress, uplinks.
    FromWire = 3,
    /// tc egress, uplinks.
    ToWire = 4,
}

impl Hook {
    /// Every hook, in numeric order.
    pub const ALL: [Hook; 5] = [Hook::FromPod, Hook::ToPod, Hook::FromTunnel, Hook::FromWire, Hook::ToWire];

    /// The program's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Hook::FromPod => "from_pod",
            Hook::ToPod => "to_pod",
            Hook::FromTunnel => "from_tunnel",
            Hook::FromWire => "from_wire",
            Hook::ToWire => "to_wire",
        }
    }
}

/// The node's settings, written by the agent before any program is attached (32 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// This node's number; never 0.
    pub node: u32,
    /// Interface index of the tunnel device; 0 while there is none.
    pub tunnel: u32,
    /// Largest packet the tunnel takes, in bytes of IP; 0 while there is none.
    pub tunnel_mtu: u32,
    /// A set of [`flag`] bits.
    pub flags: u32,
    /// How far left the [`mark`] bits are shifted in `skb->mark`: 0..=28.
    pub mark_shift: u32,
    /// A flow whose last packet is older than this many milliseconds starts anew.
    pub flow_idle_ms: u32,
    /// UDP port of the tunnel, in host order; 0 while there is none.
    pub tunnel_port: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Settings>() == 32);

/// Bits of [`Settings::flags`].
pub mod flag {
    /// `hostRouting: stack`: somebody else's netfilter may translate addresses.
    pub const STACK: u32 = 1 << 0;
    /// Every source has been read once: an address in no range is outside the cluster.
    pub const SYNCED: u32 = 1 << 1;
    /// `worldIngress: direct`: packets from outside the cluster may come straight to an opted-in pod's address.
    pub const WORLD_DIRECT: u32 = 1 << 2;
    /// Another CNI plugin connects pods: an interface of a pod may not be known as one yet.
    pub const CHAINED: u32 = 1 << 3;
}

/// What the programs tell each other of a packet on its way through the node, in `skb->tc_index`: it goes with the packet through
/// routing, netfilter, fragmentation and stacked devices, and neither netfilter nor a socket can write it. Verdicts rest on it.
///
/// The low bits are those of [`mark`], the next ones say where the packet came from.
pub mod token {
    /// In the high byte of every token: a packet that no program has seen has none.
    pub const MAGIC: u32 = 0x6800;
    /// The bits of the magic number.
    pub const MAGIC_BITS: u32 = 0xff00;
    /// From a pod's interface on this node.
    pub const FROM_POD: u32 = 0x10;
    /// In the clear from a guarded device.
    pub const FROM_WIRE: u32 = 0x20;
    /// Out of the tunnel.
    pub const FROM_TUNNEL: u32 = 0x40;
    /// In the clear from a guarded device, and sent by a node or pod of the cluster: it may enter no protected pod, whatever
    /// translation does to its addresses.
    pub const FROM_CLUSTER: u32 = 0x80;
}

/// Bits hauberk sets in `skb->mark`, before [`Settings::mark_shift`]: for its netfilter rules alone. Others may write marks, so
/// verdicts rest on the [`token`].
pub mod mark {
    /// Seen by `from_pod` (or `from_tunnel`): the stack carries it, hauberk judged or will judge it.
    pub const SEEN: u32 = 1;
    /// Carries traffic of an opted-in pod, whatever the addresses say after translation.
    pub const PROTECTED: u32 = 2;
    /// Came out of the tunnel; without `SEEN`: is the node's own answer to what the tunnel cannot take.
    pub const DECRYPTED: u32 = 4;
    /// Went through the IP stack (set by netfilter), or from a pod by the stack's routes: what lacks it at the uplink came
    /// from a packet socket.
    pub const STACK: u32 = 8;
    /// All of them.
    pub const ALL: u32 = 15;
}

/// A pod interface on this node, by address (16 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attachment {
    /// Host side of the pod's veth.
    pub interface: u32,
    /// The pod's own MAC address, then that of the host side: how a frame for the pod begins.
    pub macs: [[u8; 6]; 2],
}

const _: () = assert!(size_of::<Attachment>() == 16);

/// A pod interface on this node, by interface index (8 bytes): who speaks when a frame has no address to tell by.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Interface {
    /// A [`crate::identity::Protection`].
    pub protection: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// Another node's tunnel, by node number (8 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Peer {
    /// A set of [`peer_flag`] bits.
    pub flags: u32,
    /// Newest key epoch in use.
    pub epoch: u32,
}

/// Bits of a node's number by which the queue of the tunnel device is chosen, and so the thread: `skb->queue_mapping` has 16, and one
/// number of them means none.
pub const QUEUE_BITS: u32 = 0x7fff;

/// Bits of [`Peer::flags`].
pub mod peer_flag {
    /// A usable key is installed: packets may be handed to the tunnel.
    pub const KEY: u32 = 1 << 0;
    /// A handshake has succeeded and has not failed since: what is permissive is encrypted too.
    pub const READY: u32 = 1 << 1;
}

/// Slots of the generations: what a program remembers of a flow is void as soon as one of them is another number.
pub mod generation {
    /// Written by the agent after every change of what verdicts follow from: another number each time.
    pub const AGENT: u32 = 0;
    /// Added to by programs that find out that a flow has to go another way.
    pub const PROGRAMS: u32 = 1;
    /// How many there are.
    pub const SLOTS: u32 = 2;
}

/// Two addresses in the direction of a packet (32 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pair {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
}

/// The answers to what came sealed, in their own direction (40 bytes). Those of pods and of TCP come from the address and port that
/// were asked, others from anywhere: their source is [`Address::UNSPECIFIED`]. ICMP has no protocol and no ports here.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AnswerKey {
    /// Source of the answer.
    pub source: Address,
    /// Destination of the answer.
    pub destination: Address,
    /// Source port of the answer, host order.
    pub source_port: u16,
    /// Destination port of the answer, host order.
    pub destination_port: u16,
    /// Transport protocol; 0 for ICMP.
    pub protocol: u32,
}

const _: () = assert!(size_of::<AnswerKey>() == 40);

/// Where an answer has to go (16 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Answer {
    /// The node whose tunnel the question came by.
    pub node: u32,
    /// Zero.
    pub reserved: u32,
    /// When the last question came, nanoseconds of the coarse monotonic clock.
    pub last: u64,
}

const _: () = assert!(size_of::<Answer>() == 16);

/// An address that a pod's interface brought up, or with no address how many it did (24 bytes): each may be an entry in the node's
/// neighbour table by now.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct NeighbourKey {
    /// Host side of the pod's veth.
    pub interface: u32,
    /// [`neighbours::SOURCES`] or [`neighbours::DESTINATIONS`].
    pub kind: u32,
    /// The address; unspecified for their number.
    pub address: Address,
}

const _: () = assert!(size_of::<NeighbourKey>() == 24);

/// Of [`NeighbourKey`].
pub mod neighbours {
    /// How many of a kind a pod may bring up in a while.
    pub const ROOM: u32 = 8;
    /// A while, as a power of two of nanoseconds (69 s): about as long as the kernel keeps an entry that nobody uses.
    pub const WHILE: u32 = 36;
    /// Link-local addresses by which it speaks.
    pub const SOURCES: u32 = 0;
    /// Addresses on its link to which it speaks and that nobody is known to have.
    pub const DESTINATIONS: u32 = 1;
}

/// How many a pod has brought up (8 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Brought {
    /// The number of the while in which it did.
    pub when: u32,
    /// How many; of one address, 1.
    pub count: u32,
}

const _: () = assert!(size_of::<Brought>() == 8);

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    /// Packets (a GSO super-packet counts once).
    pub packets: u64,
    /// Bytes of IP.
    pub bytes: u64,
}

/// Encryption values a counter row has room for.
pub const COUNTER_ROW: u32 = 8;
/// Slots in the verdict counters' map.
pub const COUNTER_SLOTS: u32 = 8 * COUNTER_ROW;

/// The slot that counts events the ring buffer had no room for.
pub const LOST_EVENTS: u32 = COUNTER_SLOTS - 1;

/// The slot that counts `encryption` at `hook`.
#[inline(always)]
pub const fn counter_slot(hook: Hook, encryption: crate::reason::Encryption) -> u32 {
    (hook as u32) * COUNTER_ROW + (encryption as u32)
}

/// The self-test's addresses, in the discard prefix 100::/64 (RFC 6666): no one else sends them.
pub mod probe {
    /// Destination that must be dropped and counted by whichever program sees it.
    pub const DROP: [u8; 16] = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x68, 0x61, 0x75, 0x01];
    /// Destination that `to_wire` must redirect into the tunnel, where the agent sees it.
    pub const TUNNEL: [u8; 16] = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x68, 0x61, 0x75, 0x62];
    /// Destination that `to_wire` must turn round to the uplink's ingress, for `from_wire` to drop.
    pub const TURN: [u8; 16] = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x68, 0x61, 0x75, 0x03];
}
