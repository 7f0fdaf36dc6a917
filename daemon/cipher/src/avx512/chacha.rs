//! The ChaCha20 block function (RFC 8439, 2.3) for 8, 16 or 24 blocks at once.
//!
//! A register holds the same word of many blocks' states, so a round consists of additions, XORs
//! and rotations only; a final transposition turns the words into blocks. A rotation has a latency
//! of two cycles, and only half of the execution units support it, so it takes eight independent
//! quarter rounds to keep Zen 4 busy. That is why 24 blocks are processed as 16 in 512-bit
//! registers and 8 in 256-bit registers, side by side. This uses all 32 registers, and the order of
//! instructions below follows from it. 24 blocks, including the one for the one-time key, are
//! enough for a full packet.

use core::arch::x86_64::*;
use core::hint::black_box;
use core::mem::MaybeUninit;

use zeroize::Zeroize;

/// Bytes of a block.
pub(super) const BLOCK: usize = 64;

/// The words of the initial state, with a block counter of zero.
pub(super) struct State([u32; 16]);

/// Room for a batch. It is not cleared beforehand, because that costs more than wiping it
/// afterwards, which runs in parallel with the next message's rounds.
type Blocks = [MaybeUninit<__m512i>; 24];

/// Blocks of a key stream, generated in batches.
pub(super) struct Stream {
    blocks: Blocks,
    /// The highest number of blocks that any batch has written: they all must be wiped.
    written: usize,
    /// Number of blocks in the current batch; `next` is the number of the block behind it.
    count: usize,
    next: u32,
}

/// One round of the quarter rounds `[a, b, c, d]` on one or more states, in lockstep.
macro_rules! round {
    ($($state:ident: $add:ident $xor:ident $rotate:ident),*; $quarters:tt) => {
        round!(@half 16 12 $($state: $add $xor $rotate),*; $quarters);
        round!(@half 8 7 $($state: $add $xor $rotate),*; $quarters);
    };
    (@half $first:literal $second:literal $($state:ident: $add:ident $xor:ident $rotate:ident),*; $quarters:tt) => {
        $(round!(@add $state $add $quarters);)*
        $(round!(@xor $state $xor $quarters);)*
        $(round!(@rotate $state $rotate $first $quarters);)*
        $(round!(@add_second $state $add $quarters);)*
        $(round!(@xor_second $state $xor $quarters);)*
        $(round!(@rotate_second $state $rotate $second $quarters);)*
    };
    (@add $state:ident $add:ident [$([$a:literal $b:literal $c:literal $d:literal])*]) => {
        $($state[$a] = $add($state[$a], $state[$b]);)*
    };
    (@xor $state:ident $xor:ident [$([$a:literal $b:literal $c:literal $d:literal])*]) => {
        $($state[$d] = $xor($state[$d], $state[$a]);)*
    };
    (@rotate $state:ident $rotate:ident $by:literal [$([$a:literal $b:literal $c:literal $d:literal])*]) => {
        $($state[$d] = $rotate::<$by>($state[$d]);)*
    };
    (@add_second $state:ident $add:ident [$([$a:literal $b:literal $c:literal $d:literal])*]) => {
        $($state[$c] = $add($state[$c], $state[$d]);)*
    };
    (@xor_second $state:ident $xor:ident [$([$a:literal $b:literal $c:literal $d:literal])*]) => {
        $($state[$b] = $xor($state[$b], $state[$c]);)*
    };
    (@rotate_second $state:ident $rotate:ident $by:literal [$([$a:literal $b:literal $c:literal $d:literal])*]) => {
        $($state[$b] = $rotate::<$by>($state[$b]);)*
    };
}

/// Ten times a column round and a diagonal round (RFC 8439, 2.3).
macro_rules! twenty_rounds {
    ($($state:ident: $add:ident $xor:ident $rotate:ident),*) => {
        for _ in 0..10 {
            round!($($state: $add $xor $rotate),*; [[0 4 8 12] [1 5 9 13] [2 6 10 14] [3 7 11 15]]);
            round!($($state: $add $xor $rotate),*; [[0 5 10 15] [1 6 11 12] [2 7 8 13] [3 4 9 14]]);
        }
    };
}

impl Stream {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new() -> Stream {
        Stream { blocks: [MaybeUninit::uninit(); 24], written: 0, count: 0, next: 0 }
    }

    /// Generates the next blocks: at least as many as wanted, or 24.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn fill(&mut self, state: &State, wanted: usize) -> &[__m512i] {
        self.count = match wanted {
            0..=8 => {
                state.blocks_8(self.next, &mut self.blocks);
                8
            }
            9..=16 => {
                state.blocks_16(self.next, &mut self.blocks);
                16
            }
            _ => {
                state.blocks_24(self.next, &mut self.blocks);
                24
            }
        };
        self.written = self.written.max(self.count);
        self.next += self.count as u32;
        self.blocks()
    }

    /// The current batch.
    #[inline]
    pub(super) fn blocks(&self) -> &[__m512i] {
        // SAFETY: each function that `fill` calls writes as many blocks as `count` then says.
        unsafe { self.blocks[..self.count].assume_init_ref() }
    }
}

/// Block 0 is the one-time key, and the other blocks would reveal the plaintext.
impl Drop for Stream {
    #[inline]
    fn drop(&mut self) {
        for block in &mut self.blocks[..self.written] {
            // SAFETY: the pointer is from a reference, and zero bytes are a valid value of the
            // type.
            unsafe { core::ptr::write_volatile(block, MaybeUninit::zeroed()) };
        }
    }
}

/// The state contains the session's key.
impl Drop for State {
    #[inline]
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl State {
    /// The state of RFC 8439, 2.3.
    pub(super) fn new(key: &[u32; 8], nonce: [u32; 3]) -> State {
        let [c0, c1, c2, c3] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
        let ([k0, k1, k2, k3, k4, k5, k6, k7], [n0, n1, n2]) = (*key, nonce);
        State([c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, 0, n0, n1, n2])
    }

    // These three are not inlined: their callers have enough registers of their own to save.

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn blocks_8(&self, first: u32, blocks: &mut Blocks) {
        let mut narrow = self.spread_8(first);
        twenty_rounds!(narrow: _mm256_add_epi32 _mm256_xor_si256 _mm256_rol_epi32);
        blocks[..8].write_copy_of_slice(&self.finish_8(narrow, first));
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn blocks_16(&self, first: u32, blocks: &mut Blocks) {
        let mut wide = self.spread_16(first);
        twenty_rounds!(wide: _mm512_add_epi32 _mm512_xor_si512 _mm512_rol_epi32);
        blocks[..16].write_copy_of_slice(&self.finish_16(wide, first));
    }

    /// The 256-bit blocks come first: they are finished first, and the caller needs block 0 first.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn blocks_24(&self, first: u32, blocks: &mut Blocks) {
        let mut narrow = self.spread_8(first);
        let mut wide = self.spread_16(first + 8);
        twenty_rounds!(narrow: _mm256_add_epi32 _mm256_xor_si256 _mm256_rol_epi32,
            wide: _mm512_add_epi32 _mm512_xor_si512 _mm512_rol_epi32);
        blocks[..8].write_copy_of_slice(&self.finish_8(narrow, first));
        blocks[8..].write_copy_of_slice(&self.finish_16(wide, first + 8));
    }

    /// Each word, for eight blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn spread_8(&self, first: u32) -> [__m256i; 16] {
        let mut words = [_mm256_setzero_si256(); 16];
        for (words, word) in words.iter_mut().zip(self.0) {
            *words = _mm256_set1_epi32(word as i32);
        }
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        words[12] = _mm256_add_epi32(_mm256_set1_epi32(first as i32), lanes);
        words
    }

    /// Each word, for 16 blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn spread_16(&self, first: u32) -> [__m512i; 16] {
        let mut words = [_mm512_setzero_si512(); 16];
        for (words, word) in words.iter_mut().zip(self.0) {
            *words = _mm512_set1_epi32(word as i32);
        }
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        words[12] = _mm512_add_epi32(_mm512_set1_epi32(first as i32), lanes);
        words
    }

    /// Adds the initial state, and turns the words into blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn finish_8(&self, mut words: [__m256i; 16], first: u32) -> [__m512i; 8] {
        // Read again, because the compiler would otherwise keep all of it during the rounds, on the
        // stack for lack of registers.
        let initial = black_box(self).spread_8(first);
        for (word, initial) in words.iter_mut().zip(initial) {
            *word = _mm256_add_epi32(*word, initial);
        }
        // Each group has four words of each block: `a[i]` has those of block i in its first 128
        // bits, of block 4 + i in the others.
        let (a, b) = (quarters_8(&words, 0), quarters_8(&words, 4));
        let (c, d) = (quarters_8(&words, 8), quarters_8(&words, 12));
        let mut blocks = [_mm512_setzero_si512(); 8];
        for i in 0..4 {
            let left = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a[i]), b[i]);
            let right = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(c[i]), d[i]);
            blocks[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(left, right);
            blocks[4 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(left, right);
        }
        blocks
    }

    /// Adds the initial state, and turns the words into blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn finish_16(&self, mut words: [__m512i; 16], first: u32) -> [__m512i; 16] {
        // Read again, as in `finish_8`.
        let initial = black_box(self).spread_16(first);
        for (word, initial) in words.iter_mut().zip(initial) {
            *word = _mm512_add_epi32(*word, initial);
        }
        // Each group has four words of each block: `a[i]` has those of blocks i, 4 + i, 8 + i and
        // 12 + i.
        let (a, b) = (quarters_16(&words, 0), quarters_16(&words, 4));
        let (c, d) = (quarters_16(&words, 8), quarters_16(&words, 12));
        let mut blocks = [_mm512_setzero_si512(); 16];
        for i in 0..4 {
            let even_left = _mm512_shuffle_i32x4::<0b10_00_10_00>(a[i], b[i]);
            let even_right = _mm512_shuffle_i32x4::<0b10_00_10_00>(c[i], d[i]);
            let odd_left = _mm512_shuffle_i32x4::<0b11_01_11_01>(a[i], b[i]);
            let odd_right = _mm512_shuffle_i32x4::<0b11_01_11_01>(c[i], d[i]);
            blocks[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even_left, even_right);
            blocks[4 + i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd_left, odd_right);
            blocks[8 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even_left, even_right);
            blocks[12 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd_left, odd_right);
        }
        blocks
    }
}

/// Puts four words of each block next to each other: element i of the result has those of blocks i
/// and 4 + i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quarters_8(words: &[__m256i; 16], word: usize) -> [__m256i; 4] {
    let [w0, w1, w2, w3] = [words[word], words[word + 1], words[word + 2], words[word + 3]];
    let (low_01, high_01) = (_mm256_unpacklo_epi32(w0, w1), _mm256_unpackhi_epi32(w0, w1));
    let (low_23, high_23) = (_mm256_unpacklo_epi32(w2, w3), _mm256_unpackhi_epi32(w2, w3));
    [
        _mm256_unpacklo_epi64(low_01, low_23),
        _mm256_unpackhi_epi64(low_01, low_23),
        _mm256_unpacklo_epi64(high_01, high_23),
        _mm256_unpackhi_epi64(high_01, high_23),
    ]
}

/// Puts four words of each block next to each other: element i of the result has those of blocks i,
/// 4 + i, 8 + i and 12 + i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quarters_16(words: &[__m512i; 16], word: usize) -> [__m512i; 4] {
    let [w0, w1, w2, w3] = [words[word], words[word + 1], words[word + 2], words[word + 3]];
    let (low_01, high_01) = (_mm512_unpacklo_epi32(w0, w1), _mm512_unpackhi_epi32(w0, w1));
    let (low_23, high_23) = (_mm512_unpacklo_epi32(w2, w3), _mm512_unpackhi_epi32(w2, w3));
    [
        _mm512_unpacklo_epi64(low_01, low_23),
        _mm512_unpackhi_epi64(low_01, low_23),
        _mm512_unpacklo_epi64(high_01, high_23),
        _mm512_unpackhi_epi64(high_01, high_23),
    ]
}
