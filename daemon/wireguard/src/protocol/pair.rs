//! One key of this node with one key of a peer: the handshakes, the resulting sessions, and the
//! timers for both.
//!
//! Messages to send are returned, and the caller sends them. The time is passed in: a pair acts
//! only when it sends, when it receives, and at its deadlines.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hauberk_cipher::{HEAD, Implementation, TAG};
use hauberk_engine::TunnelDrop;
use x25519_dalek::{PublicKey, SharedSecret};

use super::cookie::Macs;
use super::handshake::{Initiator, Responder, SessionKeys};
use super::identity::Identity;
use super::message::{self, Data, INITIATION, OVERHEAD, RESPONSE, RESPONSE_NOISE};
use super::session::{REJECT_AFTER_TIME, Session};
use super::sessions::Sessions;
use super::timestamp::{self, Timestamp};
use crate::config::PeerKey;

// WireGuard paper, 6.1 to 6.5.
pub(super) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Number of initiations after which a handshake is given up.
pub(super) const GIVEN_UP: u32 = (REKEY_ATTEMPT_TIME.as_secs() / REKEY_TIMEOUT.as_secs()) as u32;
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Age at which this node renews a session that it initiated and only receives with: just before it
/// is too late (6.2).
pub(super) const REKEY_AT_LAST: Duration =
    REJECT_AFTER_TIME.saturating_sub(KEEPALIVE_TIMEOUT).saturating_sub(REKEY_TIMEOUT);

/// A pair of keys and the sessions made with them.
pub(super) struct Pair {
    identity: Arc<Identity>,
    pub(super) remote_epoch: u32,
    remote: PublicKey,
    /// The shared secret of the two static keys.
    agreed: SharedSecret,
    /// Upper 24 bits of the indices of this pair's sessions.
    pub(super) index: u32,
    cipher: Implementation,
    /// Also keep the cookies that the peer sends.
    pub(super) macs: Macs,
    /// Timestamp of the latest initiation accepted from the peer: one that is not later is a replay
    /// (5.1).
    latest_initiation: Timestamp,
    sessions: Sessions,
    handshake: Option<Handshake>,
    /// Since when data has been received without anything sent.
    owed: Option<Instant>,
    /// Since when data has been sent without anything received.
    unanswered: Option<Instant>,
}

/// A handshake that this node started and that is under way.
struct Handshake {
    /// Index of the session that it may lead to.
    index: u32,
    initiator: Initiator,
    started: Instant,
    attempts: u32,
    retry_at: Instant,
    /// A better session has made it unnecessary. A response that is already on its way is still
    /// accepted.
    abandoned: bool,
}

/// An action that is due.
pub(super) enum Due {
    Initiation,
    Keepalive,
    /// The handshake was given up.
    GaveUp,
}

/// An authentic data message.
pub(super) struct Opened {
    /// Length of packet and padding; zero for a keepalive.
    pub(super) length: usize,
    /// It was the first message of a session that this node answered, and confirmed it.
    pub(super) confirmed: bool,
}

impl Pair {
    pub(super) fn new(identity: Arc<Identity>, key: &PeerKey, index: u32, cipher: Implementation) -> Pair {
        let remote = PublicKey::from(key.public);
        Pair {
            agreed: identity.secret.diffie_hellman(&remote),
            identity,
            remote_epoch: key.epoch,
            remote,
            index,
            cipher,
            macs: Macs::new(&remote),
            latest_initiation: timestamp::NEVER,
            sessions: Sessions::new(),
            handshake: None,
            owed: None,
            unanswered: None,
        }
    }

    /// This node's key.
    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Whether it is the pair of these two keys.
    pub(super) fn is_of(&self, identity: &Identity, remote: &[u8; 32]) -> bool {
        self.identity.epoch == identity.epoch
            && self.identity.public == identity.public
            && self.remote.as_bytes() == remote
    }

    /// Whether packets can be encrypted now.
    pub(super) fn is_usable(&self) -> bool {
        self.sessions.current().is_some()
    }

    /// Initiations sent in the handshake that is under way.
    pub(super) fn attempts(&self) -> Option<u32> {
        self.handshake.as_ref().filter(|handshake| !handshake.abandoned).map(|handshake| handshake.attempts)
    }

    /// Drops expired sessions. The caller does this before anything else.
    pub(super) fn expire(&mut self, now: Instant) {
        self.sessions.drop_ended(now);
        if !self.is_usable() {
            self.owed = None;
            self.unanswered = None;
        }
    }

    /// Whether a new session should be made because this one, although still usable, is `age` old
    /// (6.2).
    pub(super) fn is_to_be_renewed(&self, now: Instant, age: Duration) -> bool {
        self.attempts().is_none() && self.sessions.current().is_some_and(|session| session.is_to_be_renewed(now, age))
    }

    /// Starts a handshake, or sends its next initiation.
    pub(super) fn initiate(&mut self, now: Instant) -> [u8; INITIATION] {
        let index = self.free_index(None);
        let timestamp = timestamp::next();
        let (initiator, noise) = Initiator::begin(&self.identity.public, &self.remote, &self.agreed, &timestamp);
        let before = self.handshake.take().filter(|handshake| !handshake.abandoned);
        self.handshake = Some(Handshake {
            index,
            initiator,
            started: before.as_ref().map_or(now, |handshake| handshake.started),
            attempts: before.map_or(0, |handshake| handshake.attempts) + 1,
            retry_at: now + REKEY_TIMEOUT + jitter(),
            abandoned: false,
        });
        self.owed = None;
        let mut message = message::initiation(index, &noise);
        self.macs.sign(now, index, &mut message);
        message
    }

    /// Stops the handshake for a session that a better one has made unnecessary.
    pub(super) fn abandon_handshake(&mut self) {
        if let Some(handshake) = &mut self.handshake {
            handshake.abandoned = true;
        }
    }

    /// Answers an initiation. This node may use the session only after the peer has.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        sender: u32,
        mut responder: Responder,
    ) -> Result<[u8; RESPONSE], TunnelDrop> {
        let timestamp = responder.timestamp(&self.agreed)?;
        if timestamp <= self.latest_initiation {
            return Err(TunnelDrop::ReplayOrForged);
        }
        self.latest_initiation = timestamp;
        let (keys, noise) = responder.finish()?;
        let index = self.free_index(self.handshake.as_ref().map(|handshake| handshake.index));
        self.sessions.add_answered(self.session(now, (index, sender), &keys, false));
        self.owed = None;
        self.unanswered = None;
        let mut message = message::response(index, sender, &noise);
        self.macs.sign(now, index, &mut message);
        Ok(message)
    }

    /// Handles the response to this node's initiation. The caller must now send something with the
    /// session: the peer waits for it.
    pub(super) fn complete(
        &mut self,
        now: Instant,
        sender: u32,
        receiver: u32,
        noise: &[u8; RESPONSE_NOISE],
    ) -> Result<(), TunnelDrop> {
        let handshake = self.handshake.as_ref().filter(|handshake| handshake.index == receiver);
        let initiator = &handshake.ok_or(TunnelDrop::UnknownSender)?.initiator;
        let keys = initiator.finish(&self.identity.secret, noise)?;
        self.handshake = None;
        self.unanswered = None;
        self.sessions.add_initiated(self.session(now, (receiver, sender), &keys, true));
        Ok(())
    }

    /// Encrypts `packet` into `room`, which is at least [`OVERHEAD`] bytes longer. False if there
    /// is no session.
    pub(super) fn seal(&mut self, now: Instant, packet: &[u8], room: &mut [u8]) -> bool {
        let sealed = self.sessions.seal(packet, room);
        if sealed {
            self.owed = None;
            self.unanswered.get_or_insert(now);
        }
        sealed
    }

    /// A keepalive message, if there is a session.
    pub(super) fn keepalive(&mut self) -> Option<[u8; OVERHEAD]> {
        let mut message = [0; OVERHEAD];
        self.owed = None;
        self.sessions.seal(&[], &mut message).then_some(message)
    }

    /// Decrypts a data message to the start of the room. The first one of a session that this node
    /// answered confirms it.
    pub(super) fn open(&mut self, now: Instant, data: Data<'_>, room: &mut [u8]) -> Result<Opened, TunnelDrop> {
        let session = self.sessions.receiving(data.receiver).ok_or(TunnelDrop::UnknownSender)?;
        let length = session.open(data, room)?;
        let confirmed = self.sessions.confirm(data.receiver);
        if confirmed {
            self.abandon_handshake();
        }
        self.unanswered = None;
        if length > 0 {
            self.owed.get_or_insert(now);
        }
        Ok(Opened { length, confirmed })
    }

    /// Decrypts the beginning of a data message without authentication. False if the cipher cannot;
    /// none if it holds no packet for this node.
    pub(super) fn peek(&mut self, data: Data<'_>, head: &mut [u8; HEAD]) -> Option<bool> {
        let session = self.sessions.receiving(data.receiver)?;
        (data.sealed.len() > TAG).then(|| session.peek(data, head))
    }

    /// When [`Pair::next_due`] or [`Pair::expire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [
            self.handshake.as_ref().map(|handshake| handshake.retry_at),
            self.owed.map(|since| since + KEEPALIVE_TIMEOUT),
            self.unanswered.map(|since| since + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT),
            self.sessions.end(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// One action that is due. The caller does it before it asks for the next.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Due> {
        if let Some(handshake) = self.handshake.take_if(|handshake| handshake.retry_at <= now) {
            if handshake.abandoned {
                // It is no longer needed.
            } else if now >= handshake.started + REKEY_ATTEMPT_TIME {
                return Some(Due::GaveUp);
            } else {
                self.handshake = Some(handshake);
                return Some(Due::Initiation);
            }
        }
        if self.owed.take_if(|since| now >= *since + KEEPALIVE_TIMEOUT).is_some() {
            return Some(Due::Keepalive);
        }
        let silence = self.unanswered.take_if(|since| now >= *since + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT);
        (silence.is_some() && self.attempts().is_none()).then_some(Due::Initiation)
    }

    fn free_index(&mut self, kept: Option<u32>) -> u32 {
        self.index << 8 | u32::from(self.sessions.free_index(kept))
    }

    fn session(&self, now: Instant, indices: (u32, u32), keys: &SessionKeys, initiated: bool) -> Session {
        Session::new(now, indices, keys, initiated, self.cipher)
    }

    #[cfg(test)]
    pub(super) fn sessions_mut(&mut self) -> &mut Sessions {
        &mut self.sessions
    }
}

/// Up to a third of a second, so that two peers do not keep starting at the same time (6.1).
fn jitter() -> Duration {
    let random = RandomState::new().build_hasher().finish();
    Duration::from_millis(random % 334)
}
