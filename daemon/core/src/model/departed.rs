//! Addresses that nodes had until lately: their object went, or no longer says so. Whoever has one next is not known yet, and packets
//! of protected pods may still be on their way there. So they stay closed until a node says that it has one, or they are forgotten
//! ([`super::Change::AddressForgotten`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// No more are kept; nodes that come and go faster lose some.
pub const MAX: usize = 16_384;

/// The node that had an address last, by address.
#[derive(Debug, Default)]
pub(crate) struct Departed(BTreeMap<IpAddr, String>);

impl Departed {
    /// A node had some addresses before, and has others now. Returns whether that concerns anyone.
    pub(super) fn note(&mut self, node: &str, before: &BTreeSet<IpAddr>, now: &BTreeSet<IpAddr>) -> bool {
        let mut changed = false;
        for address in now {
            changed |= self.0.remove(address).is_some();
        }
        for address in before.difference(now) {
            changed |= self.put(*address, node.to_owned());
        }
        changed
    }

    /// A node had the address last. Returns whether that is news.
    pub(super) fn put(&mut self, address: IpAddr, node: String) -> bool {
        if self.0.len() >= MAX && !self.0.contains_key(&address) {
            return false;
        }
        self.0.get(&address) != Some(&node) && {
            self.0.insert(address, node);
            true
        }
    }

    pub(super) fn forget(&mut self, address: IpAddr) -> bool {
        self.0.remove(&address).is_some()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.0.iter().map(|(address, node)| (*address, node.as_str()))
    }
}
