//! One agent at a time writes what only one should write. Its name is in the Lease
//! `hauberk-reporter`, used as coordination.k8s.io defines it (KEP-589): a candidate that has seen
//! the holder's record unchanged for as long as the record says may take the Lease. Clocks of
//! different nodes are never compared.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

/// The Lease's name.
pub const NAME: &str = "hauberk-reporter";
/// A holder that did not renew for this long has lost the Lease, seconds.
const DURATION_SECONDS: i32 = 30;
/// How often the holder renews.
pub const RENEW: Duration = Duration::from_secs(10);
/// A holder that could not renew for this long stops, before another candidate may start.
const DEADLINE: Duration = Duration::from_secs(20);

/// What to do with the Lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// Nothing: another candidate has it.
    Wait,
    /// There is no such Lease yet.
    Create(Lease),
    /// Take or renew it, but only if it is still as it was read (`metadata.resourceVersion`).
    Replace(Lease),
}

/// One candidate's view. `uptime` is its own monotonic clock; `now` is written for human readers.
#[derive(Debug)]
pub struct Election {
    identity: String,
    /// Another candidate's record, and when it was first seen unchanged.
    seen: Option<(LeaseSpec, Duration)>,
    renewed: Option<Duration>,
}

impl Election {
    /// A candidate that has seen nothing yet.
    pub fn new(identity: &str) -> Election {
        Election { identity: identity.to_owned(), seen: None, renewed: None }
    }

    /// What to do about the Lease as it was just read.
    pub fn next(&mut self, lease: Option<&Lease>, now: Timestamp, uptime: Duration) -> Move {
        let Some(lease) = lease else {
            let spec = LeaseSpec { lease_transitions: Some(0), ..LeaseSpec::default() };
            let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
            return Move::Create(Lease { metadata, spec: Some(self.record(spec, true, now)) });
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let ours = holder == self.identity;
        if !ours && !holder.is_empty() && !self.expired(&spec, uptime) {
            self.renewed = None;
            return Move::Wait;
        }
        Move::Replace(Lease { spec: Some(self.record(spec, !ours, now)), ..lease.clone() })
    }

    /// The write succeeded; it was decided at `uptime`.
    pub fn written(&mut self, uptime: Duration) {
        self.seen = None;
        self.renewed = Some(uptime);
    }

    /// Whether this candidate may write what only the holder should.
    pub fn holds(&self, uptime: Duration) -> bool {
        self.renewed.is_some_and(|renewed| uptime.saturating_sub(renewed) < DEADLINE)
    }

    /// The Lease in released form, if this candidate holds it, so that the next one need not wait.
    pub fn release(&mut self, lease: &Lease) -> Option<Lease> {
        self.renewed = None;
        let mut released = lease.clone();
        let spec = released.spec.as_mut()?;
        if spec.holder_identity.as_ref() != Some(&self.identity) {
            return None;
        }
        spec.holder_identity = None;
        Some(released)
    }

    fn expired(&mut self, spec: &LeaseSpec, uptime: Duration) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let seconds = spec.lease_duration_seconds.unwrap_or(DURATION_SECONDS).max(1);
                uptime.saturating_sub(*since) >= Duration::from_secs(u64::from(seconds.unsigned_abs()))
            }
            _ => {
                self.seen = Some((spec.clone(), uptime));
                false
            }
        }
    }

    fn record(&self, before: LeaseSpec, taken: bool, now: Timestamp) -> LeaseSpec {
        let transitions = before.lease_transitions.unwrap_or_default();
        let had_a_holder = before.renew_time.is_some();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(MicroTime(now)),
            acquire_time: if taken { Some(MicroTime(now)) } else { before.acquire_time.clone() },
            lease_transitions: Some(transitions.saturating_add(i32::from(taken && had_a_holder))),
            ..before
        }
    }
}

/// How long a candidate that does not hold the Lease waits before it looks again. It grows with the
/// number of nodes, to keep the total load small.
pub fn look_again(nodes: usize) -> Duration {
    RENEW.max(Duration::from_millis(50 * nodes as u64)).min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    fn holder(lease: &Lease) -> Option<&str> {
        lease.spec.as_ref()?.holder_identity.as_deref()
    }

    fn taken(election: &mut Election, lease: Option<&Lease>, uptime: Duration) -> Lease {
        match election.next(lease, now(), uptime) {
            Move::Create(lease) | Move::Replace(lease) => {
                election.written(uptime);
                lease
            }
            Move::Wait => panic!("{election:?} waits at {uptime:?}"),
        }
    }

    #[test]
    fn the_first_creates_it_and_nobody_else_holds_it() {
        let (mut first, mut second) = (Election::new("n1"), Election::new("n2"));
        let lease = taken(&mut first, None, at(0));
        assert_eq!((holder(&lease), lease.metadata.name.as_deref()), (Some("n1"), Some(NAME)));
        assert_eq!(second.next(Some(&lease), now(), at(5)), Move::Wait);
        assert!(first.holds(at(19)) && !second.holds(at(5)));
    }

    #[test]
    fn a_holder_that_renews_keeps_it_for_ever_and_one_that_cannot_stops_before_another_starts() {
        let (mut first, mut second) = (Election::new("n1"), Election::new("n2"));
        let mut lease = taken(&mut first, None, at(0));
        for turn in 1..100 {
            assert_eq!(second.next(Some(&lease), now(), at(10 * turn)), Move::Wait);
            // Only a record that differs counts: the clocks of the two are never compared.
            let later = now() + jiff::SignedDuration::from_secs(10 * turn as i64);
            let Move::Replace(renewed) = first.next(Some(&lease), later, at(10 * turn)) else { panic!("not renewed") };
            first.written(at(10 * turn));
            assert_eq!(renewed.spec.as_ref().unwrap().lease_transitions, Some(0));
            lease = renewed;
        }
        assert_eq!(second.next(Some(&lease), now(), at(1_000)), Move::Wait);
        assert!(!first.holds(at(990 + 20)), "the old one has stopped");
        assert_eq!(second.next(Some(&lease), now(), at(1_029)), Move::Wait);
        let lease = taken(&mut second, Some(&lease), at(1_030));
        assert_eq!(holder(&lease), Some("n2"));
        assert_eq!(lease.spec.as_ref().unwrap().lease_transitions, Some(1));
        assert_eq!(first.next(Some(&lease), now(), at(1_031)), Move::Wait);
        assert!(!first.holds(at(1_031)));
    }

    #[test]
    fn a_lease_given_back_is_taken_at_once_and_a_restart_on_the_same_node_goes_on() {
        let (mut first, mut second) = (Election::new("n1"), Election::new("n2"));
        let lease = taken(&mut first, None, at(0));
        let again = taken(&mut Election::new("n1"), Some(&lease), at(1));
        assert_eq!(again.spec.as_ref().unwrap().lease_transitions, Some(0), "the same holder");
        assert!(second.release(&again).is_none(), "it is not his");
        let free = first.release(&again).unwrap();
        assert!(!first.holds(at(1)));
        assert_eq!(holder(&taken(&mut second, Some(&free), at(2))), Some("n2"));
    }

    #[test]
    fn many_nodes_look_seldom() {
        assert_eq!(look_again(3), at(10));
        assert_eq!(look_again(1_000), at(50));
        assert_eq!(look_again(100_000), at(60));
    }
}
