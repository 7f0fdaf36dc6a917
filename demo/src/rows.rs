//! The table's rows: traffic between two groups, between nodes or within one. Each row is sent
//! separately, so that the packets on the wire meanwhile belong to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use hauberk_api::{Encryption, Explanation, FlowRecord, Word};
use hauberk_netns::{Marker, Party};
use jiff::Timestamp;

use crate::conversation::{self, Effort, Said};
use crate::playground::{Group, Playground, Talker};
use crate::wire::{self, Window};

/// Where the two ends of a flow are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// On different nodes.
    BetweenNodes,
    /// On the same node.
    SameNode,
    /// One end is outside the cluster.
    OutOfCluster,
}

/// A row before its traffic.
pub struct Row<'a> {
    /// The group that sends the requests.
    pub client: Group,
    /// The group that answers.
    pub server: Group,
    /// Where the two ends are.
    pub place: Place,
    pairs: Vec<(&'a Talker, &'a Talker)>,
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.client, self.server)
    }
}

/// A row after its traffic.
pub struct Outcome {
    /// `payments → public`.
    pub name: String,
    /// Where the two ends are.
    pub place: Place,
    /// Whether an end is a pod.
    pub pods: bool,
    /// What hauberk should do with the traffic; never `refused`.
    pub expected: Encryption,
    /// Every exchange of the row.
    pub said: Vec<Said>,
    /// What was on the wire.
    pub window: Window,
    /// The answer of `hauberk explain` for one of the flows.
    pub explanation: Result<Explanation>,
    /// Encryption values in the agents' flow records, each with the number of records.
    pub recorded: BTreeMap<Word<Encryption>, usize>,
}

impl Outcome {
    /// The number of exchanges that got through.
    pub fn delivered(&self) -> usize {
        self.said.iter().filter(|said| said.delivered).count()
    }

    /// The number of exchanges whose payload was on the wire in the clear.
    pub fn seen(&self) -> usize {
        self.said.iter().filter(|said| !said.markers.is_disjoint(&self.window.seen)).count()
    }

    /// Whether the wire showed what it should.
    pub fn wire_is_right(&self) -> bool {
        match self.expected {
            Encryption::Encrypted => self.window.clear == 0 && self.seen() == 0 && self.window.encrypted > 0,
            Encryption::Local => self.window.clear == 0 && self.seen() == 0,
            _ => self.window.clear > 0 && self.seen() == self.delivered(),
        }
    }

    /// Whether everything got through.
    pub fn all_delivered(&self) -> bool {
        self.delivered() == self.said.len()
    }

    /// Whether `explain` and every flow record agree with the wire.
    pub fn is_told_truly(&self) -> bool {
        let explained = self.explanation.as_ref().is_ok_and(|explanation| explanation.encryption == self.expected);
        explained && self.records_agree()
    }

    /// Whether there are flow records and all of them say what is expected. Traffic between nodes
    /// leaves none, because it concerns no pod.
    pub fn records_agree(&self) -> bool {
        let some = !self.recorded.is_empty() || !self.pods;
        some && self.recorded.keys().all(|encryption| *encryption == self.expected)
    }
}

/// All rows with traffic between `groups` (and out of the cluster, if the world is one of them).
pub fn rows<'a>(playground: &'a Playground, groups: &[(Group, Group)]) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for place in [Place::BetweenNodes, Place::SameNode, Place::OutOfCluster] {
        for (client, server) in groups {
            let of = |group: Group| playground.talkers.iter().filter(move |talker| talker.group == group);
            let pairs: Vec<(&Talker, &Talker)> = of(*client)
                .flat_map(|from| of(*server).map(move |to| (from, to)))
                .filter(|(from, to)| from.party.name != to.party.name && place_of(from, to) == place)
                .collect();
            if !pairs.is_empty() {
                rows.push(Row { client: *client, server: *server, place, pairs });
            }
        }
    }
    rows
}

fn place_of(from: &Talker, to: &Talker) -> Place {
    match (from.node, to.node) {
        (Some(from), Some(to)) if from == to => Place::SameNode,
        (Some(_), Some(_)) => Place::BetweenNodes,
        _ => Place::OutOfCluster,
    }
}

/// Sends a row's traffic, and reads the wire, the explanation and the flow records.
///
/// # Errors
/// Sockets could not be made, or the capture is incomplete.
pub fn send(playground: &Playground, row: &Row<'_>, protected: &[Group], effort: Effort) -> Result<Outcome> {
    let since = playground.cluster.capture.sync()?;
    let started = Timestamp::now();
    let pairs: Vec<(&Party, &Party)> = row.pairs.iter().map(|(from, to)| (&from.party, &to.party)).collect();
    let said = conversation::all(&pairs, effort)?;
    let window = wire::window(&playground.cluster.capture, since, &row.addresses())?;
    Ok(Outcome {
        name: row.to_string(),
        place: row.place,
        pods: (row.client, row.server) != (Group::Nodes, Group::Nodes),
        expected: row.expected(protected),
        said,
        window,
        explanation: explain(playground, row),
        recorded: recorded(playground, row, started)?,
    })
}

impl Row<'_> {
    /// What the design promises for the row.
    fn expected(&self, protected: &[Group]) -> Encryption {
        match self.place {
            Place::SameNode => Encryption::Local,
            Place::OutOfCluster => Encryption::World,
            Place::BetweenNodes if protected.contains(&self.client) || protected.contains(&self.server) => {
                Encryption::Encrypted
            }
            Place::BetweenNodes => Encryption::Plain,
        }
    }

    fn addresses(&self) -> std::collections::HashSet<IpAddr> {
        let ends = self.pairs.iter().flat_map(|(from, to)| [from, to]);
        ends.flat_map(|talker| talker.party.addresses()).collect()
    }
}

/// What the client's node says about the row's first flow.
fn explain(playground: &Playground, row: &Row<'_>) -> Result<Explanation> {
    let (from, to) = row.pairs[0];
    let node = &playground.cluster.nodes[from.node.unwrap_or(0)];
    node.agent.ask(&format!("/v1/explain?source={}&destination={}", address_of(from), address_of(to)))
}

fn address_of(talker: &Talker) -> String {
    match talker.group {
        Group::World => talker.party.v4.to_string(),
        _ => talker.party.name.split('@').next().unwrap_or_default().to_owned(),
    }
}

/// Encryption values of flow records between the row's parties, on all nodes, for flows with a
/// packet since `started`.
fn recorded(playground: &Playground, row: &Row<'_>, started: Timestamp) -> Result<BTreeMap<Word<Encryption>, usize>> {
    let pairs: BTreeSet<(IpAddr, IpAddr)> = row
        .pairs
        .iter()
        .flat_map(|(from, to)| from.party.addresses().into_iter().zip(to.party.addresses()))
        .flat_map(|(from, to)| [(from, to), (to, from)])
        .collect();
    let mut recorded = BTreeMap::new();
    for node in &playground.cluster.nodes {
        let (_, body) = node.agent.get("/v1/flows")?;
        for record in body.lines().filter_map(|line| serde_json::from_str::<FlowRecord>(line).ok()) {
            if record.time >= started && pairs.contains(&(record.source, record.destination)) {
                *recorded.entry(record.encryption).or_insert(0) += 1;
            }
        }
    }
    Ok(recorded)
}

/// All payload markers of exchanges in rows that `wanted` accepts.
pub fn markers(outcomes: &[Outcome], wanted: impl Fn(&Outcome) -> bool) -> BTreeSet<Marker> {
    let chosen = outcomes.iter().filter(|outcome| wanted(outcome));
    chosen.flat_map(|outcome| &outcome.said).flat_map(|said| said.markers.iter().copied()).collect()
}
