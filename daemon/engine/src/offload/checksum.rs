//! The Internet checksum (RFC 1071).
//!
//! All sums are over 16-bit words in the machine's byte order. That gives the same checksum (RFC
//! 1071, 2 B) as long as every word is read and written in that order.

/// Adds `bytes` to a running sum. Only the last part summed may have an odd length.
pub fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut rest = words.remainder();
    if let [first, second, tail @ ..] = rest {
        sum += u64::from(u16::from_ne_bytes([*first, *second]));
        rest = tail;
    }
    if let [last] = rest {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// Adds one number as it stands on the wire.
pub fn add_word(sum: u64, word: u16) -> u64 {
    sum + u64::from(word.to_be())
}

/// Subtracts one number, as it stood on the wire, from a sum.
pub fn remove_word(sum: u64, word: u16) -> u64 {
    sum + u64::from(!word.to_be())
}

/// Folds a sum into 16 bits, without complementing it.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The finished checksum, as bytes for the packet. Never zero, which in UDP means "no checksum".
pub fn finish(sum: u64) -> [u8; 2] {
    match !fold(sum) {
        0 => [0xff, 0xff],
        checksum => checksum.to_ne_bytes(),
    }
}

/// The sum of the pseudo header of TCP and UDP (RFC 9293, 3.1; RFC 8200, 8.1).
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    // In both forms, the other bytes of the pseudo header are zero.
    let sum = add_word(add(0, addresses), u16::from(protocol));
    add_word(add_word(sum, (length >> 16) as u16), length as u16)
}

/// Whether a sum over a packet that includes its checksum shows that the checksum is right.
pub fn is_valid(sum: u64) -> bool {
    fold(sum) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
            sum += u32::from(word);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(fold(add(0, &bytes)).to_ne_bytes(), reference(&bytes).to_be_bytes());
        }

        #[test]
        fn a_finished_packet_is_valid(mut bytes in prop::collection::vec(any::<u8>(), 2..2000)) {
            bytes[0] = 0;
            bytes[1] = 0;
            let checksum = finish(add(0, &bytes));
            bytes[..2].copy_from_slice(&checksum);
            prop_assert!(is_valid(add(0, &bytes)));
        }

        #[test]
        fn a_removed_word_is_gone(words in prop::collection::vec(1u16.., 2..100), removed in any::<u16>()) {
            let sum = words.iter().fold(0, |sum, word| add_word(sum, *word));
            let there_and_back = remove_word(add_word(sum, removed), removed);
            prop_assert_eq!(fold(there_and_back), fold(sum));
        }
    }
}
