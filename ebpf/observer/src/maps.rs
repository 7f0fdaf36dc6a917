//! The maps: three pinned maps of the guard, which are only read, and the observer's own.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, lpm_trie::Key},
};

/// An address in network order; IPv4 as an IPv4-mapped IPv6 address.
pub type Address = [u32; 4];

/// The guard's settings; the first word is this node's number.
#[map]
static SETTINGS: Array<[u32; 8]> = Array::pinned(1, 0);
#[map]
static ENDPOINTS: HashMap<Address, Identity> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
static RANGES: LpmTrie<Address, Identity> = LpmTrie::pinned(16_384, BPF_F_NO_PREALLOC);

/// Leaked packets by interface index.
#[map]
static LEAKED: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(4_096, 0);
/// The most recent leaked packets, by addresses, ports, protocol and device.
#[map]
static LEAKS: LruHashMap<Leak, Noted> = LruHashMap::with_max_entries(1_024, 0);
/// The packet at hand.
#[map]
pub static FOUND: PerCpuArray<Found> = PerCpuArray::with_max_entries(1, 0);

/// The identity behind an address (8 bytes).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Identity {
    pub kind: u8,
    protection: u8,
    reserved: u16,
    pub node: u32,
}

impl Identity {
    pub const WORLD: u8 = 0;
    const POD: u8 = 1;
    const NODE: u8 = 2;
    const UNKNOWN_NODE: u8 = 4;
    const PROBE: u8 = 5;
    /// `permissive`; a greater value is `enabled`.
    const PERMISSIVE: u8 = 1;

    /// Whether this is a pod that is opted in, or about which nothing is known.
    #[inline(always)]
    pub fn is_protected(&self) -> bool {
        match self.kind {
            Identity::WORLD | Identity::NODE | Identity::UNKNOWN_NODE | Identity::PROBE => false,
            Identity::POD => self.protection > Identity::PERMISSIVE,
            _ => true,
        }
    }
}

/// What identifies a leaked packet (44 bytes).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Leak {
    pub source: Address,
    pub destination: Address,
    pub device: u32,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u32,
}

/// The number of such packets, and the time of the last on the monotonic clock.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Noted {
    packets: u64,
    last: u64,
}

/// What a packet carries.
pub struct Inside;

impl Inside {
    pub const NOTHING: u32 = 0;
    pub const PACKET: u32 = 1;
    pub const FRAME: u32 = 2;
}

/// What was read from a packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Found {
    pub leak: Leak,
    /// One of [`Inside`].
    pub inside: u32,
    /// Offset where the inner packet or frame begins.
    pub inside_at: u32,
    /// The packet opens a TCP connection.
    pub opens: bool,
}

/// This node's number; 0 before the agent has written its settings.
#[inline(always)]
pub fn node() -> u32 {
    match SETTINGS.get(0) {
        Some(settings) => settings[0],
        None => 0,
    }
}

/// The identity of `address`: by exact match, else by the longest range, else the world.
#[inline(always)]
pub fn identity(address: &Address) -> Identity {
    // SAFETY: an entry may be replaced while it is copied; its 8 bytes are written in one store.
    if let Some(identity) = unsafe { ENDPOINTS.get(address) } {
        return *identity;
    }
    match RANGES.get(&Key::new(128, *address)) {
        Some(identity) => *identity,
        None => Identity { kind: Identity::WORLD, protection: 0, reserved: 0, node: 0 },
    }
}

#[inline(always)]
pub fn count(device: u32) {
    match LEAKED.get_ptr_mut(&device) {
        // SAFETY: the value belongs to this CPU.
        Some(packets) => unsafe { *packets += 1 },
        // If the map is full the count is lost; the leak is noted all the same.
        None => drop(LEAKED.insert(&device, &1, 0)),
    }
}

#[inline(always)]
pub fn keep(leak: &Leak, now: u64) {
    match LEAKS.get_ptr_mut(leak) {
        // SAFETY: two CPUs at the same time may lose one of two counts of the same packet key.
        Some(noted) => unsafe {
            (*noted).packets += 1;
            (*noted).last = now;
        },
        None => drop(LEAKS.insert(leak, &Noted { packets: 1, last: now }, 0)),
    }
}
