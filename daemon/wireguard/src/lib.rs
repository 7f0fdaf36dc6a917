//! hauberk's userspace tunnel: WireGuard on batched I/O.
//!
//! ```text
//!  pods ─ BPF ─▶ TUN ─▶ segment ─▶ seal ─▶ outbox ─▶ UDP ─▶ other node
//!  pods ◀─ BPF ─ TUN ◀─ coalesce ◀─ open ◀──────────  UDP ◀─ other node
//! ```
//!
//! One thread carries a packet from end to end (`engine`); with several threads, each has its own
//! peers (`crew`). The thread reads super-packets of up to 64 KB from the device (`io::tun`) and
//! cuts them (`offload::segment`). The protocol (`protocol`, `wireguard`) encrypts each piece
//! directly into a batch (`io::outbox`), which leaves in one send (`io::udp`). The other direction
//! is the reverse, and joins packets that belong together (`offload::coalesce`). `allowed` maps
//! inner addresses to peers, `schedule` keeps the deadlines, and `spin` decides whether the engine
//! sleeps until the next one.
//!
//! The agent holds a [`Tunnel`] and knows nothing of the rest. Nothing here sends a packet where
//! the configuration does not allow it: without a peer, an endpoint or a session, a packet is
//! dropped and counted ([`TunnelDrop`]).
#![deny(unsafe_code)] // except in io::syscalls

mod allowed;
mod backlog;
mod config;
mod crew;
mod engine;
mod error;
mod io;
mod offload;
mod protocol;
mod schedule;
mod spin;
mod stats;
mod strangers;
mod tunnel;
mod wireguard;

pub use config::{DeviceConfig, LocalKey, PeerChange, PeerConfig, PeerId, PeerKey, StateCallback, TunnelConfig};
pub use crew::{MOST_ENGINES as MOST_THREADS, QUEUE_BITS};
pub use engine::SELF_TEST_DESTINATION;
pub use error::Error;
pub use hauberk_cipher::Implementation as CipherImplementation;
pub use io::tun::Device;
pub use stats::{DropCounts, Health, OffloadFeatures, PeerState, PeerStats, TunnelDrop, TunnelStats};
pub use strangers::Stranger;
pub use tunnel::Tunnel;
pub use wireguard::{gso_max_size, timestamp as handshake_clock};
