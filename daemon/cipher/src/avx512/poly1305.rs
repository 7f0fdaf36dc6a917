//! Poly1305 (RFC 8439, 2.5) with AVX-512's multiplication of 52-bit integers, eight blocks of 16
//! bytes at a time.
//!
//! A number modulo 2^130 - 5 has three limbs of 44, 44 and 42 bits. Products of two limbs are
//! summed in 64-bit lanes, their low 52 bits and their high bits separately, with one carry step
//! for many products. Each lane adds up every eighth block: it multiplies its sum by r^8, then adds
//! the next block. The last group may have fewer than eight blocks, k of them. At the end each lane
//! is multiplied by the power of r that it still lacks:
//!
//! ```text
//!  ( a * r^16 + b * r^8 + c ) * r^(8+k)..r^(1+k)  +  last * r^k..r^1
//! ```

use core::arch::x86_64::*;

/// The last block of a message, which is not part of the text: in an AEAD the block of lengths (RFC
/// 8439, 2.8).
pub(super) struct Last {
    pub(super) words: [u64; 2],
    /// Whether the bit above the 16 bytes is set, as in all other blocks: it adds 2^128.
    pub(super) high: bool,
}

/// A number modulo 2^130 - 5. The upper limbs may be slightly larger than their sizes.
#[derive(Clone, Copy)]
struct Number([u64; 3]);

/// Eight numbers, one in each lane.
#[derive(Clone, Copy)]
struct Numbers([__m512i; 3]);

/// Eight numbers to multiply by, and 20 times their upper limbs: modulo 2^130 - 5, 2^132 = 4 *
/// 2^130 equals 4 * 5.
#[derive(Clone, Copy)]
struct Factors {
    limbs: [__m512i; 3],
    twentyfold: [__m512i; 2],
}

/// Sums of products of limbs: of their low 52 bits, and of the bits above.
struct Sums {
    low: [__m512i; 3],
    high: [__m512i; 3],
}

const MASK_44: u64 = (1 << 44) - 1;
const MASK_42: u64 = (1 << 42) - 1;

/// 2^128, the bit above each block, in the third limb.
const HIGH: i64 = 1 << 40;

/// The two halves of a one-time key, which is the first half of block 0 (RFC 8439, 2.5).
#[derive(Clone, Copy)]
pub(super) struct Key {
    r: [u64; 2],
    s: [u64; 2],
}

/// A running sum of many blocks, eight at a time.
pub(super) struct Sum {
    /// The lanes' sums.
    front: Numbers,
    r8: Factors,
    r16: Factors,
    r8_to_r1: Factors,
    r16_to_r9: Factors,
    s: [u64; 2],
}

/// 128 bytes of text.
pub(super) type Eight = [__m512i; 2];

impl Key {
    pub(super) fn new([r0, r1, s0, s1]: [u64; 4]) -> Key {
        Key { r: [r0 & 0x0fff_fffc_0fff_ffff, r1 & 0x0fff_fffc_0fff_fffc], s: [s0, s1] }
    }

    /// The tag for `text`, padded with zeros to whole blocks, and `last`. Processes one block at a
    /// time, which is fastest for a short text.
    pub(super) fn tag(self, text: &[u8], last: &Last) -> [u8; 16] {
        few(self.r, text, last).plus(self.s)
    }
}

/// The sum of all blocks, each times its power of r, one block at a time. Limbs have 64 bits here.
#[inline]
fn few(r: [u64; 2], text: &[u8], last: &Last) -> Number {
    let mut sum = [0; 3];
    let (whole, rest) = text.as_chunks::<16>();
    for block in whole {
        sum = next(sum, u128::from_le_bytes(*block), 1, r);
    }
    if !rest.is_empty() {
        let mut block = [0; 16];
        block[..rest.len()].copy_from_slice(rest);
        sum = next(sum, u128::from_le_bytes(block), 1, r);
    }
    let block = u128::from(last.words[0]) | u128::from(last.words[1]) << 64;
    let [h0, h1, h2] = next(sum, block, u64::from(last.high), r);
    Number::from_words(h0, h1, h2)
}

/// (sum + block) * r, not fully reduced: the third limb stays below 8.
#[inline]
fn next(sum: [u64; 3], block: u128, high: u64, [r0, r1]: [u64; 2]) -> [u64; 3] {
    let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
    let low = u128::from(sum[0]) + u128::from(block as u64);
    let middle = u128::from(sum[1]) + (block >> 64) + (low >> 64);
    let (h0, h1, h2) = (low as u64, middle as u64, sum[2] + (middle >> 64) as u64 + high);
    // The last two bits of r1 are zero, so 2^128 * r1 is 2^130 * r1 / 4, which equals 5 * r1 / 4.
    let r1_folded = r1 + (r1 >> 2);
    let low = product(h0, r0) + product(h1, r1_folded);
    let middle = product(h0, r1) + product(h1, r0) + u128::from(h2 * r1_folded) + (low >> 64);
    let top = h2 * r0 + (middle >> 64) as u64;
    // Five times the part above bit 130: the shift gives it once, the mask four times.
    let low = u128::from(low as u64) + u128::from((top >> 2) + (top & !3));
    let middle = u128::from(middle as u64) + (low >> 64);
    [low as u64, middle as u64, (top & 3) + (middle >> 64) as u64]
}

impl Sum {
    /// Starts with eight blocks. Each step doubles the highest power; at the end the exponents in
    /// the lanes are 8, 4, 7, 3, 6, 2, 5, 1, which matches the order of the blocks in
    /// [`Numbers::of`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn new(key: Key, first: Eight) -> Sum {
        let r1 = Numbers::broadcast(Number::from_words(key.r[0], key.r[1], 0));
        let r2 = Factors::of(r1).times(r1);
        let twos = r1.with(0b0011_0011, r2);
        let fours = twos.with(0b0000_1111, Factors::of(r2).times(twos));
        let eights = fours.with(0b0101_0101, Factors::of(fours.first_lane()).times(fours));
        let r8 = Factors::of(eights.first_lane());
        let sixteens = r8.times(eights);
        Sum {
            front: Numbers::of(first, _mm512_set1_epi64(HIGH)),
            r8,
            r16: Factors::of(sixteens.first_lane()),
            r8_to_r1: Factors::of(eights),
            r16_to_r9: Factors::of(sixteens),
            s: key.s,
        }
    }

    /// Adds eight blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn add(&mut self, eight: Eight) {
        self.front = self.r8.times(self.front).plus(Numbers::of(eight, _mm512_set1_epi64(HIGH)));
    }

    /// Adds sixteen blocks with a single carry step.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn add_two(&mut self, first: Eight, second: Eight) {
        let high = _mm512_set1_epi64(HIGH);
        let mut sums = Sums::zero();
        sums.add(Numbers::of(first, high), &self.r8);
        sums.add(self.front, &self.r16);
        self.front = sums.reduce().plus(Numbers::of(second, high));
    }

    /// The tag. `rest` has up to seven more blocks, their number is `blocks`, and zeros behind
    /// them, where `last` is put.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    pub(super) fn tag(self, rest: Eight, blocks: usize, last: &Last) -> [u8; 16] {
        // `last` goes behind the other blocks: it is four of the 32 words, 16 in each half.
        let place = 0b1111 << (4 * blocks);
        let words = _mm_set_epi64x(last.words[1] as i64, last.words[0] as i64);
        let rest = [
            _mm512_mask_broadcast_i32x4(rest[0], place as u16, words),
            _mm512_mask_broadcast_i32x4(rest[1], (place >> 16) as u16, words),
        ];
        let high = _mm512_set1_epi64((blocks + usize::from(last.high)) as i64);
        let high = _mm512_maskz_set1_epi64(_mm512_cmplt_epi64_mask(order(), high), HIGH);

        // Exponents minus one, at most 15: the lower three bits select the lane, the fourth bit
        // selects the factors.
        let exponents = _mm512_add_epi64(_mm512_setr_epi64(8, 4, 7, 3, 6, 2, 5, 1), _mm512_set1_epi64(blocks as i64));
        let lanes = _mm512_permutexvar_epi64(exponents, _mm512_setr_epi64(7, 5, 3, 1, 6, 4, 2, 0));
        let lanes = _mm512_or_si512(lanes, _mm512_and_si512(exponents, _mm512_set1_epi64(8)));

        let mut sums = Sums::zero();
        sums.add(Numbers::of(rest, high), &self.r8_to_r1.permuted(lanes, &self.r8_to_r1));
        sums.add(self.front, &self.r8_to_r1.permuted(lanes, &self.r16_to_r9));
        sums.reduce().total().plus(self.s)
    }
}

/// Which block is in which lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn order() -> __m512i {
    _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7)
}

impl Number {
    /// From limbs of 64 bits.
    fn from_words(low: u64, high: u64, top: u64) -> Number {
        Number([low & MASK_44, (low >> 44 | high << 20) & MASK_44, high >> 24 | top << 40])
    }

    /// The tag: this number, fully reduced, plus the second half of the key, modulo 2^128 (RFC
    /// 8439, 2.5.1).
    fn plus(self, [low, high]: [u64; 2]) -> [u8; 16] {
        let [l0, l1, l2] = self.carried().carried().0;
        // The number is 2^130 - 5 or more if adding 5 sets bit 130. Without a branch.
        let over_0 = (l0 + 5) >> 44;
        let over_1 = (l1 + over_0) >> 44;
        let over = (l2 + over_1) >> 42;
        let [l0, l1, l2] = [l0 + 5 * over, l1, l2];
        // Bits from 2^128 up do not matter from here on.
        let number = (u128::from(l0) + (u128::from(l1) << 44)).wrapping_add(u128::from(l2) << 88);
        number.wrapping_add(u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }

    fn carried(self) -> Number {
        let [l0, l1, l2] = self.0;
        let l1 = l1 + (l0 >> 44);
        let l2 = l2 + (l1 >> 44);
        let l0 = (l0 & MASK_44) + 5 * (l2 >> 42);
        Number([l0 & MASK_44, (l1 & MASK_44) + (l0 >> 44), l2 & MASK_42])
    }
}

impl Numbers {
    /// From eight blocks. The lanes get the blocks in the order 0, 4, 1, 5, 2, 6, 3, 7, which
    /// results from interleaving.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn of([first, second]: Eight, high_bits: __m512i) -> Numbers {
        let mask = _mm512_set1_epi64(MASK_44 as i64);
        let (low, high) = (_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
        Numbers([
            _mm512_and_si512(low, mask),
            _mm512_and_si512(_mm512_shrdi_epi64::<44>(low, high), mask),
            _mm512_or_si512(_mm512_srli_epi64::<24>(high), high_bits),
        ])
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn broadcast(number: Number) -> Numbers {
        let [l0, l1, l2] = number.0;
        Numbers([_mm512_set1_epi64(l0 as i64), _mm512_set1_epi64(l1 as i64), _mm512_set1_epi64(l2 as i64)])
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn first_lane(self) -> Numbers {
        let first = |limb| _mm512_broadcastq_epi64(_mm512_castsi512_si128(limb));
        let [l0, l1, l2] = self.0;
        Numbers([first(l0), first(l1), first(l2)])
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn plus(self, other: Numbers) -> Numbers {
        let ([a0, a1, a2], [b0, b1, b2]) = (self.0, other.0);
        Numbers([_mm512_add_epi64(a0, b0), _mm512_add_epi64(a1, b1), _mm512_add_epi64(a2, b2)])
    }

    /// The sum of the lanes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn total(self) -> Number {
        let [l0, l1, l2] = self.0;
        let total = |limb| _mm512_reduce_add_epi64(limb) as u64;
        Number([total(l0), total(l1), total(l2)])
    }

    /// Replaces the lanes in `mask` with those of `other`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn with(self, mask: u8, other: Numbers) -> Numbers {
        let ([a0, a1, a2], [b0, b1, b2]) = (self.0, other.0);
        let blend = |a, b| _mm512_mask_blend_epi64(mask, a, b);
        Numbers([blend(a0, b0), blend(a1, b1), blend(a2, b2)])
    }
}

impl Factors {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn of(numbers: Numbers) -> Factors {
        let twenty = |limb| _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb));
        Factors { limbs: numbers.0, twentyfold: [twenty(numbers.0[1]), twenty(numbers.0[2])] }
    }

    /// Selects the lanes in `lanes`: numbers below 8 from these factors, from 8 on from the others.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn permuted(&self, lanes: __m512i, others: &Factors) -> Factors {
        let pick = |a, b| _mm512_permutex2var_epi64(a, lanes, b);
        let ([l0, l1, l2], [t1, t2]) = (self.limbs, self.twentyfold);
        let ([m0, m1, m2], [u1, u2]) = (others.limbs, others.twentyfold);
        Factors { limbs: [pick(l0, m0), pick(l1, m1), pick(l2, m2)], twentyfold: [pick(t1, u1), pick(t2, u2)] }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn times(&self, numbers: Numbers) -> Numbers {
        let mut sums = Sums::zero();
        sums.add(numbers, self);
        sums.reduce()
    }
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn zero() -> Sums {
        Sums { low: [_mm512_setzero_si512(); 3], high: [_mm512_setzero_si512(); 3] }
    }

    /// Adds the products of `numbers` and `factors`, lane by lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn add(&mut self, numbers: Numbers, factors: &Factors) {
        let ([n0, n1, n2], [f0, f1, f2], [t1, t2]) = (numbers.0, factors.limbs, factors.twentyfold);
        for (number, others) in [(n0, [f0, f1, f2]), (n1, [t2, f0, f1]), (n2, [t1, t2, f0])] {
            for (i, other) in others.into_iter().enumerate() {
                self.low[i] = _mm512_madd52lo_epu64(self.low[i], number, other);
                self.high[i] = _mm512_madd52hi_epu64(self.high[i], number, other);
            }
        }
    }

    /// Turns the sums into limbs of at most 45 bits.
    ///
    /// Limbs that are multiplied have at most 46 bits, factors 45 and 20 times a factor 49. So a
    /// low sum of six products has less than 55 bits. A high sum, in units of 2^52, has less than
    /// 46, so no lane overflows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
    fn reduce(self) -> Numbers {
        let ([l0, l1, l2], [h0, h1, h2]) = (self.low, self.high);
        // 2^52 of one limb is 2^8 of the next. Above the last limb it is 2^140, which equals 2^10 *
        // 5.
        let over = _mm512_add_epi64(_mm512_slli_epi64::<10>(h2), _mm512_slli_epi64::<12>(h2));
        let l0 = _mm512_add_epi64(l0, over);
        let l1 = _mm512_add_epi64(l1, _mm512_slli_epi64::<8>(h0));
        let l2 = _mm512_add_epi64(l2, _mm512_slli_epi64::<8>(h1));
        // The carries of all limbs are added to the next ones in parallel; the excess that remains
        // fits.
        let (mask_44, mask_42) = (_mm512_set1_epi64(MASK_44 as i64), _mm512_set1_epi64(MASK_42 as i64));
        let (c0, c1, c2) = (_mm512_srli_epi64::<44>(l0), _mm512_srli_epi64::<44>(l1), _mm512_srli_epi64::<42>(l2));
        let five = _mm512_add_epi64(c2, _mm512_slli_epi64::<2>(c2));
        Numbers([
            _mm512_add_epi64(_mm512_and_si512(l0, mask_44), five),
            _mm512_add_epi64(_mm512_and_si512(l1, mask_44), c0),
            _mm512_add_epi64(_mm512_and_si512(l2, mask_42), c1),
        ])
    }
}
