//! Adds what programs have gathered of flows to the flows' entries.

use std::collections::HashMap;

use hauberk_abi::flow::{Flow, FlowKey, Tally};

/// Adds tallies to the entries of their flows, by the same rules as the programs
/// (`ebpf/programs/src/record.rs`).
///
/// A tally is skipped if its flow's entry has another verdict: the flow was judged again since. A
/// tally without an entry is of an evicted flow and becomes an entry. The exception is a tally
/// whose last packet came before `idle_since` (monotonic clock, nanoseconds): that flow was ended,
/// and these packets were counted then.
pub(crate) fn add_up(entries: HashMap<FlowKey, Flow>, tallies: &[Tally], idle_since: u64) -> Vec<(FlowKey, Flow)> {
    let mut flows = entries;
    for Tally { key, flow: gathered } in tallies {
        match flows.get_mut(key) {
            Some(flow) if flow.is_judged_as(gathered) => {
                flow.packets += gathered.packets;
                flow.bytes += gathered.bytes;
                flow.last = flow.last.max(gathered.last);
                flow.tcp_flags |= gathered.tcp_flags;
            }
            Some(_) => {}
            None if gathered.last < idle_since => {}
            None => {
                flows.insert(*key, *gathered);
            }
        }
    }
    flows.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: u8 = 1;
    const ENCRYPTED: u8 = 2;

    fn key(source_port: u16) -> FlowKey {
        FlowKey { source_port, ..FlowKey::default() }
    }

    fn flow(encryption: u8, packets: u64, last: u64) -> Flow {
        Flow { encryption, packets, bytes: 100 * packets, first: 1, last, tcp_flags: 1 << packets, ..Flow::default() }
    }

    fn tally(port: u16, flow: Flow) -> Tally {
        Tally { key: key(port), flow }
    }

    #[test]
    fn what_was_gathered_is_added_to_its_flow() {
        let entries = HashMap::from([(key(1), flow(PLAIN, 1, 50)), (key(2), flow(PLAIN, 5, 50))]);
        // From two CPUs; the first had the last packet.
        let gathered = [tally(1, flow(PLAIN, 2, 70)), tally(1, flow(PLAIN, 3, 40))];
        let mut flows = add_up(entries, &gathered, 0);
        flows.sort_by_key(|(key, _)| key.source_port);
        let sum = Flow { packets: 6, bytes: 600, last: 70, tcp_flags: 0b1110, ..flow(PLAIN, 1, 50) };
        assert_eq!(flows, [(key(1), sum), (key(2), flow(PLAIN, 5, 50))]);
    }

    #[test]
    fn what_was_gathered_before_another_verdict_does_not_undo_it() {
        let entries = HashMap::from([(key(1), flow(ENCRYPTED, 1, 50))]);
        assert_eq!(add_up(entries, &[tally(1, flow(PLAIN, 2, 40))], 0), [(key(1), flow(ENCRYPTED, 1, 50))]);
    }

    #[test]
    fn a_flow_that_lost_its_entry_is_known_by_what_was_gathered() {
        let gathered = [tally(1, flow(PLAIN, 2, 40)), tally(1, flow(PLAIN, 3, 60)), tally(2, flow(PLAIN, 4, 39))];
        let sum = Flow { packets: 5, bytes: 500, last: 60, tcp_flags: 0b1100, ..flow(PLAIN, 2, 40) };
        assert_eq!(add_up(HashMap::new(), &gathered, 40), [(key(1), sum)], "the other one has ended");
    }
}
