//! The seam between the agent and what encrypts its traffic to other nodes.
//!
//! It has two levels. A [`Mechanism`] is a way to encrypt: what it costs, whether this node has it,
//! and how to start it; [`Choice`] says which one the configuration asks for. A [`Backend`] is a
//! running one: it lists its peers, applies changes and reports statistics. It decides nothing: the
//! reconciler decides which peers exist and which allowed IPs they have. Each backend has one
//! network device, so that the eBPF programs on it are the same for all.
//!
//! **The seam may become a process boundary**, with a backend that outlives the agent. So what
//! passes through it can be sent as a message, with file descriptors beside it: values, addresses,
//! durations and wall-clock times. There are no references to a backend's insides, and no closures
//! except [`StartConfig::on_state`], which stands for the events that a backend reports.
//!
//! Userspace WireGuard is the only mechanism so far. Another one is one more file beside it, and
//! one more word in [`Choice`].
#![deny(unsafe_code)]

mod backend;
mod error;
pub mod handshake_clock;
mod mechanism;
mod userspace;

pub use backend::{Backend, PeerStats, PeerStep, Progress, Stats, Stranger};
pub use error::BackendError;
pub use hauberk_engine::TunnelDrop;
pub use mechanism::{Choice, Cipher, LocalKey, Mechanism, StartConfig};
