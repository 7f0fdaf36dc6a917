//! Whether this crate's own implementation works on this machine. It may fail on a CPU model it has
//! never run on, in a virtual machine that executes an instruction wrongly, or after a compiler
//! bug. In any such case sessions use ring.

use std::sync::OnceLock;

use crate::{Implementation, Key, TAG};

/// All lengths up to this one, and every seventh of the longer ones, which covers each remainder of
/// 16, 64 and 128.
const EVERY_LENGTH: usize = 600;
const LONGEST: usize = 2_100;

/// Whether the CPU has AVX-512 and passes the test. Tested only once.
pub(crate) fn passed() -> bool {
    static PASSED: OnceLock<bool> = OnceLock::new();
    *PASSED.get_or_init(|| Implementation::Avx512.is_supported() && known_answers() && agrees_with_ring())
}

/// Results given in the RFC, so that the test does not depend on ring alone.
fn known_answers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::avx512::known_answers();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn agrees_with_ring() -> bool {
    let secret: [u8; 32] = core::array::from_fn(|i| (i * 37 + 11) as u8);
    let (ring, own) = (Key::new(&secret, Implementation::Ring), Key::new(&secret, Implementation::Avx512));
    let text: Vec<u8> = (0..LONGEST).map(|i| (i * i / 7) as u8).collect();
    let (mut expected, mut sealed) = (vec![0; LONGEST + TAG], vec![0; LONGEST + TAG]);
    let mut opened = vec![0; LONGEST];
    (0..EVERY_LENGTH).chain((EVERY_LENGTH..=LONGEST).step_by(7)).all(|length| {
        // Small counters, large ones, and ones with bits in both halves.
        let counter = (length as u64).wrapping_mul([1, u64::MAX, 0x1_0000_0001][length % 3]);
        // Every fifth packet has padding.
        let packet = &text[..if length % 5 == 0 { length / 2 } else { length }];
        let (expected, sealed) = (&mut expected[..length + TAG], &mut sealed[..length + TAG]);
        let opened = &mut opened[..length];
        ring.seal(counter, packet, expected);
        own.seal(counter, packet, sealed);
        let same = expected == sealed && own.open(counter, sealed, opened).is_ok() && opened.starts_with(packet);
        sealed[length * 3 / 4] ^= 0x10;
        same && own.open(counter, sealed, opened).is_err() && opened.iter().all(|byte| *byte == 0)
    })
}
