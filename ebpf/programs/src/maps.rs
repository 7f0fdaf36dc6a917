//! The maps, pinned by name. Sizes here are defaults; the agent sets them from its configuration.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use hauberk_abi::{
    address::Address,
    connection::{Connection, Direction},
    flow::{Flow, FlowKey, Tally},
    identity::Identity,
    layout::{
        Answer, AnswerKey, Attachment, Brought, COUNTER_SLOTS, Counter, Interface, NeighbourKey, Pair, Peer, Settings,
        generation,
    },
    packet::Packet,
    reason::DROP_SLOTS,
    service::{
        Backend, Choice, ClientKey, Frontend, FrontendKey, MemberKey, OutsideClientKey, Seen, Set, SlotKey, SocketKey,
        SourceKey, socket_counter,
    },
    too_big::{HEAD_V6, QUOTE},
};

#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);
#[map]
pub static ENDPOINTS: HashMap<Address, Identity> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static RANGES: LpmTrie<Address, Identity> = LpmTrie::pinned(16_384, BPF_F_NO_PREALLOC);
#[map]
pub static ATTACHMENTS: HashMap<Address, Attachment> = HashMap::pinned(1_024, BPF_F_NO_PREALLOC);
#[map]
pub static INTERFACES: HashMap<u32, Interface> = HashMap::pinned(1_024, BPF_F_NO_PREALLOC);
#[map]
pub static UPLINKS: HashMap<u32, u32> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
pub static PEERS: HashMap<u32, Peer> = HashMap::pinned(16_384, BPF_F_NO_PREALLOC);
#[map]
pub static GENERATIONS: Array<u64> = Array::pinned(generation::SLOTS, 0);
#[map]
pub static TRANSLATED: LruHashMap<Pair, u64> = LruHashMap::pinned(16_384, 0);
#[map]
pub static SEALED: HashMap<AnswerKey, Answer> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DROP_SLOTS, 0);
#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::pinned(COUNTER_SLOTS, 0);
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(65_536, 0);
#[map]
pub static TALLIES: PerCpuArray<Tally> = PerCpuArray::pinned(crate::recent::SLOTS, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(1 << 20, 0);
#[map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static SETS: HashMap<u64, Set> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static BACKENDS: HashMap<SlotKey, Backend> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static MEMBERS: HashMap<MemberKey, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static CHOICES: LruHashMap<ClientKey, Choice> = LruHashMap::pinned(65_536, 0);
#[map]
pub static SOCKETS: LruHashMap<SocketKey, Seen> = LruHashMap::pinned(65_536, 0);
#[map]
pub static SOCKET_COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(socket_counter::SLOTS, 0);
#[map]
pub static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static CLIENTS: LruHashMap<OutsideClientKey, Choice> = LruHashMap::pinned(65_536, 0);
#[map]
pub static MASQUERADE: Array<Address> = Array::pinned(2, 0);
#[map]
pub static CONNECTIONS: HashMap<Direction, Connection> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static REPLIES: HashMap<Direction, Direction> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

/// Not pinned: only used within a program run. The flow of the packet at hand.
#[map]
pub static SCRATCH: PerCpuArray<Tally> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: an answer under construction.
#[map]
pub static ANSWER: PerCpuArray<[u8; HEAD_V6 + QUOTE]> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: a route look-up.
#[map]
pub static LOOKUP: PerCpuArray<crate::route::Lookup> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: recent decisions.
#[map]
pub static RECENT: PerCpuArray<crate::recent::Recent> = PerCpuArray::with_max_entries(crate::recent::SLOTS, 0);

/// Not pinned: the packet at hand.
#[map]
pub static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: the key that is looked up in `SEALED` or `FRAGMENTS`.
#[map]
pub static ASKED: PerCpuArray<AnswerKey> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: the node to which the later fragments of a datagram must go sealed. The key has the
/// datagram's identification in place of the protocol.
#[map]
pub static FRAGMENTS: LruHashMap<AnswerKey, u32> = LruHashMap::with_max_entries(1_024, 0);

/// Not pinned: addresses that pods brought up. Entries of removed interfaces are not deleted; they
/// are evicted.
#[map]
pub static NEIGHBOURS: LruHashMap<NeighbourKey, Brought> = LruHashMap::with_max_entries(8_192, 0);

/// Not pinned: the key that is looked up in `NEIGHBOURS`.
#[map]
pub static NEIGHBOUR: PerCpuArray<NeighbourKey> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: the packet at hand, its connection and what it becomes.
#[map]
pub static BALANCE: PerCpuArray<crate::connection::Balance> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: the direction of a fragmented datagram. The key has the datagram's identification in
/// place of the protocol.
#[map]
pub static DATAGRAMS: LruHashMap<Direction, Direction> = LruHashMap::with_max_entries(4_096, 0);
