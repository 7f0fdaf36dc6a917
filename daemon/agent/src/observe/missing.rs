//! Nodes that have no object: pods are assigned to them, or they ask for a session with a key that
//! no object publishes. Traffic between them and this node is dropped, and nothing else would
//! report it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hauberk_abi::identity::Protection;
use hauberk_api::{Problem, Severity};
use hauberk_backend::Stranger;
use hauberk_core::events::{NewEvent, reason};
use hauberk_core::local_node::LocalNode;
use hauberk_core::missing::{self, Missing};
use jiff::Timestamp;
use tracing::warn;

use crate::state::{AgentState, SharedState};

/// Between looks.
const LOOK: Duration = Duration::from_secs(2);
/// Objects arrive in any order, and so does what a new node publishes: during this time nothing
/// counts as missing.
const GRACE: Duration = Duration::from_secs(10);

/// Looks for them until the runtime ends.
pub async fn watch(agent: SharedState) {
    let mut since = Since::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let backend = agent.read().running.as_ref().map(|running| running.backend.clone());
        let strangers = backend.and_then(|backend| backend.stats().ok()).unwrap_or_default().strangers;
        let problems = since.look(&agent.read(), &strangers, Instant::now());
        if problems != agent.read().missing {
            tell(&mut agent.write(), problems);
        }
    }
}

/// Also notes an event for each new problem. A problem with only a changed text is not new.
fn tell(agent: &mut AgentState, problems: Vec<Problem>) {
    let before = std::mem::replace(&mut agent.missing, problems);
    let known: BTreeSet<&str> = before.iter().map(|problem| problem.object.as_str()).collect();
    let news: Vec<Problem> =
        agent.missing.iter().filter(|problem| !known.contains(problem.object.as_str())).cloned().collect();
    for Problem { object, message, .. } in news {
        let objects = vec![object.strip_prefix("node/").map_or(object.clone(), |node| format!("Node/{node}"))];
        let event = NewEvent { warning: true, reason: reason::NODE_MISSING, objects, message };
        if agent.events.note(&event, Timestamp::now()) {
            warn!(reason = event.reason, objects = ?event.objects, "{}", event.message);
        }
    }
}

/// Since when nodes have been missing.
#[derive(Debug, Default)]
struct Since {
    since: BTreeMap<String, Instant>,
    /// What was found when the model and the local node were these.
    found: BTreeMap<String, Missing>,
    seen: Option<(u64, LocalNode)>,
}

impl Since {
    /// Nodes that have been missing for long enough.
    fn look(&mut self, agent: &AgentState, strangers: &[Stranger], now: Instant) -> Vec<Problem> {
        let generation = agent.model.generation();
        if self.seen.as_ref().is_none_or(|(seen, local)| (*seen, local) != (generation, &agent.local)) {
            // Before everything has been read, absence says nothing.
            let is_known = agent.model.synced();
            self.found = if is_known { missing::missing(&agent.model, &agent.local) } else { BTreeMap::default() };
            self.seen = Some((generation, agent.local.clone()));
        }
        let found = &self.found;
        self.since.retain(|node, _| found.contains_key(node));
        for node in found.keys() {
            self.since.entry(node.clone()).or_insert(now);
        }
        let lasting = strangers.iter().filter(|stranger| stranger.asked_for >= GRACE);
        let mut asking: BTreeMap<Option<String>, BTreeSet<IpAddr>> = BTreeMap::new();
        for address in lasting.map(|stranger| stranger.from.ip().to_canonical()).filter(|_| agent.model.synced()) {
            asking.entry(owner(agent, address)).or_default().insert(address);
        }
        let here = opted_in_here(agent);
        let mut problems = Vec::new();
        for (node, missing) in found {
            if self.since.get(node).is_some_and(|since| now.duration_since(*since) >= GRACE) {
                let asks = asking.remove(&Some(node.clone())).unwrap_or_default();
                problems.push(without_object(agent, node, missing, &asks, here));
            }
        }
        problems.extend(asking.into_iter().map(|(node, addresses)| unknown_key(agent, node, &addresses, here)));
        problems
    }
}

/// Whether one of this node's pods is opted in.
fn opted_in_here(agent: &AgentState) -> bool {
    agent.desired.state.pods.values().any(|pod| pod.protection > Protection::None)
}

/// The node that has an address, or had it until recently.
fn owner(agent: &AgentState, address: IpAddr) -> Option<String> {
    let departed = || agent.model.departed().find(|(departed, _)| *departed == address);
    let named = agent.model.nodes().find(|node| node.addresses.iter().any(|given| given.address == address));
    named.map(|node| node.name.clone()).or_else(|| departed().map(|(_, node)| node.to_owned()))
}

fn severity(concerns_opted_in: bool) -> Severity {
    if concerns_opted_in { Severity::Critical } else { Severity::Warning }
}

fn without_object(agent: &AgentState, node: &str, missing: &Missing, asks: &BTreeSet<IpAddr>, here: bool) -> Problem {
    let pods = if missing.pods == 1 { "a pod is" } else { "pods are" };
    let alive = if asks.is_empty() {
        String::new()
    } else {
        format!("; its agent is alive: it asks for a session from {}", words(asks))
    };
    Problem {
        severity: severity(here || missing.protected > 0),
        object: format!("node/{node}"),
        message: format!(
            "has no Node object in {}, but {pods} on it ({}): no route and no tunnel leads there, and what opted-in pods send there \
             or get from there is dropped{alive}; bring the Node object back, or, if the node is gone, delete its pods",
            agent.source.location,
            missing.pods_in_words()
        ),
    }
}

fn unknown_key(agent: &AgentState, node: Option<String>, addresses: &BTreeSet<IpAddr>, here: bool) -> Problem {
    let from = words(addresses);
    let location = &agent.source.location;
    match node {
        Some(node) if agent.model.node_object(&node).is_some() => Problem {
            severity: severity(here),
            object: format!("node/{node}"),
            message: format!(
                "asks from {from} for a session with a key that its Node object does not publish, so that what it seals is dropped: \
                 can its agent write its annotations, and are they read here ({location})? Or another machine has its address"
            ),
        },
        Some(node) => Problem {
            severity: severity(here),
            object: format!("node/{node}"),
            message: format!(
                "has no Node object in {location} any more, but asks from {from} for a session: what is between it and this node's \
                 opted-in pods is dropped; bring the Node object back, or stop the agent there"
            ),
        },
        None => Problem {
            // Any host that knows this node's public key can ask.
            severity: Severity::Warning,
            object: "tunnel".into(),
            message: format!(
                "{from} asks for a session with a key that no Node object in {location} publishes, so that what is sealed there is \
                 dropped: is a Node object missing? Or it is no node of this cluster"
            ),
        },
    }
}

fn words(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use hauberk_core::model::Change;
    use hauberk_core::objects::{NodeAddress, NodeObject};

    use super::*;

    fn agent(label: Option<&str>) -> AgentState {
        crate::testing::payments(label, "n2", "10.0.2.5")
    }

    fn node() -> NodeObject {
        let address = NodeAddress { address: "192.0.2.2".parse().unwrap(), internal: true };
        NodeObject { name: "n2".into(), addresses: vec![address], ..NodeObject::default() }
    }

    #[test]
    fn a_missing_node_is_told_with_its_pods_after_a_while_and_until_it_is_there() {
        for (label, expected) in [(Some("enabled"), Severity::Critical), (None, Severity::Warning)] {
            let (mut agent, mut since, begin) = (agent(label), Since::default(), Instant::now());
            assert!(since.look(&agent, &[], begin).is_empty());
            assert!(since.look(&agent, &[], begin + GRACE / 2).is_empty());
            let problems = since.look(&agent, &[], begin + GRACE);
            assert_eq!((problems[0].object.as_str(), problems[0].severity), ("node/n2", expected));
            assert!(problems[0].message.contains("payments/a"), "{problems:?}");
            tell(&mut agent, problems.clone());
            tell(&mut agent, problems);
            let events = agent.events.list();
            assert_eq!((events.len(), events[0].objects.as_slice()), (1, ["Node/n2".to_owned()].as_slice()));
            let _ = agent.model.apply(Change::Node(node()));
            assert!(since.look(&agent, &[], begin + 2 * GRACE).is_empty());
            let _ = agent.model.apply(Change::NodeGone("n2".into()));
            assert!(since.look(&agent, &[], begin + 2 * GRACE).is_empty(), "it begins anew");
        }
    }

    #[test]
    fn who_goes_on_asking_with_an_unknown_key_is_told() {
        let begin = Instant::now();
        let from =
            |text: &str, seconds| Stranger { from: text.parse().unwrap(), asked_for: Duration::from_secs(seconds) };
        let look = |agent: &AgentState, stranger| Since::default().look(agent, &[stranger], begin);
        let mut agent = agent(None);
        assert!(look(&agent, from("192.0.2.2:51840", 5)).is_empty(), "once is no news");
        let unknown = look(&agent, from("192.0.2.2:51840", 15));
        assert_eq!((unknown[0].object.as_str(), unknown[0].severity), ("tunnel", Severity::Warning));
        assert!(unknown[0].message.contains("192.0.2.2"), "{unknown:?}");
        let _ = agent.model.apply(Change::Node(node()));
        let other_key = look(&agent, from("[::ffff:192.0.2.2]:51840", 15));
        assert!(other_key[0].message.contains("does not publish"), "{other_key:?}");
        let _ = agent.model.apply(Change::NodeGone("n2".into()));
        let gone = look(&agent, from("192.0.2.2:51840", 15));
        assert_eq!(gone[0].object, "node/n2");
        assert!(gone[0].message.contains("any more"), "{gone:?}");
        let mut since = Since::default();
        let _ = since.look(&agent, &[], begin);
        let both = since.look(&agent, &[from("192.0.2.2:51840", 15)], begin + GRACE);
        assert_eq!(both.len(), 1, "{both:?}");
        assert!(both[0].message.contains("alive") && both[0].message.contains("payments/a"), "{both:?}");
    }
}
