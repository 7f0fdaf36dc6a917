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

/// A frontend (16 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Frontend {
    /// The set of backends for clients inside the cluster.
    pub set: u64,
    /// For how many seconds after its last connection a client keeps its backend; 0 if it does not.
    pub affinity: u32,
    /// A set of [`frontend_flag`] bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<Frontend>() == 16);

/// Bits of [`Frontend::flags`].
pub mod frontend_flag {
    /// At another node's address the frontend is left to that node, because only that node's own
    /// backends may answer there.
    pub const OWN_NODE: u32 = 1 << 0;
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
