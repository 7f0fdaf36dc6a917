//! The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (WireGuard paper, 5.4.1 to 5.4.5; Noise
//! specification, 5 and 9).
//!
//! Each side hashes all messages into a transcript and mixes all shared secrets into a chaining
//! key. So a side can decrypt a message only if both have seen the same messages and computed the
//! same secrets. This module only computes; [`super::pair`] decides when to send what to which
//! peer. All secrets are overwritten when they are dropped.

use blake2::{Blake2s256, Digest};
use chacha20poly1305::{AeadInPlace, ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};
use hauberk_cipher::TAG;
use hauberk_engine::TunnelDrop;
use hmac::{Mac, SimpleHmac};
use x25519_dalek::{PublicKey, ReusableSecret, SharedSecret, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::message::{INITIATION_NOISE, RESPONSE_NOISE};
use super::timestamp::{NEVER, Timestamp};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// hauberk uses no preshared key, so it is all zeros (5.2).
const PRESHARED_KEY: [u8; 32] = [0; 32];

type Secret = Zeroizing<[u8; 32]>;

/// The result of a handshake.
pub(super) struct SessionKeys {
    pub(super) sending: Secret,
    pub(super) receiving: Secret,
}

/// The side that sent the initiation, waiting for the response.
pub(super) struct Initiator {
    transcript: Transcript,
    ephemeral: ReusableSecret,
}

impl Initiator {
    /// First message: e, es, s, ss, and the timestamp. `agreed` is the shared secret of the two
    /// static keys.
    pub(super) fn begin(
        local: &PublicKey,
        remote: &PublicKey,
        agreed: &SharedSecret,
        timestamp: &Timestamp,
    ) -> (Initiator, [u8; INITIATION_NOISE]) {
        let ephemeral = ReusableSecret::random();
        let mut noise = [0; INITIATION_NOISE];
        let (public, rest) = noise.split_at_mut(32);
        let (sealed_static, sealed_timestamp) = rest.split_at_mut(32 + TAG);

        let mut transcript = Transcript::new(remote);
        public.copy_from_slice(PublicKey::from(&ephemeral).as_bytes());
        transcript.mix_ephemeral(public);
        let key = transcript.mix_key(ephemeral.diffie_hellman(remote).as_bytes());
        transcript.seal(&key, local.as_bytes(), sealed_static);
        let key = transcript.mix_key(agreed.as_bytes());
        transcript.seal(&key, timestamp, sealed_timestamp);
        (Initiator { transcript, ephemeral }, noise)
    }

    /// Second message: e, ee, se, psk, and nothing. A forged one changes nothing, so the true one
    /// is still accepted later.
    pub(super) fn finish(&self, local: &StaticSecret, noise: &[u8; RESPONSE_NOISE]) -> Result<SessionKeys, TunnelDrop> {
        let (public, sealed_nothing) = ephemeral_of(noise);
        let mut transcript = self.transcript.clone();
        transcript.mix_ephemeral(public.as_bytes());
        transcript.mix_key(contributory(self.ephemeral.diffie_hellman(&public))?.as_bytes());
        transcript.mix_key(contributory(local.diffie_hellman(&public))?.as_bytes());
        let key = transcript.mix_preshared_key();
        transcript.open(&key, sealed_nothing, &mut [])?;
        let [sending, receiving] = transcript.split();
        Ok(SessionKeys { sending, receiving })
    }
}

/// The side that received the initiation.
pub(super) struct Responder {
    transcript: Transcript,
    remote_ephemeral: PublicKey,
    remote: PublicKey,
    sealed_timestamp: [u8; 12 + TAG],
}

impl Responder {
    /// First message, up to the initiator's static key: e, es, s.
    pub(super) fn begin(
        local: &StaticSecret,
        local_public: &PublicKey,
        noise: &[u8; INITIATION_NOISE],
    ) -> Result<Responder, TunnelDrop> {
        let (remote_ephemeral, rest) = ephemeral_of(noise);
        let (sealed_static, timestamp) = rest.split_at(32 + TAG);

        let mut transcript = Transcript::new(local_public);
        transcript.mix_ephemeral(remote_ephemeral.as_bytes());
        let key = transcript.mix_key(contributory(local.diffie_hellman(&remote_ephemeral))?.as_bytes());
        let mut remote = [0; 32];
        transcript.open(&key, sealed_static, &mut remote)?;
        let mut sealed_timestamp = [0; 12 + TAG];
        sealed_timestamp.copy_from_slice(timestamp);
        Ok(Responder { transcript, remote_ephemeral, remote: PublicKey::from(remote), sealed_timestamp })
    }

    /// The initiator's key according to the first message; unproven until [`Responder::timestamp`].
    pub(super) fn remote(&self) -> &PublicKey {
        &self.remote
    }

    /// The rest of the first message: ss, and the timestamp. `agreed` is the shared secret of the
    /// two static keys.
    pub(super) fn timestamp(&mut self, agreed: &SharedSecret) -> Result<Timestamp, TunnelDrop> {
        let key = self.transcript.mix_key(agreed.as_bytes());
        let mut timestamp = NEVER;
        self.transcript.open(&key, &self.sealed_timestamp, &mut timestamp)?;
        Ok(timestamp)
    }

    /// Second message: e, ee, se, psk, and nothing.
    pub(super) fn finish(mut self) -> Result<(SessionKeys, [u8; RESPONSE_NOISE]), TunnelDrop> {
        let ephemeral = ReusableSecret::random();
        let mut noise = [0; RESPONSE_NOISE];
        let (public, sealed_nothing) = noise.split_at_mut(32);
        public.copy_from_slice(PublicKey::from(&ephemeral).as_bytes());

        self.transcript.mix_ephemeral(public);
        self.transcript.mix_key(contributory(ephemeral.diffie_hellman(&self.remote_ephemeral))?.as_bytes());
        self.transcript.mix_key(ephemeral.diffie_hellman(&self.remote).as_bytes());
        let key = self.transcript.mix_preshared_key();
        self.transcript.seal(&key, &[], sealed_nothing);
        let [receiving, sending] = self.transcript.split();
        Ok((SessionKeys { sending, receiving }, noise))
    }
}

/// All messages and shared secrets so far (Noise specification, 5.2).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Transcript {
    chaining_key: [u8; 32],
    hash: [u8; 32],
}

impl Transcript {
    fn new(responder: &PublicKey) -> Transcript {
        let chaining_key = hash(&[CONSTRUCTION]);
        let mut transcript = Transcript { chaining_key, hash: chaining_key };
        transcript.mix_hash(IDENTIFIER);
        transcript.mix_hash(responder.as_bytes());
        transcript
    }

    fn mix_hash(&mut self, said: &[u8]) {
        self.hash = hash(&[&self.hash, said]);
    }

    /// Because there is a preshared key, ephemeral keys are also mixed into the chaining key (9.2).
    fn mix_ephemeral(&mut self, public: &[u8]) {
        self.mix_hash(public);
        self.mix_key(public);
    }

    /// Mixes in a shared secret, and returns a key for one message.
    fn mix_key(&mut self, agreed: &[u8]) -> Secret {
        let [chaining_key, key] = derive(&self.chaining_key, agreed);
        self.chaining_key = *chaining_key;
        key
    }

    fn mix_preshared_key(&mut self) -> Secret {
        let [chaining_key, said, key] = derive(&self.chaining_key, &PRESHARED_KEY);
        self.chaining_key = *chaining_key;
        self.mix_hash(&said[..]);
        key
    }

    /// The keys of the session; the first one is for the initiator's messages.
    fn split(&self) -> [Secret; 2] {
        derive(&self.chaining_key, &[])
    }

    /// Encrypts with a key that is used only once, so the nonce is zero.
    fn seal(&mut self, key: &Secret, text: &[u8], sealed: &mut [u8]) {
        let (room, tag) = sealed.split_at_mut(text.len());
        room.copy_from_slice(text);
        let cipher = ChaCha20Poly1305::new(Key::from_slice(&key[..]));
        let made = cipher.encrypt_in_place_detached(&Nonce::default(), &self.hash, room);
        tag.copy_from_slice(&made.expect("a key or a timestamp is shorter than the cipher's limit"));
        self.mix_hash(sealed);
    }

    fn open(&mut self, key: &Secret, sealed: &[u8], text: &mut [u8]) -> Result<(), TunnelDrop> {
        let (content, tag) = sealed.split_at(text.len());
        text.copy_from_slice(content);
        ChaCha20Poly1305::new(Key::from_slice(&key[..]))
            .decrypt_in_place_detached(&Nonce::default(), &self.hash, text, Tag::from_slice(tag))
            .map_err(|_| TunnelDrop::ReplayOrForged)?;
        self.mix_hash(sealed);
        Ok(())
    }
}

/// Refuses the shared secret of a small-order point, because everyone knows it.
fn contributory(agreed: SharedSecret) -> Result<SharedSecret, TunnelDrop> {
    if agreed.was_contributory() { Ok(agreed) } else { Err(TunnelDrop::ReplayOrForged) }
}

fn ephemeral_of<const N: usize>(noise: &[u8; N]) -> (PublicKey, &[u8]) {
    let (public, rest) = noise.split_at(32);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(public);
    (PublicKey::from(bytes), rest)
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// HKDF (RFC 5869) without context information, as in Noise (4.3).
fn derive<const N: usize>(chaining_key: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let root = hmac(chaining_key, &[input]);
    let mut outputs: [Secret; N] = std::array::from_fn(|_| Zeroizing::new([0; 32]));
    for index in 0..N {
        let before = if index == 0 { &[][..] } else { &outputs[index - 1][..] };
        outputs[index] = hmac(&root, &[before, &[index as u8 + 1]]);
    }
    outputs
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let mut hmac = <SimpleHmac<Blake2s256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        hmac.update(part);
    }
    Zeroizing::new(hmac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests;
