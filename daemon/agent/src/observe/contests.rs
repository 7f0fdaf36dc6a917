//! Addresses that several nodes claim, where that does harm: opted-in pods' packets to or from one
//! were dropped, or all claimants but one are silent. A virtual address whose node has died is such
//! a case. An address that every node's container engine has on a bridge of its own is not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use hauberk_abi::flow::{Flow, FlowKey};
use hauberk_abi::reason::{DropReason, Encryption};
use hauberk_api::{Problem, Severity};
use hauberk_core::identities::Contest;
use jiff::{SignedDuration, Timestamp};

use super::MapReader;
use crate::state::{AgentState, SharedState};

/// Between looks.
const LOOK: Duration = Duration::from_secs(3);
/// How long after the last packet the problem is reported.
const TOLD: SignedDuration = SignedDuration::from_mins(5);

const REASONS: [DropReason; 3] =
    [DropReason::UnknownDestination, DropReason::PlaintextToProtected, DropReason::PlaintextFromProtected];

/// When a packet to or from a contested address was dropped last, by address.
#[derive(Debug, Default)]
pub struct Contests(BTreeMap<IpAddr, Timestamp>);

/// Looks for dropped packets until the runtime ends.
pub async fn watch(agent: SharedState, map_reader: MapReader) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut counted = 0;
    loop {
        look.tick().await;
        let contested: BTreeSet<IpAddr> = agent.read().desired.contested.keys().copied().collect();
        let drops = map_reader.maps().drops().unwrap_or_default().into_iter();
        let drops = drops.filter(|(reason, _)| REASONS.contains(reason)).map(|(_, packets)| packets).sum();
        let grown = std::mem::replace(&mut counted, drops) != drops;
        agent.write().contests.0.retain(|address, _| contested.contains(address));
        if contested.is_empty() || !grown {
            continue;
        }
        let now = hauberk_datapath::now();
        let flows = map_reader.maps().flows(now).unwrap_or_default();
        agent.write().contests.take(&contested, &flows, now, Timestamp::now());
    }
}

impl Contests {
    /// Takes over refused flows of contested addresses; `now` (monotonic clock) and `wall` are the
    /// same moment.
    fn take(&mut self, contested: &BTreeSet<IpAddr>, flows: &[(FlowKey, Flow)], now: u64, wall: Timestamp) {
        for (key, flow) in flows {
            let refused = flow.encryption == Encryption::Refused as u8;
            if !refused || !REASONS.contains(&DropReason::from_u8(flow.drop)) {
                continue;
            }
            let ends = [key.source, key.destination].map(IpAddr::from);
            for address in ends.into_iter().filter(|address| contested.contains(address)) {
                let ago = SignedDuration::from_nanos(now.saturating_sub(flow.last).min(i64::MAX as u64) as i64);
                let last = wall.checked_sub(ago).unwrap_or(wall);
                let known = self.0.entry(address).or_insert(last);
                *known = last.max(*known);
            }
        }
    }
}

/// A problem for each contested address that does harm; `mute` are the nodes that do not answer
/// handshakes.
pub fn problems(agent: &AgentState, mute: &BTreeSet<String>) -> Vec<Problem> {
    let now = Timestamp::now();
    let contested = agent.desired.contested.keys();
    let found = contested.filter_map(|address| Some((*address, agent.desired.contest(*address)?)));
    found
        .filter_map(|(address, contest)| {
            let dropped = agent.contests.0.get(&address).filter(|last| now.duration_since(**last) < TOLD);
            problem(address, contest, dropped.copied(), mute)
        })
        .collect()
}

fn problem(address: IpAddr, contest: &Contest, dropped: Option<Timestamp>, mute: &BTreeSet<String>) -> Option<Problem> {
    let silent: Vec<&str> = contest.nodes.iter().filter(|node| mute.contains(*node)).map(String::as_str).collect();
    // The one claimant that still answers has probably taken the address over from the others.
    let is_taken_over = !silent.is_empty() && contest.count - silent.len() <= 1;
    if dropped.is_none() && !is_taken_over {
        return None;
    }
    let dropped_at = dropped.map(|last| format!(", the last at {last:.0}")).unwrap_or_default();
    let silence = match silent.as_slice() {
        [] => String::new(),
        [one] => format!("; {one} does not answer handshakes: if it is gone, delete its Node object"),
        several => {
            format!("; {} do not answer handshakes: if they are gone, delete their Node objects", several.join(" and "))
        }
    };
    Some(Problem {
        severity: if dropped.is_some() { Severity::Critical } else { Severity::Warning },
        object: format!("address/{address}"),
        message: format!(
            "{} have it, by their objects or their devices, so that it is nobody's: packets of opted-in pods to and from it are \
             dropped{dropped_at}{silence}; leave it to one node",
            contest.nodes_in_words()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contest(nodes: &[&str]) -> Contest {
        Contest { nodes: nodes.iter().map(|node| (*node).to_owned()).collect(), count: nodes.len() }
    }

    #[test]
    fn a_contest_is_told_when_packets_are_dropped_or_all_but_one_are_silent() {
        let address = "192.0.2.100".parse().unwrap();
        let told = |contest: &Contest, dropped, mute: &[&str]| {
            problem(address, contest, dropped, &mute.iter().map(|node| (*node).to_owned()).collect())
        };
        let two = contest(&["n2", "n3"]);
        assert_eq!(told(&two, None, &[]), None);
        assert_eq!(told(&two, None, &["n9"]), None);
        let silent = told(&two, None, &["n2"]).unwrap();
        assert_eq!((silent.severity, silent.object.as_str()), (Severity::Warning, "address/192.0.2.100"));
        assert!(silent.message.starts_with("n2 and n3 have it"), "{}", silent.message);
        assert!(silent.message.contains("n2 does not answer"), "{}", silent.message);
        let dropped = told(&two, Some(Timestamp::UNIX_EPOCH), &[]).unwrap();
        assert_eq!(dropped.severity, Severity::Critical);
        assert!(dropped.message.contains("1970-01-01T00:00:00Z"), "{}", dropped.message);
        // Bridges of container engines: the death of one node says nothing about the address.
        assert_eq!(told(&contest(&["n2", "n3", "n4"]), None, &["n2"]), None);
    }

    #[test]
    fn flows_that_were_refused_tell_which_address_is_asked_for() {
        let [asked, other] = ["192.0.2.100", "192.0.2.101"].map(|text| text.parse::<IpAddr>().unwrap());
        let (now, wall) = (60_000_000_000, Timestamp::now());
        let flow = |destination: IpAddr, encryption: Encryption, drop: DropReason| {
            let mut key = FlowKey::default();
            (key.source, key.destination) = ("10.0.1.5".parse::<IpAddr>().unwrap().into(), destination.into());
            let flow = Flow { last: now, encryption: encryption as u8, drop: drop as u8, ..Flow::default() };
            (key, flow)
        };
        let mut contests = Contests::default();
        let flows = [
            flow(asked, Encryption::Refused, DropReason::UnknownDestination),
            flow(other, Encryption::Refused, DropReason::NotLocal),
            flow(other, Encryption::Plain, DropReason::Unspecified),
        ];
        contests.take(&BTreeSet::from([asked, other]), &flows, now, wall);
        assert_eq!(contests.0, BTreeMap::from([(asked, wall)]));
    }
}
