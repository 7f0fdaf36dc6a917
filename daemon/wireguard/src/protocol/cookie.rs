//! The two MACs at the end of a handshake message, and the cookies for the second MAC (WireGuard
//! paper, 5.3, 5.4.4, 5.4.7).
//!
//! This is the sender's part. The receiver's part is in [`super::identity`]: it checks MACs and
//! sends cookies.

use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::{AeadInPlace, Tag, XChaCha20Poly1305, XNonce};
use hauberk_cipher::TAG;
use hauberk_engine::TunnelDrop;
use x25519_dalek::PublicKey;
use zeroize::Zeroizing;

use super::message::MAC;

/// How long a cookie is used: the receiver changes its secret after the same time (5.4.7).
const COOKIE_LIFE: Duration = Duration::from_secs(120);

/// Computes the MACs of the messages to one peer.
pub(super) struct Macs {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    /// Sender index and first MAC of the last message. A cookie reply refers to these, and only one
    /// is accepted.
    last: Option<(u32, [u8; MAC])>,
    cookie: Option<(Instant, Zeroizing<[u8; 16]>)>,
}

impl Macs {
    pub(super) fn new(remote: &PublicKey) -> Macs {
        Macs { mac1_key: hash(b"mac1----", remote), cookie_key: hash(b"cookie--", remote), last: None, cookie: None }
    }

    /// Fills in the MACs of an initiation or a response.
    pub(super) fn sign(&mut self, now: Instant, sender: u32, message: &mut [u8]) {
        let (body, macs) = message.split_at_mut(message.len() - 2 * MAC);
        let (first, second) = macs.split_at_mut(MAC);
        let mac1 = mac(&self.mac1_key, &[body]);
        first.copy_from_slice(&mac1);
        self.cookie.take_if(|(since, _)| now.saturating_duration_since(*since) >= COOKIE_LIFE);
        if let Some((_, cookie)) = &self.cookie {
            second.copy_from_slice(&mac(&cookie[..], &[body, first]));
        }
        self.last = Some((sender, mac1));
    }

    /// Keeps the cookie of a reply to the last message, for the next message's MAC.
    pub(super) fn take_reply(
        &mut self,
        now: Instant,
        receiver: u32,
        nonce: &[u8; 24],
        sealed: &[u8; 16 + TAG],
    ) -> Result<(), TunnelDrop> {
        let (_, mac1) = self.last.filter(|(sender, _)| *sender == receiver).ok_or(TunnelDrop::UnknownSender)?;
        let mut cookie = Zeroizing::new([0; 16]);
        let (text, tag) = sealed.split_at(16);
        cookie.copy_from_slice(text);
        XChaCha20Poly1305::new(&self.cookie_key.into())
            .decrypt_in_place_detached(XNonce::from_slice(nonce), &mac1, &mut cookie[..], Tag::from_slice(tag))
            .map_err(|_| TunnelDrop::ReplayOrForged)?;
        self.cookie = Some((now, cookie));
        self.last = None;
        Ok(())
    }
}

fn hash(label: &[u8; 8], public: &PublicKey) -> [u8; 32] {
    Digest::finalize(Blake2s256::new().chain(label).chain(public.as_bytes())).into()
}

/// Keyed BLAKE2s with 16 bytes of output.
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("BLAKE2s takes keys of up to 32 bytes");
    for part in parts {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

#[cfg(test)]
mod tests {
    use boringtun::noise::TunnResult;
    use boringtun::noise::rate_limiter::RateLimiter;
    use x25519_dalek::StaticSecret;

    use super::*;
    use crate::protocol::message::{self, COOKIE_REPLY, INITIATION, INITIATION_NOISE, Message};

    /// A receiver of the messages that is always under load.
    struct Receiver {
        public: PublicKey,
        gate: RateLimiter,
    }

    impl Receiver {
        fn new() -> Receiver {
            let public = PublicKey::from(&StaticSecret::from([7; 32]));
            Receiver { gate: RateLimiter::new(&public, 0), public }
        }

        /// Its reply, unless it accepts the message.
        fn reply(&self, from: &str, message: &[u8]) -> Option<[u8; COOKIE_REPLY]> {
            let mut reply = [0; COOKIE_REPLY];
            match self.gate.verify_packet(Some(from.parse().unwrap()), message, &mut reply) {
                Ok(_) => None,
                Err(TunnResult::WriteToNetwork(_)) => Some(reply),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    fn signed(macs: &mut Macs, now: Instant, sender: u32) -> [u8; INITIATION] {
        let mut message = message::initiation(sender, &[3; INITIATION_NOISE]);
        macs.sign(now, sender, &mut message);
        message
    }

    fn take(macs: &mut Macs, now: Instant, reply: &[u8]) -> Result<(), TunnelDrop> {
        let Some(Message::CookieReply { receiver, nonce, sealed }) = Message::parse(reply) else { panic!() };
        macs.take_reply(now, receiver, nonce, sealed)
    }

    #[test]
    fn a_cookie_opens_the_gate_for_two_minutes_at_the_address_it_was_sent_to() {
        let (now, receiver) = (Instant::now(), Receiver::new());
        let mut macs = Macs::new(&receiver.public);
        let message = signed(&mut macs, now, 5);
        assert_eq!(message[INITIATION - MAC..], [0; MAC]);
        let reply = receiver.reply("192.0.2.1", &message).unwrap();
        take(&mut macs, now, &reply).unwrap();

        let message = signed(&mut macs, now + Duration::from_secs(119), 6);
        assert!(receiver.reply("192.0.2.1", &message).is_none());
        assert!(receiver.reply("192.0.2.2", &message).is_some());
        let message = signed(&mut macs, now + Duration::from_secs(120), 7);
        assert_eq!(message[INITIATION - MAC..], [0; MAC]);
    }

    #[test]
    fn a_reply_is_taken_once_and_only_for_the_last_message() {
        let (now, receiver) = (Instant::now(), Receiver::new());
        let mut macs = Macs::new(&receiver.public);
        let first = receiver.reply("192.0.2.1", &signed(&mut macs, now, 5)).unwrap();
        let second = receiver.reply("192.0.2.1", &signed(&mut macs, now, 6)).unwrap();
        assert_eq!(take(&mut macs, now, &first), Err(TunnelDrop::UnknownSender));
        for at in 8..COOKIE_REPLY {
            let mut damaged = second;
            damaged[at] ^= 1;
            assert_eq!(take(&mut macs, now, &damaged), Err(TunnelDrop::ReplayOrForged), "byte {at}");
        }
        assert_eq!(signed(&mut Macs::new(&receiver.public), now, 5)[INITIATION - MAC..], [0; MAC]);
        assert_eq!(take(&mut macs, now, &second), Ok(()));
        assert_eq!(take(&mut macs, now, &second), Err(TunnelDrop::UnknownSender));
    }
}
