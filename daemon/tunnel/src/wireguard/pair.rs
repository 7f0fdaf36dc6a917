//! One key of ours with one key of a peer: a Noise tunnel, and the clock that drives it.
//!
//! boringtun's `Tunn` does the cryptography. It reads its own clock and wants to be asked what is
//! due four times a second for each peer; instead this type mirrors the few moments that matter, so
//! that a peer is looked at when it sends, when it is heard, and when a deadline comes, but not
//! else. `Tunn`'s own view of the time is refreshed before each use ([`Pair::touch`]).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use x25519_dalek::PublicKey;

use super::identity::Identity;
use crate::config::PeerKey;
use crate::stats::TunnelDrop;

// WireGuard paper, 6.1 to 6.5.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// When the keys of a session nobody used are wiped.
const FORGET_AFTER_TIME: Duration = Duration::from_secs(3 * 180);
/// How old `Tunn`'s view of the time may get while it is in use.
const TOUCH_EVERY: Duration = Duration::from_millis(250);

/// Bytes a sealed packet is longer than the packet: header, counter and tag.
pub(super) const OVERHEAD: usize = 32;
/// Longest message that is not data: a handshake initiation.
const LONGEST_CONTROL: usize = 148;

pub(super) const INITIATION: u8 = 1;
pub(super) const RESPONSE: u8 = 2;

/// Sends a finished message to the peer.
pub(super) type Post<'a> = &'a mut dyn FnMut(&[u8]);

/// A pair of keys and the sessions made with them.
pub(super) struct Pair {
    pub(super) local_epoch: u32,
    pub(super) local_public: PublicKey,
    pub(super) remote_epoch: u32,
    pub(super) remote_public: [u8; 32],
    /// Upper 24 bits of the receiver indices of this pair's sessions.
    pub(super) index: u32,
    tunn: Tunn,
    touched: Option<Instant>,
    /// A session to send with exists.
    usable: bool,
    handshake: Option<Handshake>,
    /// Receiver index of the session we answered but have not yet heard from.
    unconfirmed: Option<u32>,
    established: Option<Instant>,
    /// We initiated the session: it is for us to make the next one.
    initiator: bool,
    /// Data was sent, data was heard since the session was established.
    spoke: bool,
    heard: bool,
    /// Since when we have heard data without saying anything.
    owed: Option<Instant>,
    /// Since when we have sent data without hearing anything.
    unanswered: Option<Instant>,
}

/// A handshake of ours that is under way.
#[derive(Clone, Copy)]
struct Handshake {
    started: Instant,
    attempts: u32,
    retry_at: Instant,
}

/// What came of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// An IP packet of this length.
    Packet(usize),
    /// Something without a packet.
    Control,
    /// A session can be used for sending from now on; the message carried this packet, if any.
    Established(Option<usize>),
    /// Nothing that may be passed on.
    Refused(TunnelDrop),
}

impl Pair {
    pub(super) fn new(identity: &Identity, key: &PeerKey, index: u32) -> Pair {
        let tunn = Tunn::new(
            identity.secret.clone(),
            PublicKey::from(key.public),
            None,
            None,
            index,
            Some(identity.unlimited.clone()),
        );
        Pair {
            local_epoch: identity.epoch,
            local_public: identity.public,
            remote_epoch: key.epoch,
            remote_public: key.public,
            index,
            tunn,
            touched: None,
            usable: false,
            handshake: None,
            unconfirmed: None,
            established: None,
            initiator: false,
            spoke: false,
            heard: false,
            owed: None,
            unanswered: None,
        }
    }

    /// Whether packets can be sealed now.
    pub(super) fn is_usable(&self) -> bool {
        self.usable
    }

    /// Initiations sent in the handshake under way.
    pub(super) fn attempts(&self) -> Option<u32> {
        self.handshake.map(|handshake| handshake.attempts)
    }

    /// Lets `Tunn` see the time and do what it finds due.
    pub(super) fn touch(&mut self, now: Instant, post: Post<'_>) {
        if self.touched.is_some_and(|touched| now.saturating_duration_since(touched) < TOUCH_EVERY) {
            return;
        }
        self.touched = Some(now);
        let mut buffer = [0; LONGEST_CONTROL];
        // An expired connection is an error each time; what matters of it is read off below.
        if let TunnResult::WriteToNetwork(message) = self.tunn.update_timers(&mut buffer) {
            post(message);
            let is_initiation = message.first() == Some(&INITIATION);
            self.sent(now, false);
            if is_initiation {
                self.initiated(now);
            }
        }
        let is_young = self.established.is_some_and(|at| now.saturating_duration_since(at) < REJECT_AFTER_TIME);
        self.usable = is_young && self.tunn.time_since_last_handshake().is_some();
        if self.is_to_be_renewed(now) {
            self.initiate(now, post);
        }
    }

    /// Whether the next session is to be made while this one still carries packets (WireGuard paper, 6.2).
    fn is_to_be_renewed(&self, now: Instant) -> bool {
        let age = self.established.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let at_last = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
        let is_old = (self.spoke && age >= REKEY_AFTER_TIME) || (self.heard && age >= at_last);
        self.usable && self.initiator && self.handshake.is_none() && is_old
    }

    /// Seals `packet` into `room`, which is [`OVERHEAD`] bytes longer. False if there is no session.
    pub(super) fn seal(&mut self, now: Instant, packet: &[u8], room: &mut [u8]) -> bool {
        let length = room.len();
        let sealed = self.usable
            && matches!(self.tunn.encapsulate(packet, room), TunnResult::WriteToNetwork(message) if message.len() == length);
        if sealed {
            self.sent(now, true);
        } else {
            self.usable = false;
        }
        sealed
    }

    /// Starts a handshake, or sends the initiation once more.
    pub(super) fn initiate(&mut self, now: Instant, post: Post<'_>) {
        let mut buffer = [0; LONGEST_CONTROL];
        if let TunnResult::WriteToNetwork(message) = self.tunn.format_handshake_initiation(&mut buffer, true) {
            post(message);
        }
        self.sent(now, false);
        self.initiated(now);
    }

    /// Gives up a handshake that a better session made needless.
    pub(super) fn abandon_handshake(&mut self) {
        self.handshake = None;
    }

    /// Opens a message for this pair whose form was checked; `room` must hold all of it.
    pub(super) fn open(
        &mut self,
        now: Instant,
        from: IpAddr,
        message: &[u8],
        room: &mut [u8],
        post: Post<'_>,
    ) -> Opened {
        // boringtun counts past the end of the counter; an authentic peer could make it overflow.
        if let Some(counter) = data_counter(message)
            && counter >= REJECT_AFTER_MESSAGES
        {
            return Opened::Refused(TunnelDrop::ReplayOrForged);
        }
        if data_counter(message).is_none() {
            // `Tunn` tells which of two sessions is the newer one by the time it was last shown.
            self.touched = None;
        }
        self.touch(now, post);
        match self.tunn.decapsulate(Some(from), message, room) {
            TunnResult::WriteToTunnelV4(packet, _) => {
                let length = packet.len();
                self.heard_data(now, message, Some(length))
            }
            TunnResult::WriteToTunnelV6(packet, _) => {
                let length = packet.len();
                self.heard_data(now, message, Some(length))
            }
            TunnResult::Done if data_counter(message).is_some() => self.heard_data(now, message, None),
            TunnResult::Done => {
                self.unanswered = None;
                Opened::Control
            }
            TunnResult::WriteToNetwork(reply) => {
                post(reply);
                let session = receiver_index(reply, 4);
                self.unanswered = None;
                self.sent(now, false);
                if message.first() == Some(&RESPONSE) {
                    self.establish(now, true);
                    return Opened::Established(None);
                }
                self.unconfirmed = session;
                Opened::Control
            }
            TunnResult::Err(error) => Opened::Refused(reason(&error)),
        }
    }

    /// When [`Pair::on_deadline`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let session =
            self.established.map(|at| if self.usable { at + REJECT_AFTER_TIME } else { at + FORGET_AFTER_TIME });
        [
            self.handshake.map(|handshake| handshake.retry_at),
            self.owed.map(|since| since + KEEPALIVE_TIMEOUT),
            self.unanswered.map(|since| since + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT),
            session,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due. True if a handshake was given up.
    pub(super) fn on_deadline(&mut self, now: Instant, post: Post<'_>) -> bool {
        if self.handshake.is_some_and(|handshake| now >= handshake.started + REKEY_ATTEMPT_TIME) {
            self.handshake = None;
            return true;
        }
        if let Some(at) = self.established {
            if now >= at + REJECT_AFTER_TIME {
                self.usable = false;
                self.owed = None;
                self.unanswered = None;
            }
            if now >= at + FORGET_AFTER_TIME {
                self.established = None;
                self.touched = None;
                self.touch(now, post);
            }
        }
        if self.handshake.is_some_and(|handshake| now >= handshake.retry_at) {
            self.touch(now, post);
            // `Tunn` may have found the retry due as well.
            if self.handshake.is_some_and(|handshake| now >= handshake.retry_at) {
                self.initiate(now, post);
            }
        }
        if self.owed.is_some_and(|since| now >= since + KEEPALIVE_TIMEOUT) {
            self.touch(now, post);
            if self.owed.take().is_some() && self.usable {
                let mut keepalive = [0; OVERHEAD];
                if let TunnResult::WriteToNetwork(message) = self.tunn.encapsulate(&[], &mut keepalive) {
                    post(message);
                }
            }
        }
        if self.unanswered.is_some_and(|since| now >= since + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT) {
            self.unanswered = None;
            self.touch(now, post);
            if self.handshake.is_none() {
                self.initiate(now, post);
            }
        }
        false
    }

    fn initiated(&mut self, now: Instant) {
        let retry_at = now + REKEY_TIMEOUT + jitter();
        let handshake = self.handshake.get_or_insert(Handshake { started: now, attempts: 0, retry_at });
        handshake.attempts += 1;
        handshake.retry_at = retry_at;
    }

    fn sent(&mut self, now: Instant, data: bool) {
        self.owed = None;
        if data {
            self.spoke = true;
            self.unanswered.get_or_insert(now);
        }
    }

    /// Takes note of an authentic data message. The first one confirms the session we answered.
    fn heard_data(&mut self, now: Instant, message: &[u8], packet: Option<usize>) -> Opened {
        self.unanswered = None;
        self.heard = true;
        if packet.is_some() {
            self.owed.get_or_insert(now);
        }
        if self.unconfirmed.is_some() && self.unconfirmed == receiver_index(message, 4) {
            self.establish(now, false);
            return Opened::Established(packet);
        }
        match packet {
            Some(length) => Opened::Packet(length),
            None => Opened::Control,
        }
    }

    fn establish(&mut self, now: Instant, initiator: bool) {
        self.usable = true;
        self.established = Some(now);
        self.initiator = initiator;
        (self.spoke, self.heard) = (false, false);
        self.handshake = None;
        self.unconfirmed = None;
    }
}

/// The counter of a data message.
fn data_counter(message: &[u8]) -> Option<u64> {
    let counter = message.get(8..16)?.try_into().ok()?;
    (message[0] == 4).then(|| u64::from_le_bytes(counter))
}

/// The index at `at`: of the receiver in data, of the sender in a response.
fn receiver_index(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

fn reason(error: &WireGuardError) -> TunnelDrop {
    match error {
        // Authentic, but no IP packet inside.
        WireGuardError::InvalidPacket | WireGuardError::IncorrectPacketLength => TunnelDrop::Malformed,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex | WireGuardError::UnexpectedPacket => {
            TunnelDrop::UnknownSender
        }
        WireGuardError::UnderLoad => TunnelDrop::UnderLoadCookie,
        _ => TunnelDrop::ReplayOrForged,
    }
}

/// Up to a third of a second, so that two peers do not start over in step (WireGuard paper, 6.1).
/// Never zero: `Tunn` measures from a moment later than ours.
fn jitter() -> Duration {
    let random = RandomState::new().build_hasher().finish();
    Duration::from_millis(10 + random % 323)
}
