//! What was read but not yet carried, when more arrives than can be carried at once.
//!
//! Reads are carried in order of arrival, except that a small read may overtake large reads of
//! other flows: a request next to a bulk stream leaves at once instead of waiting for megabytes of
//! that stream. Within a flow nothing is reordered.

use std::collections::VecDeque;

/// Identifies a flow by hashes. Two flows can compare equal; then a small packet only loses its
/// chance to overtake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Hash of both addresses.
    pub ends: u64,
    /// Hash of protocol and ports. None if they are not known, as in fragments: then it may be any
    /// flow between the two addresses.
    pub ports: Option<u64>,
}

impl Flow {
    #[inline]
    fn may_be(&self, other: &Flow) -> bool {
        self.ends == other.ends && (self.ports.is_none() || other.ports.is_none() || self.ports == other.ports)
    }
}

/// The most bytes of a read that may go first: a packet or a few small ones.
const SMALL: usize = 2_048;
/// Bytes of small reads that may go first before the front read gets its turn, so that they do not
/// starve the large ones.
const MOST_AT_ONCE: usize = 16_384;
/// The most reads that wait here: as much as one TCP connection has in flight with Linux's default
/// limits. More wait in the kernel.
const MOST_WAITING: usize = 64;

/// One read: its bytes and the data that came with them.
pub(crate) struct Read<T> {
    buffer: Box<[u8]>,
    length: usize,
    pub(crate) about: T,
    /// The flows of its packets, once they have been determined.
    flows: Vec<Flow>,
    is_known: bool,
}

impl<T> Read<T> {
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.length]
    }

    /// Whether it may go first. After a small read the engine does not look for newer small ones,
    /// because that does not pay.
    pub(crate) fn is_small(&self) -> bool {
        self.length <= SMALL
    }
}

/// The waiting reads, and spare buffers.
pub(crate) struct Backlog<T> {
    size: usize,
    waiting: VecDeque<Read<T>>,
    spare: Vec<(Box<[u8]>, Vec<Flow>)>,
    /// Bytes that went first since the front read had its turn.
    ahead: usize,
}

impl<T> Backlog<T> {
    /// For reads of at most `size` bytes.
    pub(crate) fn new(size: usize) -> Backlog<T> {
        Backlog { size, waiting: VecDeque::new(), spare: Vec::new(), ahead: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Reads once more if there is room. False if there is no room, or nothing to read.
    pub(crate) fn read<E>(&mut self, read: impl FnOnce(&mut [u8]) -> Result<Option<(usize, T)>, E>) -> Result<bool, E> {
        if self.waiting.len() >= MOST_WAITING {
            return Ok(false);
        }
        let (mut buffer, flows) =
            self.spare.pop().unwrap_or_else(|| (vec![0; self.size].into_boxed_slice(), Vec::new()));
        match read(&mut buffer) {
            Ok(Some((length, about))) => {
                self.waiting.push_back(Read { buffer, length, about, flows, is_known: false });
                Ok(true)
            }
            nothing => {
                self.spare.push((buffer, flows));
                nothing.map(|_| false)
            }
        }
    }

    /// The next read to carry. `flows` adds the flows of a read's packets; it returns false if they
    /// cannot be known.
    pub(crate) fn next(&mut self, mut flows: impl FnMut(&mut Read<T>, &mut Vec<Flow>) -> bool) -> Option<Read<T>> {
        let next = self.small_one(&mut flows).unwrap_or(0);
        let read = self.waiting.remove(next)?;
        self.ahead = if next == 0 { 0 } else { self.ahead + read.length };
        Some(read)
    }

    /// Takes back the buffer of a read that was carried.
    pub(crate) fn done(&mut self, read: Read<T>) {
        let Read { buffer, mut flows, .. } = read;
        flows.clear();
        self.spare.push((buffer, flows));
    }

    /// The position of a small read behind large ones that shares no flow with any read before it.
    fn small_one(&mut self, flows: &mut impl FnMut(&mut Read<T>, &mut Vec<Flow>) -> bool) -> Option<usize> {
        if self.ahead >= MOST_AT_ONCE || self.waiting.front().is_none_or(Read::is_small) {
            return None;
        }
        (0..self.waiting.len()).find(|index| self.waiting[*index].is_small() && self.is_free(*index, flows))
    }

    /// Whether a read shares no flow with any earlier read.
    fn is_free(&mut self, index: usize, flows: &mut impl FnMut(&mut Read<T>, &mut Vec<Flow>) -> bool) -> bool {
        for read in self.waiting.range_mut(..=index).filter(|read| !read.is_known) {
            let mut known = std::mem::take(&mut read.flows);
            known.clear();
            read.is_known = flows(read, &mut known);
            read.flows = known;
            if !read.is_known {
                return false;
            }
        }
        let own = &self.waiting[index].flows;
        let meets = |read: &Read<T>| read.flows.iter().any(|flow| own.iter().any(|own| own.may_be(flow)));
        !self.waiting.range(..index).any(meets)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(number: u8) -> Flow {
        Flow { ends: u64::from(number / 4), ports: (!number.is_multiple_of(4)).then_some(u64::from(number)) }
    }

    /// Adds a read, identified by its number and its flow.
    fn read(backlog: &mut Backlog<(usize, u8)>, length: usize, number: usize, flow: u8) -> bool {
        backlog.read(|_| Ok::<_, ()>(Some((length, (number, flow))))).unwrap()
    }

    fn next(backlog: &mut Backlog<(usize, u8)>) -> Option<(usize, u8)> {
        let read = backlog.next(|read, flows| {
            flows.push(flow(read.about.1));
            true
        })?;
        let about = read.about;
        backlog.done(read);
        Some(about)
    }

    #[test]
    fn a_small_packet_of_another_flow_goes_first() {
        let mut backlog = Backlog::new(60_000);
        for number in 0..10 {
            read(&mut backlog, 60_000, number, 1);
        }
        read(&mut backlog, 100, 10, 2);
        read(&mut backlog, 100, 11, 1);
        assert_eq!(next(&mut backlog), Some((10, 2)));
        for number in (0..10).chain([11]) {
            assert_eq!(next(&mut backlog).unwrap().0, number);
        }
        assert_eq!(next(&mut backlog), None);
    }

    #[test]
    fn what_may_be_of_the_same_flow_waits() {
        for (large, small) in [(1, 1), (0, 1), (1, 0), (0, 0)] {
            let mut backlog = Backlog::new(60_000);
            read(&mut backlog, 60_000, 0, large);
            read(&mut backlog, 100, 1, small);
            assert_eq!(next(&mut backlog).unwrap().0, 0, "{large} {small}");
        }
        let mut backlog = Backlog::new(60_000);
        read(&mut backlog, 60_000, 0, 1);
        read(&mut backlog, 100, 1, 2);
        let unknown = backlog.next(|_, _| false).unwrap();
        assert_eq!(unknown.about.0, 0, "what cannot be known goes as it came");
    }

    #[test]
    fn many_small_ones_do_not_starve_a_large_one() {
        let mut backlog = Backlog::new(60_000);
        read(&mut backlog, 60_000, 0, 1);
        let mut turns = 0;
        loop {
            read(&mut backlog, 1_000, 1, 2);
            turns += 1;
            if next(&mut backlog).unwrap().0 == 0 {
                break;
            }
        }
        assert!((10..30).contains(&turns), "{turns}");
    }

    proptest! {
        /// In any order of arrival, each read goes once, none overtakes an earlier one of its flow,
        /// and memory is bounded.
        #[test]
        fn nothing_overtakes_within_a_flow_and_nothing_is_lost(
            steps in prop::collection::vec((0u8..3, prop_oneof![Just(100usize), Just(60_000)], 0u8..12), 0..400),
        ) {
            let mut backlog = Backlog::new(60_000);
            let (mut came, mut went) = (0, Vec::new());
            for (what, length, flow) in steps {
                if what > 0 {
                    came += usize::from(read(&mut backlog, length, came, flow));
                    prop_assert!(backlog.waiting.len() <= MOST_WAITING);
                } else {
                    went.extend(next(&mut backlog));
                }
            }
            while let Some(about) = next(&mut backlog) {
                went.push(about);
            }
            prop_assert_eq!(went.len(), came);
            for (index, (number, own)) in went.iter().enumerate() {
                for (later, other) in &went[index + 1..] {
                    prop_assert!(later > number || !flow(*own).may_be(&flow(*other)), "{} after {}", later, number);
                }
            }
            prop_assert!(backlog.spare.len() <= MOST_WAITING + 1);
        }
    }
}
