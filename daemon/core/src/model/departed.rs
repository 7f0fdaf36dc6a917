//! Addresses that nodes had until recently: the node's object is gone, or no longer lists the
//! address. The next owner is not known yet, and packets of protected pods may still be on their
//! way there. So the address stays closed until a node claims it or the agent forgets it
//! ([`super::Change::AddressForgotten`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The most addresses that are kept; when nodes come and go faster, some are not recorded.
pub const MAX: usize = 16_384;

/// By address, the last node that had it.
#[derive(Debug, Default)]
pub(crate) struct Departed(BTreeMap<IpAddr, String>);

impl Departed {
    /// A node had some addresses before, and has others now. Returns whether the record has
    /// changed.
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

    /// Records that a node had the address last. Returns whether that is new.
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
