//! What can go wrong, with messages for the person who has to fix it.

use ipnet::IpNet;

use crate::config::PeerId;

/// Why the tunnel could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engines could not start, or have stopped.
    #[error(transparent)]
    Engine(#[from] hauberk_engine::Error),
    /// This node's keys are not one or two keys of different epochs.
    #[error("the tunnel needs one or two local keys of different epochs, newest first; it was given {given}")]
    LocalKeys {
        /// A description of what was given, without key material.
        given: String,
    },
    /// A peer's keys cannot be used.
    #[error("peer {name} ({id}): {reason}")]
    PeerKeys {
        /// The peer.
        id: PeerId,
        /// Its node name.
        name: String,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// Two peers claim the same prefix.
    #[error(
        "prefix {prefix} is claimed by {claimant} but belongs to {owner}: nothing was changed; \
         remove it from one of the two nodes"
    )]
    PrefixConflict {
        /// The prefix.
        prefix: IpNet,
        /// Node that has it, or claimed it first.
        owner: String,
        /// Node that wants it too.
        claimant: String,
    },
    /// Two peers publish the same public key.
    #[error(
        "{claimant} publishes the same public key as {owner}: nothing was changed; \
         one of them copied the other's key, give it a fresh one"
    )]
    KeyConflict {
        /// Node that has the key, or claimed it first.
        owner: String,
        /// Node that wants it too.
        claimant: String,
    },
    /// A change names a peer that does not exist.
    #[error("peer {id} is not known to the tunnel: put it before changing it")]
    UnknownPeer {
        /// The peer.
        id: PeerId,
    },
}
