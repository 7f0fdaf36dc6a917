//! Unique text: put into a payload, it proves where that payload went.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memchr::memmem;

use crate::random::Random;

const PREFIX: &[u8] = b"<marker:";
const DIGITS: usize = 16;

/// The mark of a payload: `<marker:`, 16 hexadecimal digits and `>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Marker(u64);

impl Marker {
    /// Bytes of a marker.
    pub const LENGTH: usize = PREFIX.len() + DIGITS + 1;

    /// A marker that was never used before.
    pub fn unique() -> Marker {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos() as u64;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Marker(Random::new(clock.wrapping_add(count << 40) ^ u64::from(std::process::id())).number())
    }

    /// The marker's text.
    pub fn bytes(self) -> [u8; Marker::LENGTH] {
        let mut bytes = [0; Marker::LENGTH];
        bytes.copy_from_slice(self.to_string().as_bytes());
        bytes
    }

    /// `length` bytes filled with the marker. However a stream is cut, a segment of twice the
    /// marker's length contains it whole.
    pub fn fill(self, length: usize) -> Vec<u8> {
        self.bytes().iter().copied().cycle().take(length).collect()
    }

    /// Whether `bytes` contain the marker.
    pub fn is_in(self, bytes: &[u8]) -> bool {
        memmem::find(bytes, &self.bytes()).is_some()
    }

    /// Every marker in `bytes`.
    pub fn all_in(bytes: &[u8]) -> BTreeSet<Marker> {
        memmem::find_iter(bytes, PREFIX)
            .filter_map(|at| {
                let digits = bytes.get(at + PREFIX.len()..at + PREFIX.len() + DIGITS)?;
                u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok().map(Marker)
            })
            .collect()
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<marker:{:016x}>", self.0)
    }
}

impl fmt::Debug for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_wherever_a_stream_was_cut() {
        let (a, b) = (Marker::unique(), Marker::unique());
        assert_ne!(a, b);
        let filled = a.fill(500);
        for cut in 0..Marker::LENGTH {
            assert!(a.is_in(&filled[cut..cut + 2 * Marker::LENGTH]));
            assert_eq!(Marker::all_in(&filled[cut..cut + 2 * Marker::LENGTH]), BTreeSet::from([a]));
            assert!(!b.is_in(&filled[cut..]));
        }
        assert_eq!(Marker::all_in(b"<marker:not hexadecimal>"), BTreeSet::new());
    }
}
