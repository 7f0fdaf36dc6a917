//! Chooses free addresses, round robin within each range, so that a released address is the last to
//! be given again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// The most addresses that one search tries: more than any node has pods, and a limit on the time
/// for a large IPv6 range.
const MAX_TRIES: u128 = 1 << 20;

/// The last address given, by range.
#[derive(Debug, Default)]
pub struct Pools {
    cursors: BTreeMap<IpNet, IpAddr>,
}

impl Pools {
    /// Continues after the given addresses.
    pub fn new(cursors: BTreeMap<IpNet, IpAddr>) -> Pools {
        Pools { cursors }
    }

    /// The last address given, by range.
    pub fn cursors(&self) -> &BTreeMap<IpNet, IpAddr> {
        &self.cursors
    }

    /// The next address of `range` that `free` allows.
    pub fn next(&mut self, range: &IpNet, free: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let (first, last) = usable(range);
        let cursor = self.cursors.get(range).map(|address| number(*address)).filter(|n| (first..=last).contains(n));
        let mut candidate = cursor.unwrap_or(last);
        let size = (last - first).saturating_add(1);
        for _ in 0..size.min(MAX_TRIES) {
            candidate = if candidate == last { first } else { candidate + 1 };
            let address = address(candidate, range);
            if free(address) {
                self.cursors.insert(*range, address);
                return Some(address);
            }
        }
        None
    }
}

/// The first and last address that a pod may have, as numbers. These do not count: the network's
/// own (in IPv6 the subnet-router anycast address, RFC 4291 section 2.6.1), the first one after it,
/// which is a common gateway address, and IPv4's broadcast address. Ranges of one or two addresses
/// are used whole.
fn usable(range: &IpNet) -> (u128, u128) {
    let (network, broadcast) = (number(range.network()), number(range.broadcast()));
    let host_bits = range.max_prefix_len() - range.prefix_len();
    match host_bits {
        0 | 1 => (network, broadcast),
        _ if range.network().is_ipv4() => (network + 2, broadcast - 1),
        _ => (network + 2, broadcast),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn address(number: u128, range: &IpNet) -> IpAddr {
    match range {
        // A number in an IPv4 range has at most 32 bits.
        IpNet::V4(_) => IpAddr::V4((number as u32).into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_small_range_gives_each_usable_address_once() {
        for (range, expected) in [
            ("10.0.0.0/29", vec!["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]),
            ("10.0.0.4/30", vec!["10.0.0.6"]),
            ("10.0.0.8/31", vec!["10.0.0.8", "10.0.0.9"]),
            ("10.0.0.9/32", vec!["10.0.0.9"]),
            ("255.255.255.252/30", vec!["255.255.255.254"]),
            ("fd00::/126", vec!["fd00::2", "fd00::3"]),
            ("fd00::7/128", vec!["fd00::7"]),
        ] {
            let range: IpNet = range.parse().unwrap();
            let mut pools = Pools::default();
            let mut taken = BTreeSet::new();
            let mut given = Vec::new();
            while let Some(address) = pools.next(&range, |a| !taken.contains(&a)) {
                taken.insert(address);
                given.push(address.to_string());
            }
            assert_eq!(given, expected, "{range}");
        }
    }

    #[test]
    fn a_released_address_comes_last() {
        let range: IpNet = "10.0.0.0/24".parse().unwrap();
        let mut pools = Pools::default();
        let first = pools.next(&range, |_| true).unwrap();
        let mut later = BTreeSet::new();
        for _ in 0..252 {
            let next = pools.next(&range, |_| true).unwrap();
            assert_ne!(next, first);
            later.insert(next);
        }
        assert_eq!(later.len(), 252);
        assert_eq!(pools.next(&range, |_| true), Some(first));
    }

    #[test]
    fn whole_address_spaces_do_not_overflow() {
        for range in ["::/0", "0.0.0.0/0", "fd00::/64"] {
            let range: IpNet = range.parse().unwrap();
            let mut pools = Pools::new([(range, range.broadcast())].into());
            assert!(pools.next(&range, |_| true).is_some());
        }
    }

    proptest! {
        #[test]
        fn only_free_addresses_of_the_range_are_given(
            base in any::<u32>(), length in 20u8..=32, cursor in any::<u32>(), modulus in 1u32..20,
        ) {
            let range = IpNet::new(IpAddr::V4(base.into()), length).unwrap().trunc();
            let mut pools = Pools::new([(range, IpAddr::V4(cursor.into()))].into());
            let free = |address: IpAddr| number(address).is_multiple_of(u128::from(modulus));
            match pools.next(&range, free) {
                Some(address) => {
                    prop_assert!(range.contains(&address));
                    prop_assert!(free(address));
                }
                None => prop_assert!(range.hosts().skip(1).filter(|a| *a != range.broadcast()).all(|a| !free(a)) || length >= 31),
            }
        }
    }
}
