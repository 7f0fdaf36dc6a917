//! Deadlines without scanning: a heap of the peers that have a deadline.
//!
//! It has no clock; the caller passes the time in. Peers without a deadline are not in it, so an
//! idle tunnel never wakes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// At most one deadline per key.
pub(crate) struct Schedule<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
    /// The valid deadline; heap entries with another time are leftovers.
    armed: HashMap<K, Instant>,
}

impl<K: Copy + Eq + Hash + Ord> Schedule<K> {
    pub(crate) fn new() -> Schedule<K> {
        Schedule { heap: BinaryHeap::new(), armed: HashMap::new() }
    }

    /// Sets a deadline for `key`; an earlier deadline stays.
    pub(crate) fn arm(&mut self, key: K, at: Instant) {
        if self.armed.get(&key).is_some_and(|armed| *armed <= at) {
            return;
        }
        self.armed.insert(key, at);
        self.heap.push(Reverse((at, key)));
    }

    /// Removes the deadline of `key`.
    pub(crate) fn disarm(&mut self, key: K) {
        self.armed.remove(&key);
    }

    /// The nearest deadline.
    pub(crate) fn next(&mut self) -> Option<Instant> {
        self.drop_leftovers();
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Removes and returns one key whose deadline has passed.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<K> {
        self.drop_leftovers();
        let Reverse((at, key)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop();
        self.armed.remove(&key);
        Some(key)
    }

    fn drop_leftovers(&mut self) {
        while let Some(Reverse((at, key))) = self.heap.peek() {
            if self.armed.get(key) == Some(at) {
                return;
            }
            self.heap.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn wakes_in_order_and_only_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::new();
        schedule.arm('b', at(5));
        schedule.arm('a', at(3));
        schedule.arm('b', at(9));
        assert_eq!(schedule.next(), Some(at(3)));
        assert_eq!(schedule.pop_due(at(2)), None);
        assert_eq!(schedule.pop_due(at(10)), Some('a'));
        assert_eq!(schedule.pop_due(at(10)), Some('b'));
        assert_eq!(schedule.pop_due(at(10)), None);
        assert_eq!(schedule.next(), None, "nobody waits, nobody wakes");
    }

    #[test]
    fn a_disarmed_key_never_wakes() {
        let start = Instant::now();
        let mut schedule = Schedule::new();
        schedule.arm(1, start);
        schedule.disarm(1);
        assert_eq!(schedule.next(), None);
        assert_eq!(schedule.pop_due(start), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(steps in prop::collection::vec((0u8..4, 0u8..6, 0u64..50), 0..200)) {
            let start = Instant::now();
            let mut schedule = Schedule::new();
            let mut model: HashMap<u8, Instant> = HashMap::new();
            for (what, key, offset) in steps {
                let at = start + Duration::from_secs(offset);
                match what {
                    0 | 1 => {
                        schedule.arm(key, at);
                        let armed = model.entry(key).or_insert(at);
                        *armed = at.min(*armed);
                    }
                    2 => {
                        schedule.disarm(key);
                        model.remove(&key);
                    }
                    _ => {
                        let due = model.iter().filter(|(_, due)| **due <= at).map(|(key, due)| (*due, *key)).min();
                        prop_assert_eq!(schedule.pop_due(at), due.map(|(_, key)| key));
                        if let Some((_, key)) = due {
                            model.remove(&key);
                        }
                    }
                }
                prop_assert_eq!(schedule.next(), model.values().min().copied());
            }
        }
    }
}
