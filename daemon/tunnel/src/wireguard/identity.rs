//! Our own keys, and the guard in front of each.

use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::config::LocalKey;
use crate::error::Error;

/// One key of ours. The secret is zeroized when dropped; nothing here implements `Debug`.
pub(super) struct Identity {
    pub(super) epoch: u32,
    pub(super) secret: StaticSecret,
    pub(super) public: PublicKey,
    /// Checks and counts handshakes; under load it answers with cookies.
    pub(super) gate: RateLimiter,
    /// The same checks without the count, for `Tunn`, which insists on checking again.
    pub(super) unlimited: Arc<RateLimiter>,
}

impl Identity {
    /// Checks that the keys can be used, and puts the newest first.
    pub(super) fn all(keys: Vec<LocalKey>, handshakes_per_second: u64) -> Result<Vec<Identity>, Error> {
        if keys.is_empty() || keys.len() > 2 {
            return Err(Error::LocalKeys { given: format!("{} keys", keys.len()) });
        }
        if let [first, second] = &keys[..]
            && first.epoch == second.epoch
        {
            return Err(Error::LocalKeys { given: format!("two keys of epoch {}", first.epoch) });
        }
        let mut identities: Vec<_> = keys.into_iter().map(|key| Identity::new(key, handshakes_per_second)).collect();
        identities.sort_by_key(|identity| std::cmp::Reverse(identity.epoch));
        Ok(identities)
    }

    fn new(key: LocalKey, handshakes_per_second: u64) -> Identity {
        let public = PublicKey::from(&key.secret);
        Identity {
            epoch: key.epoch,
            gate: RateLimiter::new(&public, handshakes_per_second),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret: key.secret,
            public,
        }
    }
}
