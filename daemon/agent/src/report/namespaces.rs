//! What a namespace's annotation says: `encrypted on 3/3 nodes since 2026-11-23T10:00:00Z`.

use hauberk_api::{NamespaceStatus, Protection};
use jiff::Timestamp;

/// The most names of nodes that are waited for; the others are counted.
const NAMED: usize = 3;

/// The text now. `before` is the last text, from whichever agent: the same state may have lasted
/// since then.
pub fn text(status: &NamespaceStatus, before: Option<&str>, now: Timestamp) -> String {
    let (converged, nodes) = (status.converged_nodes, status.nodes);
    if status.waiting_for.is_empty() {
        let state = state(status.protection);
        let since = before.and_then(|before| since_of(before, state)).unwrap_or(now);
        return format!("{state} on {converged}/{nodes} nodes since {since:.0}");
    }
    let named = status.waiting_for.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match status.waiting_for.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let becoming = match status.protection {
        Protection::Enabled => "encrypting",
        Protection::Permissive => "becoming permissive",
        Protection::None => "encrypting opted-in pods",
    };
    format!("{becoming}: {converged}/{nodes} nodes, waiting for {named}{more}")
}

/// The time since when, if the text says that the namespace has converged.
pub fn since(text: &str) -> Option<Timestamp> {
    text.rsplit_once(" since ")?.1.parse().ok()
}

fn state(protection: Protection) -> &'static str {
    match protection {
        Protection::Enabled => "encrypted",
        Protection::Permissive => "permissive",
        Protection::None => "opted-in pods encrypted",
    }
}

/// The time in `before`, if it says the same state, on any number of nodes.
fn since_of(before: &str, state: &str) -> Option<Timestamp> {
    before.strip_prefix(state)?.strip_prefix(" on ")?;
    since(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(protection: Protection, converged: usize, waiting: &[&str]) -> NamespaceStatus {
        NamespaceStatus {
            name: "payments".into(),
            protection,
            pods: 2,
            protected_pods: 2,
            converged_nodes: converged,
            nodes: converged + waiting.len(),
            waiting_for: waiting.iter().map(|name| (*name).to_owned()).collect(),
            since: None,
            host_network: Vec::new(),
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn since_stays_while_the_state_does_whoever_writes_it() {
        let first = text(&status(Protection::Enabled, 3, &[]), None, at("2026-11-23T10:00:00.9Z"));
        assert_eq!(first, "encrypted on 3/3 nodes since 2026-11-23T10:00:00Z");
        let later = at("2026-11-24T11:00:00Z");
        assert_eq!(text(&status(Protection::Enabled, 3, &[]), Some(&first), later), first);
        let grown = text(&status(Protection::Enabled, 4, &[]), Some(&first), later);
        assert_eq!(grown, "encrypted on 4/4 nodes since 2026-11-23T10:00:00Z");
        assert_eq!(since(&grown), Some(at("2026-11-23T10:00:00Z")));
    }

    #[test]
    fn another_state_or_a_text_of_somebody_else_s_begins_anew() {
        let now = at("2026-11-24T11:00:00Z");
        let encrypted = "encrypted on 3/3 nodes since 2026-11-23T10:00:00Z";
        let permissive = "permissive on 3/3 nodes since 2026-11-24T11:00:00Z";
        assert_eq!(text(&status(Protection::Permissive, 3, &[]), Some(encrypted), now), permissive);
        for before in
            ["encrypted on 3/3 nodes since yesterday", "encrypting: 2/3 nodes, waiting for n3", "", "x since 1"]
        {
            let text = text(&status(Protection::Enabled, 3, &[]), Some(before), now);
            assert_eq!(text, "encrypted on 3/3 nodes since 2026-11-24T11:00:00Z", "{before}");
        }
    }

    #[test]
    fn who_is_waited_for_is_named_within_limits() {
        let now = Timestamp::UNIX_EPOCH;
        let one = text(&status(Protection::Enabled, 2, &["n3"]), None, now);
        assert_eq!(one, "encrypting: 2/3 nodes, waiting for n3");
        assert_eq!(since(&one), None);
        let many = text(&status(Protection::Permissive, 0, &["a", "b", "c", "d", "e"]), None, now);
        assert_eq!(many, "becoming permissive: 0/5 nodes, waiting for a, b, c and 2 more");
    }
}
