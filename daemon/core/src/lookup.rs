//! Longest-prefix look-up, as the kernel's trie does it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::Identity;

/// Ranges, and the lengths that occur among them: a cluster has thousands of ranges of a handful of lengths.
pub(crate) struct Ranges<'a> {
    ranges: &'a BTreeMap<Prefix, Identity>,
    lengths: BTreeSet<u32>,
}

impl<'a> Ranges<'a> {
    pub(crate) fn new(ranges: &'a BTreeMap<Prefix, Identity>) -> Ranges<'a> {
        // A prefix sorts by its length first, so that each length begins right behind the last prefix of the one before.
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

    /// What the datapath takes an address for that is no endpoint.
    pub(crate) fn identity(&self, address: Address) -> Identity {
        self.longest(address).map_or(Identity::WORLD, |(_, identity)| identity)
    }
}

/// The prefix of this many bits that holds the address.
pub(crate) fn truncate(address: Address, length: u32) -> Prefix {
    let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
    Prefix { length, address: Address::v6((u128::from_be_bytes(address.octets()) & mask).to_be_bytes()) }
}
