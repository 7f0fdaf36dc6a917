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

use crate::world::{Shared, World};

/// Between looks.
const LOOK: Duration = Duration::from_secs(2);
/// Objects arrive in any order, and so does what a new node publishes: during this time nothing
/// counts as missing.
const GRACE: Duration = Duration::from_secs(10);

/// Looks for them until the runtime ends.
pub async fn watch(world: Shared) {
    let mut since = Since::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let backend = world.read().running.as_ref().map(|running| running.backend.clone());
        let strangers = backend.and_then(|backend| backend.stats().ok()).unwrap_or_default().strangers;
        let problems = since.look(&world.read(), &strangers, Instant::now());
        if problems != world.read().missing {
            tell(&mut world.write(), problems);
        }
    }
}

/// Also notes an event for each new problem. A problem with only a changed text is not new.
fn tell(world: &mut World, problems: Vec<Problem>) {
    let before = std::mem::replace(&mut world.missing, problems);
    let known: BTreeSet<&str> = before.iter().map(|problem| problem.object.as_str()).collect();
    let news: Vec<Problem> =
        world.missing.iter().filter(|problem| !known.contains(problem.object.as_str())).cloned().collect();
    for Problem { object, message, .. } in news {
        let objects = vec![object.strip_prefix("node/").map_or(object.clone(), |node| format!("Node/{node}"))];
        let event = NewEvent { warning: true, reason: reason::NODE_MISSING, objects, message };
        if world.events.note(&event, Timestamp::now()) {
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
    fn look(&mut self, world: &World, strangers: &[Stranger], now: Instant) -> Vec<Problem> {
        let generation = world.model.generation();
        if self.seen.as_ref().is_none_or(|(seen, local)| (*seen, local) != (generation, &world.local)) {
            // Before everything has been read, absence says nothing.
            let is_known = world.model.synced();
            self.found = if is_known { missing::missing(&world.model, &world.local) } else { BTreeMap::default() };
            self.seen = Some((generation, world.local.clone()));
        }
        let found = &self.found;
        self.since.retain(|node, _| found.contains_key(node));
        for node in found.keys() {
            self.since.entry(node.clone()).or_insert(now);
        }
        let lasting = strangers.iter().filter(|stranger| stranger.asked_for >= GRACE);
        let mut asking: BTreeMap<Option<String>, BTreeSet<IpAddr>> = BTreeMap::new();
        for address in lasting.map(|stranger| stranger.from.ip().to_canonical()).filter(|_| world.model.synced()) {
            asking.entry(owner(world, address)).or_default().insert(address);
        }
        let here = opted_in_here(world);
        let mut problems = Vec::new();
        for (node, missing) in found {
            if self.since.get(node).is_some_and(|since| now.duration_since(*since) >= GRACE) {
                let asks = asking.remove(&Some(node.clone())).unwrap_or_default();
                problems.push(without_object(world, node, missing, &asks, here));
            }
        }
        problems.extend(asking.into_iter().map(|(node, addresses)| unknown_key(world, node, &addresses, here)));
        problems
    }
}

/// Whether one of this node's pods is opted in.
fn opted_in_here(world: &World) -> bool {
    world.desired.state.pods.values().any(|pod| pod.protection > Protection::None)
}

/// The node that has an address, or had it until recently.
fn owner(world: &World, address: IpAddr) -> Option<String> {
    let departed = || world.model.departed().find(|(departed, _)| *departed == address);
    let named = world.model.nodes().find(|node| node.addresses.iter().any(|given| given.address == address));
    named.map(|node| node.name.clone()).or_else(|| departed().map(|(_, node)| node.to_owned()))
}

fn severity(concerns_opted_in: bool) -> Severity {
    if concerns_opted_in { Severity::Critical } else { Severity::Warning }
}

fn without_object(world: &World, node: &str, missing: &Missing, asks: &BTreeSet<IpAddr>, here: bool) -> Problem {
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
            world.source.location,
            missing.pods_in_words()
        ),
    }
}

fn unknown_key(world: &World, node: Option<String>, addresses: &BTreeSet<IpAddr>, here: bool) -> Problem {
    let from = words(addresses);
    let location = &world.source.location;
    match node {
        Some(node) if world.model.node_object(&node).is_some() => Problem {
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

    fn world(label: Option<&str>) -> World {
        crate::testing::payments(label, "n2", "10.0.2.5")
    }

    fn node() -> NodeObject {
        let address = NodeAddress { address: "192.0.2.2".parse().unwrap(), internal: true };
        NodeObject { name: "n2".into(), addresses: vec![address], ..NodeObject::default() }
    }

    #[test]
    fn a_missing_node_is_told_with_its_pods_after_a_while_and_until_it_is_there() {
        for (label, expected) in [(Some("enabled"), Severity::Critical), (None, Severity::Warning)] {
            let (mut world, mut since, begin) = (world(label), Since::default(), Instant::now());
            assert!(since.look(&world, &[], begin).is_empty());
            assert!(since.look(&world, &[], begin + GRACE / 2).is_empty());
            let problems = since.look(&world, &[], begin + GRACE);
            assert_eq!((problems[0].object.as_str(), problems[0].severity), ("node/n2", expected));
            assert!(problems[0].message.contains("payments/a"), "{problems:?}");
            tell(&mut world, problems.clone());
            tell(&mut world, problems);
            let events = world.events.list();
            assert_eq!((events.len(), events[0].objects.as_slice()), (1, ["Node/n2".to_owned()].as_slice()));
            let _ = world.model.apply(Change::Node(node()));
            assert!(since.look(&world, &[], begin + 2 * GRACE).is_empty());
            let _ = world.model.apply(Change::NodeGone("n2".into()));
            assert!(since.look(&world, &[], begin + 2 * GRACE).is_empty(), "it begins anew");
        }
    }

    #[test]
    fn who_goes_on_asking_with_an_unknown_key_is_told() {
        let begin = Instant::now();
        let from =
            |text: &str, seconds| Stranger { from: text.parse().unwrap(), asked_for: Duration::from_secs(seconds) };
        let look = |world: &World, stranger| Since::default().look(world, &[stranger], begin);
        let mut world = world(None);
        assert!(look(&world, from("192.0.2.2:51840", 5)).is_empty(), "once is no news");
        let unknown = look(&world, from("192.0.2.2:51840", 15));
        assert_eq!((unknown[0].object.as_str(), unknown[0].severity), ("tunnel", Severity::Warning));
        assert!(unknown[0].message.contains("192.0.2.2"), "{unknown:?}");
        let _ = world.model.apply(Change::Node(node()));
        let other_key = look(&world, from("[::ffff:192.0.2.2]:51840", 15));
        assert!(other_key[0].message.contains("does not publish"), "{other_key:?}");
        let _ = world.model.apply(Change::NodeGone("n2".into()));
        let gone = look(&world, from("192.0.2.2:51840", 15));
        assert_eq!(gone[0].object, "node/n2");
        assert!(gone[0].message.contains("any more"), "{gone:?}");
        let mut since = Since::default();
        let _ = since.look(&world, &[], begin);
        let both = since.look(&world, &[from("192.0.2.2:51840", 15)], begin + GRACE);
        assert_eq!(both.len(), 1, "{both:?}");
        assert!(both[0].message.contains("alive") && both[0].message.contains("payments/a"), "{both:?}");
    }
}
