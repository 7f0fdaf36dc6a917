use std::collections::{BTreeMap, BTreeSet};

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::{Identity, Kind, Protection};
use hauberk_abi::layout::peer_flag;
use proptest::prelude::*;

use super::*;
use crate::attachment::{Attachment, VethPair};
use crate::identities::Identities;
use crate::model::Change;
use crate::names::{AttachmentKey, NodeNumber};
use crate::objects::{NodeAddress, NodeObject, PodObject};
use crate::pods::PodStep;
use crate::testing::{World, attachment, ip, keys, namespace, net, node, pod, pod_name};
use crate::tunnels::{Peer, TunnelStep};

fn reach(actual: &mut State, desired: &Desired) -> Vec<Step> {
    let steps = plan(actual, desired);
    for step in &steps {
        actual.apply(step);
    }
    assert_eq!(plan(actual, desired), [], "the second plan is empty");
    steps
}

/// The actual state after a world's plan has been carried out from an empty one, once it may prune.
fn reached(world: &World) -> State {
    let mut actual = State::default();
    reach(&mut actual, &world.desired());
    actual
}

#[test]
fn deny_comes_first_and_synced_last() {
    let mut world = World::three_nodes();
    world.apply(Change::Pod(pod("secret/a", 2, &["10.0.2.5"])));
    world.apply(Change::Pod(pod("open/b", 2, &["10.0.2.6"])));
    world.apply(Change::Attachment(attachment("c1", Some("secret/c"), &["10.0.1.5"])));
    let steps = plan(&State::default(), &world.desired());
    let place = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
    let last = |wanted: &dyn Fn(&Step) -> bool| steps.iter().rposition(wanted).unwrap();
    let range = last(
        &|step| matches!(step, Step::Identity(IdentityStep::PutRange(_, identity)) if identity.kind() == Kind::UnknownPod),
    );
    let protected = place(
        &|step| matches!(step, Step::Identity(IdentityStep::PutEndpoint(_, identity)) if identity.protection() == Protection::Enabled),
    );
    let attachment = place(&|step| matches!(step, Step::Pod(PodStep::Put(_))));
    let peer = place(&|step| matches!(step, Step::Tunnel(TunnelStep::PutPeer(_))));
    let entry = place(&|step| matches!(step, Step::Tunnel(TunnelStep::PutPeerEntry(..))));
    let route = place(&|step| matches!(step, Step::Tunnel(TunnelStep::PutRoute(_))));
    let plain = place(
        &|step| matches!(step, Step::Identity(IdentityStep::PutEndpoint(address, _)) if *address == Address::from(ip("10.0.2.6"))),
    );
    let order = [range, protected, attachment, peer, entry, route, plain, steps.len() - 1];
    assert!(order.is_sorted(), "{order:?} {steps:#?}");
    assert_eq!(steps.last(), Some(&Step::Identity(IdentityStep::SetSynced(true))));
}

#[test]
fn before_everything_is_known_nothing_is_removed_or_weakened() {
    let mut before = World::three_nodes();
    before.apply(Change::Pod(pod("secret/a", 2, &["10.0.2.5"])));
    before.apply(Change::Pod(pod("open/b", 2, &["10.0.2.6"])));
    before.apply(Change::PeerReady { node: "n2".into(), ready: true });
    before.apply(Change::Attachment(attachment("c1", Some("secret/c"), &["10.0.1.5"])));
    let mut actual = reached(&before);
    let old = actual.clone();
    // The agent has restarted and has read only one node and an unlabelled namespace so far.
    let mut world = World::new();
    world.apply(Change::Node(node(2)));
    world.apply(namespace("secret", None));
    world.apply(Change::Pod(pod("secret/a", 2, &["10.0.2.5"])));
    assert_eq!(reach(&mut actual, &world.desired()), []);
    assert_eq!(actual, old);
    world.apply(Change::Synced);
    reach(&mut actual, &world.desired());
    assert_eq!(actual.identities.endpoints[&Address::from(ip("10.0.2.5"))].protection(), Protection::None);
    assert_eq!(actual.tunnels.peers.len(), 1);
    assert!(actual.pods.is_empty());
}

#[test]
fn a_plain_pod_stays_unknown_until_everything_is_known() {
    let mut world = World::new();
    world.apply(Change::Node(node(2)));
    world.apply(namespace("open", None));
    world.apply(Change::Pod(pod("open/a", 2, &["10.0.2.5"])));
    let mut actual = State::default();
    let steps = reach(&mut actual, &world.desired());
    assert!(!steps.contains(&Step::Identity(IdentityStep::SetSynced(true))));
    assert_eq!(actual.identities.resolve(ip("10.0.2.5").into()).kind(), Kind::UnknownPod);
    world.apply(Change::Synced);
    reach(&mut actual, &world.desired());
    assert_eq!(actual.identities.resolve(ip("10.0.2.5").into()).kind(), Kind::Pod);
    assert!(actual.identities.synced);
}

#[test]
fn a_known_peer_keeps_what_it_may_speak_for_until_everything_is_known() {
    let mut before = World::three_nodes();
    before.apply(Change::Pod(pod("open/outside", 2, &["10.0.77.5"])));
    let mut actual = reached(&before);
    let mut world = World::new();
    world.apply(Change::Node(NodeObject { keys: Some(keys(&[(2, 22), (1, 2)])), ..node(2) }));
    let number = NodeNumber(world.number(2));
    reach(&mut actual, &world.desired());
    assert_eq!(actual.tunnels.peers[&number].keys.len(), 2, "the new key is installed");
    assert!(actual.tunnels.peers[&number].allowed.contains(&net("10.0.77.5/32")));
    world.apply(Change::Synced);
    reach(&mut actual, &world.desired());
    assert!(!actual.tunnels.peers[&number].allowed.contains(&net("10.0.77.5/32")));
}

#[test]
fn a_pod_that_takes_the_label_of_another_leaves_no_moment_without_either() {
    let mut world = World::three_nodes();
    let labelled = |name, label: Option<&str>, address| {
        Change::Pod(PodObject { encryption: label.map(str::to_owned), ..pod(name, 2, &[address]) })
    };
    world.apply(labelled("open/a", Some("enabled"), "10.0.2.5"));
    world.apply(labelled("open/b", None, "10.0.2.6"));
    let actual = reached(&world);
    world.apply(labelled("open/a", None, "10.0.2.5"));
    world.apply(labelled("open/b", Some("enabled"), "10.0.2.6"));
    let addresses: Vec<Address> = plan(&actual, &world.desired())
        .iter()
        .map(|step| match step {
            Step::Identity(IdentityStep::PutEndpoint(address, _)) => *address,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(addresses, [ip("10.0.2.6").into(), ip("10.0.2.5").into()]);
}

#[test]
fn a_reused_address_is_taken_from_the_old_interface_before_the_new_one_gets_it() {
    let mut world = World::three_nodes();
    world.apply(Change::Attachment(attachment("old", Some("open/a"), &["10.0.1.5"])));
    let mut actual = reached(&world);
    let (old, _) = actual.pods.first_key_value().map(|(key, pod)| (key.clone(), pod.clone())).unwrap();
    world.apply(Change::AttachmentGone(old));
    world.apply(Change::Attachment(attachment("new", Some("open/b"), &["10.0.1.5"])));
    let steps = reach(&mut actual, &world.desired());
    let names: Vec<&str> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Pod(PodStep::Remove(pod)) => Some(pod.container.as_str()),
            Step::Pod(PodStep::Put(pod)) => Some(pod.container.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["old", "new"]);
}

#[test]
fn an_interface_keeps_its_protection_until_everything_is_known() {
    let mut before = World::three_nodes();
    before.apply(Change::Attachment(attachment("c1", Some("secret/a"), &["10.0.1.5"])));
    let mut actual = reached(&before);
    // After a restart the namespace is no longer opted in, and the interface has another index.
    let mut world = World::new();
    world.apply(namespace("secret", None));
    world.apply(Change::Pod(pod("secret/a", 1, &[])));
    let mut moved = attachment("c1", Some("secret/a"), &["10.0.1.5"]);
    moved.pair.as_mut().unwrap().host_index = 8;
    world.apply(Change::Attachment(moved));
    let interface = |actual: &State| {
        let pod = actual.pods.values().next().unwrap();
        (pod.host_index, pod.protection)
    };
    reach(&mut actual, &world.desired());
    assert_eq!(interface(&actual), (8, Protection::Enabled));
    world.apply(Change::Synced);
    reach(&mut actual, &world.desired());
    assert_eq!(interface(&actual), (8, Protection::None));
}

#[test]
fn a_peer_that_can_no_longer_encrypt_is_said_so_late_and_one_that_can_early() {
    let mut world = World::three_nodes();
    world.apply(Change::PeerReady { node: "n2".into(), ready: true });
    let mut actual = reached(&world);
    world.apply(Change::PeerReady { node: "n2".into(), ready: false });
    world.apply(Change::PeerReady { node: "n3".into(), ready: true });
    let flags: Vec<u32> = reach(&mut actual, &world.desired())
        .iter()
        .map(|step| match step {
            Step::Tunnel(TunnelStep::PutPeerEntry(_, entry)) => entry.flags,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(flags, [peer_flag::KEY | peer_flag::READY, peer_flag::KEY]);
}

// ---- properties -----------------------------------------------------------------------

/// Few addresses and many overlaps, so that every case occurs often.
fn universe() -> Vec<Address> {
    let v4 = (0..4u8).flat_map(|range| (0..4u8).map(move |host| Address::v4([10, 0, range, host])));
    v4.chain([Address::v4([192, 0, 2, 1]), Address::v4([8, 8, 8, 8]), Address::from(ip("fd00::1"))]).collect()
}

fn any_address() -> impl Strategy<Value = Address> {
    prop::sample::select(universe())
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (any_address(), prop::sample::select(vec![0u32, 64, 104, 112, 120, 126, 127, 128]))
        .prop_map(|(address, length)| crate::lookup::truncate(address, length))
}

/// Anything that an older run may have left, including unknown numbers.
fn any_identity() -> impl Strategy<Value = Identity> {
    (0u8..7, 0u8..4, 0u32..3).prop_map(|(kind, protection, node)| Identity { kind, protection, reserved: 0, node })
}

fn endpoint_identity() -> impl Strategy<Value = Identity> {
    let protections = prop::sample::select(vec![Protection::None, Protection::Permissive, Protection::Enabled]);
    prop_oneof![
        (protections, 0u32..3).prop_map(|(protection, node)| Identity::new(Kind::Pod, protection, node)),
        (1u32..3).prop_map(|node| Identity::new(Kind::Node, Protection::None, node)),
    ]
}

fn range_identity() -> impl Strategy<Value = Identity> {
    prop_oneof![
        (0u32..3).prop_map(|node| Identity::new(Kind::UnknownPod, Protection::Enabled, node)),
        Just(Identity::new(Kind::UnknownNode, Protection::None, 0)),
    ]
}

fn any_actual() -> impl Strategy<Value = State> {
    let endpoints = prop::collection::btree_map(any_address(), any_identity(), 0..10);
    let ranges = prop::collection::btree_map(any_prefix(), any_identity(), 0..6);
    (endpoints, ranges).prop_map(|(endpoints, ranges)| {
        let identities = Identities { endpoints, ranges, ..Identities::default() };
        State { identities, ..State::default() }
    })
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let endpoints = prop::collection::btree_map(any_address(), endpoint_identity(), 0..10);
    let ranges = prop::collection::btree_map(any_prefix(), range_identity(), 0..6);
    (endpoints, ranges, any::<bool>()).prop_map(|(endpoints, ranges, prune)| {
        let identities = Identities { endpoints, ranges, synced: prune, ..Identities::default() };
        Desired { state: State { identities, ..State::default() }, ..Desired::default() }
    })
}

fn strictnesses(actual: &State) -> BTreeMap<Address, u8> {
    universe().into_iter().map(|address| (address, actual.identities.strictness(address))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_ever_weaker_than_both_before_and_after(actual in any_actual(), desired in any_desired()) {
        let before = strictnesses(&actual);
        let mut state = actual.clone();
        let steps = reach(&mut state, &desired);
        let after = strictnesses(&state);
        let mut state = actual;
        for step in &steps {
            state.apply(step);
            for (address, now) in strictnesses(&state) {
                prop_assert!(now >= before[&address].min(after[&address]), "{address} after {step:?} of {steps:#?}");
                if !desired.prune() {
                    prop_assert!(now >= before[&address], "{address} weakened before sync by {step:?}");
                }
            }
        }
        if desired.prune() {
            prop_assert_eq!(state.identities.endpoints, desired.state.identities.endpoints);
            prop_assert_eq!(state.identities.ranges, desired.state.identities.ranges);
        }
    }
}

/// Any change that a source can report, in a universe small enough for contradictions.
fn any_change() -> impl Strategy<Value = Change> {
    any_change_of((0..5u8, 0..4u8).prop_map(|(range, host)| std::net::IpAddr::from([10, 0, range, host])).boxed())
}

/// The same, but pods also claim addresses of nodes, addresses outside the cluster, and impossible
/// ones.
fn any_odd_change() -> impl Strategy<Value = Change> {
    let odd = [
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.3",
        "203.0.113.5",
        "fd00::5",
        "2001:db8::5",
        "127.0.0.1",
        "::ffff:10.0.1.1",
    ];
    let inside = (0..4u8, 0..3u8).prop_map(|(range, host)| std::net::IpAddr::from([10, 0, range, host]));
    any_change_of(prop_oneof![2 => inside, 1 => prop::sample::select(odd.map(ip).to_vec())].boxed())
}

fn any_change_of(address: BoxedStrategy<std::net::IpAddr>) -> impl Strategy<Value = Change> {
    let label = prop::sample::select(vec![None, Some("enabled"), Some("permissive"), Some("disabled"), Some("bogus")]);
    let label = label.prop_map(|label| label.map(str::to_owned));
    let address = || address.clone();
    let ranges = prop::sample::subsequence(
        vec!["10.0.1.0/24", "10.0.2.0/24", "10.0.2.0/31", "10.0.3.1/32", "10.0.0.0/22"],
        0..3,
    );
    let annotation = prop_oneof![
        1 => Just(None),
        1 => Just(Some("broken".to_owned())),
        6 => (1u32..3, 1u8..6).prop_map(|(epoch, key)| Some(keys(&[(epoch, key)]))),
        2 => (1u8..6).prop_map(|key| Some(keys(&[(2, key), (1, key + 6)]))),
    ];
    let devices = prop_oneof![
        3 => Just(None),
        1 => Just(Some("broken".to_owned())),
        3 => prop::collection::btree_set(address(), 0..3).prop_map(|devices| {
            let devices = devices.into_iter().filter(|address| crate::annotations::addresses::is_possible(*address)).collect();
            Some(crate::annotations::addresses::render(&devices))
        }),
    ];
    let node_change = (1u8..5, ranges, prop::collection::vec((address(), any::<bool>()), 0..2), annotation, devices)
        .prop_map(|(number, ranges, more, annotation, devices)| {
            let mut object = node(number);
            object.pod_ranges = ranges.into_iter().map(net).collect();
            object.addresses.extend(more.into_iter().map(|(address, internal)| NodeAddress { address, internal }));
            object.published_addresses = devices;
            object.keys = annotation;
            Change::Node(object)
        });
    let namespaces = || prop::sample::select(vec!["a", "b"]);
    let pods = || prop::sample::select(vec!["a/x", "a/y", "b/x", "b/y"]);
    let pod_change = (pods(), 1u8..6, prop::collection::vec(address(), 0..3), label.clone(), any::<[bool; 3]>())
        .prop_map(|(name, node, addresses, encryption, [host_network, finished, terminating])| {
            let host_network = host_network && finished;
            Change::Pod(PodObject {
                addresses,
                encryption,
                host_network,
                finished,
                terminating,
                ..pod(name, node, &[])
            })
        });
    let containers = || prop::sample::select(vec!["c1", "c2", "c3"]);
    let of = prop_oneof![
        2 => pods().prop_map(|pod| (Some(pod), false)),
        1 => any::<bool>().prop_map(|recovered| (None, recovered)),
    ];
    let attachment_change = (containers(), of, prop::collection::vec(address(), 0..3), 1u32..4).prop_map(
        |(container, (pod, recovered), addresses, index)| {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let mut attachment = attachment(container, pod, &addresses);
            attachment.pair = attachment.pair.map(|pair| VethPair { host_index: index, ..pair });
            Change::Attachment(Attachment { recovered, ..attachment })
        },
    );
    let key = |container: &str| AttachmentKey { container: container.into(), interface: "eth0".into() };
    prop_oneof![
        4 => node_change,
        1 => (1u8..5).prop_map(|number| Change::NodeGone(format!("n{number}"))),
        2 => (namespaces(), label).prop_map(|(name, label)| namespace(name, label.as_deref())),
        1 => namespaces().prop_map(|name| Change::NamespaceGone(name.into())),
        4 => pod_change,
        1 => pods().prop_map(|name| Change::PodGone(pod_name(name))),
        3 => attachment_change,
        1 => containers().prop_map(move |container| Change::AttachmentGone(key(container))),
        1 => (1u8..5, any::<bool>()).prop_map(|(number, ready)| Change::PeerReady { node: format!("n{number}"), ready }),
        1 => Just(Change::Synced),
    ]
}

/// No prefix and no key is in two peers.
fn peers_share_nothing(peers: &BTreeMap<NodeNumber, Peer>) -> bool {
    let mut prefixes = BTreeSet::new();
    let mut keys = BTreeSet::new();
    peers.values().all(|peer| {
        !peer.keys.is_empty()
            && peer.allowed.iter().all(|prefix| prefixes.insert(*prefix))
            && peer.keys.iter().all(|key| keys.insert(key.bytes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_followed_step_by_step(batches in prop::collection::vec(prop::collection::vec(any_change(), 1..12), 1..6)) {
        let mut world = World::new();
        world.local.settings.allow_pod_opt_out = batches.len() % 2 == 0;
        let mut actual = State::default();
        for batch in batches {
            let before = strictnesses(&actual);
            let start = actual.clone();
            let (desired, within) = world.turn(batch, &actual, Scope::default());
            let steps = reach(&mut actual, &desired);
            prop_assert_eq!(&within, &steps);
            let after = strictnesses(&actual);
            let mut state = start;
            for step in &steps {
                state.apply(step);
                prop_assert!(peers_share_nothing(&state.tunnels.peers), "{step:?} of {steps:#?}");
                for (address, now) in strictnesses(&state) {
                    prop_assert!(now >= before[&address].min(after[&address]), "{address} after {step:?}");
                }
            }
            // A pod's address is at least as protected as its labels ask for, and an address that
            // no party claims is unknown.
            let claimed: BTreeSet<Address> = desired.state.identities.endpoints.keys().copied().collect();
            for pod in world.model.pods().filter(|pod| pod.has_network()) {
                let ruling = crate::protection::of_pod(&world.model, &world.local, pod);
                for address in pod.own_addresses() {
                    prop_assert!(desired.identity(*address).protection() >= ruling.protection, "{address} {pod:?}");
                    prop_assert!(actual.identities.resolve((*address).into()).protection() >= ruling.protection);
                }
            }
            for address in universe().into_iter().filter(|address| !claimed.contains(address)) {
                let address = std::net::IpAddr::from(address);
                let inside = world.local.settings.cluster_ranges.iter().any(|range| range.contains(&address));
                prop_assert!(!inside || desired.identity(address).kind() == Kind::UnknownPod);
            }
            for pod in desired.state.pods.values() {
                for address in &pod.addresses {
                    prop_assert!(desired.identity(*address).protection() <= pod.protection);
                }
            }
            if desired.prune() {
                prop_assert_eq!(&actual.tunnels.peers, &desired.state.tunnels.peers);
                prop_assert_eq!(&actual.pods, &desired.state.pods);
                prop_assert_eq!(&actual.tunnels.routes, &desired.state.tunnels.routes);
                prop_assert_eq!(&actual.tunnels.peer_entries, &desired.state.tunnels.peer_entries);
                prop_assert_eq!(&actual.identities.untranslated, &desired.state.identities.untranslated);
                prop_assert!(actual.identities.synced);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// The incremental state equals one computed from scratch after every change, changes of the
    /// local node included, and so do the steps.
    #[test]
    fn what_is_kept_in_step_is_what_is_computed_from_scratch(
        batches in prop::collection::vec((prop::collection::vec(any_odd_change(), 1..4), 0u8..16), 1..25),
    ) {
        let mut world = World::new();
        let mut actual = State::default();
        for (batch, odd) in batches {
            match odd {
                0 => world.local.settings.allow_pod_opt_out ^= true,
                1 => world.local.settings.chained ^= true,
                2 => world.local.settings.default_protection = Protection::Permissive,
                3 => world.local.settings.cluster_ranges.truncate(1),
                4 => world.local.addresses = [ip("10.0.1.1")].into(),
                5 => world.local.addresses = ["192.0.2.1", "203.0.113.5", "10.0.2.1"].map(ip).into(),
                6 => world.local.addresses.clear(),
                7 => world.local.settings.node_ranges.clear(),
                8 => world.local.settings.node_ranges = vec![net("192.0.2.0/25"), net("10.0.3.0/30")],
                _ => {}
            }
            let (desired, within) = world.turn(batch, &actual, Scope::default());
            prop_assert_eq!(&within, &reach(&mut actual, &desired));
        }
    }
}

/// Carries a plan out as the agent does. `fails` says whether the next step fails. Asserts that no
/// address is ever less strict than both before and `after`, and returns the steps that failed.
fn carry_out(
    actual: &mut State,
    desired: &Desired,
    after: &BTreeMap<Address, u8>,
    mut fails: impl FnMut() -> bool,
) -> Vec<Step> {
    let before = strictnesses(actual);
    let steps = plan(actual, desired);
    let mut execution = Execution::new(steps.clone());
    let mut failed = Vec::new();
    while let Some(next) = execution.next_steps() {
        for step in next {
            if fails() {
                execution.failed(&step);
                failed.push(step);
                continue;
            }
            actual.apply(&step);
            for (address, now) in strictnesses(actual) {
                let bound = before[&address].min(after[&address]);
                assert!(now >= bound, "{address} after {step:?}; failed: {failed:#?}; of {steps:#?}");
            }
        }
    }
    failed
}

#[test]
fn an_interface_gets_nothing_that_its_predecessor_could_not_give_up() {
    let mut world = World::three_nodes();
    world.apply(Change::Attachment(attachment("old", Some("open/a"), &["10.0.1.5"])));
    world.apply(Change::Attachment(attachment("other", Some("open/c"), &["10.0.1.6"])));
    let mut actual = reached(&world);
    let old = actual.pods.keys().find(|key| key.container == "old").cloned().unwrap();
    world.apply(Change::AttachmentGone(old));
    world.apply(Change::Attachment(attachment("new", Some("open/b"), &["10.0.1.5"])));
    let desired = world.desired();
    let mut execution = Execution::new(plan(&actual, &desired));
    while let Some(next) = execution.next_steps() {
        for step in next {
            match &step {
                Step::Pod(PodStep::Remove(_)) => execution.failed(&step),
                Step::Pod(PodStep::Put(pod)) => assert_ne!(pod.container, "new", "its address is still the old pod's"),
                _ => actual.apply(&step),
            }
        }
    }
    let containers = |actual: &State| actual.pods.keys().map(|key| key.container.clone()).collect::<Vec<_>>();
    assert_eq!(containers(&actual), ["old", "other"]);
    reach(&mut actual, &desired);
    assert_eq!(containers(&actual), ["new", "other"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whichever steps fail, and however often, nothing opens on the way, and once they succeed the
    /// state is the desired one.
    #[test]
    fn failed_steps_open_nothing_and_are_made_up_for(
        actual in any_actual(),
        desired in any_desired(),
        failures in prop::collection::vec(any::<bool>(), 1..60),
        share in 0usize..4,
    ) {
        let after = {
            let mut state = actual.clone();
            reach(&mut state, &desired);
            strictnesses(&state)
        };
        let mut state = actual;
        let mut failures = failures.into_iter();
        for _ in 0..4 {
            carry_out(&mut state, &desired, &after, || (0..=share).all(|_| failures.next().unwrap_or(false)));
        }
        prop_assert_eq!(carry_out(&mut state, &desired, &after, || false), []);
        prop_assert_eq!(plan(&state, &desired), []);
    }
}
