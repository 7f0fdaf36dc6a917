//! ChaCha20-Poly1305 (RFC 8439, 2.8) for CPUs with AVX-512, without associated data.
//!
//! A batch of the key stream is generated first; its block 0 is the key of the tag. Then text and
//! tag are computed in one pass, 128 bytes at a time: Poly1305 takes the ciphertext from the
//! registers of the XOR. If a message turns out to be forged, its plaintext is wiped: checking the
//! tag beforehand would take a second pass.

mod chacha;
mod poly1305;
#[cfg(test)]
mod tests;

use core::arch::x86_64::*;
use core::hint::black_box;

use chacha::{BLOCK, State, Stream};
use poly1305::{Last, Sum};
use zeroize::Zeroize;

use crate::{Forged, HEAD, TAG};

/// Bytes of eight blocks of Poly1305.
const EIGHT: usize = 128;

/// For texts shorter than this, computing the powers for eight blocks of Poly1305 at a time does
/// not pay. Their key stream and the block for the tag's key must fit into eight blocks, and longer
/// texts must have more than [`EIGHT`] bytes.
const SHORT: usize = 273;

/// A key as words.
pub(crate) struct Key([u32; 8]);

/// Whether this CPU has every instruction that this module uses.
pub(crate) fn is_supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512ifma")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("bmi2")
}

impl Key {
    /// None if the CPU lacks an instruction; so the existence of a key proves that it has all of
    /// them.
    pub(crate) fn new(key: &[u8; 32]) -> Option<Key> {
        let (words, _) = key.as_chunks();
        is_supported().then(|| Key(core::array::from_fn(|i| u32::from_le_bytes(words[i]))))
    }

    /// Seals `packet`, padded with zeros, into `text`, and returns the tag.
    pub(crate) fn seal(&self, counter: u64, packet: &[u8], text: &mut [u8]) -> [u8; TAG] {
        // SAFETY: a key exists, so the CPU has the instructions.
        unsafe { crypt(&self.0, counter, packet, text, Direction::Seal) }
    }

    /// Decrypts the first bytes of `text`; if there are too few, the rest of `head` is zeros.
    pub(crate) fn peek(&self, counter: u64, text: &[u8], head: &mut [u8; HEAD]) {
        // SAFETY: a key exists, so the CPU has the instructions.
        unsafe { peek(&self.0, counter, text, head) }
    }

    /// Opens `text` into `packet`, which has the same length.
    pub(crate) fn open(&self, counter: u64, text: &[u8], tag: &[u8; TAG], packet: &mut [u8]) -> Result<(), Forged> {
        // SAFETY: a key exists, so the CPU has the instructions.
        let expected = unsafe { crypt(&self.0, counter, text, packet, Direction::Open) };
        let difference = u128::from_le_bytes(expected) ^ u128::from_le_bytes(*tag);
        // `black_box` hides that only equality matters; the comparison could otherwise stop at the
        // first byte that differs.
        if black_box(difference as u64 | (difference >> 64) as u64) != 0 {
            packet.zeroize();
            return Err(Forged);
        }
        Ok(())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Whether the parts give the results in the RFC: the block of 2.3.2 and the tag of 2.5.2.
pub(crate) fn known_answers() -> bool {
    // SAFETY: `is_supported` has just checked that the CPU has the instructions.
    is_supported() && unsafe { block_and_tag() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
fn block_and_tag() -> bool {
    const BLOCK_1: [u64; 4] =
        [0x1559_3bd1_e4e7_f110, 0xc471_20a3_1fdd_0f50, 0x0368_c033_c7f4_d1c7, 0x4e6c_d4c3_9aaa_2204];
    const ONE_TIME: [u64; 4] =
        [0x336d_5557_78be_d685, 0xa806_d542_fe52_447f, 0xfdb2_0dfb_8a80_0301, 0x1bf5_4941_aff6_bf4a];
    let key = core::array::from_fn(|i| (i as u32 * 4).wrapping_mul(0x0101_0101).wrapping_add(0x0302_0100));
    let state = State::new(&key, [0x0900_0000, 0x4a00_0000, 0]);
    let blocks = [8, 16, 24].into_iter().all(|count| first_half(Stream::new().fill(&state, count)[1]) == BLOCK_1);
    // The last two letters, and the byte 1 that follows them.
    let last = Last { words: [0x01_7075, 0], high: false };
    let tag = poly1305::Key::new(ONE_TIME).tag(b"Cryptographic Forum Research Gro", &last);
    blocks && u128::from_le_bytes(tag) == 0xa927_010c_af8b_2bc2_c636_5130_c11d_06a8
}

/// Skips block 0, which is for the tag: the tag is not checked here.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
fn peek(key: &[u32; 8], counter: u64, text: &[u8], head: &mut [u8; HEAD]) {
    let state = State::new(key, [0, counter as u32, (counter >> 32) as u32]);
    let mut stream = Stream::new();
    let block = stream.fill(&state, 2)[1];
    let there = text.len().min(HEAD);
    *head = [0; HEAD];
    Text { direction: Direction::Open, from: &text[..there], to: &mut head[..there], at: 0 }.four(block);
}

/// XORs `from`, padded with zeros, with the key stream from block 1 on into `to`, and returns the
/// tag of the ciphertext.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
fn crypt(key: &[u32; 8], counter: u64, from: &[u8], to: &mut [u8], direction: Direction) -> [u8; TAG] {
    let state = State::new(key, [0, counter as u32, (counter >> 32) as u32]);
    let last = Last { words: [0, to.len() as u64], high: true };
    let mut stream = Stream::new();
    let mut text = Text { direction, from, to, at: 0 };

    let blocks = stream.fill(&state, text.left().div_ceil(BLOCK) + 1);
    let key = poly1305::Key::new(first_half(blocks[0]));
    if text.left() < SHORT {
        for two in blocks[1..].chunks_exact(2) {
            text.eight([two[0], two[1]]);
        }
        return key.tag(if direction == Direction::Seal { text.to } else { text.from }, &last);
    }
    let mut sum = Sum::new(key, text.eight([blocks[1], blocks[2]]));
    let mut done = 3;
    loop {
        let (twos, odd) = stream.blocks()[done..].as_chunks::<2>();
        let mut twos = twos.iter();
        done = 1;
        while text.left() >= 2 * EIGHT
            && twos.len() >= 2
            && let (Some(first), Some(second)) = (twos.next(), twos.next())
        {
            let first = text.eight(*first);
            sum.add_two(first, text.eight(*second));
        }
        while text.left() >= EIGHT
            && let Some(two) = twos.next()
        {
            sum.add(text.eight(*two));
        }
        // Each batch has one block left without a partner.
        let odd = odd[0];
        let two = match twos.next() {
            Some(two) => *two,
            None if text.left() <= BLOCK => [odd, odd],
            None => {
                let two = [odd, stream.fill(&state, (text.left() - BLOCK).div_ceil(BLOCK))[0]];
                if text.left() >= EIGHT {
                    sum.add(text.eight(two));
                    continue;
                }
                two
            }
        };
        let mut blocks = text.left().div_ceil(16);
        let mut rest = text.eight(two);
        // All eight places are taken, so the block of lengths goes into another group.
        if blocks == 8 {
            sum.add(rest);
            (rest, blocks) = ([_mm512_setzero_si512(); 2], 0);
        }
        return sum.tag(rest, blocks, &last);
    }
}

/// Which of the two texts is the ciphertext: the output or the input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Seal,
    Open,
}

/// A text that is being encrypted or decrypted.
struct Text<'a> {
    direction: Direction,
    from: &'a [u8],
    to: &'a mut [u8],
    /// Number of bytes done.
    at: usize,
}

impl Text<'_> {
    fn left(&self) -> usize {
        self.to.len() - self.at
    }

    /// XORs the next 128 bytes, or as many as are left, with two blocks. Returns their ciphertext,
    /// padded with zeros.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn eight(&mut self, blocks: [__m512i; 2]) -> poly1305::Eight {
        [self.four(blocks[0]), self.four(blocks[1])]
    }

    /// The same for 64 bytes and one block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn four(&mut self, block: __m512i) -> __m512i {
        let at = self.at;
        if at + BLOCK <= self.from.len() && at + BLOCK <= self.to.len() {
            self.at += BLOCK;
            // SAFETY: the 64 bytes at `at` are inside both slices, as was just checked; no
            // alignment is needed.
            unsafe {
                let from = _mm512_loadu_si512(self.from.as_ptr().add(at).cast());
                let to = _mm512_xor_si512(from, block);
                _mm512_storeu_si512(self.to.as_mut_ptr().add(at).cast(), to);
                return if self.direction == Direction::Seal { to } else { from };
            }
        }
        let (from, to) = (self.from.get(at..).unwrap_or_default(), &mut self.to[at..]);
        self.at += to.len().min(BLOCK);
        let there = first_bytes(to.len());
        // SAFETY: the masks select no byte behind the end of either slice, and unselected bytes are
        // not accessed.
        unsafe {
            let from = _mm512_maskz_loadu_epi8(first_bytes(from.len()), from.as_ptr().cast());
            let result = _mm512_xor_si512(from, block);
            _mm512_mask_storeu_epi8(to.as_mut_ptr().cast(), there, result);
            if self.direction == Direction::Seal { _mm512_maskz_mov_epi8(there, result) } else { from }
        }
    }
}

/// A mask for the first `count` of 64 bytes; for all of them if `count` is larger.
#[inline]
fn first_bytes(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// 32 bytes as words.
#[inline]
#[target_feature(enable = "avx512f")]
fn first_half(block: __m512i) -> [u64; 4] {
    let half = _mm512_castsi512_si256(block);
    [
        _mm256_extract_epi64::<0>(half) as u64,
        _mm256_extract_epi64::<1>(half) as u64,
        _mm256_extract_epi64::<2>(half) as u64,
        _mm256_extract_epi64::<3>(half) as u64,
    ]
}
