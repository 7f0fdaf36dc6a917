//! Map values other than identities and flows: the node's settings, pod attachments, peers, marks.

use crate::address::Address;

/// The pinned maps. A new agent takes over what an earlier one pinned, and a pinned map keeps its
/// shape. So raise a map's version with every change of its kind, key or value: then the new agent
/// makes that map anew, and keeps all others.
pub mod map {
    use super::{Answer, AnswerKey, Attachment, Counter, Interface, Pair, Peer, Settings};
    use crate::address::{Address, Prefix};
    use crate::connection::{Connection, Direction};
    use crate::flow::{Flow, FlowKey, Tally};
    use crate::identity::Identity;
    use crate::service::{
        Backend, Choice, ClientKey, Frontend, FrontendKey, MemberKey, OutsideClientKey, Seen, Set, SlotKey, SocketKey,
        SourceRange,
    };

    /// A pinned map's name and shape.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Layout {
        /// Its name in the programs.
        pub name: &'static str,
        /// Version of its shape, from 1.
        pub version: u32,
        /// Size of a key in bytes; 0 for a ring buffer.
        pub key_size: u32,
        /// Size of a value in bytes; 0 for a ring buffer.
        pub value_size: u32,
    }

    impl Layout {
        const fn new<Key, Value>(name: &'static str, version: u32) -> Layout {
            Layout { name, version, key_size: size_of::<Key>() as u32, value_size: size_of::<Value>() as u32 }
        }
    }

    /// Array of one [`super::Settings`].
    pub const SETTINGS: Layout = Layout::new::<u32, Settings>("SETTINGS", 1);
    /// Hash of [`Address`] to [`Identity`].
    pub const ENDPOINTS: Layout = Layout::new::<Address, Identity>("ENDPOINTS", 1);
    /// Longest-prefix trie of [`Prefix`] to [`Identity`].
    pub const RANGES: Layout = Layout::new::<Prefix, Identity>("RANGES", 1);
    /// Hash of [`Address`] to [`super::Attachment`].
    pub const ATTACHMENTS: Layout = Layout::new::<Address, Attachment>("ATTACHMENTS", 1);
    /// Hash of interface index to [`super::Interface`].
    pub const INTERFACES: Layout = Layout::new::<u32, Interface>("INTERFACES", 1);
    /// Hash of the interface index of every guarded uplink to 1.
    pub const UPLINKS: Layout = Layout::new::<u32, u32>("UPLINKS", 1);
    /// Hash of node number to [`super::Peer`].
    pub const PEERS: Layout = Layout::new::<u32, Peer>("PEERS", 1);
    /// Array of two numbers, see [`super::generation`].
    pub const GENERATIONS: Layout = Layout::new::<u32, u64>("GENERATIONS", 1);
    /// Least-recently-used hash of [`super::Pair`] to nanoseconds: pairs whose packets netfilter
    /// translated.
    pub const TRANSLATED: Layout = Layout::new::<Pair, u64>("TRANSLATED", 1);
    /// Hash of [`super::AnswerKey`] to [`super::Answer`]: packets that must be sealed because they
    /// answer packets that came sealed.
    pub const SEALED: Layout = Layout::new::<AnswerKey, Answer>("SEALED", 1);
    /// Per-CPU array of packets by drop reason.
    pub const DROPS: Layout = Layout::new::<u32, u64>("DROPS", 1);
    /// Per-CPU array of [`super::Counter`] by [`super::counter_slot`].
    pub const COUNTERS: Layout = Layout::new::<u32, Counter>("COUNTERS", 1);
    /// Least-recently-used hash of [`FlowKey`] to [`Flow`].
    pub const FLOWS: Layout = Layout::new::<FlowKey, Flow>("FLOWS", 1);
    /// Per-CPU array of [`Tally`]: packets that are not in `FLOWS` yet.
    pub const TALLIES: Layout = Layout::new::<u32, Tally>("TALLIES", 1);
    /// Ring buffer of [`crate::flow::FlowEvent`].
    pub const EVENTS: Layout = Layout::new::<(), ()>("EVENTS", 1);
    /// Hash of [`FrontendKey`] to [`Frontend`].
    pub const FRONTENDS: Layout = Layout::new::<FrontendKey, Frontend>("FRONTENDS", 2);
    /// Hash of a set's number to [`Set`].
    pub const SETS: Layout = Layout::new::<u64, Set>("SETS", 1);
    /// Hash of [`SlotKey`] to [`Backend`].
    pub const BACKENDS: Layout = Layout::new::<SlotKey, Backend>("BACKENDS", 1);
    /// Hash of [`MemberKey`] to 1: every backend of every set.
    pub const MEMBERS: Layout = Layout::new::<MemberKey, u32>("MEMBERS", 1);
    /// Least-recently-used hash of [`ClientKey`] to [`Choice`].
    pub const CHOICES: Layout = Layout::new::<ClientKey, Choice>("CHOICES", 1);
    /// Least-recently-used hash of [`SocketKey`] to [`Seen`].
    pub const SOCKETS: Layout = Layout::new::<SocketKey, Seen>("SOCKETS", 1);
    /// Per-CPU array of numbers by [`crate::service::socket_counter`].
    pub const SOCKET_COUNTERS: Layout = Layout::new::<u32, u64>("SOCKET_COUNTERS", 1);
    /// Longest-prefix trie of [`SourceRange`] to 1.
    pub const SOURCES: Layout = Layout::new::<SourceRange, u32>("SOURCES", 1);
    /// Least-recently-used hash of [`OutsideClientKey`] to [`Choice`].
    pub const CLIENTS: Layout = Layout::new::<OutsideClientKey, Choice>("CLIENTS", 1);
    /// Array of the [`Address`] that packets of clients outside the cluster get as their source on
    /// the way to another node: IPv4, then IPv6. Unspecified if there is none.
    pub const MASQUERADE: Layout = Layout::new::<u32, Address>("MASQUERADE", 1);
    /// Hash of [`Direction`] to [`Connection`].
    pub const CONNECTIONS: Layout = Layout::new::<Direction, Connection>("CONNECTIONS", 1);
    /// Hash of the [`Direction`] of answers to that of the client's packets.
    pub const REPLIES: Layout = Layout::new::<Direction, Direction>("REPLIES", 1);
}

/// Where in the kernel a program is attached. Flow records name it as their observation point.
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
    /// Interface index of the tunnel device; 0 if there is none.
    pub tunnel: u32,
    /// Largest packet that the tunnel takes, in bytes of IP; 0 if there is no tunnel.
    pub tunnel_mtu: u32,
    /// A set of [`flag`] bits.
    pub flags: u32,
    /// How far left the [`mark`] bits are shifted in `skb->mark`: 0..=28.
    pub mark_shift: u32,
    /// Milliseconds after its last packet at which a flow counts as new.
    pub flow_idle_ms: u32,
    /// UDP port of the tunnel, in host order; 0 if there is no tunnel.
    pub tunnel_port: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Settings>() == 32);

/// Bits of [`Settings::flags`].
pub mod flag {
    /// `hostRouting: stack`: another program's netfilter rules may translate addresses.
    pub const STACK: u32 = 1 << 0;
    /// Every source has been read once: an address that is in no range is outside the cluster.
    pub const SYNCED: u32 = 1 << 1;
    /// `worldIngress: direct`: packets from outside the cluster may be addressed directly to an
    /// opted-in pod.
    pub const WORLD_DIRECT: u32 = 1 << 2;
    /// Another CNI plugin connects pods: a pod's interface may not be known as one yet.
    pub const CHAINED: u32 = 1 << 3;
    /// Packets to services are translated at the devices, or were until lately.
    pub const TRANSLATES: u32 = 1 << 4;
}

/// What the programs tell each other about a packet on its way through the node, stored in
/// `skb->tc_index`. The field stays with the packet through routing, netfilter, fragmentation and
/// stacked devices, and neither netfilter nor a socket can write it. Verdicts rely on it.
///
/// The low bits are those of [`mark`]; the next bits say where the packet came from.
pub mod token {
    /// In the high byte of every token: a packet that no program has seen lacks it.
    pub const MAGIC: u32 = 0x6800;
    /// The bits of the magic number.
    pub const MAGIC_BITS: u32 = 0xff00;
    /// From a pod's interface on this node.
    pub const FROM_POD: u32 = 0x10;
    /// In the clear from a guarded device.
    pub const FROM_WIRE: u32 = 0x20;
    /// Out of the tunnel.
    pub const FROM_TUNNEL: u32 = 0x40;
    /// In the clear from a guarded device, and sent by a node or pod of the cluster. The packet may
    /// enter no protected pod, whatever its translated addresses are.
    pub const FROM_CLUSTER: u32 = 0x80;
}

/// Bits that hauberk sets in `skb->mark`, before the shift by [`Settings::mark_shift`]. Only
/// hauberk's netfilter rules read them. Other programs may write marks, so verdicts rely on the
/// [`token`].
pub mod mark {
    /// Seen by `from_pod` or `from_tunnel`: the stack carries the packet, and hauberk has judged or
    /// will judge it.
    pub const SEEN: u32 = 1;
    /// Traffic of an opted-in pod, whatever the addresses are after translation.
    pub const PROTECTED: u32 = 2;
    /// Came out of the tunnel. Without `SEEN`: the node's own answer to a packet that is too big
    /// for the tunnel.
    pub const DECRYPTED: u32 = 4;
    /// Went through the IP stack (set by netfilter), or came from a pod by the stack's routes. A
    /// packet at the uplink without it came from a packet socket.
    pub const STACK: u32 = 8;
    /// All of them.
    pub const ALL: u32 = 15;
}

/// A pod interface on this node, by address (16 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attachment {
    /// Interface index of the host side of the pod's veth.
    pub interface: u32,
    /// The pod's MAC address, then that of the host side: the first bytes of a frame to the pod.
    pub macs: [[u8; 6]; 2],
}

const _: () = assert!(size_of::<Attachment>() == 16);

/// A pod interface on this node, by interface index (8 bytes): identifies the pod when a frame has
/// no address to identify it by.
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

/// The bits of a node's number that choose the queue of the tunnel device, and so the thread.
/// `skb->queue_mapping` has 16 bits, and one value means "none".
pub const QUEUE_BITS: u32 = 0x7fff;

/// Bits of [`Peer::flags`].
pub mod peer_flag {
    /// A usable key is installed: packets may be handed to the tunnel.
    pub const KEY: u32 = 1 << 0;
    /// A handshake has succeeded and none has failed since: permissive traffic is encrypted too.
    pub const READY: u32 = 1 << 1;
}

/// Slots of the generations. What a program remembers of a flow is void as soon as one of these
/// numbers changes.
pub mod generation {
    /// Changed by the agent after every change of the data that verdicts follow from.
    pub const AGENT: u32 = 0;
    /// Incremented by programs that find out that a flow has to go another way.
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

/// The answers to packets that came sealed, in the direction of the answers (40 bytes). Answers
/// from pods and answers over TCP come from the address and port of the request. Other answers may
/// come from anywhere: their source is [`Address::UNSPECIFIED`]. For ICMP, protocol and ports are
/// 0.
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

/// Where an answer must go (16 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Answer {
    /// The node whose tunnel the request came by.
    pub node: u32,
    /// Zero.
    pub reserved: u32,
    /// When the last request came, nanoseconds of the coarse monotonic clock.
    pub last: u64,
}

const _: () = assert!(size_of::<Answer>() == 16);

/// An address that a pod's interface brought up (24 bytes): its node may have made an entry for it
/// in its neighbour table. With the unspecified address: the number of such addresses.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct NeighbourKey {
    /// Host side of the pod's veth.
    pub interface: u32,
    /// [`neighbours::SOURCES`] or [`neighbours::DESTINATIONS`].
    pub kind: u32,
    /// The address; unspecified for the counter.
    pub address: Address,
}

const _: () = assert!(size_of::<NeighbourKey>() == 24);

/// Constants of [`NeighbourKey`] and [`Brought`].
pub mod neighbours {
    /// How many addresses of a kind a pod may bring up in one time window.
    pub const ROOM: u32 = 8;
    /// Length of the window, as a power of two of nanoseconds (69 s): about as long as the kernel
    /// keeps an unused entry.
    pub const WHILE: u32 = 36;
    /// Link-local addresses from which the pod speaks.
    pub const SOURCES: u32 = 0;
    /// On-link addresses to which the pod speaks and that no known neighbour has.
    pub const DESTINATIONS: u32 = 1;
}

/// How many addresses a pod has brought up (8 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Brought {
    /// Number of the window in which it did.
    pub when: u32,
    /// How many; 1 in the entry of a single address.
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

/// The self-test's addresses, most of them in the discard prefix 100::/64 (RFC 6666): no other
/// program sends to them.
pub mod probe {
    /// Destination that every program must drop and count.
    pub const DROP: [u8; 16] = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x68, 0x61, 0x75, 0x01];
    /// Destination that `to_wire` must redirect into the tunnel, where the agent sees it.
    pub const TUNNEL: [u8; 16] = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x68, 0x61, 0x75, 0x62];
    /// Destination that `to_wire` must redirect to the uplink's ingress, where `from_wire` drops
    /// it.
    pub const TURN: [u8; 16] = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x68, 0x61, 0x75, 0x03];
    /// Destination to which every connect() is refused at once, where the socket programs run. It
    /// is in the range that is reserved for future use (RFC 1112).
    pub const SOCKET_V4: [u8; 4] = [240, 104, 97, 117];
    /// The same over IPv6.
    pub const SOCKET: [u8; 16] = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x68, 0x61, 0x75, 0x04];
}
