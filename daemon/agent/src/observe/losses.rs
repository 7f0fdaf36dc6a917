//! Packets that came out of the tunnel and that the IP stack lost. This is seldom hauberk's doing,
//! but nothing else reports it.

use hauberk_api::{Problem, Severity};

use hauberk_host::netfilter::{Counters, Neighbours};

/// Fewer may be under way between two looks, or have expired.
const FEW: u64 = 3;
/// One in so many may be lost as well.
const SHARE: u64 = 20;

/// What was lost between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Losses {
    /// Packets that came out of the tunnel into the stack.
    pub came: u64,
    /// The part of them that reached neither a device nor a process.
    pub lost: u64,
}

/// What was lost from one look to the next; none if nothing arrived to judge by.
pub fn compare(before: Counters, now: Counters) -> Option<Option<Losses>> {
    let came = now.decrypted.saturating_sub(before.decrypted);
    let lost = came.saturating_sub(now.carried_on.saturating_sub(before.carried_on));
    if came == 0 {
        return None;
    }
    Some((lost >= FEW && lost > came / SHARE).then_some(Losses { came, lost }))
}

/// The problem in words, with the programs whose rules may be why.
pub fn problem(losses: &Losses, neighbours: &Neighbours, tunnel: &str) -> Problem {
    let Losses { came, lost } = losses;
    let all = lost == came;
    let why = match (&neighbours.dropping[..], &neighbours.accepting[..]) {
        ([], []) => "no chain of another program is there: look at routes and reverse-path filters".to_owned(),
        ([], accepting) => format!("rules in these chains may do it: {}", accepting.join(", ")),
        (dropping, _) => format!("these chains drop what none of their rules accepts: {}", dropping.join(", ")),
    };
    let legacy =
        if neighbours.legacy { "; iptables-legacy has tables here as well, which nft cannot show" } else { "" };
    let advice = if neighbours.cures.is_empty() {
        format!("accept there what comes in by {tunnel}")
    } else {
        format!("run: {}", neighbours.cures)
    };
    Problem {
        severity: if all { Severity::Critical } else { Severity::Warning },
        object: "netfilter".into(),
        message: format!(
            "{lost} of {came} packets that came decrypted out of {tunnel} were dropped on this node before they reached a pod or a \
             process; {why}{legacy}; {advice}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(decrypted: u64, carried_on: u64) -> Counters {
        Counters { decrypted, carried_on, ..Counters::default() }
    }

    #[test]
    fn losses_are_told_from_what_is_on_its_way() {
        assert_eq!(compare(counters(5, 5), counters(5, 5)), None);
        assert_eq!(compare(counters(0, 0), counters(1_000, 960)), Some(None));
        assert_eq!(compare(counters(0, 0), counters(2, 0)), Some(None));
        assert_eq!(compare(counters(0, 0), counters(10, 0)), Some(Some(Losses { came: 10, lost: 10 })));
        assert_eq!(compare(counters(10, 0), counters(20, 10)), Some(None), "it has healed");
        // Counters that were reset say nothing.
        assert_eq!(compare(counters(10, 0), counters(3, 3)), None);
    }

    #[test]
    fn who_drops_is_named() {
        let neighbours = Neighbours { dropping: vec!["ip filter FORWARD (forward)".into()], ..Neighbours::default() };
        let all = problem(&Losses { came: 9, lost: 9 }, &neighbours, "hauberk0");
        assert!(all.severity == Severity::Critical && all.message.contains("ip filter FORWARD"), "{all:?}");
        let some = problem(&Losses { came: 9, lost: 5 }, &Neighbours { legacy: true, ..Neighbours::default() }, "t");
        assert!(some.severity == Severity::Warning && some.message.contains("iptables-legacy"), "{some:?}");
    }
}
