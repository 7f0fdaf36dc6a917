//! Longest-prefix match, as the kernel's trie does it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::Identity;

/// Ranges, and the prefix lengths that occur among them: a cluster has thousands of ranges but only
/// a few lengths.
pub(crate) struct Ranges<'a> {
    ranges: &'a BTreeMap<Prefix, Identity>,
    lengths: BTreeSet<u32>,
}

impl<'a> Ranges<'a> {
    pub(crate) fn new(ranges: &'a BTreeMap<Prefix, Identity>) -> Ranges<'a> {
        // Prefixes sort by length first, so the next length begins right after the last prefix of
        // this one.
        let mut lengths = BTreeSet::new();
        let mut next = ranges.keys().next();
        while let Some(prefix) = next {
            lengths.insert(prefix.length);
            let last = Prefix { length: prefix.length, address: Address::LAST };
            next = ranges.range((Excluded(last), Unbounded)).next().map(|(prefix, _)| prefix);
        }
        Ranges { ranges, lengths }
    }

    /// The longest range that holds the address.
    pub(crate) fn longest(&self, address: Address) -> Option<(Prefix, Identity)> {
        self.lengths.iter().rev().find_map(|length| {
            let prefix = truncate(address, *length);
            self.ranges.get(&prefix).map(|identity| (prefix, *identity))
        })
    }

    /// The identity that the datapath gives to an address that is no endpoint.
    pub(crate) fn identity(&self, address: Address) -> Identity {
        self.longest(address).map_or(Identity::WORLD, |(_, identity)| identity)
    }
}

/// The prefix of this many bits that holds the address.
pub(crate) fn truncate(address: Address, length: u32) -> Prefix {
    let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
    Prefix { length, address: Address::v6((u128::from_be_bytes(address.octets()) & mask).to_be_bytes()) }
}
