//! What this node saw of plaintext between nodes, and what others report, for the status and the
//! metrics.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hauberk_api::{Problem, Severity};
use hauberk_core::annotations::plaintext::{self, MAX_NODES, Report};
use hauberk_core::events::{NewEvent, reason};
use jiff::{SignedDuration, Timestamp};

use crate::state::AgentState;

/// How long after the last packet this node reports it.
const TOLD: SignedDuration = SignedDuration::from_mins(5);
/// How old another node's report may be. Its time is rounded to the minute, and it takes a while to
/// arrive.
const HEARD: SignedDuration = SignedDuration::from_mins(8);

/// See the module.
#[derive(Debug, Default)]
pub struct Plaintext {
    senders: BTreeMap<String, Sender>,
    /// Other nodes that report plaintext from this one, and their reports.
    reporters: BTreeMap<String, Report>,
}

#[derive(Debug)]
struct Sender {
    packets: u64,
    last: Timestamp,
    addresses: [IpAddr; 2],
    owners: [String; 2],
}

/// Packets in the clear that another node sent.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The node.
    pub node: String,
    /// Source and destination.
    pub addresses: [IpAddr; 2],
    /// Their owners, in words.
    pub owners: [String; 2],
    /// How many more packets.
    pub packets: u64,
    /// When the last packet arrived.
    pub last: Timestamp,
}

impl Plaintext {
    /// Notes that another node was seen sending in the clear. Returns the event.
    pub fn note(&mut self, own: &str, sighting: Sighting) -> NewEvent {
        let Sighting { node, addresses, owners, packets, last } = sighting;
        let what = what(own, &node);
        let advice = advice(own, &node);
        let message = format!(
            "{what}: {} ({}) to {} ({}); dropped on {own}; {advice}",
            addresses[0], owners[0], addresses[1], owners[1]
        );
        let event = NewEvent {
            warning: true,
            reason: reason::PLAINTEXT_SEEN,
            objects: vec![format!("Node/{own}"), format!("Node/{node}")],
            message,
        };
        let before = self.senders.get(&node).map_or(0, |sender| sender.packets);
        self.senders.insert(node, Sender { packets: before + packets, last, addresses, owners });
        if self.senders.len() > MAX_NODES {
            let oldest = self.senders.iter().min_by_key(|(_, sender)| sender.last).map(|(node, _)| node.clone());
            oldest.map(|node| self.senders.remove(&node));
        }
        event
    }

    /// Whether this node did not report it last time.
    pub fn is_news(&self, node: &str) -> bool {
        !self.reporters.contains_key(node)
    }

    /// Replaces what other nodes report.
    pub fn heard(&mut self, reports: Vec<(String, Report)>) {
        self.reporters = reports.into_iter().collect();
    }

    /// What this node, `own`, reports of others.
    pub fn reports(&self, own: &str) -> BTreeMap<String, Report> {
        let others = self.lately().filter(|(node, _)| *node != own);
        others.map(|(node, sender)| (node.clone(), Report::new(sender.packets, sender.last))).collect()
    }

    /// Packets by node.
    pub fn senders(&self) -> impl Iterator<Item = (&str, u64)> {
        self.senders.iter().map(|(node, sender)| (node.as_str(), sender.packets))
    }

    /// One for each node that was seen, and one for each node that has seen this one.
    pub fn problems(&self, own: &str) -> Vec<Problem> {
        let critical =
            |node: &str, message| Problem { severity: Severity::Critical, object: format!("node/{node}"), message };
        let seen = self.lately().map(|(node, sender)| {
            let [from, to] = &sender.owners;
            let message = format!(
                "{}: {} packets were dropped here, the last at {:.0}: {} ({from}) to {} ({to}); {}",
                what(own, node),
                sender.packets,
                sender.last,
                sender.addresses[0],
                sender.addresses[1],
                advice(own, node)
            );
            critical(node, message)
        });
        let heard = self.reporters.iter().map(|(node, report)| {
            let message = format!(
                "{node} saw plaintext from this node that had to be encrypted: {} packets, the last at about {:.0}; it dropped them. \
                 Something here sends past the guard (`hauberk drops`, `bpftool net`), or somebody forges packets in this node's name",
                report.packets, report.last
            );
            critical(node, message)
        });
        seen.chain(heard).collect()
    }

    fn lately(&self) -> impl Iterator<Item = (&String, &Sender)> {
        let now = Timestamp::now();
        self.senders.iter().filter(move |(_, sender)| now.duration_since(sender.last) < TOLD)
    }
}

/// What a node does, as this one, `own`, sees it. Packets from this node's own address came from
/// another sender before a rule here translated them.
fn what(own: &str, node: &str) -> String {
    if node == own {
        return "another node, or a plain pod on one, asks in the clear for a protected pod, at a port of this node"
            .into();
    }
    format!("node {node} sends in the clear what must be encrypted")
}

fn advice(own: &str, node: &str) -> String {
    if node == own {
        return "rules of this node gave the packets its own address on their way, so that the sender is not known (a masqueraded \
                nodePort or hostPort); have it ask the pod's address, or the service's cluster address"
            .into();
    }
    format!("is hauberk's agent running on {node}, and ready? Or somebody forges packets in its name")
}

/// What other nodes' objects report of this one now.
pub fn reports(agent: &AgentState) -> Vec<(String, Report)> {
    let (own, now) = (agent.model.node(), Timestamp::now());
    let others = agent.model.nodes().filter(|node| node.name != own);
    others
        .filter_map(|node| {
            let report = *plaintext::parse(node.plaintext_seen.as_deref()?)?.get(own)?;
            (now.duration_since(report.last) < HEARD).then(|| (node.name.clone(), report))
        })
        .take(MAX_NODES)
        .collect()
}

/// The event for a node's report.
pub fn reported(own: &str, node: &str) -> NewEvent {
    let message = format!(
        "{node} saw plaintext from node {own} that had to be encrypted, and dropped it; something on {own} sends past the guard, or \
         somebody forges packets in its name"
    );
    let objects = vec![format!("Node/{own}"), format!("Node/{node}")];
    NewEvent { warning: true, reason: reason::PLAINTEXT_REPORTED, objects, message }
}
