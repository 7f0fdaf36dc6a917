//! The parts against the vectors of RFC 8439, and Poly1305 against a slow implementation.

use proptest::prelude::*;

use super::chacha::{BLOCK, State, Stream};
use super::is_supported;
use super::poly1305::{Key, Last, Sum};
use core::arch::x86_64::*;

/// Whether this CPU can run the tests; prints a message if it cannot.
fn can_run() -> bool {
    if !is_supported() {
        eprintln!("NOT TESTED: this CPU has not all of AVX-512 that the implementation needs");
    }
    is_supported()
}

/// `length` bytes of the key stream from block `first` on, generated `at_a_time` blocks at a time.
fn stream(state: &State, first: usize, length: usize, at_a_time: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // SAFETY: only called where `can_run`.
    let mut stream = unsafe { Stream::new() };
    while bytes.len() < first * BLOCK + length {
        // SAFETY: as above.
        for block in unsafe { stream.fill(state, at_a_time) } {
            // SAFETY: both types have 64 bytes, and any bytes are valid.
            bytes.extend(unsafe { core::mem::transmute::<__m512i, [u8; BLOCK]>(*block) });
        }
    }
    bytes[first * BLOCK..][..length].to_vec()
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

/// The tag of Poly1305 by itself (RFC 8439, 2.5): the last block, whole or not, is followed by a
/// one.
fn poly1305(key: &[u8], message: &[u8]) -> [u8; 16] {
    let whole = message.len().saturating_sub(1) / 16 * 16;
    let mut block = [0; 17];
    block[..message.len() - whole].copy_from_slice(&message[whole..]);
    block[message.len() - whole] = 1;
    tag(key, &message[..whole], &Last { words: [word(&block), word(&block[8..])], high: block[16] == 1 })
}

/// The tag. All ways to compute it must agree: one, eight and sixteen blocks at a time.
fn tag(key: &[u8], text: &[u8], last: &Last) -> [u8; 16] {
    let key = Key::new(core::array::from_fn(|i| word(&key[i * 8..])));
    let expected = key.tag(text, last);
    for at_a_time in if text.len() < 128 { 0..0 } else { 1..3 } {
        // SAFETY: only called where `can_run`.
        assert_eq!(unsafe { tag_of_eights(key, text, last, at_a_time) }, expected, "{} bytes", text.len());
    }
    expected
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2,bmi2")]
fn tag_of_eights(key: Key, text: &[u8], last: &Last, at_a_time: usize) -> [u8; 16] {
    let eight = |bytes: &[u8]| {
        let mut padded = [0; 128];
        padded[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: both types have 128 bytes, and any bytes are valid.
        unsafe { core::mem::transmute::<[u8; 128], [__m512i; 2]>(padded) }
    };
    let (first, text) = text.split_at(128);
    let mut sum = Sum::new(key, eight(first));
    let (eights, mut rest) = text.as_chunks::<128>();
    for eights in eights.chunks(at_a_time) {
        match eights {
            [first, second] => sum.add_two(eight(first), eight(second)),
            _ => sum.add(eight(&eights[0])),
        }
    }
    if rest.len() > 112 {
        sum.add(eight(rest));
        rest = &[];
    }
    sum.tag(eight(rest), rest.len().div_ceil(16), last)
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|digit| !digit.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(core::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn words(bytes: &[u8]) -> [u32; 8] {
    core::array::from_fn(|i| u32::from_le_bytes(bytes[i * 4..i * 4 + 4].try_into().unwrap()))
}

const SUNSCREEN: &[u8] =
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
    sunscreen would be it.";

/// RFC 8439, 2.3.2.
#[test]
fn chacha20_block() {
    if !can_run() {
        return;
    }
    let key: Vec<u8> = (0..32).collect();
    let state = State::new(&words(&key), [0x0900_0000, 0x4a00_0000, 0]);
    let expected = hex("10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e
         d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e");
    for at_a_time in [8, 16, 24] {
        assert_eq!(stream(&state, 1, BLOCK, at_a_time), expected);
    }
}

/// RFC 8439, 2.4.2.
#[test]
fn chacha20_encryption() {
    if !can_run() {
        return;
    }
    let key: Vec<u8> = (0..32).collect();
    let state = State::new(&words(&key), [0, 0x4a00_0000, 0]);
    let expected = hex("6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b
         f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8
         07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736
         5af90bbf74a35be6b40b8eedf2785e42874d");
    for at_a_time in [8, 16, 24] {
        assert_eq!(xor(SUNSCREEN, &stream(&state, 1, SUNSCREEN.len(), at_a_time)), expected);
    }
}

/// RFC 8439, 2.8.2; its associated data is in front of the text, padded to a block.
#[test]
fn aead() {
    if !can_run() {
        return;
    }
    let key: Vec<u8> = (0x80..0xa0).collect();
    let state = State::new(&words(&key), [7, 0x4342_4140, 0x4746_4544]);
    let sealed = hex("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6
         3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36
         92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc
         3ff4def08e4b7a9de576d26586cec64b6116");
    let one_time = stream(&state, 0, 32, 8);
    assert_eq!(one_time, hex("7bac2b252db447af09b67a55a4e955840ae1d6731075d9eb2a9375783ed553ff"));
    let mut text = hex("50515253c0c1c2c3c4c5c6c700000000");
    for at_a_time in [8, 16, 24] {
        assert_eq!(xor(SUNSCREEN, &stream(&state, 1, SUNSCREEN.len(), at_a_time)), sealed);
    }
    text.extend(sealed);
    let tag = tag(&one_time, &text, &Last { words: [12, 114], high: true });
    assert_eq!(tag.to_vec(), hex("1ae10b594f09e26a7e902ecbd0600691"));
}

/// RFC 8439, 2.5.2 and appendix A.3: from vector 5 on they test the wrap at 2^130 - 5.
#[test]
fn poly1305_vectors() {
    if !can_run() {
        return;
    }
    let contribution = "Any submission to the IETF intended by the Contributor for publication as all or part of an \
        IETF Internet-Draft or RFC and any statement made within the context of an IETF activity is considered an \"IETF \
        Contribution\". Such statements include oral statements in IETF sessions, as well as written and electronic \
        communications made at any time or place, which are addressed to";
    let jabberwocky = "'Twas brillig, and the slithy toves\nDid gyre and gimble in the wabe:\nAll mimsy were the \
        borogoves,\nAnd the mome raths outgrabe.";
    let zeros = "00000000000000000000000000000000";
    let one = "01000000000000000000000000000000";
    let two = "02000000000000000000000000000000";
    let ones = "ffffffffffffffffffffffffffffffff";
    let phrase = "36e5f6b5c5e06070f0efca96227a863e";
    let thirty_two = "01000000000000000400000000000000";
    let long = "e33594d7505e43b900000000000000003394d7505e4379cd0100000000000000";
    let vectors = [
        (
            ["85d6be7857556d337f4452fe42d506a8", "0103808afb0db2fd4abff6af4149f51b"],
            b"Cryptographic Forum Research Group".to_vec(),
            "a8061dc1305136c6c22b8baf0c0127a9",
        ),
        ([zeros, zeros], vec![0; 64], zeros),
        ([zeros, phrase], contribution.into(), phrase),
        ([phrase, zeros], contribution.into(), "f3477e7cd95417af89a6b8794c310cf0"),
        (
            ["1c9240a5eb55d38af333888604f6b5f0", "473917c1402b80099dca5cbc207075c0"],
            jabberwocky.into(),
            "4541669a7eaaee61e708dc7cbcc5eb62",
        ),
        ([two, zeros], hex(ones), "03000000000000000000000000000000"),
        ([two, ones], hex(two), "03000000000000000000000000000000"),
        (
            [one, zeros],
            hex(&[ones, "f0ffffffffffffffffffffffffffffff", "11000000000000000000000000000000"].concat()),
            "05000000000000000000000000000000",
        ),
        (
            [one, zeros],
            hex(&[ones, "fbfefefefefefefefefefefefefefefe", "01010101010101010101010101010101"].concat()),
            zeros,
        ),
        ([two, zeros], hex("fdffffffffffffffffffffffffffffff"), "faffffffffffffffffffffffffffffff"),
        ([thirty_two, zeros], hex(&[long, zeros, one].concat()), "14000000000000005500000000000000"),
        ([thirty_two, zeros], hex(&[long, zeros].concat()), "13000000000000000000000000000000"),
    ];
    for (i, (key, message, tag)) in vectors.into_iter().enumerate() {
        assert_eq!(poly1305(&hex(&key.concat()), &message).to_vec(), hex(tag), "vector {i}");
    }
}

/// The largest values: limbs and sums with the longest carries.
#[test]
fn poly1305_extremes() {
    if !can_run() {
        return;
    }
    let edges = [[0; 16], [0xff; 16], {
        let mut all_but_a_few = [0xff; 16];
        all_but_a_few[0] = 0xfb;
        all_but_a_few
    }];
    for r in edges {
        for s in edges {
            let key = [r, s].concat();
            for length in (1..300).chain([511, 512, 1_440, 1_441, 4_096, 65_535]) {
                for fill in [0xff, 0xfe, 0] {
                    let message = vec![fill; length];
                    assert_eq!(poly1305(&key, &message), slow::poly1305(&key, &message), "{length} times {fill}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn poly1305_is_what_the_slow_way_gives(
        key in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 32),
        message in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0xfb)], 1..900),
    ) {
        if can_run() {
            prop_assert_eq!(poly1305(&key, &message), slow::poly1305(&key, &message));
        }
    }
}

/// Poly1305 as the RFC describes it, with digits of one byte.
mod slow {
    /// Any number up to 2^130 - 5, in 34 digits so that there is room for a product.
    type Digits = [u32; 34];

    pub(super) fn poly1305(key: &[u8], message: &[u8]) -> [u8; 16] {
        let mut r: Vec<u32> = key[..16].iter().map(|byte| u32::from(*byte)).collect();
        for i in [3, 7, 11, 15] {
            r[i] &= 15;
        }
        for i in [4, 8, 12] {
            r[i] &= 252;
        }
        let mut sum: Digits = [0; 34];
        for block in message.chunks(16) {
            for (digit, byte) in sum.iter_mut().zip(block) {
                *digit += u32::from(*byte);
            }
            sum[block.len()] += 1;
            let mut product: Digits = [0; 34];
            for (i, a) in sum[..17].iter().enumerate() {
                for (j, b) in r.iter().enumerate() {
                    product[i + j] += a * b;
                }
            }
            sum = reduced(product);
        }
        // Subtract 2^130 - 5 if possible: add 5 and check whether bit 130 is set.
        let mut over = sum;
        over[0] += 5;
        carry(&mut over);
        if over[16] >= 4 {
            sum = over;
        }
        for (digit, byte) in sum.iter_mut().zip(&key[16..]) {
            *digit += u32::from(*byte);
        }
        carry(&mut sum);
        core::array::from_fn(|i| sum[i] as u8)
    }

    /// Below 2^130, but not necessarily below 2^130 - 5.
    fn reduced(mut digits: Digits) -> Digits {
        carry(&mut digits);
        while digits[16] >= 4 || digits[17..].iter().any(|digit| *digit != 0) {
            // Add five times the part above bit 130 to the low end. It has 17 digits minus two
            // bits.
            let mut folded: Digits = [0; 34];
            folded[..17].copy_from_slice(&digits[..17]);
            folded[16] &= 3;
            for i in 16..33 {
                folded[i - 16] += 5 * ((digits[i] >> 2) + ((digits[i + 1] & 3) << 6));
            }
            carry(&mut folded);
            digits = folded;
        }
        digits
    }

    fn carry(digits: &mut Digits) {
        for i in 0..33 {
            digits[i + 1] += digits[i] >> 8;
            digits[i] &= 0xff;
        }
    }
}
