//! What both implementations must do, and that they agree. Tests of the AVX-512 parts are in
//! `avx512::tests`.

use proptest::prelude::*;

use crate::{Forged, HEAD, Implementation, Key, TAG};

/// Those that this machine can run. Prints a message if one is left out, because its tests then
/// show nothing.
fn implementations() -> Vec<Implementation> {
    if Implementation::Avx512.is_supported() {
        return vec![Implementation::Ring, Implementation::Avx512];
    }
    eprintln!("NOT TESTED: this CPU has not all of AVX-512 that the implementation needs; only ring's is tested here");
    vec![Implementation::Ring]
}

fn seal(implementation: Implementation, key: &[u8; 32], counter: u64, packet: &[u8], padding: usize) -> Vec<u8> {
    // Earlier contents of the buffer must not matter.
    let mut sealed = vec![0xa5; packet.len() + padding + TAG];
    Key::new(key, implementation).seal(counter, packet, &mut sealed);
    sealed
}

fn open(implementation: Implementation, key: &[u8; 32], counter: u64, sealed: &[u8]) -> Result<Vec<u8>, Forged> {
    let mut packet = vec![0xa5; sealed.len() - TAG];
    let result = Key::new(key, implementation).open(counter, sealed, &mut packet);
    // More than the interface promises, but both do it: nothing of the plaintext can be left.
    assert!(result.is_ok() || packet.iter().all(|byte| *byte == 0), "{implementation:?} leaves something behind");
    result.map(|()| packet)
}

/// Both give the same bytes, and each opens them.
fn agree(key: &[u8; 32], counter: u64, packet: &[u8], padding: usize) {
    let expected = seal(Implementation::Ring, key, counter, packet, padding);
    let mut padded = packet.to_vec();
    padded.resize(packet.len() + padding, 0);
    for implementation in implementations() {
        let sealed = seal(implementation, key, counter, packet, padding);
        assert!(sealed == expected, "{implementation:?} seals {} + {padding} bytes differently", packet.len());
        let opened = open(implementation, key, counter, &sealed);
        assert!(opened.as_ref() == Ok(&padded), "{implementation:?} opens {} bytes wrongly", padded.len());
    }
}

/// Bytes with a long period.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn the_head_is_what_the_packet_begins_with() {
    for implementation in implementations() {
        let key = Key::new(&[9; 32], implementation);
        for length in (0..200).chain([1_424]) {
            let packet = bytes(length, 3);
            let sealed = seal(implementation, &[9; 32], 77, &packet, 0);
            let mut head = [0xff; HEAD];
            if !key.peek(77, &sealed, &mut head) {
                assert_eq!(implementation, Implementation::Ring);
                assert_eq!(head, [0xff; HEAD]);
                continue;
            }
            let there = length.min(HEAD);
            assert_eq!(head[..there], packet[..there]);
            assert_eq!(head[there..], [0; HEAD][there..]);
        }
    }
}

#[test]
fn agree_on_all_lengths() {
    let key: [u8; 32] = core::array::from_fn(|i| i as u8);
    let packet = bytes(4_200, 1);
    for length in 0..=4_200 {
        agree(&key, length as u64, &packet[..length], 0);
    }
}

#[test]
fn agree_on_long_messages_and_all_ones() {
    for length in [8_191, 8_192, 8_193, 9_000, 16_384, 32_767, 65_519, 65_520, 65_535] {
        agree(&[0xff; 32], u64::MAX, &bytes(length, 2), 0);
        agree(&[0; 32], 0, &vec![0xff; length], 0);
    }
}

#[test]
fn agree_on_padding() {
    let packet = bytes(1_500, 3);
    for length in (0..200).chain([959, 960, 961, 1_023, 1_024, 1_025, 1_408, 1_420, 1_424, 1_472, 1_500]) {
        for padding in (0..=16).chain([63, 64, 65, 200, 1_600]) {
            agree(&[9; 32], 77, &packet[..length], padding);
        }
    }
}

#[test]
fn agree_on_counters() {
    for counter in [0, 1, u64::from(u32::MAX), 1 << 32, (1 << 32) + 1, 1 << 63, u64::MAX - 1, u64::MAX] {
        agree(&[3; 32], counter, &bytes(1_424, 4), 0);
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for implementation in implementations() {
        for length in [0, 1, 15, 16, 17, 40, 64, 130] {
            let sealed = seal(implementation, &[5; 32], 6, &bytes(length, 5), 0);
            for bit in 0..sealed.len() * 8 {
                let mut forged = sealed.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(implementation, &[5; 32], 6, &forged), Err(Forged), "{implementation:?}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_full_packet_is_refused() {
    for implementation in implementations() {
        let sealed = seal(implementation, &[5; 32], 6, &bytes(1_424, 6), 0);
        for byte in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[byte] ^= 0x80;
            assert_eq!(open(implementation, &[5; 32], 6, &forged), Err(Forged), "{implementation:?}, byte {byte}");
        }
    }
}

#[test]
fn another_counter_key_or_length_is_refused() {
    for implementation in implementations() {
        let sealed = seal(implementation, &[5; 32], 6, &bytes(100, 7), 0);
        for counter in [5, 7, 6 + (1 << 32), u64::MAX] {
            assert_eq!(open(implementation, &[5; 32], counter, &sealed), Err(Forged));
        }
        assert_eq!(open(implementation, &[4; 32], 6, &sealed), Err(Forged));
        // The tag right behind a shorter text, and behind a text with one more zero.
        let mut shorter = sealed.clone();
        shorter.remove(99);
        assert_eq!(open(implementation, &[5; 32], 6, &shorter), Err(Forged));
        let mut longer = sealed;
        longer.insert(100, 0);
        assert_eq!(open(implementation, &[5; 32], 6, &longer), Err(Forged));
    }
}

#[test]
fn nothing_of_the_plaintext_is_left_after_a_refusal() {
    for implementation in implementations() {
        for length in [1, 64, 500, 1_000, 1_424, 5_000] {
            let text = vec![0x42; length];
            let mut sealed = seal(implementation, &[5; 32], 6, &text, 0);
            sealed[length] ^= 1;
            let mut packet = vec![0xa5; length];
            assert_eq!(Key::new(&[5; 32], implementation).open(6, &sealed, &mut packet), Err(Forged));
            if length >= 64 {
                assert!(!packet.windows(8).any(|eight| eight == [0x42; 8]), "{implementation:?}, {length} bytes");
            } else {
                assert_ne!(packet, text);
            }
        }
    }
}

#[test]
fn the_best_is_what_the_cpu_can() {
    let supported = Implementation::Avx512.is_supported();
    let expected = if supported { Implementation::Avx512 } else { Implementation::Ring };
    assert_eq!(Implementation::best(), expected);
    assert_ne!(Implementation::best().name(), "");
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    for implementation in implementations() {
        let key = Key::new(&[5; 32], implementation);
        let sealed = seal(implementation, &[5; 32], 6, &bytes(100, 9), 0);
        for length in [0, 99, 101, 200] {
            assert_eq!(key.open(6, &sealed, &mut vec![0; length]), Err(Forged));
        }
        for length in 0..TAG {
            assert_eq!(key.open(6, &sealed[..length], &mut []), Err(Forged));
        }
    }
}

#[test]
fn buffers_need_no_alignment_and_nothing_around_them_changes() {
    for implementation in implementations() {
        let key = Key::new(&[5; 32], implementation);
        for offset in 0..65 {
            for length in [0, 1, 100, 300, 1_424] {
                let (packet, mut around) = (bytes(offset + length, 10), vec![0x5a; offset + length + TAG + 64]);
                let sealed = &mut around[offset..][..length + TAG];
                key.seal(1, &packet[offset..], sealed);
                assert_eq!(sealed, seal(Implementation::Ring, &[5; 32], 1, &packet[offset..], 0));
                let mut opened = vec![0x5a; offset + length + 64];
                assert_eq!(key.open(1, sealed, &mut opened[offset..][..length]), Ok(()));
                assert_eq!(opened[offset..][..length], packet[offset..]);
                for (buffer, end) in [(&around, offset + length + TAG), (&opened, offset + length)] {
                    assert!(buffer[..offset].iter().chain(&buffer[end..]).all(|byte| *byte == 0x5a));
                }
            }
        }
    }
}

#[test]
fn the_self_test_passes_where_it_can() {
    let start = std::time::Instant::now();
    Implementation::best();
    println!("the self-test took {:?}", start.elapsed());
}

proptest! {
    #[test]
    fn agree_on_anything(
        key: [u8; 32],
        counter in prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), 0..10_u64],
        packet in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..4_200),
            prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff)], 0..1_700),
        ],
        padding in prop_oneof![Just(0_usize), 0..16_usize, 0..2_000_usize],
    ) {
        agree(&key, counter, &packet, padding);
    }

    #[test]
    fn agree_on_anything_long(key: [u8; 32], counter: u64, length in 4_200..=65_535_usize, seed: u64) {
        agree(&key, counter, &bytes(length, seed), 0);
    }

    #[test]
    fn whatever_is_damaged_is_refused(
        key: [u8; 32],
        length in 0..2_000_usize,
        place: prop::sample::Index,
        change in 1..=255_u8,
    ) {
        for implementation in implementations() {
            let mut sealed = seal(implementation, &key, 1, &bytes(length, 8), 0);
            let at = place.index(sealed.len());
            sealed[at] ^= change;
            prop_assert_eq!(open(implementation, &key, 1, &sealed), Err(Forged));
        }
    }
}
