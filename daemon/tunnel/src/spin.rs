//! Whether the engine waits for the next packet awake or asleep.
//!
//! To be woken costs more than to carry a small packet: the CPU has to be told, and to leave its idle state. When packets come one
//! by one and soon after each other - request, answer, request - it pays to look again for a moment, leaving the CPU to whoever
//! wants it between two looks. It does not pay when they come seldom, nor when so many come that the next turn has enough to do.
//!
//! Knows no clock; whoever uses it passes the time in.

use std::time::{Duration, Instant};

/// A turn with more packets is bulk: the next may as well be a full one.
const FEW_PACKETS: usize = 8;
/// The most that is held against, or for, looking again.
const SURE: u8 = 8;
/// For how many times that it did not pay one makes up that it did: of request and answer often only one comes soon, as long as
/// the other end sleeps, and that one does the same.
const WORTH: u8 = 2;
/// Out of so many times, one is tried although it did not pay lately.
const PROBE: u8 = 32;

/// The habit of looking again, and how it went lately.
pub(crate) struct Spin {
    /// For how long after a packet: zero for never.
    limit: Duration,
    /// The packet after which it looks again now.
    since: Option<Instant>,
    /// How often it paid lately, less how often it did not.
    score: u8,
    /// How often it went to sleep at once since it last tried.
    skipped: u8,
}

impl Spin {
    pub(crate) fn new(limit: Duration) -> Spin {
        Spin { limit, since: None, score: SURE / 2, skipped: 0 }
    }

    /// Takes note of a turn that carried packets.
    pub(crate) fn carried(&mut self, now: Instant, packets: usize) {
        if self.since.take().is_some() {
            self.score = (self.score + WORTH).min(SURE);
        }
        if packets > FEW_PACKETS || self.limit.is_zero() {
            return;
        }
        if self.score > 0 || self.skipped >= PROBE {
            self.skipped = 0;
            self.since = Some(now);
        } else {
            self.skipped += 1;
        }
    }

    /// Whether to look again now, rather than to sleep.
    pub(crate) fn looks_again(&mut self, now: Instant) -> bool {
        let Some(since) = self.since else { return false };
        if now.saturating_duration_since(since) < self.limit {
            return true;
        }
        self.since = None;
        self.score = self.score.saturating_sub(1);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    /// How much of the time it is awake, in per cent, when single packets come at this distance.
    fn awake(distance: Duration, packets: usize) -> u128 {
        let mut spin = Spin::new(LIMIT);
        let mut now = Instant::now();
        let (mut awake, mut all) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..10_000 {
            spin.carried(now, packets);
            let next = now + distance;
            while now < next && spin.looks_again(now) {
                now += Duration::from_micros(1);
                awake += Duration::from_micros(1);
            }
            now = next;
            all += distance;
        }
        100 * awake.as_nanos() / all.as_nanos()
    }

    #[test]
    fn is_awake_while_packets_follow_each_other() {
        assert_eq!(awake(Duration::from_micros(30), 1), 100);
        assert_eq!(awake(Duration::from_micros(99), 2), 100);
    }

    #[test]
    fn sleeps_when_they_are_seldom_or_many() {
        assert!(awake(Duration::from_micros(110), 1) <= 5);
        assert!(awake(Duration::from_millis(1), 1) <= 1);
        assert_eq!(awake(Duration::from_micros(30), 100), 0);
    }

    #[test]
    fn takes_it_up_again_when_it_pays_again() {
        let mut spin = Spin::new(LIMIT);
        let mut now = Instant::now();
        for _ in 0..100 {
            spin.carried(now, 1);
            now += Duration::from_millis(1);
            assert!(!spin.looks_again(now));
        }
        let mut awake = 0;
        for _ in 0..2 * u32::from(PROBE) {
            spin.carried(now, 1);
            now += Duration::from_micros(10);
            awake += u32::from(spin.looks_again(now));
        }
        assert!(awake > u32::from(PROBE) / 2, "{awake}");
    }

    /// A client that asks again as soon as it has its answer, and what an engine on either side does to that.
    #[test]
    fn two_that_would_wait_for_each_other_wake_each_other() {
        let (step, wake) = (Duration::from_micros(10), Duration::from_micros(35));
        let mut now = Instant::now();
        let mut engines = [Spin::new(LIMIT), Spin::new(LIMIT)];
        // Both have had nothing to do for long.
        for spin in &mut engines {
            for _ in 0..20 {
                spin.carried(now, 1);
                now += Duration::from_millis(1);
                spin.looks_again(now);
            }
        }
        let mut trip = Duration::ZERO;
        for _ in 0..200 {
            let asked = now;
            // Client's engine, server's engine, then back.
            for engine in [0, 1, 1, 0] {
                now += step;
                if !engines[engine].looks_again(now) {
                    now += wake;
                }
                engines[engine].carried(now, 1);
            }
            // The client is woken either way.
            now += step;
            trip = now - asked;
        }
        assert_eq!(trip, 5 * step, "nobody was asleep");
    }

    #[test]
    fn a_limit_of_zero_is_never() {
        let mut spin = Spin::new(Duration::ZERO);
        let now = Instant::now();
        spin.carried(now, 1);
        assert!(!spin.looks_again(now));
    }
}
