//! Which messages of a session were already received (RFC 6479): a ring of bits that is cleared one
//! word at a time.

/// How far a message may be behind the newest one (WireGuard paper, 5.4.6; the kernel's bitmap has
/// the same size).
pub(super) const WINDOW: u64 = 8192;
const BITS: u64 = u64::BITS as u64;
/// One word more than the window, for the newest messages while the oldest ones in the window are
/// still needed.
const WORDS: usize = (WINDOW / BITS) as usize + 1;

/// The counters seen, within the window.
pub(super) struct Replay {
    /// One more than the highest counter seen.
    next: u64,
    words: [u64; WORDS],
}

impl Replay {
    pub(super) fn new() -> Replay {
        Replay { next: 0, words: [0; WORDS] }
    }

    /// Whether the counter is within the window or newer, and was not seen yet.
    pub(super) fn is_fresh(&self, counter: u64) -> bool {
        let (word, bit) = place(counter);
        counter >= self.next || (self.next - counter <= WINDOW && self.words[word] & bit == 0)
    }

    /// Records a fresh counter, after its message has been authenticated.
    pub(super) fn mark(&mut self, counter: u64) {
        if counter >= self.next {
            // Words in between still have bits from the ring's last round.
            let first = self.next.div_ceil(BITS);
            for word in (first..=counter / BITS).take(WORDS) {
                self.words[(word % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
    }
}

fn place(counter: u64) -> (usize, u64) {
    ((counter / BITS % WORDS as u64) as usize, 1 << (counter % BITS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// Every counter ever seen, and the window applied to them.
    #[derive(Default)]
    struct Naive(HashSet<u64>);

    impl Naive {
        fn is_fresh(&self, counter: u64) -> bool {
            let next = self.0.iter().max().map_or(0, |highest| highest + 1);
            !self.0.contains(&counter) && counter.saturating_add(WINDOW) >= next
        }
    }

    fn agree(counters: impl IntoIterator<Item = u64>) -> Result<(), TestCaseError> {
        let (mut replay, mut naive) = (Replay::new(), Naive::default());
        for counter in counters {
            prop_assert_eq!(replay.is_fresh(counter), naive.is_fresh(counter), "{}", counter);
            if replay.is_fresh(counter) {
                replay.mark(counter);
                naive.0.insert(counter);
            }
        }
        Ok(())
    }

    #[test]
    fn the_edges_of_the_window() {
        for newest in [WINDOW - 1, WINDOW, WINDOW + 63, WINDOW + 64, 10 * WINDOW + 1, u64::MAX - WINDOW - 1] {
            let mut replay = Replay::new();
            replay.mark(newest);
            let oldest = newest + 1 - WINDOW;
            assert!(replay.is_fresh(oldest));
            assert!(oldest == 0 || !replay.is_fresh(oldest - 1));
            replay.mark(oldest);
            assert!(!replay.is_fresh(oldest) && !replay.is_fresh(newest) && replay.is_fresh(newest + 1));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set_nearby(counters in prop::collection::vec(0u64..300, 0..300)) {
            agree(counters)?;
        }

        #[test]
        fn agrees_with_a_plain_set_in_leaps(
            leaps in prop::collection::vec((prop_oneof![0u64..3, 60u64..70, 8000u64..8400, 0u64..40_000], 0u64..9000), 0..200),
        ) {
            let mut highest = 0u64;
            let counters = leaps.into_iter().flat_map(|(ahead, behind)| {
                highest += ahead;
                [highest, highest.saturating_sub(behind), highest.saturating_sub(behind)]
            });
            agree(counters.collect::<Vec<_>>())?;
        }

        #[test]
        fn any_order_within_the_window_passes_exactly_once(
            start in 0u64..u64::MAX / 2,
            order in Just((0..WINDOW).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut replay = Replay::new();
            for counter in &order {
                prop_assert!(replay.is_fresh(start + counter));
                replay.mark(start + counter);
            }
            for counter in &order {
                prop_assert!(!replay.is_fresh(start + counter));
            }
        }
    }
}
