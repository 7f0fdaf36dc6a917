//! The identity behind an address. It is looked up by exact address first, then by longest prefix.
//! An address that neither look-up finds is outside the cluster (world).

/// What kind of party an address belongs to.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// Outside the cluster: no map says otherwise.
    #[default]
    World = 0,
    /// A pod whose protection is known.
    Pod = 1,
    /// A node's own address (host-network pods, agents, the node's proxy).
    Node = 2,
    /// Inside a pod range, but no known pod has it: treated as opted in.
    UnknownPod = 3,
    /// Inside a range declared to hold nodes, but no known node has it: treated as opted in towards
    /// pods.
    UnknownNode = 4,
    /// Never a real party: the agent's self-test packets have it as their address.
    Probe = 5,
}

/// How a party's traffic is protected. A greater value is stricter.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Protection {
    /// Not opted in.
    #[default]
    None = 0,
    /// Encrypt when the peer can, accept plaintext: for migrations.
    Permissive = 1,
    /// Encrypted or dropped.
    Enabled = 2,
}

/// A map value: the identity of one address or prefix (8 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Identity {
    /// A [`Kind`]; an unknown value means an unknown pod.
    pub kind: u8,
    /// A [`Protection`]; an unknown value means `Enabled`.
    pub protection: u8,
    /// Zero.
    pub reserved: u16,
    /// The node the party is on; 0 if that is not known.
    pub node: u32,
}

const _: () = assert!(size_of::<Identity>() == 8);

impl Identity {
    /// Outside the cluster.
    pub const WORLD: Identity = Identity::new(Kind::World, Protection::None, 0);

    /// A party about which nothing is known: protected.
    pub const UNKNOWN: Identity = Identity::new(Kind::UnknownPod, Protection::Enabled, 0);

    /// Packs the identity into one number.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.kind as u64 | (self.protection as u64) << 8 | (self.node as u64) << 32
    }

    /// Unpacks a number that [`to_bits`](Identity::to_bits) returned.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Identity {
        Identity { kind: bits as u8, protection: (bits >> 8) as u8, reserved: 0, node: (bits >> 32) as u32 }
    }

    /// An identity from its parts.
    #[inline(always)]
    pub const fn new(kind: Kind, protection: Protection, node: u32) -> Identity {
        Identity { kind: kind as u8, protection: protection as u8, reserved: 0, node }
    }

    /// The kind. An unknown value means an unknown pod, which is protected.
    #[inline(always)]
    pub fn kind(&self) -> Kind {
        match self.kind {
            0 => Kind::World,
            1 => Kind::Pod,
            2 => Kind::Node,
            4 => Kind::UnknownNode,
            5 => Kind::Probe,
            _ => Kind::UnknownPod,
        }
    }

    /// The protection that is enforced. An unknown value means protected.
    #[inline(always)]
    pub fn protection(&self) -> Protection {
        match (self.kind(), self.protection) {
            (Kind::UnknownPod, _) => Protection::Enabled,
            (Kind::Pod, 0) => Protection::None,
            (Kind::Pod, 1) => Protection::Permissive,
            (Kind::Pod, _) => Protection::Enabled,
            _ => Protection::None,
        }
    }

    /// Whether this is a pod, known or not.
    #[inline(always)]
    pub fn is_pod(&self) -> bool {
        matches!(self.kind(), Kind::Pod | Kind::UnknownPod)
    }

    /// Whether this is a node, known or not.
    #[inline(always)]
    pub fn is_node(&self) -> bool {
        matches!(self.kind(), Kind::Node | Kind::UnknownNode)
    }

    /// Whether this is outside the cluster.
    #[inline(always)]
    pub fn is_world(&self) -> bool {
        matches!(self.kind(), Kind::World)
    }
}
