//! One key of ours with one key of a peer: the handshakes, the sessions they lead to, and the clock that drives both.
//!
//! What has to be sent is returned; whoever calls sends it. The time is passed in: a pair is looked at when it sends, when it is
//! heard, and when a deadline comes, but not else.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hauberk_cipher::{HEAD, Implementation, TAG};
use x25519_dalek::{PublicKey, SharedSecret};

use super::cookie::Macs;
use super::handshake::{Initiator, Responder, SessionKeys};
use super::identity::Identity;
use super::message::{self, Data, INITIATION, OVERHEAD, RESPONSE, RESPONSE_NOISE};
use super::session::{REJECT_AFTER_TIME, Session};
use super::sessions::Sessions;
use super::timestamp::{self, Timestamp};
use crate::config::PeerKey;
use crate::stats::TunnelDrop;

// WireGuard paper, 6.1 to 6.5.
pub(super) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Initiations after which a handshake is given up.
pub(super) const GIVEN_UP: u32 = (REKEY_ATTEMPT_TIME.as_secs() / REKEY_TIMEOUT.as_secs()) as u32;
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How old a session of ours gets while we only listen: a new one is made just before it is too late (6.2).
pub(super) const REKEY_AT_LAST: Duration =
    REJECT_AFTER_TIME.saturating_sub(KEEPALIVE_TIMEOUT).saturating_sub(REKEY_TIMEOUT);

/// A pair of keys and the sessions made with them.
pub(super) struct Pair {
    identity: Arc<Identity>,
    pub(super) remote_epoch: u32,
    remote: PublicKey,
    /// What the two static keys agree on.
    agreed: SharedSecret,
    /// Upper 24 bits of the indices of this pair's sessions.
    pub(super) index: u32,
    cipher: Implementation,
    /// They also take the cookies that the peer asks us to use.
    pub(super) macs: Macs,
    /// Of the initiations we took from the peer: whatever is not later is a replay (5.1).
    latest_initiation: Timestamp,
    sessions: Sessions,
    handshake: Option<Handshake>,
    /// Since when we have heard data without saying anything.
    owed: Option<Instant>,
    /// Since when we have sent data without hearing anything.
    unanswered: Option<Instant>,
}

/// A handshake of ours that is under way.
struct Handshake {
    /// Index of the session it may lead to.
    index: u32,
    initiator: Initiator,
    started: Instant,
    attempts: u32,
    retry_at: Instant,
    /// A better session made it needless. An answer that is on its way is still welcome.
    abandoned: bool,
}

/// Something whose time has come.
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
    /// It was the one that put its session to use.
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

    /// Our key.
    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Whether it is of these two keys.
    pub(super) fn is_of(&self, identity: &Identity, remote: &[u8; 32]) -> bool {
        self.identity.epoch == identity.epoch
            && self.identity.public == identity.public
            && self.remote.as_bytes() == remote
    }

    /// Whether packets can be sealed now.
    pub(super) fn is_usable(&self) -> bool {
        self.sessions.current().is_some()
    }

    /// Initiations sent in the handshake under way.
    pub(super) fn attempts(&self) -> Option<u32> {
        self.handshake.as_ref().filter(|handshake| !handshake.abandoned).map(|handshake| handshake.attempts)
    }

    /// Drops what has come to its end, before anything is done with the pair.
    pub(super) fn expire(&mut self, now: Instant) {
        self.sessions.drop_ended(now);
        if !self.is_usable() {
            self.owed = None;
            self.unanswered = None;
        }
    }

    /// Whether the next session is to be made while this one, if `age` old, still carries packets (6.2).
    pub(super) fn is_to_be_renewed(&self, now: Instant, age: Duration) -> bool {
        self.attempts().is_none() && self.sessions.current().is_some_and(|session| session.is_to_be_renewed(now, age))
    }

    /// Starts a handshake, or asks once more.
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

    /// Stops asking for a session that a better one made needless.
    pub(super) fn abandon_handshake(&mut self) {
        if let Some(handshake) = &mut self.handshake {
            handshake.abandoned = true;
        }
    }

    /// Answers an initiation. The session is for the peer to use first.
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

    /// Takes the answer to our initiation. Something has to be sent with the session now: the peer waits for it.
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

    /// Seals `packet` into `room`, which is at least [`OVERHEAD`] bytes longer. False if there is no session.
    pub(super) fn seal(&mut self, now: Instant, packet: &[u8], room: &mut [u8]) -> bool {
        let sealed = self.sessions.seal(packet, room);
        if sealed {
            self.owed = None;
            self.unanswered.get_or_insert(now);
        }
        sealed
    }

    /// A message without a packet, if there is a session.
    pub(super) fn keepalive(&mut self) -> Option<[u8; OVERHEAD]> {
        let mut message = [0; OVERHEAD];
        self.owed = None;
        self.sessions.seal(&[], &mut message).then_some(message)
    }

    /// Opens a data message to the start of the room. The first of a session that we answered confirms it.
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

    /// Shows what a data message seems to begin with; false if the cipher cannot, none if there is nothing in it for us.
    pub(super) fn peek(&mut self, data: Data<'_>, head: &mut [u8; HEAD]) -> Option<bool> {
        let session = self.sessions.receiving(data.receiver)?;
        (data.sealed.len() > TAG).then(|| session.peek(data, head))
    }

    /// When [`Pair::next_due`] has something, or [`Pair::expire`].
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

    /// One thing that is due, to be done before the next is asked for.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Due> {
        if let Some(handshake) = self.handshake.take_if(|handshake| handshake.retry_at <= now) {
            if handshake.abandoned {
                // Nobody waits for it.
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

/// Up to a third of a second, so that two peers do not start over in step (6.1).
fn jitter() -> Duration {
    let random = RandomState::new().build_hasher().finish();
    Duration::from_millis(random % 334)
}
