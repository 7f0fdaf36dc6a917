//! The annotation `hauberk.io/keys`: a node publishes its keys in it, and other nodes check them.
//!
//! ```json
//! {"version":1,"port":51840,
//!  "keys":[{"epoch":2,"publicKey":"BASE64"},{"epoch":1,"publicKey":"BASE64"}]}
//! ```
//! Another machine writes an annotation, so one invalid part makes the agent refuse all of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::MAX_EPOCHS;

/// The version of the format that this agent writes and reads.
pub const VERSION: u64 = 1;

/// The most bytes that an annotation may have; two keys need about 200.
pub const MAX_LENGTH: usize = 2048;

/// What a node publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// UDP port that its tunnel listens on; never 0.
    pub port: u16,
    /// Its keys, newest epoch first: one or two.
    pub keys: Vec<PublicKey>,
}

/// A public key that has been checked: 32 bytes in canonical form, and not of small order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey {
    /// Its epoch, from 1.
    pub epoch: u32,
    /// The u-coordinate, little endian (RFC 7748 section 5).
    pub bytes: [u8; 32],
}

impl PublicKey {
    /// The key as WireGuard's tools write it.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.bytes)
    }
}

/// Why an annotation was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishedError {
    /// Longer than [`MAX_LENGTH`].
    #[error("it is {length} bytes long, more than the {MAX_LENGTH} that keys can need")]
    TooLong {
        /// Its length, bytes.
        length: usize,
    },
    /// Not the JSON it should be.
    #[error("it is not the JSON that hauberk writes ({reason}); the agent of that node writes it anew when restarted")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// Written by an agent with another version of the format.
    #[error(
        "it has version {version}, and this agent reads version {VERSION} only: upgrade the older of the two agents"
    )]
    Version {
        /// The version it has.
        version: u64,
    },
    /// Port 0.
    #[error("it names port 0, which no tunnel can listen on")]
    Port,
    /// No key, or more than two.
    #[error("it holds {count} keys, and 1 to {MAX_EPOCHS} are allowed")]
    KeyCount {
        /// How many.
        count: usize,
    },
    /// Epoch 0.
    #[error("a key has epoch 0, and epochs start at 1")]
    EpochZero,
    /// Two keys of one epoch.
    #[error("two keys have epoch {epoch}")]
    DuplicateEpoch {
        /// The epoch.
        epoch: u32,
    },
    /// One key under two epochs.
    #[error("epochs {first} and {second} have the same key")]
    DuplicateKey {
        /// An epoch.
        first: u32,
        /// The other epoch.
        second: u32,
    },
    /// A key that must not be used.
    #[error("the key of epoch {epoch} {fault}")]
    Key {
        /// Its epoch.
        epoch: u32,
        /// What is wrong with it.
        fault: KeyFault,
    },
}

/// What is wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Not base64 of 32 bytes.
    #[error("is not the base64 of 32 bytes")]
    Encoding,
    /// All zero.
    #[error("is all zero: no key was made")]
    Zero,
    /// A point of small order: anyone could compute a secret agreed on with it (RFC 7748 section
    /// 6.1).
    #[error("is a point of small order: what is agreed with it would be no secret")]
    SmallOrder,
    /// The same point has another, canonical encoding: one key must not have two encodings.
    #[error("is not in canonical form: no key generator writes it so")]
    NonCanonical,
}

#[derive(Serialize, Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Body {
    version: u64,
    port: u16,
    keys: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    epoch: u32,
    public_key: String,
}

/// Reads an annotation.
pub fn parse(text: &str) -> Result<Published, PublishedError> {
    if text.len() > MAX_LENGTH {
        return Err(PublishedError::TooLong { length: text.len() });
    }
    let json = |error: serde_json::Error| PublishedError::Json { reason: error.to_string() };
    // Reads the version alone first, because the rest of another version's format is not known.
    let head: Head = serde_json::from_str(text).map_err(json)?;
    if head.version != VERSION {
        return Err(PublishedError::Version { version: head.version });
    }
    let body: Body = serde_json::from_str(text).map_err(json)?;
    if body.port == 0 {
        return Err(PublishedError::Port);
    }
    if body.keys.is_empty() || body.keys.len() > MAX_EPOCHS {
        return Err(PublishedError::KeyCount { count: body.keys.len() });
    }
    let mut keys = body.keys.iter().map(check_entry).collect::<Result<Vec<_>, _>>()?;
    keys.sort_by_key(|key| std::cmp::Reverse(key.epoch));
    for pair in keys.windows(2) {
        if pair[0].epoch == pair[1].epoch {
            return Err(PublishedError::DuplicateEpoch { epoch: pair[0].epoch });
        }
        if pair[0].bytes == pair[1].bytes {
            return Err(PublishedError::DuplicateKey { first: pair[0].epoch, second: pair[1].epoch });
        }
    }
    Ok(Published { port: body.port, keys })
}

/// Writes an annotation; [`parse`] reads it back.
pub fn render(published: &Published) -> String {
    let keys = published.keys.iter().map(|key| Entry { epoch: key.epoch, public_key: key.to_base64() }).collect();
    // The body has only numbers and strings, so this cannot fail.
    serde_json::to_string(&Body { version: VERSION, port: published.port, keys }).unwrap_or_default()
}

fn check_entry(entry: &Entry) -> Result<PublicKey, PublishedError> {
    if entry.epoch == 0 {
        return Err(PublishedError::EpochZero);
    }
    let fault = |fault| PublishedError::Key { epoch: entry.epoch, fault };
    let bytes = decode(&entry.public_key).ok_or(fault(KeyFault::Encoding))?;
    check(&bytes).map_err(fault)?;
    Ok(PublicKey { epoch: entry.epoch, bytes })
}

fn decode(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Whether a public key may be used at all.
pub fn check(bytes: &[u8; 32]) -> Result<(), KeyFault> {
    if bytes == &[0; 32] {
        return Err(KeyFault::Zero);
    }
    // A point can be of small order in any encoding, so check the value that the multiplication
    // would use: without its top bit, and reduced modulo p = 2^255 - 19 (RFC 7748 section 5).
    let reduced = reduce(bytes);
    if SMALL_ORDER.contains(&reduced) {
        return Err(KeyFault::SmallOrder);
    }
    if &reduced != bytes {
        return Err(KeyFault::NonCanonical);
    }
    Ok(())
}

/// Every u-coordinate of small order, on the curve or its twist, in canonical form.
const SMALL_ORDER: [[u8; 32]; 5] = [
    // 0, order 2
    [0; 32],
    // 1, order 4
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    // 325606250916557431795983626356110631294008115727848805560023387167927233504, order 8
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    // 39382357235489614581723060781553021112529911719440698176882885853963445705823, order 8
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    // p - 1, order 4 on the twist
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
];

/// The value modulo p, without its top bit. For public keys only: this is not constant time.
fn reduce(bytes: &[u8; 32]) -> [u8; 32] {
    let mut value = *bytes;
    value[31] &= 0x7f;
    // Below 2^255 there are only 19 values from p on: p itself, ed ff .. ff 7f, up to ff ff .. ff
    // 7f.
    let from_p_on = value[0] >= 0xed && value[31] == 0x7f && value[1..31].iter().all(|byte| *byte == 0xff);
    if from_p_on {
        let rest = value[0] - 0xed;
        value = [0; 32];
        value[0] = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use x25519_dalek::StaticSecret;

    fn public(seed: u8) -> [u8; 32] {
        x25519_dalek::PublicKey::from(&StaticSecret::from([seed; 32])).to_bytes()
    }

    fn annotation(keys: &[(u64, &str)]) -> String {
        let keys: Vec<_> =
            keys.iter().map(|(epoch, key)| serde_json::json!({"epoch": epoch, "publicKey": key})).collect();
        serde_json::json!({"version": 1, "port": 51840, "keys": keys}).to_string()
    }

    fn fault_of(bytes: [u8; 32]) -> Option<KeyFault> {
        match parse(&annotation(&[(1, &STANDARD.encode(bytes))])) {
            Err(PublishedError::Key { epoch: 1, fault }) => Some(fault),
            Ok(_) => None,
            Err(other) => panic!("{other}"),
        }
    }

    /// Every encoding in 32 bytes of a point of small order: each value below 2^256 that equals one
    /// of the five modulo p, with and without the top bit.
    fn small_order_encodings() -> Vec<[u8; 32]> {
        let mut all = Vec::new();
        for point in SMALL_ORDER {
            let mut encodings = vec![point];
            if point[1..].iter().all(|byte| *byte == 0) {
                // 0 and 1 have a second encoding below 2^255: p and p + 1.
                let mut plus_p = [0xff; 32];
                plus_p[0] = 0xed + point[0];
                plus_p[31] = 0x7f;
                encodings.push(plus_p);
            }
            for encoding in encodings {
                let mut top_bit = encoding;
                top_bit[31] |= 0x80;
                all.extend([encoding, top_bit]);
            }
        }
        all
    }

    #[test]
    fn small_order_points_are_refused_however_they_are_written() {
        let secret = StaticSecret::from([0x42; 32]);
        assert_eq!(small_order_encodings().len(), 14);
        for bytes in small_order_encodings() {
            let shared = secret.diffie_hellman(&bytes.into());
            assert!(!shared.was_contributory(), "{bytes:02x?} is of large order: the table is wrong");
            let expected = if bytes == [0; 32] { KeyFault::Zero } else { KeyFault::SmallOrder };
            assert_eq!(fault_of(bytes), Some(expected), "{bytes:02x?}");
        }
    }

    #[test]
    fn second_spellings_of_a_good_key_are_refused() {
        let mut top_bit = public(7);
        top_bit[31] |= 0x80;
        assert_eq!(fault_of(top_bit), Some(KeyFault::NonCanonical));
        // 9 + p, a second encoding of the base point.
        let mut plus_p = [0xff; 32];
        plus_p[0] = 0xed + 9;
        plus_p[31] = 0x7f;
        assert_eq!(fault_of(plus_p), Some(KeyFault::NonCanonical));
        let mut base = [0; 32];
        base[0] = 9;
        assert_eq!(fault_of(base), None);
    }

    #[test]
    fn keys_come_newest_first_whatever_the_order_they_are_written_in() {
        let (old, new) = (STANDARD.encode(public(1)), STANDARD.encode(public(2)));
        let published = parse(&annotation(&[(3, &old), (4, &new)])).unwrap();
        assert_eq!(published.port, 51840);
        assert_eq!(published.keys.iter().map(|key| key.epoch).collect::<Vec<_>>(), [4, 3]);
        assert_eq!(published.keys[0].to_base64(), new);
    }

    #[test]
    fn what_is_not_right_in_every_part_is_refused_whole() {
        let good = STANDARD.encode(public(1));
        let other = STANDARD.encode(public(2));
        let third = STANDARD.encode(public(3));
        let cases: Vec<(String, &str)> = vec![
            (String::new(), "not the JSON"),
            ("{}".into(), "not the JSON"),
            ("[1]".into(), "not the JSON"),
            (r#"{"version":2,"secrets":[]}"#.into(), "version 2"),
            (r#"{"version":1,"port":0,"keys":[]}"#.into(), "port 0"),
            (r#"{"version":1,"port":70000,"keys":[]}"#.into(), "not the JSON"),
            (annotation(&[]), "0 keys"),
            (annotation(&[(1, &good), (2, &other), (3, &third)]), "3 keys"),
            (annotation(&[(0, &good)]), "epoch 0"),
            (annotation(&[(1 << 32, &good)]), "not the JSON"),
            (annotation(&[(1, &good), (1, &other)]), "two keys have epoch 1"),
            (annotation(&[(1, &good), (2, &good)]), "the same key"),
            (annotation(&[(1, "")]), "not the base64"),
            (annotation(&[(1, &good[..40])]), "not the base64"),
            (annotation(&[(1, &format!("{good} "))]), "not the base64"),
            (annotation(&[(1, &STANDARD.encode([5; 31]))]), "not the base64"),
            (annotation(&[(1, &STANDARD.encode([5; 33]))]), "not the base64"),
            (" ".repeat(MAX_LENGTH) + &annotation(&[(1, &good)]), "bytes long"),
        ];
        for (text, expected) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(text in ".{0,400}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_annotation_of_the_right_shape_panics(
            version in any::<u64>(), port in any::<u32>(), keys in prop::collection::vec((any::<u32>(), ".{0,60}"), 0..4)
        ) {
            let keys: Vec<_> =
                keys.iter().map(|(epoch, key)| serde_json::json!({"epoch": epoch, "publicKey": key})).collect();
            for version in [version, VERSION] {
                let _ = parse(&serde_json::json!({"version": version, "port": port, "keys": keys}).to_string());
            }
        }

        #[test]
        fn what_is_written_is_read_back(seeds in prop::collection::btree_set(1u8.., 1..=2), port in 1u16..) {
            let keys: Vec<_> =
                seeds.iter().rev().map(|seed| PublicKey { epoch: u32::from(*seed), bytes: public(*seed) }).collect();
            let published = Published { port, keys };
            prop_assert_eq!(parse(&render(&published)).unwrap(), published);
        }

        #[test]
        fn any_32_bytes_are_accepted_only_if_they_are_a_usable_key(bytes in any::<[u8; 32]>()) {
            let accepted = check(&bytes).is_ok();
            let contributory = StaticSecret::from([9; 32]).diffie_hellman(&bytes.into()).was_contributory();
            prop_assert!(!accepted || contributory);
        }
    }
}
