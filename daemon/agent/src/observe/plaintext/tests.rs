use hauberk_abi::address::Address;
use hauberk_core::model::Change;
use hauberk_core::objects::{NodeAddress, NodeObject};

use super::*;

const SECOND: u64 = 1_000_000_000;

fn node(name: &str, address: &str, seen: Option<String>) -> Change {
    Change::Node(NodeObject {
        name: name.into(),
        addresses: vec![NodeAddress { address: address.parse().unwrap(), internal: true }],
        plaintext_seen: seen,
        ..NodeObject::default()
    })
}

fn agent() -> AgentState {
    let mut agent = crate::testing::agent("n1");
    for change in [node("n1", "192.168.0.1", None), node("n2", "192.168.0.2", None), Change::Synced] {
        let _ = agent.model.apply(change);
    }
    let _ = agent.desired.follow(&mut agent.model, &agent.local);
    agent
}

/// A refused flow from n2.
fn flow(agent: &AgentState, packets: u64, last: u64) -> (FlowKey, Flow) {
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    let key = FlowKey {
        source: address("10.0.2.1"),
        destination: address("10.0.1.1"),
        source_port: 1,
        destination_port: 2,
        protocol: 17,
        hook: Hook::FromWire as u8,
        reserved: 0,
    };
    let node = agent.model.node_number("n2").unwrap().0;
    (key, Flow { packets, last, node, ..Flow::default() })
}

fn total(agent: &AgentState) -> u64 {
    agent.plaintext.senders().map(|(_, packets)| packets).sum()
}

#[test]
fn a_sender_is_named_and_its_packets_counted_once() {
    let (mut agent, mut reader) = (agent(), Reader::default());
    let now = 1_000 * SECOND;
    let flows = |agent: &AgentState, packets| [flow(agent, packets, now)];
    for (packets, expected) in [(3, 3), (3, 3), (5, 5), (2, 7)] {
        let flows = flows(&agent, packets);
        reader.take(&flows);
        // Flows are judged at the second look.
        reader.judge(&mut agent, now);
        reader.judge(&mut agent, now);
        assert_eq!(total(&agent), expected);
    }
    let [problem] = &agent.plaintext.problems("n1")[..] else { panic!("{:?}", agent.plaintext.problems("n1")) };
    assert_eq!(problem.object, "node/n2");
    assert!(problem.message.starts_with("node n2 sends in the clear"), "{}", problem.message);
    assert_eq!(agent.plaintext.reports("n1").keys().collect::<Vec<_>>(), ["n2"]);
    assert_eq!(agent.events.list()[0].reason, "PlaintextSeen");
}

#[test]
fn what_was_translated_here_is_told_and_held_against_nobody() {
    let (mut agent, mut reader) = (agent(), Reader::default());
    let now = 1_000 * SECOND;
    let (key, flow) = flow(&agent, 3, now);
    let node = agent.model.node_number("n1").unwrap().0;
    reader.take(&[(key, Flow { node, ..flow })]);
    reader.judge(&mut agent, now);
    reader.judge(&mut agent, now);
    let [problem] = &agent.plaintext.problems("n1")[..] else { panic!("{:?}", agent.plaintext.problems("n1")) };
    assert!(problem.message.contains("at a port of this node: 3 packets"), "{}", problem.message);
    assert!(agent.plaintext.reports("n1").is_empty());
}

#[test]
fn a_change_that_is_on_its_way_accuses_no_one() {
    let (mut agent, mut reader) = (agent(), Reader::default());
    let now = 1_000 * SECOND;
    agent.changes.note(None, now);
    reader.take(&[flow(&agent, 3, now + 9 * SECOND)]);
    reader.judge(&mut agent, now + 9 * SECOND);
    reader.judge(&mut agent, now + 9 * SECOND);
    assert_eq!(total(&agent), 0);
    reader.take(&[flow(&agent, 4, now + 11 * SECOND)]);
    reader.judge(&mut agent, now + 11 * SECOND);
    reader.judge(&mut agent, now + 11 * SECOND);
    assert_eq!(total(&agent), 1);
    // The other node learned of the change first.
    reader.take(&[flow(&agent, 9, now + 20 * SECOND)]);
    reader.judge(&mut agent, now + 20 * SECOND);
    agent.changes.note(None, now + 21 * SECOND);
    reader.judge(&mut agent, now + 23 * SECOND);
    assert_eq!(total(&agent), 1);
}

#[test]
fn who_has_not_heard_of_a_label_gets_a_minute_and_not_more() {
    let mut reader = Reader::default();
    let start = 1_000 * SECOND;
    assert!(reader.is_excused("n2", true, start, start));
    assert!(reader.is_excused("n2", true, start + 59 * SECOND, start + 59 * SECOND));
    // It has acknowledged now; what it sent just before is no leak.
    assert!(reader.is_excused("n2", false, start + 60 * SECOND, start + 62 * SECOND));
    assert!(!reader.is_excused("n2", false, start + 70 * SECOND, start + 70 * SECOND));
    assert!(!reader.is_excused("n2", true, start + 61 * SECOND, start + 61 * SECOND));
    assert!(!reader.is_excused("n3", false, start, start));
}

#[test]
fn a_node_hears_what_others_say_of_it_and_forgets_what_is_old() {
    let mut agent = agent();
    let say = |agent: &mut AgentState, last: Timestamp| {
        let reports = BTreeMap::from([("n1".to_owned(), plaintext::Report::new(7, last))]);
        let _ = agent.model.apply(node("n2", "192.168.0.2", Some(plaintext::render(&reports))));
        hear(agent);
        agent.plaintext.problems("n1")
    };
    let problems = say(&mut agent, Timestamp::now());
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].object, "node/n2");
    assert!(problems[0].message.starts_with("n2 saw plaintext from this node"), "{}", problems[0].message);
    hear(&mut agent);
    assert_eq!((agent.events.list()[0].reason.as_str(), agent.events.list()[0].count), ("PlaintextReported", 1));
    assert!(say(&mut agent, Timestamp::now() - SignedDuration::from_mins(20)).is_empty());
}

#[test]
fn namespaces_are_those_of_the_pods_concerned() {
    let mut agent = agent();
    let pod = hauberk_core::objects::PodObject {
        namespace: "shop".into(),
        name: "cart".into(),
        node: Some("n1".into()),
        addresses: vec!["10.0.1.1".parse().unwrap()],
        encryption: Some("enabled".into()),
        ..Default::default()
    };
    let _ = agent.model.apply(Change::Pod(pod));
    let _ = agent.desired.follow(&mut agent.model, &agent.local);
    assert_eq!(namespace(&agent, "10.0.1.1".parse().unwrap()).as_deref(), Some("shop"));
    assert_eq!(namespace(&agent, "192.168.0.2".parse().unwrap()), None);
}
