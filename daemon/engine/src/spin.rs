//! Whether the engine polls for the next packet or sleeps until it comes.
//!
//! A wake-up costs more than carrying a small packet: the CPU must be interrupted and leave its
//! idle state. When packets come one by one and soon after each other (request, answer, request),
//! it pays to poll for a moment. The engine yields the CPU between two polls. Polling does not pay
//! when packets are rare, nor when so many come that the next turn has enough to do.
//!
//! It has no clock; the caller passes the time in.

use std::time::{Duration, Instant};

/// A turn with more packets than this is bulk traffic: the next turn may well be a full one.
const FEW_PACKETS: usize = 8;
/// The highest score.
const SURE: u8 = 8;
/// What one success adds to the score; a failure subtracts one. With request and answer, often only
/// one of them comes soon while the other end sleeps, and the other end sees the same.
const WORTH: u8 = 2;
/// With a score of zero, the engine still polls once after this many turns without polling.
const PROBE: u8 = 32;

/// Decides whether to poll, by how well it worked recently.
pub(crate) struct Spin {
    /// How long to poll after a packet; zero means never.
    limit: Duration,
    /// The time of the packet after which it polls now.
    since: Option<Instant>,
    /// Rises when polling found a packet, and falls when it did not.
    score: u8,
    /// Turns without polling since the last attempt.
    skipped: u8,
}

impl Spin {
    pub(crate) fn new(limit: Duration) -> Spin {
        Spin { limit, since: None, score: SURE / 2, skipped: 0 }
    }

    /// Records a turn that carried packets.
    #[inline]
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

    /// Whether to poll again now instead of sleeping.
    #[inline]
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

    /// How much of the time it is awake, in per cent, when single packets come at this interval.
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

    /// A client that sends its next request as soon as it has the answer, with an engine on either
    /// side.
    #[test]
    fn two_that_would_wait_for_each_other_wake_each_other() {
        let (step, wake) = (Duration::from_micros(10), Duration::from_micros(35));
        let mut now = Instant::now();
        let mut engines = [Spin::new(LIMIT), Spin::new(LIMIT)];
        // Both have been idle for long.
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
            // The client is always woken.
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
