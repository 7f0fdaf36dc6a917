//! Addresses whose protection changed a moment ago. While a change spreads to every node and
//! through the kernel, a packet of such an address does not count as evidence against a node.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use hauberk_abi::address::Address;

/// The most addresses that are remembered one by one; with more, all addresses count as changed.
const REMEMBERED: usize = 16_384;
/// Older changes are not asked for, nanoseconds.
const KEPT: u64 = 60 * 1_000_000_000;

/// When addresses changed, by the monotonic clock, nanoseconds.
#[derive(Debug, Default)]
pub struct Changes {
    everything: Option<u64>,
    addresses: BTreeMap<Address, u64>,
}

impl Changes {
    /// Notes that these addresses have changed now. Without a set, any may have.
    pub fn note(&mut self, addresses: Option<&BTreeSet<Address>>, now: u64) {
        if addresses.is_some_and(BTreeSet::is_empty) {
            return;
        }
        self.addresses.retain(|_, at| now.saturating_sub(*at) < KEPT);
        match addresses {
            Some(addresses) if self.addresses.len() + addresses.len() <= REMEMBERED => {
                self.addresses.extend(addresses.iter().map(|address| (*address, now)));
            }
            _ => {
                self.everything = Some(now);
                self.addresses.clear();
            }
        }
    }

    /// Whether a packet between these addresses, sent at `at`, was sent before one of them changed,
    /// or less than `grace` (nanoseconds) after.
    pub fn excuse(&self, addresses: [IpAddr; 2], at: u64, grace: u64) -> bool {
        let of_these = addresses.into_iter().filter_map(|address| self.addresses.get(&address.into()));
        of_these.chain(&self.everything).any(|changed| at < changed.saturating_add(grace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> [IpAddr; 2] {
        [texts[0].parse().unwrap(), texts[1].parse().unwrap()]
    }

    #[test]
    fn what_changed_is_excused_for_a_while_and_nothing_else() {
        let mut changes = Changes::default();
        let changed = BTreeSet::from([Address::from("10.0.0.1".parse::<IpAddr>().unwrap())]);
        changes.note(Some(&changed), 100);
        assert!(changes.excuse(addresses(&["10.0.0.1", "10.0.0.9"]), 90, 10));
        assert!(changes.excuse(addresses(&["10.0.0.9", "10.0.0.1"]), 109, 10));
        assert!(!changes.excuse(addresses(&["10.0.0.9", "10.0.0.1"]), 110, 10));
        assert!(!changes.excuse(addresses(&["10.0.0.9", "10.0.0.8"]), 90, 10));
        changes.note(None, 200);
        assert!(changes.excuse(addresses(&["10.0.0.9", "10.0.0.8"]), 209, 10));
        assert!(!changes.excuse(addresses(&["10.0.0.9", "10.0.0.8"]), 210, 10));
    }

    #[test]
    fn it_is_bounded() {
        let mut changes = Changes::default();
        let many = |from: u32| (from..from + 16_000).map(|n| Address::v4(n.to_be_bytes())).collect::<BTreeSet<_>>();
        changes.note(Some(&many(0)), 1);
        changes.note(Some(&many(1 << 20)), 2);
        assert!(changes.addresses.is_empty());
        assert!(changes.excuse(addresses(&["10.0.0.9", "10.0.0.8"]), 3, 10));
    }
}
