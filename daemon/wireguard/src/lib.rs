//! hauberk's userspace tunnel: WireGuard on hauberk's I/O engine (hauberk-engine).
//!
//! The engine reads packets from the device and datagrams from the network, and `protocol` decides
//! what becomes of them: it encrypts packets to the peer that has their destination, and decrypts
//! what comes from peers. `allowed` maps inner addresses to peers, `schedule` keeps the deadlines,
//! and `strangers` remembers who asked for a session with an unknown key.
//!
//! A program holds a [`Tunnel`] and knows nothing of the rest. Nothing here sends a packet where
//! the configuration does not allow it: without a peer, an endpoint or a session, a packet is
//! dropped and counted ([`TunnelDrop`]).
#![deny(unsafe_code)]

mod allowed;
mod config;
mod error;
mod protocol;
mod schedule;
mod stats;
mod strangers;
mod tunnel;

pub use config::{LocalKey, PeerChange, PeerConfig, PeerId, PeerKey, StateCallback, TunnelConfig};
pub use error::Error;
pub use hauberk_cipher::Implementation as CipherImplementation;
pub use hauberk_engine::{DeviceConfig, DropCounts, Health, OffloadFeatures, TunnelDrop};
pub use protocol::{gso_max_size, timestamp as handshake_clock};
pub use stats::{PeerState, PeerStats, TunnelStats};
pub use strangers::Stranger;
pub use tunnel::Tunnel;
