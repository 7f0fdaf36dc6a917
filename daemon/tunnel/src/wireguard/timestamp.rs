//! The timestamps of initiations (WireGuard paper, 5.1): each later than all before, so that a recorded initiation is worth nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// TAI64N: seconds and nanoseconds, big-endian, so that their order is that of the bytes.
pub(super) type Timestamp = [u8; 12];

/// Earlier than any: the peer has not shown one yet.
pub(super) const NEVER: Timestamp = [0; 12];

/// TAI64's name for 1970, 10 s behind TAI at that time. The leap seconds since do not matter: only order does.
const EPOCH: u64 = (1 << 62) + 10;
/// A step of the clock as others may see it, in nanoseconds: about 17 ms. A finer one would tell how busy this machine is.
const STEP: u64 = 1 << 24;
const NANOSECONDS: u64 = 1_000_000_000;

/// The last one given out by this node, in nanoseconds since 1970.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// The time, or a moment after the timestamp before, whichever is later. A clock that is set back repeats none.
pub(super) fn next() -> Timestamp {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    encode(advance(&LATEST, u64::try_from(clock).unwrap_or(u64::MAX)))
}

/// The last timestamp that an initiation of this process had, in nanoseconds since 1970; 0 before the first.
///
/// Peers refuse a handshake whose timestamp is not later than the last one (WireGuard paper, 5.1). A caller that keeps this over
/// a restart and gives it to [`not_before`] is understood by them even if the clock was set back meanwhile.
pub fn latest() -> u64 {
    LATEST.load(Ordering::Relaxed)
}

/// Makes every later initiation's timestamp later than `earliest`, in nanoseconds since 1970, whatever the clock says.
pub fn not_before(earliest: u64) {
    LATEST.fetch_max(earliest, Ordering::Relaxed);
}

fn advance(latest: &AtomicU64, clock: u64) -> u64 {
    let after = |latest: u64| (clock - clock % STEP).max(latest.saturating_add(1));
    let (Ok(before) | Err(before)) =
        latest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |latest| Some(after(latest)));
    after(before)
}

fn encode(time: u64) -> Timestamp {
    let mut bytes = NEVER;
    bytes[..8].copy_from_slice(&(EPOCH + time / NANOSECONDS).to_be_bytes());
    bytes[8..].copy_from_slice(&((time % NANOSECONDS) as u32).to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_later_than_the_one_before_even_if_the_clock_is_not() {
        let latest = AtomicU64::new(0);
        let mut before = NEVER;
        for clock in [5 * STEP, 5 * STEP + 7, 5 * STEP, 3 * STEP, 0, 6 * STEP, 6 * STEP - 1, u64::MAX] {
            let stamp = encode(advance(&latest, clock));
            assert!(stamp > before, "{clock}");
            before = stamp;
        }
        assert!(next() < next());
    }

    #[test]
    fn each_is_later_than_what_an_earlier_process_has_used() {
        let used = next();
        let earlier = latest() + NANOSECONDS;
        not_before(earlier);
        not_before(5);
        assert!(next() > encode(earlier) && encode(earlier) > used);
        assert!(latest() > earlier);
    }

    #[test]
    fn is_tai64n_with_the_fine_part_taken_away() {
        let second = 1_700_000_000;
        let stamp = encode(advance(&AtomicU64::new(0), second * NANOSECONDS + 999_999_999));
        assert_eq!(stamp[..8], (0x4000_0000_0000_000a + second).to_be_bytes());
        let nanoseconds = u32::from_be_bytes([stamp[8], stamp[9], stamp[10], stamp[11]]);
        assert!((980_000_000..1_000_000_000).contains(&nanoseconds), "{nanoseconds}");
    }
}
