//! The ways to encrypt, and which one the configuration asks for.

use std::time::Duration;

use hauberk_core::names::NodeNumber;
use serde::{Deserialize, Serialize};
use x25519_dalek::StaticSecret;

use crate::backend::{Backend, Progress};
use crate::error::BackendError;
use crate::userspace::Userspace;

/// A way to encrypt traffic to other nodes.
pub trait Mechanism: Send + Sync {
    /// Its name in status, metrics and configuration.
    fn name(&self) -> &'static str;

    /// Whether this node has what it needs, and what was found.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    fn available(&self) -> Result<String, String>;

    /// The most that it adds to a packet, outer headers included, bytes.
    fn overhead(&self) -> u32;

    /// The `gso_max_size`, bytes, for the devices of pods whose packets are at most `mtu` bytes.
    fn gso_max_size(&self, mtu: u32) -> u32;

    /// The most threads that it can use.
    fn most_threads(&self) -> usize;

    /// Opens the device in the calling thread's network namespace, or takes over the one that an
    /// earlier agent left, and starts. It has no peers yet.
    ///
    /// # Errors
    /// [`BackendError`]: no TUN device, the port is taken, ...
    fn start(&self, config: StartConfig) -> Result<Box<dyn Backend>, BackendError>;
}

/// What the configuration says about the mechanism; the variants' names are its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The best one on this node.
    Auto,
    /// The agent itself encrypts.
    Userspace,
}

impl Choice {
    /// The mechanism that it leads to.
    pub fn mechanism(self) -> &'static dyn Mechanism {
        match self {
            Choice::Auto | Choice::Userspace => &Userspace,
        }
    }

    /// Why it leads there, for the status.
    pub fn reason(self) -> &'static str {
        match self {
            Choice::Userspace => "tunnel.backend asks for it",
            Choice::Auto => "auto: the only backend of this version",
        }
    }
}

/// The implementation that seals and opens packets; the variants' names are the configuration's
/// words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cipher {
    /// The fastest one for this CPU.
    Auto,
    /// The ring library's, on every CPU.
    Ring,
}

/// What a backend needs to start. No `Debug`: it holds secrets.
pub struct StartConfig {
    /// Device name.
    pub device: String,
    /// Largest inner packet, bytes.
    pub mtu: u32,
    /// UDP port.
    pub port: u16,
    /// This node's keys, newest epoch first.
    pub keys: Vec<LocalKey>,
    /// Handshakes per second above which senders must prove their address.
    pub handshakes_per_second: u64,
    /// How long to poll for the next packet before sleeping.
    pub spin: Duration,
    /// Whether outer packets take over the DSCP of the inner ones.
    pub copy_dscp: bool,
    /// Threads that carry packets, 1 to [`Mechanism::most_threads`].
    pub threads: usize,
    /// The implementation that seals and opens packets.
    pub cipher: Cipher,
    /// Called whenever a peer's state changes, on a thread of the backend; must return at once.
    pub on_state: Box<dyn Fn(NodeNumber, Progress) + Send + Sync>,
}

/// One of this node's keys. No `Debug`; the secret is wiped when dropped.
pub struct LocalKey {
    /// Epoch of the key; the highest one is preferred for sending.
    pub epoch: u32,
    /// The X25519 secret.
    pub secret: StaticSecret,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An explicit choice is called by the mechanism's own name.
    #[test]
    fn the_configurations_word_is_the_mechanisms_name() {
        let word = serde_json::to_value(Choice::Userspace).unwrap();
        assert_eq!(word, Choice::Userspace.mechanism().name());
        let unknown = serde_json::from_value::<Choice>("openvpn".into()).unwrap_err().to_string();
        assert!(unknown.contains("expected `auto` or `userspace`"), "{unknown}");
    }
}
