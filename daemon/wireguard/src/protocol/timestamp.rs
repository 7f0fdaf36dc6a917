//! The timestamps of initiations (WireGuard paper, 5.1): each is later than all before, so a
//! recorded initiation is useless.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// TAI64N: seconds and nanoseconds, big-endian, so that they sort as bytes.
pub(super) type Timestamp = [u8; 12];

/// Earlier than any timestamp: the peer has not sent one yet.
pub(super) const NEVER: Timestamp = [0; 12];

/// The TAI64 label of 1970 in UTC, when TAI was 10 s ahead. Later leap seconds do not matter,
/// because only the order does.
const EPOCH: u64 = (1 << 62) + 10;
/// Resolution of the clock in timestamps, in nanoseconds: about 17 ms. A finer one would show how
/// busy this machine is.
const STEP: u64 = 1 << 24;
const NANOSECONDS: u64 = 1_000_000_000;

/// The latest timestamp of this node, in nanoseconds since 1970.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// The present time, or just after the previous timestamp, whichever is later. So a clock that is
/// set back repeats none.
pub(super) fn next() -> Timestamp {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    encode(advance(&LATEST, u64::try_from(clock).unwrap_or(u64::MAX)))
}

/// The timestamp of this process's last initiation, in nanoseconds since 1970; 0 before the first.
///
/// Peers refuse a handshake whose timestamp is not later than the last one (WireGuard paper, 5.1).
/// If a caller keeps this over a restart and passes it to [`not_before`], peers accept its
/// handshakes even if the clock was set back meanwhile.
pub fn latest() -> u64 {
    LATEST.load(Ordering::Relaxed)
}

/// Makes the timestamps of all later initiations later than `earliest`, in nanoseconds since 1970,
/// whatever the clock says.
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
