//! The states and statistics of peers, and of the tunnel.

use std::net::SocketAddr;
use std::time::SystemTime;

use hauberk_engine::{DropCounts, OffloadFeatures};

use crate::config::PeerId;
use crate::strangers::Stranger;

/// The state of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// No session and nothing to send.
    Idle,
    /// Packets wait for a handshake that is under way.
    Handshaking {
        /// Initiations sent so far.
        attempts: u32,
    },
    /// A session younger than 180 s exists.
    Established,
    /// The last handshake was given up after 90 s; the next packet starts another.
    Failed {
        /// When the tunnel gave up.
        since: SystemTime,
    },
}

/// Counters and state of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// The peer.
    pub id: PeerId,
    /// Its node name.
    pub name: String,
    /// Its state.
    pub state: PeerState,
    /// Initiations sent without an answer, whether or not there still is a session for sending.
    /// After a handshake was given up, at least the number sent by then, until a handshake
    /// succeeds.
    pub unanswered: u32,
    /// When the last handshake was completed.
    pub latest_handshake: Option<SystemTime>,
    /// Epoch of this node's key in the session used for sending.
    pub local_epoch: Option<u32>,
    /// Epoch of the peer's key in the session used for sending.
    pub remote_epoch: Option<u32>,
    /// Bytes of authenticated datagrams received, handshakes included.
    pub rx_bytes: u64,
    /// Bytes of datagrams sent, handshakes included.
    pub tx_bytes: u64,
    /// IP packets received from the peer and delivered.
    pub rx_packets: u64,
    /// IP packets encrypted for the peer.
    pub tx_packets: u64,
    /// Where its packets are sent.
    pub endpoint: Option<SocketAddr>,
    /// Number of its thread: `hauberk-tun-N`.
    pub thread: usize,
    /// Packets of this peer that were dropped.
    pub drops: DropCounts,
}

/// Counters of the whole tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelStats {
    /// Every peer, ordered by id.
    pub peers: Vec<PeerStats>,
    /// Every dropped packet, including those of peers.
    pub drops: DropCounts,
    /// Self-test packets counted and dropped.
    pub probes_seen: u64,
    /// Packets and handshakes that arrived on a thread other than their peer's and were handed over
    /// to it.
    pub handed_over: u64,
    /// Senders that asked for a session with an unknown key within the last minute: at most eight.
    pub strangers: Vec<Stranger>,
    /// What the kernel agreed to do in bulk.
    pub features: OffloadFeatures,
}
