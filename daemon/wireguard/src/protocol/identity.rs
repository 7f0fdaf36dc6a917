//! This node's keys, and the checks on handshake messages for each of them.

use std::sync::Arc;

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use hauberk_engine::{Datagram, Outbox, TunnelDrop};
use x25519_dalek::{PublicKey, StaticSecret};

use super::message::COOKIE_REPLY;
use crate::config::LocalKey;
use crate::error::Error;

/// One key of this node. The secret is zeroized when dropped; nothing here implements `Debug`.
pub(super) struct Identity {
    pub(super) epoch: u32,
    pub(super) secret: StaticSecret,
    pub(super) public: PublicKey,
    /// Checks first MACs, and counts messages to detect load.
    gate: RateLimiter,
    /// Checks second MACs, and sends cookie replies.
    cookies: RateLimiter,
}

/// What an admitted handshake message has proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// Its sender knows this node's public key.
    Key,
    /// Its sender also receives packets at its source address.
    Address,
}

/// This node's keys, newest first. All engines share them, so a cookie is valid at each of them.
#[derive(Clone)]
pub(crate) struct Identities(pub(super) Vec<Arc<Identity>>);

impl Identities {
    /// Checks that the keys can be used, and sorts them, newest first.
    pub(crate) fn new(keys: Vec<LocalKey>, handshakes_per_second: u64) -> Result<Identities, Error> {
        if keys.is_empty() || keys.len() > 2 {
            return Err(Error::LocalKeys { given: format!("{} keys", keys.len()) });
        }
        if let [first, second] = &keys[..]
            && first.epoch == second.epoch
        {
            return Err(Error::LocalKeys { given: format!("two keys of epoch {}", first.epoch) });
        }
        let identity = |key| Arc::new(Identity::new(key, handshakes_per_second));
        let mut identities: Vec<_> = keys.into_iter().map(identity).collect();
        identities.sort_by_key(|identity| std::cmp::Reverse(identity.epoch));
        Ok(Identities(identities))
    }
}

impl Identity {
    /// Admits a handshake message if its first MAC was made for this key and, under load, its
    /// second MAC proves the sender's address (WireGuard paper, 5.3).
    pub(super) fn admit(&self, datagram: Datagram<'_>, outbox: &mut Outbox<'_>) -> Result<Proof, TunnelDrop> {
        let mut reply = [0; COOKIE_REPLY];
        self.gate.reset_count();
        // Without the address, it reports that it is under load instead of checking the second MAC
        // itself.
        match self.gate.verify_packet(None, datagram.bytes, &mut reply) {
            Ok(_) => return Ok(Proof::Key),
            Err(TunnResult::Err(WireGuardError::UnderLoad)) => {}
            Err(_) => return Err(TunnelDrop::NotForOurKey),
        }
        match self.cookies.verify_packet(Some(datagram.from.ip()), datagram.bytes, &mut reply) {
            Ok(_) => Ok(Proof::Address),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                // The only answer that always goes to the source address: that address is what it
                // tests.
                outbox.post(datagram.from, cookie);
                Err(TunnelDrop::UnderLoadCookie)
            }
            Err(_) => Err(TunnelDrop::NotForOurKey),
        }
    }

    fn new(key: LocalKey, handshakes_per_second: u64) -> Identity {
        let public = PublicKey::from(&key.secret);
        Identity {
            epoch: key.epoch,
            gate: RateLimiter::new(&public, handshakes_per_second),
            cookies: RateLimiter::new(&public, 0),
            secret: key.secret,
            public,
        }
    }
}
