//! Times, amounts and lists in words.

use hauberk_api::{Encryption, KeyStatus, Protection, Word};
use jiff::Timestamp;

use crate::render::page::{self, painted};

/// `2 minutes, 3 seconds ago`: the two largest units.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    match seconds {
        0 => "now".to_string(),
        1.. => format!("{} ago", duration(seconds.unsigned_abs())),
        // Two clocks are involved: this node's, and that of the node that wrote the time.
        _ => format!("{} in the future (clocks differ)", duration(seconds.unsigned_abs())),
    }
}

/// `2 minutes, 3 seconds`.
pub(crate) fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (length, unit) in UNITS {
        let count = rest / length;
        rest %= length;
        if count > 0 && parts.len() < 2 {
            parts.push(counted(count, unit));
        } else if !parts.is_empty() {
            // The second unit must follow the first directly: not `3 days, 5 seconds`.
            break;
        }
    }
    if parts.is_empty() { "0 seconds".to_string() } else { parts.join(", ") }
}

/// `1 node`, `3 nodes`.
pub(crate) fn counted(count: u64, unit: &str) -> String {
    match (count, unit) {
        (1, _) => format!("1 {unit}"),
        (_, "entry") => format!("{count} entries"),
        _ => format!("{count} {unit}s"),
    }
}

/// `1.50 KiB`, as `wg show` writes it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut amount = count as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.2} {}", UNITS[unit])
}

/// The first items of a list, how many more there are, and the option that shows them.
pub(crate) fn shortened(items: &[String], limit: usize) -> String {
    if items.is_empty() {
        return "none".to_string();
    }
    let shown = items.iter().take(limit).cloned().collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(limit) {
        0 => shown,
        more => format!("{shown} and {more} more (--verbose)"),
    }
}

/// `KEY (epoch 2)`.
pub(crate) fn key(key: &KeyStatus) -> String {
    format!("{} (epoch {})", key.public_key, key.epoch)
}

/// How a party's traffic is protected.
pub(crate) fn protection(protection: Protection) -> String {
    match protection {
        Protection::Enabled => painted(page::GOOD, "enabled (encrypted or dropped)"),
        Protection::Permissive => painted(page::DOUBTFUL, "permissive (encrypted where the peer can)"),
        Protection::None => "not opted in".to_string(),
    }
}

/// The word for a flow's encryption, in a colour: plain traffic is yellow, so that it is noticed
/// but does not look like an error.
pub(crate) fn encryption(word: &Word<Encryption>) -> String {
    painted(
        match word.known() {
            Some(Encryption::Encrypted) => page::GOOD,
            Some(Encryption::Plain) => page::DOUBTFUL,
            Some(Encryption::Refused) => page::BAD,
            Some(Encryption::Local | Encryption::World) | None => page::NEUTRAL,
        },
        word,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (123, "2 minutes, 3 seconds"),
            (3_600, "1 hour"),
            (3_605, "1 hour"),
            (90_061, "1 day, 1 hour"),
            (86_400 * 800, "800 days"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn times_lie_before_now_or_say_why_not() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let at = |text: &str| ago(text.parse().unwrap(), now);
        assert_eq!(at("2026-11-22T10:00:00.5Z"), "now");
        assert_eq!(at("2026-11-22T09:57:57Z"), "2 minutes, 3 seconds ago");
        assert_eq!(at("2026-11-22T10:01:00Z"), "1 minute in the future (clocks differ)");
    }

    #[test]
    fn amounts() {
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (5 << 30, "5.00 GiB"), (u64::MAX, "16777216.00 TiB")]
        {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(counted(1, "entry"), "1 entry");
        assert_eq!(counted(0, "entry"), "0 entries");
        assert_eq!(shortened(&[], 2), "none");
        assert_eq!(shortened(&["a", "b", "c"].map(String::from), 2), "a, b and 1 more (--verbose)");
    }
}
