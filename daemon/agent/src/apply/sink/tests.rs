use std::collections::BTreeSet;
use std::net::IpAddr;

use hauberk_core::desired::{Desired, desired};
use hauberk_core::local_node::{LocalNode, Settings};
use hauberk_core::model::{Change, Model};
use hauberk_core::objects::{NamespaceObject, NodeAddress, NodeObject, PodObject};
use hauberk_core::plan::plan;
use hauberk_keyring::published::{self, PublicKey, Published};
use proptest::prelude::*;

use super::*;
use crate::apply::memory::Memory;

fn node(number: u8) -> Change {
    let mut key = [0x11; 32];
    key[0] = number;
    let keys = Published { port: 51840, keys: vec![PublicKey { epoch: 1, bytes: key }] };
    Change::Node(NodeObject {
        name: format!("n{number}"),
        addresses: vec![NodeAddress { address: IpAddr::from([192, 0, 2, number]), internal: true }],
        pod_ranges: vec![format!("10.0.{number}.0/24").parse().unwrap()],
        keys: Some(published::render(&keys)),
        ..NodeObject::default()
    })
}

fn namespace(name: &str, label: Option<&str>) -> Change {
    let encryption = label.map(str::to_owned);
    Change::Namespace(NamespaceObject { name: name.into(), encryption, ..NamespaceObject::default() })
}

fn pod(namespace: &str, name: &str, node: u8, address: [u8; 4]) -> Change {
    Change::Pod(PodObject {
        namespace: namespace.into(),
        name: name.into(),
        node: Some(format!("n{node}")),
        addresses: vec![address.into()],
        ..PodObject::default()
    })
}

/// What node n1 should hold after the changes, told in this order.
fn wanted(changes: impl IntoIterator<Item = Change>) -> Desired {
    let mut model = Model::new("n1");
    for change in changes {
        let _ = model.apply(change);
    }
    let local = LocalNode {
        name: "n1".into(),
        settings: Settings {
            cluster_ranges: vec!["10.0.0.0/16".parse().unwrap()],
            node_ranges: vec!["192.0.2.0/24".parse().unwrap()],
            ..Settings::default()
        },
        ..LocalNode::default()
    };
    desired(&model, &local)
}

fn three_nodes() -> Vec<Change> {
    let mut changes: Vec<Change> = (1..=3).map(node).collect();
    changes.push(namespace("secret", Some("enabled")));
    changes.push(namespace("open", None));
    for number in 2..=3 {
        changes.push(pod("secret", &format!("a{number}"), number, [10, 0, number, 5]));
        changes.push(pod("open", &format!("b{number}"), number, [10, 0, number, 6]));
    }
    changes.push(Change::Synced);
    changes
}

/// Carries out what is missing in the double. Returns the objects of failed steps.
async fn reconcile(memory: &mut Memory, actual: &mut State, desired: &Desired) -> BTreeSet<String> {
    let failed = carry_out(plan(actual, desired), memory, actual).await;
    assert_eq!(memory.held, *actual, "what the agent believes is what is there");
    failed.into_iter().map(|(step, _)| step.object()).collect()
}

#[tokio::test]
async fn a_refused_object_fails_alone() {
    let desired = wanted(three_nodes());
    for object in ["node/n2", "route/10.0.2.0/24", "address/10.0.2.5", "range/10.0.3.0"] {
        let mut memory = Memory::new(move |step| step.object() == object);
        let mut actual = State::default();
        let failed = reconcile(&mut memory, &mut actual, &desired).await;
        assert_eq!(failed, [object.to_owned()].into(), "only this one fails");
        // Everything else is there, and the next plan is about this object alone. While an address
        // or range could not be put, the node does not say that it knows everything.
        let missing: BTreeSet<String> = plan(&actual, &desired).iter().map(Step::object).collect();
        let unsynced = object.starts_with("address/") || object.starts_with("range/");
        let settings = unsynced.then(|| "settings".to_owned());
        assert_eq!(missing, [object.to_owned()].into_iter().chain(settings).collect());
        assert_eq!(actual.identities.synced, !unsynced);
        memory.refuses = Box::new(|_| false);
        assert_eq!(reconcile(&mut memory, &mut actual, &desired).await, BTreeSet::new());
        assert_eq!(plan(&memory.held, &desired), []);
    }
}

#[tokio::test]
async fn a_subject_that_fails_holds_up_no_other() {
    let desired = wanted(three_nodes());
    let subjects: [fn(&Step) -> bool; 2] =
        [|step| matches!(step, Step::Identity(_)), |step| matches!(step, Step::Tunnel(_))];
    for fails in subjects {
        let mut memory = Memory::new(fails);
        let mut actual = State::default();
        reconcile(&mut memory, &mut actual, &desired).await;
        assert!(memory.tried.iter().all(|(step, done)| *done != fails(step)));
        assert!(plan(&actual, &desired).iter().all(fails), "the other subject has all it needs");
    }
}

#[tokio::test]
async fn peers_that_are_refused_together_are_tried_alone() {
    let desired = wanted(three_nodes());
    let mut memory = Memory::new(|step| step.object() == "node/n3");
    let mut actual = State::default();
    let failed = reconcile(&mut memory, &mut actual, &desired).await;
    assert_eq!(failed, ["node/n3".to_owned()].into());
    let names: Vec<&str> = actual.tunnels.peers.values().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["n2"]);
}

/// A part of a history.
#[derive(Clone, Debug)]
enum Part {
    Told(Box<Change>),
    /// The steps with these places in the plan are refused.
    Reconciled(BTreeSet<usize>),
    /// The agent starts anew: it knows nothing, reads the kernel back, and then reads the first
    /// objects of the source, before it is synced.
    Restarted {
        known: usize,
    },
}

fn any_part() -> impl Strategy<Value = Part> {
    let label = prop::sample::select(vec![None, Some("enabled"), Some("permissive")]);
    let places = prop::collection::btree_set(0usize..30, 0..12);
    let names = || prop::sample::select(vec!["secret", "open"]);
    prop_oneof![
        1 => (1u8..4).prop_map(|number| Part::Told(Box::new(node(number)))),
        1 => (2u8..4).prop_map(|number| Part::Told(Box::new(Change::NodeGone(format!("n{number}"))))),
        2 => (names(), label).prop_map(|(name, label)| Part::Told(Box::new(namespace(name, label)))),
        3 => (names(), 0u8..3, 2u8..4, 2u8..4, 5u8..8).prop_map(|(of, name, node, range, host)| {
            Part::Told(Box::new(pod(of, &format!("p{name}"), node, [10, 0, range, host])))
        }),
        3 => places.prop_map(Part::Reconciled),
        1 => (0usize..12).prop_map(|known| Part::Restarted { known }),
    ]
}

/// How strictly each address of interest is judged.
fn judged(actual: &State) -> Vec<(IpAddr, u8)> {
    let addresses = (1..4u8).flat_map(|range| (5..8u8).map(move |host| IpAddr::from([10, 0, range, host])));
    let judge = |address: IpAddr| (address, actual.identities.strictness(address.into()));
    addresses.chain([IpAddr::from([192, 0, 2, 2]), IpAddr::from([203, 0, 113, 1])]).map(judge).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any history of objects, refused steps and restarts ends in the state that is computed from
    /// scratch, and on the way no address is judged less strictly than at both ends.
    #[test]
    fn any_history_ends_where_it_should(history in prop::collection::vec(any_part(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut told = three_nodes();
            let mut memory = Memory::new(|_| false);
            let mut actual = State::default();
            let mut seen = told.len();
            for part in history.into_iter().chain([Part::Reconciled(BTreeSet::new())]) {
                match part {
                    // The source has it at once; `Synced` stays the last of what is told at start.
                    Part::Told(change) => {
                        told.push(*change);
                        seen = told.len();
                    }
                    Part::Restarted { known } => {
                        // Routes and netfilter's exemptions are not read back.
                        memory.held.tunnels.routes.clear();
                        memory.held.identities.untranslated.clear();
                        actual = memory.held.clone();
                        seen = known;
                        follow(&mut memory, &mut actual, &wanted(told.iter().take(seen).cloned()), BTreeSet::new()).await;
                        seen = told.len();
                    }
                    Part::Reconciled(refused) => {
                        let desired = wanted(told.iter().take(seen).cloned());
                        follow(&mut memory, &mut actual, &desired, refused).await;
                    }
                }
            }
            let desired = wanted(told);
            let mut fresh = State::default();
            let mut other = Memory::new(|_| false);
            reconcile(&mut other, &mut fresh, &desired).await;
            assert_eq!(memory.held, fresh);
        });
    }
}

/// Reconciles, and checks after every step that nothing is more open than at both ends.
async fn follow(memory: &mut Memory, actual: &mut State, desired: &Desired, refused: BTreeSet<usize>) {
    let mut end = actual.clone();
    plan(actual, desired).iter().for_each(|step| end.apply(step));
    let (before, after) = (judged(actual), judged(&end));
    let mut place = 0;
    memory.refuses = Box::new(move |_| {
        place += 1;
        refused.contains(&(place - 1))
    });
    memory.tried.clear();
    let mut state = memory.held.clone();
    reconcile(memory, actual, desired).await;
    for (step, done) in &memory.tried {
        if *done {
            state.apply(step);
        }
        for ((now, before), after) in judged(&state).iter().zip(&before).zip(&after) {
            assert!(now.1 >= before.1.min(after.1), "{} after {step}: {:#?}", now.0, memory.tried);
        }
    }
}
