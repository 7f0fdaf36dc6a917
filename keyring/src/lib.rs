//! A node's keys: generated and stored ([`store`]), published and checked ([`published`]).
//!
//! A secret never leaves the node. It is kept in one file (0600, in a directory 0700) and in
//! [`Secret`], which cannot be printed and is wiped when dropped. Other nodes see only the
//! annotation that [`published`] writes and reads.
#![forbid(unsafe_code)]

pub mod published;
pub mod store;

use x25519_dalek::StaticSecret;

pub use published::{PublicKey, Published};
pub use store::{Store, StoreError};

/// The most keys that a node has at once: the one in use, and the one it is changing to or from.
pub const MAX_EPOCHS: usize = 2;

/// An x25519 private key. It has no `Debug`, no `Serialize` and no `Clone`, and is wiped when
/// dropped.
pub struct Secret(StaticSecret);

impl Secret {
    /// A new one, from the kernel's random number generator.
    fn generate() -> Secret {
        Secret(StaticSecret::random())
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> [u8; 32] {
        x25519_dalek::PublicKey::from(&self.0).to_bytes()
    }

    /// A copy for the tunnel's Noise implementation; it too is wiped when dropped.
    pub fn expose(&self) -> StaticSecret {
        self.0.clone()
    }
}

/// One key of this node.
pub struct NodeKey {
    /// Its epoch, from 1.
    pub epoch: u32,
    /// The private key.
    pub secret: Secret,
    /// The public key.
    pub public: [u8; 32],
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}
