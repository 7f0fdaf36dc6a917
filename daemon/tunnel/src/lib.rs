//! hauberk's userspace tunnel: WireGuard on batched I/O.
//!
//! ```text
//!  pods ─ BPF ─▶ TUN ─▶ segment ─▶ seal ─▶ outbox ─▶ UDP ─▶ other node
//!  pods ◀─ BPF ─ TUN ◀─ coalesce ◀─ open ◀──────────  UDP ◀─ other node
//! ```
//!
//! One thread carries a packet from end to end (`engine`); with several, each has its peers (`crew`). It reads super-packets of up to 64 KB
//! from the device (`io::tun`), cuts them (`offload::segment`), has each piece sealed by the
//! protocol (`protocol`, `wireguard`) right into a batch (`io::outbox`) that leaves in one send
//! (`io::udp`); and the same backwards, joining what belongs together (`offload::coalesce`).
//! `allowed` says which inner address is whose, `schedule` who is to be woken when, `spin` whether the
//! engine sleeps until then.
//!
//! The agent holds a [`Tunnel`] and knows nothing of the rest. Nothing here opens a way that the
//! configuration did not name: no peer, no endpoint, no session means that the packet is dropped
//! and counted ([`TunnelDrop`]).
#![deny(unsafe_code)] // but for io::syscalls

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
