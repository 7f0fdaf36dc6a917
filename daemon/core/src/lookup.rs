//! Longest-prefix look-up, as the kernel's trie does it.

use std::collections::BTreeMap;

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::Identity;

/// The longest range that holds the address.
pub(crate) fn longest(ranges: &BTreeMap<Prefix, Identity>, address: Address) -> Option<(Prefix, Identity)> {
    (0..=128).rev().find_map(|length| {
        let prefix = truncate(address, length);
        ranges.get(&prefix).map(|identity| (prefix, *identity))
    })
}

/// The prefix of this many bits that holds the address.
pub(crate) fn truncate(address: Address, length: u32) -> Prefix {
    let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
    Prefix { length, address: Address((u128::from_be_bytes(address.0) & mask).to_be_bytes()) }
}
