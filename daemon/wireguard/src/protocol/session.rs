//! One session: a key for each direction, and how much it has been used (WireGuard paper, 5.4.6,
//! 6.1, 6.2).

use std::time::{Duration, Instant};

use hauberk_cipher::{HEAD, Implementation, Key, TAG};
use hauberk_engine::TunnelDrop;

use super::handshake::SessionKeys;
use super::message::{self, Data};
use super::replay::Replay;

/// Age after which a session is used for neither sending nor receiving.
pub(super) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// How many messages may be sent with a session; and after how many the next session is made.
pub(super) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
pub(super) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;

/// The result of a finished handshake. Its keys are overwritten when it is dropped.
pub(super) struct Session {
    /// The index in messages from the peer, and the one in messages to the peer.
    local: u32,
    remote: u32,
    sending: Key,
    receiving: Key,
    /// Messages sent, which is the counter of the next one.
    sent: u64,
    received: Replay,
    made: Instant,
    /// This node initiated it, so this node makes the next one.
    initiated: bool,
}

impl Session {
    pub(super) fn new(
        now: Instant,
        (local, remote): (u32, u32),
        keys: &SessionKeys,
        initiated: bool,
        cipher: Implementation,
    ) -> Session {
        Session {
            local,
            remote,
            sending: Key::new(&keys.sending, cipher),
            receiving: Key::new(&keys.receiving, cipher),
            sent: 0,
            received: Replay::new(),
            made: now,
            initiated,
        }
    }

    /// The index in messages from the peer.
    pub(super) fn local(&self) -> u32 {
        self.local
    }

    /// When it ends.
    pub(super) fn end(&self) -> Instant {
        self.made + REJECT_AFTER_TIME
    }

    /// Encrypts a padded packet into a data message that fills the room. False once it was used too
    /// often.
    pub(super) fn seal(&mut self, packet: &[u8], room: &mut [u8]) -> bool {
        if self.sent >= REJECT_AFTER_MESSAGES {
            return false;
        }
        let sealed = message::data(self.remote, self.sent, room);
        self.sending.seal(self.sent, packet, sealed);
        self.sent += 1;
        true
    }

    /// Decrypts a data message to the start of the room. Returns the length of packet and padding.
    pub(super) fn open(&mut self, data: Data<'_>, room: &mut [u8]) -> Result<usize, TunnelDrop> {
        let length = data.sealed.len() - TAG;
        // A forged message must not count as received: checked here, recorded after authentication.
        if data.counter >= REJECT_AFTER_MESSAGES || !self.received.is_fresh(data.counter) {
            return Err(TunnelDrop::ReplayOrForged);
        }
        self.receiving.open(data.counter, data.sealed, &mut room[..length]).map_err(|_| TunnelDrop::ReplayOrForged)?;
        self.received.mark(data.counter);
        Ok(length)
    }

    /// Decrypts the beginning of a data message without authentication; false if the cipher cannot.
    pub(super) fn peek(&self, data: Data<'_>, head: &mut [u8; HEAD]) -> bool {
        self.receiving.peek(data.counter, data.sealed, head)
    }

    /// Whether to make the next session while this one still carries packets. The side that
    /// initiated it does so once it is `age` old, and either side does once it has sent very many
    /// messages.
    pub(super) fn is_to_be_renewed(&self, now: Instant, age: Duration) -> bool {
        self.sent >= REKEY_AFTER_MESSAGES || (self.initiated && now.saturating_duration_since(self.made) >= age)
    }

    /// Pretends that this many messages had been sent.
    #[cfg(test)]
    pub(super) fn pretend_sent(&mut self, sent: u64) {
        self.sent = sent;
    }
}
