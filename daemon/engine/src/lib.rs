//! hauberk's I/O engine: carries packets between a TUN device and UDP sockets, through a protocol
//! that encrypts them.
//!
//! ```text
//!  pods ─ BPF ─▶ TUN ─▶ segment ─▶ seal ─▶ outbox ─▶ UDP ─▶ other node
//!  pods ◀─ BPF ─ TUN ◀─ coalesce ◀─ open ◀──────────  UDP ◀─ other node
//! ```
//!
//! One thread, an [`Engine`], carries a packet from end to end; several of them ([`Engines`]) each
//! have their own peers, and channels between them (`channels`). An engine reads super-packets of
//! up to 64 KB from the device (`io::tun`) and cuts them ([`offload::segment`]). The [`Protocol`]
//! encrypts each piece directly into a batch (`io::outbox`), which leaves in one send (`io::udp`).
//! The other direction is the reverse, and joins packets that belong together
//! ([`offload::coalesce`]). `backlog` says what goes first when more comes than can be carried, and
//! `spin` whether the engine sleeps until the protocol's next deadline.
//!
//! Nothing here knows keys, addresses of peers or which packet is for whom: that is the protocol's.
//! It is a type parameter, so that calls on the packets' path are direct ones.
#![deny(unsafe_code)] // except in io::syscalls

mod backlog;
mod channels;
mod config;
mod engine;
mod engines;
mod error;
mod io;
pub mod offload;
mod protocol;
mod spin;
mod stats;

pub use backlog::Flow;
pub use channels::{Channels, Command, Commands, Ends, MOST_ENGINES, QUEUE_BITS, Work};
pub use config::{Config, DeviceConfig};
pub use engine::{Engine, SELF_TEST_DESTINATION};
pub use engines::Engines;
pub use error::Error;
pub use io::outbox::{Batch, DatagramSink, MOST_BYTES, Outbox, gso_max_size};
pub use io::tun::Device;
pub use protocol::{Datagram, Datagrams, Elsewhere, Inbox, Protocol};
pub use stats::{Counters, DropCounts, Health, OffloadFeatures, TunnelDrop};
