//! Who encrypts: one trait for kernel WireGuard, user-space WireGuard and IPsec.
//!
//! A backend reads what it holds, applies changes and tells its statistics; it is closed by being dropped, which
//! leaves the device and what hangs on it. It decides nothing: which peers there are and what they may speak for is the
//! reconciler's word.

mod userspace;

use std::net::SocketAddr;
use std::time::SystemTime;

use hauberk_core::desired::Peer;
use hauberk_core::model::NodeNumber;

pub use hauberk_tunnel::Stranger;
pub use userspace::{Userspace, UserspaceConfig};

/// The tunnel refused something.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The user-space tunnel.
    #[error(transparent)]
    Userspace(#[from] hauberk_tunnel::Error),
}

/// One change of the peers.
#[derive(Clone, Copy, Debug)]
pub enum PeerStep<'a> {
    /// The tunnel has this peer, and no other state of it; a key or prefix that another peer still holds moves here.
    Put(&'a Peer),
    /// The tunnel no longer has the peer.
    Remove(NodeNumber),
}

/// A tunnel to other nodes.
pub trait Backend: Send + Sync {
    /// The peers it holds.
    ///
    /// # Errors
    /// The tunnel does not answer.
    fn read(&self) -> Result<Vec<Peer>, BackendError>;

    /// Carries out changes, all between two packets, so that what moves from one peer to another is never nobody's; other
    /// peers' sessions and packets are not touched.
    ///
    /// # Errors
    /// What was refused; nothing has changed then.
    fn apply(&self, steps: &[PeerStep<'_>]) -> Result<(), BackendError>;

    /// What it did so far.
    ///
    /// # Errors
    /// The tunnel does not answer.
    fn stats(&self) -> Result<Stats, BackendError>;

    /// Starts a handshake with the peer, whether or not there is something to send: permissive traffic waits for its result. With
    /// `anew` also if there is a session: where the peer is asked for may answer no longer.
    ///
    /// # Errors
    /// The tunnel does not answer.
    fn greet(&self, peer: NodeNumber, anew: bool) -> Result<(), BackendError>;

    /// Sends an IP packet out of the tunnel device as if it had been decrypted: for the self-test.
    fn inject(&self, packet: Vec<u8>);
}

/// What a backend did so far.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By peer.
    pub peers: Vec<PeerStats>,
    /// Packets dropped, by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Self-test packets that reached the tunnel.
    pub probes: u64,
    /// What is offloaded and what is not, in words.
    pub offloads: Vec<String>,
    /// The cipher, and whose code does its work.
    pub cipher: String,
    /// Threads that carry packets.
    pub threads: usize,
    /// Packets and handshakes that came to another thread than their peer's.
    pub handed_over: u64,
    /// Who has asked for a session with a key no peer has, within the last minute: a few at most.
    pub strangers: Vec<Stranger>,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerStats {
    /// Its node's number.
    pub number: NodeNumber,
    /// State.
    pub state: Progress,
    /// Handshakes begun in a row that nobody has answered yet, whether or not the last session still exists.
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
    /// Where packets go.
    pub endpoint: Option<SocketAddr>,
}

/// How far a peer is.
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
