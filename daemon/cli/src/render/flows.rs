//! `hauberk flows`: one line for each flow, in order of arrival.

use std::net::IpAddr;

use hauberk_api::FlowRecord;

use crate::render::page::{self, painted};
use crate::render::words::{bytes, counted, encryption};

/// One flow; with `addresses`, addresses are shown also where names are known.
pub(crate) fn line(flow: &FlowRecord, addresses: bool) -> String {
    let source = end(flow.source_name.as_deref(), flow.source, flow.source_port, addresses);
    let destination = end(flow.destination_name.as_deref(), flow.destination, flow.destination_port, addresses);
    // A format width would also count the bytes of the colours, so the padding is separate.
    let padding = " ".repeat(9_usize.saturating_sub(flow.encryption.as_str().len()));
    format!(
        "{} {:<7} {}{padding} {:<6} {source} -> {destination} ({}; {}; at {})\n",
        flow.time.strftime("%F %T%.3fZ"),
        flow.event,
        encryption(&flow.encryption),
        flow.protocol,
        reason(flow),
        amount(flow),
        flow.hook.as_str(),
    )
}

/// Reports lost events once, not with every record that has the count.
#[derive(Default)]
pub(crate) struct Losses {
    told: u64,
}

impl Losses {
    /// A notice if more events are missing than were reported so far.
    pub(crate) fn notice(&mut self, flow: &FlowRecord) -> Option<String> {
        let new = flow.lost_events.checked_sub(self.told).filter(|new| *new > 0)?;
        self.told = flow.lost_events;
        let gap = format!("{} lost before the next line: the list has a gap", counted(new, "event"));
        Some(painted(page::DOUBTFUL, gap))
    }
}

/// The message when no flow is shown: the table is empty, or nothing matches.
pub(crate) fn nothing(seen: usize) -> String {
    match seen {
        0 => "no flows in the table: nothing was sent lately (--follow waits for what comes)".to_string(),
        _ => format!("none of {} matches", counted(seen as u64, "flow")),
    }
}

fn end(name: Option<&str>, address: IpAddr, port: u16, addresses: bool) -> String {
    let bracketed = |address: IpAddr| if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    let party = match name {
        Some(name) if addresses => format!("{name}={}", bracketed(address)),
        Some(name) => name.to_string(),
        None => bracketed(address),
    };
    if port == 0 { party } else { format!("{party}:{port}") }
}

fn reason(flow: &FlowRecord) -> String {
    if let Some(reason) = &flow.drop {
        return format!("dropped: {reason}");
    }
    match (&flow.peer, flow.epoch) {
        (Some(peer), Some(epoch)) => format!("{}, peer {peer}, epoch {epoch}", flow.why),
        (Some(peer), None) => format!("{}, peer {peer}", flow.why),
        (None, _) => flow.why.to_string(),
    }
}

fn amount(flow: &FlowRecord) -> String {
    format!("{}, {}", counted(flow.packets, "packet"), bytes(flow.bytes))
}

#[cfg(test)]
mod tests {
    use hauberk_api::{DropReason, Encryption, FlowStage, Why, Word};

    use super::*;
    use crate::render::samples::{flow, golden};

    #[test]
    fn each_kind_of_flow() {
        let mut refused = flow();
        refused.event = FlowStage::Refused.into();
        refused.encryption = Encryption::Refused.into();
        refused.drop = Some(DropReason::NoPeer.into());
        (refused.destination_name, refused.peer, refused.epoch) = (None, None, None);
        refused.destination = "fd00:10:244:2::7".parse().unwrap();
        let mut world = flow();
        world.encryption = Encryption::World.into();
        world.why = Why::OutsideCluster.into();
        world.protocol = "icmp".to_string();
        (world.source_port, world.destination_port, world.peer, world.epoch) = (0, 0, None, None);
        let text: String = [(&flow(), false), (&flow(), true), (&refused, false), (&world, false)]
            .map(|(flow, addresses)| line(flow, addresses))
            .concat();
        golden("flows", &text);
    }

    #[test]
    fn words_of_a_newer_agent_are_shown_as_they_are() {
        let newer = FlowRecord {
            encryption: Word::Other("twice".to_string()),
            event: Word::Other("moved".to_string()),
            ..flow()
        };
        let shown = anstream::adapter::strip_str(&line(&newer, false)).to_string();
        assert!(shown.contains(" moved   twice     tcp "), "{shown}");
    }

    #[test]
    fn losses_are_told_once() {
        let mut losses = Losses::default();
        let mut record = flow();
        assert_eq!(losses.notice(&record), None);
        record.lost_events = 3;
        assert!(losses.notice(&record).unwrap().contains("3 events lost"));
        assert_eq!(losses.notice(&record), None);
        record.lost_events = 4;
        assert!(losses.notice(&record).unwrap().contains("1 event lost"));
    }
}
