//! Senders of handshakes whose static key no peer has. A sender that keeps asking is either a node
//! that this node has not read yet, or an intruder.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most senders that are kept. Source addresses are easy to forge, so the oldest is replaced.
const REMEMBERED: usize = 8;
/// After this silence a sender counts as new. A peer with packets to send asks every 5 s, for up to
/// 90 s.
const SILENT: Duration = Duration::from_secs(60);

/// A sender with an unknown key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Where it sends from.
    pub from: SocketAddr,
    /// Time of its first handshake since the last long pause.
    pub first: Instant,
    /// Time of its latest handshake.
    pub last: Instant,
}

/// Senders that asked recently.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<Vec<Stranger>>);

impl Strangers {
    /// Records a handshake.
    pub(crate) fn note(&self, from: SocketAddr, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|stranger| now.duration_since(stranger.last) < SILENT);
        let same = |stranger: &&mut Stranger| address(stranger.from) == address(from);
        if let Some(stranger) = known.iter_mut().find(same) {
            (stranger.from, stranger.last) = (from, now);
            return;
        }
        if known.len() == REMEMBERED {
            let oldest = known.iter().enumerate().min_by_key(|(_, stranger)| stranger.last).map(|(place, _)| place);
            oldest.map(|place| known.swap_remove(place));
        }
        known.push(Stranger { from, first: now, last: now });
    }

    /// The senders that asked within the last minute.
    pub(crate) fn list(&self, now: Instant) -> Vec<Stranger> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter(|stranger| now.duration_since(stranger.last) < SILENT).copied().collect()
    }
}

/// A socket of both families shows IPv4 addresses in IPv6 form.
fn address(from: SocketAddr) -> IpAddr {
    from.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 51820))
    }

    #[test]
    fn who_goes_on_asking_is_remembered_with_when_it_began() {
        let (strangers, begin) = (Strangers::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        for seconds in [0, 5, 50] {
            strangers.note(from(1), at(seconds));
        }
        assert_eq!(strangers.list(at(60)), [Stranger { from: from(1), first: at(0), last: at(50) }]);
        assert!(strangers.list(at(110)).is_empty());
        strangers.note(from(1), at(120));
        assert_eq!(strangers.list(at(120))[0].first, at(120), "it begins anew");
    }

    #[test]
    fn many_forged_addresses_use_up_no_memory() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        (0..200).for_each(|number| strangers.note(from(number), now + Duration::from_millis(number.into())));
        let list = strangers.list(now + Duration::from_secs(1));
        assert_eq!(list.len(), REMEMBERED);
        assert!(list.iter().all(|stranger| stranger.from >= from(192)), "{list:?}");
    }
}
