//! A running backend: its peers, their changes, and its statistics.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use hauberk_core::names::NodeNumber;
use hauberk_core::tunnels::Peer;
use hauberk_engine::TunnelDrop;

use crate::error::BackendError;

/// One change of the peers.
#[derive(Clone, Copy, Debug)]
pub enum PeerStep<'a> {
    /// The tunnel has this peer in exactly this state. A key or prefix that another peer still
    /// holds moves here.
    Put(&'a Peer),
    /// The tunnel no longer has the peer.
    Remove(NodeNumber),
}

/// A tunnel to other nodes. Dropping it closes it, but leaves its device and the routes and
/// programs on the device.
pub trait Backend: Send + Sync {
    /// The peers it holds.
    ///
    /// # Errors
    /// The tunnel does not answer.
    fn read(&self) -> Result<Vec<Peer>, BackendError>;

    /// Applies changes, all between two packets, so that a key or prefix that moves from one peer
    /// to another always belongs to one of them. Other peers' sessions and packets are not touched.
    ///
    /// # Errors
    /// What was refused; then nothing has changed.
    fn apply(&self, steps: &[PeerStep<'_>]) -> Result<(), BackendError>;

    /// Its statistics since the start.
    ///
    /// # Errors
    /// The tunnel does not answer.
    fn stats(&self) -> Result<Stats, BackendError>;

    /// Starts a handshake with the peer even if there is nothing to send: permissive traffic waits
    /// for its result. With `anew` it does so also if there is a session, because the peer may not
    /// answer at the session's endpoint any more.
    ///
    /// # Errors
    /// The tunnel does not answer.
    fn start_handshake(&self, peer: NodeNumber, anew: bool) -> Result<(), BackendError>;

    /// Sends an IP packet out of the tunnel device as if it had been decrypted, for the self-test.
    fn probe(&self, packet: Vec<u8>);
}

/// A backend's statistics since its start.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By peer.
    pub peers: Vec<PeerStats>,
    /// Packets dropped, by reason.
    pub drops: Vec<(TunnelDrop, u64)>,
    /// Self-test packets that reached the tunnel.
    pub probes: u64,
    /// What is offloaded and what is not, as text.
    pub offloads: Vec<String>,
    /// The cipher and the implementation in use.
    pub cipher: String,
    /// Threads that carry packets.
    pub threads: usize,
    /// Packets and handshakes that arrived at another thread than their peer's.
    pub handed_over: u64,
    /// Senders that asked for a session within the last minute with a key that no peer has; a few
    /// at most.
    pub strangers: Vec<Stranger>,
    /// Why the tunnel stopped, if it did.
    pub stopped: Option<String>,
}

/// A sender that asks for a session with a key that no peer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Where it sends from.
    pub from: SocketAddr,
    /// From its first handshake since the last long pause to its latest.
    pub asked_for: Duration,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerStats {
    /// Its node's number.
    pub number: NodeNumber,
    /// State.
    pub state: Progress,
    /// Handshakes started in a row without an answer so far, whether or not the last session still
    /// exists.
    pub unanswered: u32,
    /// When the last handshake succeeded.
    pub latest_handshake: Option<SystemTime>,
    /// Number of the thread that carries its packets.
    pub thread: usize,
    /// Epoch of its key in use.
    pub epoch: Option<u32>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Where its packets go.
    pub endpoint: Option<SocketAddr>,
}

/// A peer's session state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// No session, nothing to send.
    Idle,
    /// Handshake under way.
    Handshaking,
    /// There is a session.
    Established,
    /// The last handshake was given up.
    Failed,
}
