//! What the tunnel is given: this node's keys, the peers, and what the engines need.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hauberk_cipher::Implementation;
use hauberk_engine::DeviceConfig;
use ipnet::IpNet;
use x25519_dalek::StaticSecret;

use crate::stats::PeerState;

/// The agent's number for a peer: stable as long as the node exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of this node's keys. It has no `Debug` on purpose; the secret is zeroized when dropped.
#[derive(Clone)]
pub struct LocalKey {
    /// Epoch of the key; the highest one is preferred for sending.
    pub epoch: u32,
    /// The X25519 secret.
    pub secret: StaticSecret,
}

/// One public key of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerKey {
    /// Epoch of the key; the highest one is preferred for sending.
    pub epoch: u32,
    /// The X25519 public key.
    pub public: [u8; 32],
}

/// Everything the tunnel knows about one other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// The agent's number for this node.
    pub id: PeerId,
    /// Node name, for logs and errors.
    pub name: String,
    /// One or two keys, newest epoch first.
    pub keys: Vec<PeerKey>,
    /// Where the peer's encrypted packets go. While it does not answer there, they go where the
    /// peer was last heard. Without an endpoint, nothing is sent.
    pub endpoint: Option<SocketAddr>,
    /// Other addresses of the peer, those of the other family first. While the endpoint does not
    /// answer, they are also tried, one after the other.
    pub fallbacks: Vec<SocketAddr>,
    /// Inner addresses that belong to this peer, as destination and as source.
    pub allowed: Vec<IpNet>,
}

impl PeerConfig {
    /// Every address at which it may be reached, the endpoint first.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.endpoint.iter().chain(&self.fallbacks).copied()
    }
}

/// One step of an incremental change. A batch of them is applied completely or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// Adds the peer, or replaces its configuration. Sessions of keys that stay are kept.
    Put(PeerConfig),
    /// Removes the peer and its sessions. An unknown peer is no error.
    Remove(PeerId),
    /// Adds and removes single prefixes.
    Allowed {
        /// The peer to change.
        id: PeerId,
        /// Prefixes it gains.
        add: Vec<IpNet>,
        /// Prefixes it loses (before it gains the others).
        remove: Vec<IpNet>,
    },
    /// Sets the peer's endpoint.
    Endpoint {
        /// The peer to change.
        id: PeerId,
        /// The new address; `None` stops sending to it.
        endpoint: Option<SocketAddr>,
    },
}

/// Called on the peer's engine thread at every change of its state; must return at once.
pub type StateCallback = Box<dyn Fn(PeerId, PeerState) + Send + Sync>;

/// Everything needed to start a tunnel. No `Debug`: it holds secrets.
pub struct TunnelConfig {
    /// The TUN device.
    pub device: DeviceConfig,
    /// Threads that carry packets, 1 to 64. The peer's id selects the thread.
    pub threads: usize,
    /// UDP port to listen on, for IPv4 and IPv6.
    pub listen_port: u16,
    /// One or two keys of this node, newest epoch first.
    pub keys: Vec<LocalKey>,
    /// Mark on outgoing UDP packets (`SO_MARK`).
    pub fwmark: Option<u32>,
    /// Handshake messages per second and key above which senders must first prove their address
    /// with a cookie (WireGuard paper, 5.3). With zero they always must.
    pub handshake_limit_per_second: u64,
    /// For how long after a packet the engine polls for the next one before it sleeps, as long as
    /// that pays. It costs CPU time and saves latency. Zero means never.
    pub spin: Duration,
    /// Whether the outer packet gets the inner packet's DSCP (RFC 2983, 3.1: at ingress); the inner
    /// packet is never changed.
    pub copy_dscp: bool,
    /// The cipher implementation; [`Implementation::best`] unless there is a reason for another.
    pub cipher: Implementation,
    /// Called at every change of a peer's state.
    pub on_state: Option<StateCallback>,
}
