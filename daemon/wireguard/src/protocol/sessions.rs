//! The sessions of one pair: which one sends, and which one a message belongs to.
//!
//! The lowest bits of a session's index are its slot. Replaced sessions stay until they expire,
//! because messages may still be on their way; if two handshakes crossed, the peer may even keep
//! sending with a replaced one.

use std::time::Instant;

use super::session::Session;

/// The most sessions; one slot is reserved for the handshake under way. Two or three are usual.
const SLOTS: usize = 8;

pub(super) struct Sessions {
    slots: [Option<Box<Session>>; SLOTS],
    /// Lowest byte of the last index that was allocated.
    last: u8,
    /// The slot of the session for sending, as long as it may be used for that.
    current: Option<usize>,
    /// The slot of the session that this node answered last. It may send with it only after the
    /// peer has (WireGuard paper, 5.1).
    next: Option<usize>,
    /// When the first session expires.
    end: Option<Instant>,
}

impl Sessions {
    pub(super) fn new() -> Sessions {
        Sessions { slots: Default::default(), last: 0, current: None, next: None, end: None }
    }

    /// The lowest byte of an index whose slot is free and is not the slot of the index `kept`.
    pub(super) fn free_index(&mut self, kept: Option<u32>) -> u8 {
        if self.slots.iter().flatten().count() >= SLOTS - 1 {
            self.evict();
        }
        loop {
            self.last = self.last.wrapping_add(1);
            let slot = slot(self.last.into());
            if self.slots[slot].is_none() && kept.map(self::slot) != Some(slot) {
                return self.last;
            }
        }
    }

    /// Starts to use a session that this node initiated. It is newer than an answered one that the
    /// peer has not used.
    pub(super) fn add_initiated(&mut self, session: Session) {
        self.current = Some(self.add(session));
        self.next = None;
    }

    /// Keeps a session that the peer initiated until the peer uses it.
    pub(super) fn add_answered(&mut self, session: Session) {
        self.next = Some(self.add(session));
    }

    /// Records an authentic message. Returns whether it was the one that confirmed its session.
    pub(super) fn confirm(&mut self, receiver: u32) -> bool {
        let is_next = self.next == Some(slot(receiver));
        if is_next {
            self.current = self.next.take();
        }
        is_next
    }

    /// The session for sending.
    pub(super) fn current(&self) -> Option<&Session> {
        self.slots[self.current?].as_deref()
    }

    /// Encrypts with the session for sending. Once that was used too often, there is none.
    pub(super) fn seal(&mut self, packet: &[u8], room: &mut [u8]) -> bool {
        let session = self.current.and_then(|slot| self.slots[slot].as_deref_mut());
        let sealed = session.is_some_and(|session| session.seal(packet, room));
        if !sealed {
            self.current = None;
        }
        sealed
    }

    /// The session that a message is for.
    pub(super) fn receiving(&mut self, receiver: u32) -> Option<&mut Session> {
        self.slots[slot(receiver)].as_deref_mut().filter(|session| session.local() == receiver)
    }

    /// When [`Sessions::drop_ended`] has something to do.
    pub(super) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// Drops expired sessions, and their keys with them.
    pub(super) fn drop_ended(&mut self, now: Instant) {
        if self.end.is_none_or(|end| now < end) {
            return;
        }
        for slot in 0..SLOTS {
            if self.slots[slot].as_ref().is_some_and(|session| now >= session.end()) {
                self.drop_slot(slot);
            }
        }
    }

    fn add(&mut self, session: Session) -> usize {
        let slot = slot(session.local());
        self.slots[slot] = Some(Box::new(session));
        self.find_end();
        slot
    }

    /// Makes room: drops the oldest session that is only used for receiving.
    fn evict(&mut self) {
        let is_needed = |slot: &usize| self.current == Some(*slot) || self.next == Some(*slot);
        let ends = |slot: &usize| self.slots[*slot].as_ref().map(|session| session.end());
        let oldest = (0..SLOTS).filter(|slot| !is_needed(slot) && ends(slot).is_some()).min_by_key(ends);
        if let Some(slot) = oldest {
            self.drop_slot(slot);
        }
    }

    fn drop_slot(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.current.take_if(|current| *current == slot);
        self.next.take_if(|next| *next == slot);
        self.find_end();
    }

    fn find_end(&mut self) {
        self.end = self.slots.iter().flatten().map(|session| session.end()).min();
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    #[cfg(test)]
    pub(super) fn current_mut(&mut self) -> Option<&mut Session> {
        self.slots[self.current?].as_deref_mut()
    }
}

fn slot(index: u32) -> usize {
    index as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use hauberk_cipher::Implementation;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::super::handshake::SessionKeys;
    use super::super::session::REJECT_AFTER_TIME;
    use super::*;

    fn session(now: Instant, local: u32) -> Session {
        let key = || Zeroizing::new([1; 32]);
        let keys = SessionKeys { sending: key(), receiving: key() };
        Session::new(now, (local, 0), &keys, true, Implementation::best())
    }

    proptest! {
        /// Answers, handshakes with several attempts, confirmations, and passing time, compared
        /// with a simple map.
        #[test]
        fn no_index_is_used_twice_at_a_time_and_what_sends_stays(
            steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>(), 0u64..60), 0..300),
        ) {
            let mut now = Instant::now();
            let mut sessions = Sessions::new();
            let mut made: BTreeMap<u32, Instant> = BTreeMap::new();
            let (mut current, mut next, mut handshake): (Option<u32>, Option<u32>, Option<u32>) = (None, None, None);
            for (what, which, seconds) in steps {
                sessions.drop_ended(now);
                made.retain(|_, made| now < *made + REJECT_AFTER_TIME);
                current = current.filter(|index| made.contains_key(index));
                next = next.filter(|index| made.contains_key(index));
                match what {
                    0 => {
                        let index = sessions.free_index(None).into();
                        prop_assert!(!made.contains_key(&index));
                        handshake = Some(index);
                    }
                    1 => {
                        let index = sessions.free_index(handshake).into();
                        prop_assert!(!made.contains_key(&index) && handshake != Some(index));
                        sessions.add_answered(session(now, index));
                        made.insert(index, now);
                        next = Some(index);
                    }
                    2 => if let Some(index) = handshake.take() {
                        sessions.add_initiated(session(now, index));
                        made.insert(index, now);
                        (current, next) = (Some(index), None);
                    },
                    3 => if !made.is_empty() {
                        let index = *made.keys().nth(which.index(made.len())).unwrap();
                        prop_assert_eq!(sessions.confirm(index), next == Some(index));
                        if next == Some(index) {
                            current = next.take();
                        }
                    },
                    _ => now += Duration::from_secs(seconds),
                }
                // Only the oldest may have been dropped early, to make room.
                made.retain(|index, _| sessions.receiving(*index).is_some());
                prop_assert!(current.is_none_or(|index| made.contains_key(&index)));
                prop_assert!(next.is_none_or(|index| made.contains_key(&index)));
                prop_assert_eq!(sessions.count(), made.len());
                if now < sessions.end().unwrap_or(now + REJECT_AFTER_TIME) {
                    prop_assert_eq!(sessions.current().map(Session::local), current);
                }
                prop_assert_eq!(sessions.end(), made.values().min().map(|made| *made + REJECT_AFTER_TIME));
            }
        }
    }

    #[test]
    fn for_want_of_room_the_oldest_goes() {
        let start = Instant::now();
        let mut sessions = Sessions::new();
        let mut indices = vec![];
        for second in 0..20 {
            let index = sessions.free_index(None).into();
            sessions.add_answered(session(start + Duration::from_secs(second), index));
            if second == 0 {
                sessions.confirm(index);
            }
            indices.push(index);
        }
        let kept: Vec<_> = indices.iter().filter(|index| sessions.receiving(**index).is_some()).collect();
        assert_eq!(kept.len(), SLOTS - 1);
        assert_eq!(*kept[0], indices[0], "it sends");
        assert!(kept[1..].iter().copied().eq(&indices[20 - (SLOTS - 2)..]));
    }
}
