//! Services: at which addresses they are reached, and the backends behind them.
//!
//! A *frontend* is an address and port at which clients reach a service. It leads to a *set* of
//! backends. Several frontends may share a set: a service's cluster address and its node port.

use crate::address::Address;

/// The key of a frontend (20 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FrontendKey {
    /// The address. [`ANY_NODE_V4`] and [`ANY_NODE_V6`] stand for every address of every node.
    pub address: Address,
    /// The port, in host order.
    pub port: u16,
    /// Transport protocol (IANA).
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<FrontendKey>() == 20);

#[cfg(feature = "std")]
impl std::fmt::Display for FrontendKey {
    /// `10.96.0.10:53/UDP`, `[fd00::a]:53/UDP`; `node:30080/TCP` for every address of every node.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::packet::protocol;
        match self.address {
            ANY_NODE_V4 => write!(f, "node:{}", self.port)?,
            ANY_NODE_V6 => write!(f, "[node]:{}", self.port)?,
            address => std::net::SocketAddr::new(address.into(), self.port).fmt(f)?,
        }
        match self.protocol {
            protocol::TCP => f.write_str("/TCP"),
            protocol::UDP => f.write_str("/UDP"),
            protocol::SCTP => f.write_str("/SCTP"),
            other => write!(f, "/{other}"),
        }
    }
}

/// In a frontend's key: every IPv4 address of every node.
pub const ANY_NODE_V4: Address = Address::v4([0; 4]);
/// In a frontend's key: every IPv6 address of every node.
pub const ANY_NODE_V6: Address = Address::UNSPECIFIED;

/// A frontend (24 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Frontend {
    /// The set of backends for clients inside the cluster.
    pub set: u64,
    /// The set of backends for clients outside the cluster, if [`frontend_flag::OUTSIDE`] is set;
    /// else 0.
    pub outside: u64,
    /// For how many seconds after its last connection a client keeps its backend; 0 if it does not.
    pub affinity: u32,
    /// A set of [`frontend_flag`] bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<Frontend>() == 24);

/// Bits of [`Frontend::flags`].
pub mod frontend_flag {
    /// At another node's address the frontend is left to that node, because only that node's own
    /// backends may answer there.
    pub const OWN_NODE: u32 = 1 << 0;
    /// Clients outside the cluster reach the frontend: they are led to the set `outside`.
    pub const OUTSIDE: u32 = 1 << 1;
    /// Only clients in one of the set's [`super::SourceRange`]s are admitted. Where a socket
    /// connects, its address is not known yet, so sockets are not led there.
    pub const LIMITED: u32 = 1 << 2;
    /// The set `outside` has only this node's backends (`externalTrafficPolicy: Local`), and other
    /// nodes have backends. While it is empty, what arrives is dropped in silence: the load
    /// balancer finds the other nodes.
    pub const ELSEWHERE: u32 = 1 << 3;
}

/// A range of clients that a set admits: a key in the trie (28 bytes).
///
/// aya's `lpm_trie::Key<SourceKey>` has the same layout.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceRange {
    /// Significant leading bits of `key`: those of the set, and of the address as in
    /// [`crate::address::Prefix`].
    pub length: u32,
    /// The set, and the range's network address.
    pub key: SourceKey,
}

const _: () = assert!(size_of::<SourceRange>() == 28);

/// What a [`SourceRange`] is a prefix of (24 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SourceKey {
    /// The set `outside` of a frontend that is [`frontend_flag::LIMITED`], in two halves: tries
    /// have keys of words.
    set: [u32; 2],
    /// A client's address.
    pub address: Address,
}

const _: () = assert!(size_of::<SourceKey>() == 24);

impl SourceKey {
    /// Bits in front of the address.
    pub const SET_BITS: u32 = 64;

    /// A client of a set.
    #[inline(always)]
    pub const fn new(set: u64, address: Address) -> SourceKey {
        SourceKey { set: [set as u32, (set >> 32) as u32], address }
    }

    /// The set.
    #[inline(always)]
    pub const fn set(&self) -> u64 {
        self.set[0] as u64 | (self.set[1] as u64) << 32
    }
}

#[cfg(feature = "std")]
impl std::fmt::Display for SourceRange {
    /// `192.0.2.0/24 to set 0011223344556677`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mapped = if self.key.address.is_v4() { 96 } else { 0 };
        let length = self.length.saturating_sub(SourceKey::SET_BITS + mapped);
        write!(f, "{}/{length} to set {:016x}", self.key.address, self.key.set())
    }
}

#[cfg(feature = "std")]
impl SourceRange {
    /// The clients in `range`.
    pub fn new(set: u64, range: crate::address::Prefix) -> SourceRange {
        SourceRange { length: SourceKey::SET_BITS + range.length, key: SourceKey::new(set, range.address) }
    }
}

/// How many backends a set has (8 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Set {
    /// Slots 0 to `count` - 1 are in use.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Set>() == 8);

/// A place in a set (16 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SlotKey {
    /// The set.
    pub set: u64,
    /// Counted from 0.
    pub slot: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<SlotKey>() == 16);

/// A backend (20 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Backend {
    /// Its address.
    pub address: Address,
    /// Its port, in host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<Backend>() == 20);

/// A backend of a set (32 bytes): tells whether the backend that a client had is still there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MemberKey {
    /// The set.
    pub set: u64,
    /// The backend.
    pub backend: Backend,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<MemberKey>() == 32);

/// A client of a set (24 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ClientKey {
    /// The set.
    pub set: u64,
    /// A socket's cookie, or the cookie of a network namespace: see [`client`].
    pub cookie: u64,
    /// A number of [`client`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<ClientKey>() == 24);

/// What [`ClientKey::kind`] can be.
pub mod client {
    /// A network namespace: all processes of a pod, or of the node, are one client
    /// (`sessionAffinity: ClientIP`).
    pub const NAMESPACE: u32 = 0;
    /// A socket that sends datagrams without being connected: they are one flow.
    pub const SOCKET: u32 = 1;
}

/// A client outside the cluster that keeps its backend (24 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct OutsideClientKey {
    /// The set.
    pub set: u64,
    /// The client's address.
    pub address: Address,
}

const _: () = assert!(size_of::<OutsideClientKey>() == 24);

/// How long a socket's datagrams to a frontend are one flow after the last of them, in seconds. The
/// kernel's connection tracking keeps a flow of datagrams in both directions as long.
pub const DATAGRAM_FLOW: u32 = 120;

/// The backend that a client has (32 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Choice {
    /// When the client used it last, nanoseconds of the coarse monotonic clock.
    pub last: u64,
    /// The backend.
    pub backend: Backend,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Choice>() == 32);

/// The other end of a socket as the kernel sees it (40 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SocketKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The backend.
    pub backend: Backend,
    /// Transport protocol (IANA).
    pub protocol: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

const _: () = assert!(size_of::<SocketKey>() == 40);

/// The other end of a socket as its program sees it (32 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Seen {
    /// The set that was chosen from.
    pub set: u64,
    /// The frontend's address, as the program gave it.
    pub address: Address,
    /// The frontend's port, in host order.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

const _: () = assert!(size_of::<Seen>() == 32);

/// Slots of the counters of what the socket programs did.
pub mod socket_counter {
    /// Connections and datagrams that were led to a backend.
    pub const BALANCED: u32 = 0;
    /// Connections and datagrams to a frontend without backends: refused.
    pub const REFUSED: u32 = 1;
    /// Connections and datagrams for which no backend could be read: refused.
    pub const FAILED: u32 = 2;
    /// How many slots there are.
    pub const SLOTS: u32 = 3;
}
