//! ChaCha20-Poly1305 (RFC 8439, 2.8) as WireGuard's data messages use it: a counter as nonce, no
//! associated data, from one buffer into another.
//!
//! ```text
//!  lib.rs              the interface, and ring as the implementation for every CPU
//!  self_test.rs        the test that the AVX-512 implementation must pass to be chosen
//!  avx512/mod.rs       the AEAD (2.8): text and tag in one pass
//!  avx512/chacha.rs    the key stream (2.3), 8, 16 or 24 blocks at a time
//!  avx512/poly1305.rs  the tag (2.5), eight blocks at a time
//! ```
//!
//! Encryption is the largest part of a packet's cost. ring stops at AVX2, and the one other Rust
//! library that was tried with AVX-512 was slower than ring. So this crate has its own
//! implementation for CPUs with AVX-512 (Ice Lake, Zen 4 and later). It is used only after its
//! results on this machine have matched ring's, and [`Implementation::Ring`] is always available.
//!
//! No branch and no memory address depends on a key, a text or a tag; they do depend on lengths.
//! Keys are wiped when they are dropped, and so is the key stream of each message. Not wiped are
//! ring's copy of a key, the powers of a message's one-time key, and anything that the compiler
//! leaves in registers and on the stack.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector instructions")]
mod avx512;
mod self_test;
#[cfg(test)]
mod tests;

/// How many bytes of a packet [`Key::peek`] can show before the packet is opened.
pub const HEAD: usize = 64;

/// Length of the tag behind a sealed packet, in bytes.
pub const TAG: usize = 16;

/// The longest text that the cipher supports: its block counter has 32 bits, and block 0 is the key
/// of the tag.
const LONGEST: u64 = (u32::MAX as u64) * 64;

/// The code that computes the cipher. All implementations give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The ring library, for every CPU.
    Ring,
    /// This crate's own, for x86-64 with AVX-512 F, BW, VL, IFMA and VBMI2. On other CPUs, its keys
    /// use ring.
    Avx512,
}

/// The message was not sealed with this key and counter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tag does not match: the message is forged, damaged, or was sealed with another key")]
pub struct Forged;

/// A key for one direction of a session. It does not track nonces: the caller must never use a
/// counter twice.
pub struct Key(Inner);

enum Inner {
    Ring(Box<LessSafeKey>),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Key),
}

impl Implementation {
    /// The fastest one that this CPU can run and that passes the self-test. Determined once, in a
    /// few milliseconds.
    pub fn best() -> Implementation {
        if self_test::passed() { Implementation::Avx512 } else { Implementation::Ring }
    }

    /// Its name in status and messages.
    pub fn name(self) -> &'static str {
        match self {
            Implementation::Ring => "ring",
            Implementation::Avx512 => "avx512",
        }
    }

    /// Whether this CPU has all instructions that it needs.
    fn is_supported(self) -> bool {
        match self {
            Implementation::Ring => true,
            #[cfg(target_arch = "x86_64")]
            Implementation::Avx512 => avx512::is_supported(),
            #[cfg(not(target_arch = "x86_64"))]
            Implementation::Avx512 => false,
        }
    }
}

impl Key {
    /// A key for this implementation, or for ring if the CPU cannot run it.
    pub fn new(key: &[u8; 32], implementation: Implementation) -> Key {
        #[cfg(target_arch = "x86_64")]
        if implementation == Implementation::Avx512
            && let Some(key) = avx512::Key::new(key)
        {
            return Key(Inner::Avx512(key));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = implementation;
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes are a key of ChaCha20-Poly1305");
        Key(Inner::Ring(Box::new(LessSafeKey::new(key))))
    }

    /// Seals `packet` into `sealed`, padded with zeros so that text and [`TAG`] bytes fill it.
    ///
    /// # Panics
    ///
    /// If `sealed` has no room for the packet and the tag, or has 256 GiB.
    pub fn seal(&self, counter: u64, packet: &[u8], sealed: &mut [u8]) {
        let (text, tag) = sealed.split_last_chunk_mut::<TAG>().expect("room for the tag");
        assert!(
            packet.len() <= text.len() && text.len() as u64 <= LONGEST,
            "no room for the packet, or too much of it"
        );
        match &self.0 {
            Inner::Ring(key) => {
                text[..packet.len()].copy_from_slice(packet);
                text[packet.len()..].fill(0);
                let sealed = key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text);
                tag.copy_from_slice(sealed.expect("a packet is shorter than the cipher's limit").as_ref());
            }
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512(key) => *tag = key.seal(counter, packet, text),
        }
    }

    /// Decrypts the first bytes of `sealed`, followed by zeros if it has fewer, **without any
    /// authentication**. Only for deciding what to open first. False if the implementation does not
    /// support it.
    pub fn peek(&self, counter: u64, sealed: &[u8], head: &mut [u8; HEAD]) -> bool {
        let text = &sealed[..sealed.len().saturating_sub(TAG)];
        match &self.0 {
            Inner::Ring(_) => false,
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512(key) => {
                key.peek(counter, text, head);
                true
            }
        }
    }

    /// Opens `sealed` into `packet`, which is [`TAG`] bytes shorter. After an error `packet` holds
    /// nothing of the plaintext. During the call it may hold unauthenticated plaintext, so it must
    /// not be memory that others can read.
    ///
    /// # Errors
    ///
    /// If the tag is wrong, or the lengths do not fit each other.
    pub fn open(&self, counter: u64, sealed: &[u8], packet: &mut [u8]) -> Result<(), Forged> {
        let (text, tag) = sealed.split_last_chunk::<TAG>().ok_or(Forged)?;
        if text.len() != packet.len() || text.len() as u64 > LONGEST {
            return Err(Forged);
        }
        match &self.0 {
            Inner::Ring(key) => {
                packet.copy_from_slice(text);
                let opened = key.open_in_place_separate_tag(nonce(counter), Aad::empty(), (*tag).into(), packet, 0..);
                opened.map(|_| ()).map_err(|_| Forged)
            }
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512(key) => key.open(counter, text, tag, packet),
        }
    }
}

/// WireGuard's nonce: 32 zero bits, then the counter in little endian (paper, 5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
