//! Limits the handshakes of one address that has proved itself with a cookie.
//!
//! Cookies stop senders with forged addresses; this limit stops senders that use their own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Handshakes per second and address, and how many may come at once.
const PER_SECOND: u32 = 20;
const BURST: u32 = 5;
/// The most addresses that are kept. While there are that many, handshakes of other addresses are
/// refused.
const MOST_SOURCES: usize = 4096;

/// A token bucket per source, stored as the time at which it will be full again.
pub(super) struct SourceLimit {
    full_at: HashMap<IpAddr, Instant>,
}

impl SourceLimit {
    pub(super) fn new() -> SourceLimit {
        SourceLimit { full_at: HashMap::new() }
    }

    /// Whether one more handshake from this address may pass.
    pub(super) fn admit(&mut self, now: Instant, from: IpAddr) -> bool {
        let cost = Duration::from_secs(1) / PER_SECOND;
        let source = network(from);
        if self.full_at.len() >= MOST_SOURCES && !self.full_at.contains_key(&source) {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= MOST_SOURCES {
                return false;
            }
        }
        let full_at = self.full_at.entry(source).or_insert(now);
        let after = (*full_at).max(now) + cost;
        if after > now + cost * BURST {
            return false;
        }
        *full_at = after;
        true
    }
}

/// A host that has one IPv6 address has 2^64 of them, so a /64 counts as one source.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let start = Instant::now();
        let from: IpAddr = "192.0.2.1".parse().unwrap();
        let other: IpAddr = "192.0.2.2".parse().unwrap();
        let mut limit = SourceLimit::new();
        let admitted = (0..100).filter(|_| limit.admit(start, from)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(limit.admit(start, other), "others are not held up");
        let admitted = (0..10_000).filter(|step| limit.admit(start + Duration::from_millis(*step), from)).count();
        assert!((PER_SECOND as usize * 10 - 1..=PER_SECOND as usize * 10 + 1).contains(&admitted), "{admitted}");
    }

    #[test]
    fn neighbours_in_one_ipv6_network_share() {
        let now = Instant::now();
        let mut limit = SourceLimit::new();
        let admitted = (0..50u32).filter(|n| limit.admit(now, format!("2001:db8::{n:x}").parse().unwrap())).count();
        assert_eq!(admitted, BURST as usize);
    }

    #[test]
    fn memory_is_bounded_and_freed() {
        let start = Instant::now();
        let mut limit = SourceLimit::new();
        let address = |n: u32| IpAddr::V4(n.into());
        let admitted = (0..10_000).filter(|n| limit.admit(start, address(*n))).count();
        assert_eq!(admitted, MOST_SOURCES);
        assert!(limit.admit(start + Duration::from_secs(1), address(20_000)));
        assert_eq!(limit.full_at.len(), 1);
    }
}
