//! Any history of changes, with few services and addresses, so that every conflict occurs often.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hauberk_abi::address::Prefix;
use hauberk_abi::identity::Kind;
use hauberk_abi::packet::protocol;
use hauberk_abi::service::SourceKey;
use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::desired::Desired;
use crate::local_node::LocalNode;
use crate::lookup::truncate;
use crate::model::Model;
use crate::objects::NodeAddress;
use crate::plan::{Execution, plan};
use crate::services::health::health_checks;
use crate::state::State;

const ADDRESSES: [&str; 8] =
    ["10.96.0.1", "10.96.0.2", "fd96::1", "203.0.113.1", "203.0.113.2", "192.0.2.2", "10.0.2.5", "127.0.0.1"];
/// Some in others, so that a client may be admitted by either.
const RANGES: [&str; 4] = ["198.51.100.0/24", "198.51.100.0/25", "203.0.112.0/20", "2001:db8::/32"];
const CLIENTS: [&str; 4] = ["198.51.100.1", "198.51.100.200", "203.0.113.200", "2001:db8::1"];
const SERVICES: [&str; 4] = ["a/x", "a/y", "b/x", "b/y"];

fn addresses(most: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    prop::collection::vec(prop::sample::select(ADDRESSES.map(ip).to_vec()), 0..=most)
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn any_service() -> impl Strategy<Value = Change> {
    let kinds =
        vec![ServiceKind::ClusterIp, ServiceKind::NodePort, ServiceKind::LoadBalancer, ServiceKind::LoadBalancer];
    let protocols = prop::sample::select(vec![protocol::TCP, protocol::TCP, protocol::UDP, protocol::SCTP]);
    let node_port = prop::option::of(prop::sample::select(vec![30080, 30081]));
    let port = (prop::sample::select(vec!["web", "dns"]), protocols, 80u16..82, node_port);
    let ports = prop::collection::vec(port, 0..3).prop_map(|ports| {
        let ports = ports.into_iter();
        ports
            .map(|(name, protocol, port, node_port)| ServicePort { name: name.into(), protocol, port, node_port })
            .collect()
    });
    let reached = (prop::sample::select(kinds), addresses(2), addresses(2), addresses(1), ports);
    let how = (policy(), policy(), any::<bool>(), prop::option::of(1u32..3), 0u8..8);
    let health = prop::option::of(30090u16..30092);
    let ranges = prop::sample::subsequence(RANGES.map(net).to_vec(), 0..=2);
    (prop::sample::select(SERVICES.to_vec()), reached, how, health, ranges).prop_map(
        |(name, reached, how, health_check_port, source_ranges)| {
            let (kind, cluster_addresses, balancer_addresses, external_addresses, ports) = reached;
            let (internal_policy, external_policy, publishes_not_ready, affinity, odd) = how;
            Change::Service(ServiceObject {
                name: service_name(name),
                kind,
                cluster_addresses,
                ports,
                external_addresses,
                balancer_addresses,
                source_ranges,
                no_source_ranges: (odd == 2).then(|| "any".into()).into_iter().collect(),
                affinity,
                internal_policy,
                external_policy,
                health_check_port,
                publishes_not_ready,
                other_proxy: (odd == 1).then(|| "other".into()),
                origin: String::new(),
            })
        },
    )
}

fn any_slice() -> impl Strategy<Value = Change> {
    let hints = prop::option::of(prop::sample::select(vec![
        Hints { zones: vec!["a".into()], nodes: Vec::new() },
        Hints { zones: vec!["b".into()], nodes: Vec::new() },
        Hints { zones: vec!["a".into()], nodes: vec!["n1".into()] },
    ]));
    let address = prop::sample::select(vec!["10.0.1.5", "10.0.2.5", "10.0.2.6", "127.0.0.1"]);
    let endpoints = (address, 1u8..4, any::<[bool; 3]>(), hints).prop_map(|(address, node, conditions, hints)| {
        let [ready, serving, terminating] = conditions;
        Endpoint { ready, serving, terminating, hints: hints.map(Arc::new), ..endpoint(address, node) }
    });
    let endpoints = prop::collection::vec(endpoints, 0..4);
    let names = prop::sample::select(vec!["a/s1", "a/s2", "b/s1", "b/s2"]);
    let service = prop::sample::select(vec!["x", "y"]);
    let port = prop::sample::select(vec!["web", "dns"]);
    (names, service, port, endpoints).prop_map(|(name, service, port, endpoints)| {
        let ports = vec![EndpointPort { name: port.into(), protocol: protocol::TCP, port: 8080 }];
        Change::EndpointSlice(EndpointSliceObject { endpoints, ports, ..slice(name, service, &[]) })
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    let zone = prop::sample::select(vec![None, Some("a"), Some("b")]);
    prop_oneof![
        6 => any_service(),
        6 => any_slice(),
        2 => prop::sample::select(SERVICES.to_vec()).prop_map(|name| Change::ServiceGone(service_name(name))),
        2 => prop::sample::select(vec!["a/s1", "a/s2", "b/s1", "b/s2"])
            .prop_map(|name| Change::EndpointSliceGone(service_name(name))),
        1 => (1u8..4, zone, any::<bool>()).prop_map(|(number, zone, has_ipv6)| {
            let mut object = NodeObject { zone: zone.map(str::to_owned), ..node(number) };
            let address = ip(&format!("2001:db8::{number}"));
            object.addresses.extend(has_ipv6.then_some(NodeAddress { address, internal: true }));
            Change::Node(object)
        }),
        1 => (1u8..4).prop_map(|number| Change::NodeGone(format!("n{number}"))),
        1 => prop::sample::select(ADDRESSES.to_vec()).prop_map(|address| Change::Pod(pod("open/p", 2, &[address]))),
        1 => Just(Change::PodGone(pod_name("open/p"))),
        2 => Just(Change::Synced),
    ]
}

/// Every frontend leads to sets that are there.
fn is_whole(services: &Services) -> bool {
    services.frontends.values().all(|frontend| sets_of(frontend).all(|set| services.sets.contains_key(&set)))
}

/// Which of the clients each frontend admits.
fn admitted(services: &Services) -> BTreeSet<(FrontendKey, &'static str)> {
    let admits = |frontend: &Frontend, client: &str| {
        let is_of = |range: &&SourceRange| range.key.set() == frontend.outside;
        let holds = |range: &SourceRange| {
            truncate(ip(client).into(), range.length - SourceKey::SET_BITS).address == range.key.address
        };
        frontend.flags & frontend_flag::OUTSIDE != 0
            && (!is_limited(frontend) || services.sources.iter().filter(is_of).any(holds))
    };
    let pairs = services.frontends.iter().flat_map(|pair| CLIENTS.map(|client| (pair, client)));
    pairs.filter(|((_, frontend), client)| admits(frontend, client)).map(|((key, _), client)| (*key, client)).collect()
}

/// What the rules say without a look at how it is computed.
fn check(model: &Model, local: &LocalNode, desired: &Desired) {
    let services = &desired.state.services;
    assert!(is_whole(services), "{services:?}");
    let used: BTreeSet<SetNumber> = services.frontends.values().flat_map(sets_of).collect();
    assert_eq!(services.sets.keys().copied().collect::<BTreeSet<_>>(), used, "no set without a frontend");
    for backends in services.sets.values() {
        assert!(backends.is_sorted() && backends.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(backends.iter().all(|backend| backend.address != ip("127.0.0.1").into()));
    }
    let mut ranges = BTreeSet::new();
    for (key, frontend) in &services.frontends {
        let name = desired.services.claimant(key).unwrap();
        let (object, _) = model.services.find(name).unwrap();
        let claim = desired.services.derived(name).and_then(|derived| derived.claim(key)).unwrap();
        let is_cluster = claim.kind == FrontendKind::ClusterAddress;
        let is_outside = frontend.flags & frontend_flag::OUTSIDE != 0;
        assert_eq!(is_outside, local.settings.services_outside && !is_cluster, "{key}");
        assert!(is_outside || frontend.outside == 0 && frontend.flags & !frontend_flag::OWN_NODE == 0, "{key}");
        if is_limited(frontend) {
            let of_family = object.source_ranges.iter().filter(|range| range.addr().is_ipv4() == key.address.is_v4());
            let range =
                |range: &IpNet| SourceRange::new(frontend.outside, Prefix::new(range.addr(), range.prefix_len()));
            ranges.extend(of_family.map(range));
        }
    }
    assert_eq!(services.sources, ranges);
    let checks = health_checks(&desired.services);
    assert!(checks.windows(2).all(|pair| pair[0].port < pair[1].port));
    let mut shown = BTreeMap::new();
    for view in view::services(model, &desired.services) {
        for frontend in view.frontends {
            assert!(frontend.usable <= view.backends.len());
            if frontend.left_out.is_none() {
                let other = shown.insert(frontend.key, view.object.name.clone());
                assert_eq!(other, None, "{} has one holder", frontend.key);
            }
        }
    }
    assert!(shown.keys().eq(services.frontends.keys()), "what is shown is what is held");
    for (key, name) in &shown {
        assert_eq!(desired.services.claimant(key), Some(name));
        assert_ne!(desired.identity(key.address.into()).kind(), Kind::Pod, "{key} is a pod's");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// What is kept in step is what is computed from scratch; whichever steps fail, no frontend
    /// leads to a set that is not there, or admits a client that it admits neither before nor
    /// after; and in the end the kernel has what it should.
    #[test]
    fn any_history_ends_in_what_follows_from_the_objects(
        batches in prop::collection::vec((prop::collection::vec(any_change(), 1..4), 0u8..12), 1..25),
        failures in prop::collection::vec(any::<bool>(), 0..200),
    ) {
        let mut world = World::new();
        world.local.settings.services = true;
        world.local.settings.services_outside = true;
        let mut actual = State::default();
        let mut failures = failures.into_iter();
        let mut pending = crate::state::Scope::everything();
        for (batch, odd) in batches {
            match odd {
                0 => world.local.settings.services ^= true,
                1 => world.local.addresses = [ip("203.0.113.2")].into(),
                2 => world.local.addresses.clear(),
                3 => world.local.settings.services_outside ^= true,
                _ => {}
            }
            let (desired, steps) = world.turn(batch, &actual, std::mem::take(&mut pending));
            check(&world.model, &world.local, &desired);
            let mut may_admit = admitted(&actual.services);
            may_admit.extend(admitted(&desired.state.services));
            let mut execution = Execution::new(steps);
            while let Some(next) = execution.next_steps() {
                for step in next {
                    if matches!(step, Step::Service(_)) && failures.next().unwrap_or(false) {
                        execution.failed(&step);
                        pending = crate::state::Scope::everything();
                        continue;
                    }
                    actual.apply(&step);
                    prop_assert!(is_whole(&actual.services), "after {}", step);
                    let now = admitted(&actual.services);
                    prop_assert!(now.is_subset(&may_admit), "after {}: {:?}", step, now.difference(&may_admit));
                }
            }
        }
        world.hear(Change::Synced);
        let _ = world.follow();
        for step in plan(&actual, &world.incremental) {
            actual.apply(&step);
            prop_assert!(is_whole(&actual.services), "after {}", step);
        }
        prop_assert_eq!(&actual.services, &world.incremental.state.services);
        prop_assert_eq!(plan(&actual, &world.incremental), []);
    }
}
