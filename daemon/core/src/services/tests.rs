mod outside;
mod properties;

use std::sync::Arc;

use hauberk_abi::packet::protocol;
use hauberk_abi::service::{FrontendKey, frontend_flag};

use super::refusal::Facts;
use super::view::{Condition, FrontendKind};
use super::*;
use crate::events::{Collector, reason};
use crate::identities::addresses::Places;
use crate::local_node::{ServicesRoom, Settings};
use crate::model::Change;
use crate::names::ServiceName;
use crate::objects::{
    Endpoint, EndpointPort, EndpointSliceObject, Hints, NodeObject, ServiceKind, ServiceObject, ServicePort,
    TrafficPolicy,
};
use crate::state::Step;
use crate::testing::{World, attachment, endpoint, ip, net, node, pod, pod_name, service, service_name, slice};

/// Three nodes, n1 this one; services are looked at.
fn world() -> World {
    let mut world = World::three_nodes();
    world.local.settings.services = true;
    world
}

/// The same with a service and these endpoints.
fn with(object: ServiceObject, endpoints: Vec<Endpoint>) -> World {
    let mut world = world();
    let name = object.name.name.to_string();
    world.apply(Change::Service(object));
    world.apply(Change::EndpointSlice(EndpointSliceObject { endpoints, ..slice("shop/some", &name, &[]) }));
    world
}

fn cart() -> ServiceObject {
    service("shop/cart", "10.96.0.1")
}

fn frontend(world: &World, key: &str) -> Option<Frontend> {
    let frontends = world.desired().state.services.frontends;
    frontends.into_iter().find(|(other, _)| other.to_string() == key).map(|(_, frontend)| frontend)
}

/// The backends that connections to the frontend are led to; none if it is not there.
fn led(world: &World, key: &str) -> Option<Vec<String>> {
    let backends = Arc::clone(&world.desired().state.services.sets[&frontend(world, key)?.set]);
    Some(backends.iter().map(|it| format!("{}:{}", it.address, it.port)).collect())
}

#[track_caller]
fn assert_led(world: &World, key: &str, backends: &[&str]) {
    assert_eq!(led(world, key).unwrap_or_else(|| panic!("{key} is not there")), backends, "{key}");
}

/// Why the service's frontend is left out.
fn left_out(world: &World, service: &str, key: &str) -> String {
    let (namespace, name) = service.split_once('/').unwrap();
    let desired = world.desired();
    let view = view::find(&world.model, &desired.services, namespace, name).unwrap();
    let frontend = view.frontends.into_iter().find(|frontend| frontend.key.to_string() == key).unwrap();
    frontend.left_out.unwrap_or_default()
}

fn terminating(address: &str, node: u8) -> Endpoint {
    Endpoint { ready: false, terminating: true, ..endpoint(address, node) }
}

fn hinted(address: &str, zones: &[&str], nodes: &[&str]) -> Endpoint {
    let shared = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
    Endpoint { hints: Some(Arc::new(Hints { zones: shared(zones), nodes: shared(nodes) })), ..endpoint(address, 2) }
}

#[test]
fn a_cluster_address_leads_to_the_ready_endpoints_at_the_ports_of_the_slice() {
    let mut object = cart();
    object.ports.push(ServicePort { name: "dns".into(), protocol: protocol::UDP, port: 53, node_port: None });
    let ready = endpoint("10.0.2.5", 2);
    let not_ready = Endpoint { ready: false, serving: false, ..endpoint("10.0.2.6", 2) };
    let mut world = with(object, vec![ready, not_ready]);
    world.apply(Change::EndpointSlice(EndpointSliceObject {
        ports: vec![
            EndpointPort { name: "web".into(), protocol: protocol::TCP, port: 8081 },
            EndpointPort { name: "dns".into(), protocol: protocol::TCP, port: 5353 },
            EndpointPort { name: "dns".into(), protocol: protocol::UDP, port: 5354 },
        ],
        ..slice("shop/more", "cart", &["10.0.3.5"])
    }));
    world.apply(Change::EndpointSlice(slice("shop/six", "cart", &["fd00::5"])));
    world.apply(Change::EndpointSlice(slice("shop/other", "pay", &["10.0.3.7"])));
    assert_led(&world, "10.96.0.1:80/TCP", &["10.0.2.5:8080", "10.0.3.5:8081"]);
    assert_led(&world, "10.96.0.1:53/UDP", &["10.0.3.5:5354"]);
    let expected = Frontend { set: 0x1111, ..Frontend::default() };
    let number = |frontend: Frontend| Frontend { set: 0x1111, ..frontend };
    assert_eq!(frontend(&world, "10.96.0.1:80/TCP").map(number), Some(expected));
    assert!(world.events().is_empty(), "{:?}", world.events());
}

#[test]
fn both_families_have_frontends_and_backends_of_their_own() {
    let mut object = cart();
    object.cluster_addresses.push(ip("fd96::1"));
    object.kind = ServiceKind::NodePort;
    object.ports[0].node_port = Some(30080);
    let mut world = with(object, vec![endpoint("10.0.2.5", 2)]);
    world.apply(Change::EndpointSlice(slice("shop/six", "cart", &["fd00::5"])));
    for (key, backend) in [
        ("10.96.0.1:80/TCP", "10.0.2.5:8080"),
        ("[fd96::1]:80/TCP", "fd00::5:8080"),
        ("node:30080/TCP", "10.0.2.5:8080"),
        ("[node]:30080/TCP", "fd00::5:8080"),
    ] {
        assert_led(&world, key, &[backend]);
    }
    assert_eq!(world.desired().state.services.sets.len(), 2, "a node port leads where the cluster address does");
}

#[test]
fn a_service_without_usable_endpoints_refuses() {
    assert_led(&with(cart(), vec![]), "10.96.0.1:80/TCP", &[]);
    let mut world = world();
    world.apply(Change::Service(cart()));
    assert_led(&world, "10.96.0.1:80/TCP", &[]);
    world.apply(Change::ServiceGone(service_name("shop/cart")));
    assert_eq!(world.desired().state.services, Services::default());
}

#[test]
fn a_cluster_address_with_the_local_policy_leads_to_this_node_alone() {
    let object = ServiceObject {
        internal_policy: TrafficPolicy::Local,
        kind: ServiceKind::NodePort,
        ports: vec![ServicePort { node_port: Some(30080), ..cart().ports[0].clone() }],
        ..cart()
    };
    let world = with(object.clone(), vec![endpoint("10.0.1.5", 1), endpoint("10.0.2.5", 2)]);
    assert_led(&world, "10.96.0.1:80/TCP", &["10.0.1.5:8080"]);
    assert_led(&world, "node:30080/TCP", &["10.0.1.5:8080", "10.0.2.5:8080"]);
    let world = with(object, vec![endpoint("10.0.2.5", 2)]);
    assert_led(&world, "10.96.0.1:80/TCP", &[]);
}

#[test]
fn from_inside_the_external_policy_only_leaves_node_ports_to_their_node() {
    let object = ServiceObject {
        external_policy: TrafficPolicy::Local,
        kind: ServiceKind::LoadBalancer,
        ports: vec![ServicePort { node_port: Some(30080), ..cart().ports[0].clone() }],
        balancer_addresses: vec![ip("203.0.113.1")],
        external_addresses: vec![ip("192.0.2.2")],
        ..cart()
    };
    let world = with(object, vec![endpoint("10.0.1.5", 1), endpoint("10.0.2.5", 2)]);
    for key in ["10.96.0.1:80/TCP", "203.0.113.1:80/TCP", "192.0.2.2:80/TCP", "node:30080/TCP"] {
        assert_led(&world, key, &["10.0.1.5:8080", "10.0.2.5:8080"]);
        let flags = if key.starts_with("node") { frontend_flag::OWN_NODE } else { 0 };
        assert_eq!(frontend(&world, key).unwrap().flags, flags, "{key}");
    }
}

#[test]
fn what_the_type_does_not_have_is_not_there() {
    let object = ServiceObject {
        ports: vec![ServicePort { node_port: Some(30080), ..cart().ports[0].clone() }],
        balancer_addresses: vec![ip("203.0.113.1")],
        ..cart()
    };
    assert_eq!(with(object.clone(), vec![]).desired().state.services.frontends.len(), 1);
    let object = ServiceObject { kind: ServiceKind::NodePort, ..object };
    assert_eq!(with(object.clone(), vec![]).desired().state.services.frontends.len(), 2);
    // Headless: it has no cluster address, and nothing else counts.
    let external_addresses = vec![ip("203.0.113.2")];
    let object = ServiceObject { cluster_addresses: vec![], external_addresses, ..object };
    let world = with(object, vec![endpoint("10.0.2.5", 2)]);
    assert_eq!(world.desired().state.services, Services::default());
    assert!(world.events().is_empty());
    assert!(left_out(&world, "shop/cart", "203.0.113.2:80/TCP").contains("no cluster address"));
}

#[test]
fn while_no_endpoint_is_ready_those_that_end_serve_here_and_everywhere_by_themselves() {
    let object =
        ServiceObject { internal_policy: TrafficPolicy::Local, external_addresses: vec![ip("203.0.113.1")], ..cart() };
    let (local, all) = ("10.96.0.1:80/TCP", "203.0.113.1:80/TCP");
    let world = with(object.clone(), vec![terminating("10.0.1.5", 1), endpoint("10.0.2.5", 2)]);
    assert_led(&world, local, &["10.0.1.5:8080"]);
    assert_led(&world, all, &["10.0.2.5:8080"]);
    let ended = Endpoint { serving: false, ..terminating("10.0.1.6", 1) };
    let world = with(object, vec![terminating("10.0.1.5", 1), ended, terminating("10.0.2.5", 2)]);
    assert_led(&world, local, &["10.0.1.5:8080"]);
    assert_led(&world, all, &["10.0.1.5:8080", "10.0.2.5:8080"]);
}

#[test]
fn a_service_that_publishes_them_counts_all_its_endpoints_as_ready() {
    let endpoints = || vec![Endpoint { ready: false, serving: false, ..endpoint("10.0.2.5", 2) }];
    assert_led(&with(cart(), endpoints()), "10.96.0.1:80/TCP", &[]);
    let object = ServiceObject { publishes_not_ready: true, ..cart() };
    assert_led(&with(object, endpoints()), "10.96.0.1:80/TCP", &["10.0.2.5:8080"]);
}

#[test]
fn hints_hold_if_every_endpoint_has_one_and_one_is_for_this_place() {
    let key = "10.96.0.1:80/TCP";
    let near = ["10.0.2.5:8080"];
    let both = ["10.0.2.5:8080", "10.0.2.6:8080"];
    let cases = [
        (hinted("10.0.2.5", &["a"], &[]), hinted("10.0.2.6", &["b"], &[]), &near[..]),
        (hinted("10.0.2.5", &["b", "a"], &[]), hinted("10.0.2.6", &["a"], &[]), &both),
        (hinted("10.0.2.5", &["a"], &[]), endpoint("10.0.2.6", 2), &both),
        (hinted("10.0.2.5", &["b"], &[]), hinted("10.0.2.6", &["b"], &[]), &both),
        (hinted("10.0.2.5", &["b"], &["n1"]), hinted("10.0.2.6", &["a"], &["n2"]), &near),
        (hinted("10.0.2.5", &["a"], &["n3"]), hinted("10.0.2.6", &["b"], &["n2"]), &near),
        (hinted("10.0.2.5", &["a"], &["n1"]), hinted("10.0.2.6", &["a"], &[]), &both),
        (hinted("10.0.2.5", &[], &["n1"]), hinted("10.0.2.6", &["a"], &[]), &both),
    ];
    for (one, other, expected) in cases {
        let what = format!("{one:?} {other:?}");
        let mut world = with(cart(), vec![one, other]);
        world.apply(Change::Node(NodeObject { zone: Some("a".into()), ..node(1) }));
        assert_eq!(led(&world, key).unwrap(), expected, "{what}");
    }
    let endpoints = || vec![hinted("10.0.2.5", &["a"], &[]), hinted("10.0.2.6", &["b"], &[])];
    let mut world = with(cart(), endpoints());
    assert_led(&world, key, &both);
    world.apply(Change::Node(NodeObject { zone: Some("b".into()), ..node(1) }));
    assert_led(&world, key, &both[1..]);
    world.apply(Change::Node(node(1)));
    assert_led(&world, key, &both);
    // With the policy Local, only the node counts.
    let here = endpoints().into_iter().map(|it| Endpoint { node: Some("n1".into()), ..it }).collect();
    let mut world = with(ServiceObject { internal_policy: TrafficPolicy::Local, ..cart() }, here);
    world.apply(Change::Node(NodeObject { zone: Some("a".into()), ..node(1) }));
    assert_led(&world, key, &both);
}

#[test]
fn an_endpoint_of_several_slices_is_one() {
    let mut world = with(cart(), vec![endpoint("10.0.2.5", 2)]);
    let ending = EndpointSliceObject {
        endpoints: vec![terminating("10.0.2.5", 2), endpoint("10.0.2.6", 2)],
        ..slice("shop/more", "cart", &[])
    };
    world.apply(Change::EndpointSlice(ending));
    assert_led(&world, "10.96.0.1:80/TCP", &["10.0.2.5:8080", "10.0.2.6:8080"]);
    world.apply(Change::EndpointSliceGone(service_name("shop/some")));
    assert_led(&world, "10.96.0.1:80/TCP", &["10.0.2.6:8080"]);
}

#[test]
fn a_client_keeps_its_backend_for_as_long_as_the_service_says() {
    let world = with(ServiceObject { affinity: Some(600), ..cart() }, vec![]);
    assert_eq!(frontend(&world, "10.96.0.1:80/TCP").unwrap().affinity, 600);
}

#[test]
fn what_another_program_serves_is_left_to_it_without_an_event() {
    let sctp = ServicePort { protocol: protocol::SCTP, ..cart().ports[0].clone() };
    let world = with(ServiceObject { ports: vec![sctp], ..cart() }, vec![]);
    assert!(left_out(&world, "shop/cart", "10.96.0.1:80/SCTP").contains("kube-proxy"));
    assert_eq!(world.desired().state.services, Services::default());

    let object = ServiceObject {
        kind: ServiceKind::LoadBalancer,
        balancer_addresses: vec![ip("203.0.113.1")],
        source_ranges: vec![net("198.51.100.0/24")],
        ..cart()
    };
    let limited = with(object, vec![]);
    assert!(left_out(&limited, "shop/cart", "203.0.113.1:80/TCP").contains("loadBalancerSourceRanges"));
    assert_eq!(limited.desired().state.services.frontends.len(), 1, "the cluster address is served");

    let other = with(ServiceObject { other_proxy: Some("mesh".into()), ..cart() }, vec![]);
    assert!(left_out(&other, "shop/cart", "10.96.0.1:80/TCP").contains("service-proxy-name"));
    assert_eq!(other.desired().state.services, Services::default());
    assert!([world, limited, other].iter().all(|world| world.events().is_empty()));
}

#[test]
fn addresses_that_a_service_must_not_have_are_refused_and_the_others_served() {
    let everywhere = ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"];
    let of_pods = ["10.0.2.5", "10.0.2.77", "10.0.99.1", "10.99.0.1", "203.0.113.5"];
    let of_nodes = ["192.0.2.2", "203.0.113.9"];
    let cases = [
        (FrontendKind::ClusterAddress, &everywhere[..], true),
        // Of these 10.0.99.1 is in clusterRanges alone: a cluster's services may lie there.
        (FrontendKind::ClusterAddress, &["10.0.2.5", "10.0.2.77", "10.99.0.1", "203.0.113.5"], true),
        (FrontendKind::ClusterAddress, &["10.0.99.1", "203.0.113.77"], false),
        (FrontendKind::ClusterAddress, &of_nodes, true),
        (FrontendKind::LoadBalancer, &everywhere, true),
        (FrontendKind::LoadBalancer, &of_pods, true),
        (FrontendKind::LoadBalancer, &of_nodes, false),
        (FrontendKind::ExternalAddress, &everywhere, true),
        (FrontendKind::ExternalAddress, &of_pods, true),
        (FrontendKind::ExternalAddress, &of_nodes, false),
    ];
    for (kind, addresses, is_refused) in cases {
        for address in addresses {
            let mut world = world();
            world.local.addresses = [ip("203.0.113.9")].into();
            world.apply(Change::Node(NodeObject { pod_ranges: vec![net("10.99.0.0/24")], ..node(3) }));
            world.apply(Change::Pod(pod("open/a", 2, &["10.0.2.5"])));
            world.apply(Change::Attachment(attachment("c1", Some("open/b"), &["203.0.113.5"])));
            let mut object = ServiceObject { kind: ServiceKind::LoadBalancer, ..cart() };
            match kind {
                FrontendKind::ClusterAddress => object.cluster_addresses.push(ip(address)),
                FrontendKind::LoadBalancer => object.balancer_addresses.push(ip(address)),
                _ => object.external_addresses.push(ip(address)),
            }
            world.apply(Change::Service(object));
            let what = format!("{kind:?} {address}");
            let key = format!("{address}:80/TCP");
            if is_refused {
                world.assert_event(reason::SERVICE_ADDRESS_REFUSED, &["Service/shop/cart"]);
                if *address != "0.0.0.0" {
                    assert_ne!(left_out(&world, "shop/cart", &key), "", "{what}");
                }
            }
            assert_eq!(frontend(&world, &key).is_none(), is_refused, "{what}");
            assert!(frontend(&world, "10.96.0.1:80/TCP").is_some(), "{what}");
        }
    }
}

#[test]
fn all_ports_of_a_refused_address_are_told_once() {
    let mut object = ServiceObject { external_addresses: vec![ip("127.0.0.1")], ..cart() };
    object.ports.push(ServicePort { name: "more".into(), port: 81, ..cart().ports[0].clone() });
    let world = with(object, vec![]);
    assert_eq!(world.events().len(), 1, "{:?}", world.events());
    assert_eq!(world.desired().state.services.frontends.len(), 2);
}

#[test]
fn an_address_is_a_services_again_when_the_pod_or_node_that_has_it_is_gone() {
    let key = "203.0.113.1:80/TCP";
    let mut world = with(ServiceObject { external_addresses: vec![ip("203.0.113.1")], ..cart() }, vec![]);
    assert!(frontend(&world, key).is_some());
    world.apply(Change::Pod(pod("open/a", 2, &["203.0.113.1"])));
    assert!(frontend(&world, key).is_none());
    world.assert_event(reason::SERVICE_ADDRESS_REFUSED, &["Service/shop/cart"]);
    world.apply(Change::PodGone(pod_name("open/a")));
    assert!(frontend(&world, key).is_some() && world.events().is_empty());

    let mut world = with(service("shop/cart", "192.0.2.77"), vec![]);
    let key = "192.0.2.77:80/TCP";
    for (addresses, has) in [(["192.0.2.77"].map(ip).into(), false), (BTreeSet::new(), true)] {
        world.local.addresses = addresses;
        let _ = world.follow();
        assert_eq!(*world.incremental, world.desired());
        assert_eq!(frontend(&world, key).is_some(), has);
    }
}

#[test]
fn of_two_services_with_one_address_and_port_the_better_claim_holds() {
    let backend = |world: &mut World, name: &str, address: &str| {
        world.apply(Change::EndpointSlice(slice(&format!("shop/{name}-1"), name, &[address])));
    };
    let mut world = world();
    let balancer = ServiceObject {
        kind: ServiceKind::LoadBalancer,
        balancer_addresses: vec![ip("203.0.113.1")],
        ..service("shop/balancer", "10.96.0.2")
    };
    let external = |name: &str, address: &str| ServiceObject {
        external_addresses: vec![ip("203.0.113.1")],
        ..service(name, address)
    };
    let key = "203.0.113.1:80/TCP";
    for (place, name) in ["cluster", "balancer", "alpha", "beta"].into_iter().enumerate() {
        backend(&mut world, name, &format!("10.0.2.{}", place + 1));
    }
    world.apply(Change::Service(external("shop/beta", "10.96.0.4")));
    assert_led(&world, key, &["10.0.2.4:8080"]);
    world.apply(Change::Service(external("shop/alpha", "10.96.0.3")));
    assert_led(&world, key, &["10.0.2.3:8080"]);
    world.assert_event(reason::SERVICE_CONFLICT, &["Service/shop/beta", "Service/shop/alpha"]);
    world.apply(Change::Service(balancer));
    assert_led(&world, key, &["10.0.2.2:8080"]);
    world.apply(Change::Service(service("shop/cluster", "203.0.113.1")));
    assert_led(&world, key, &["10.0.2.1:8080"]);
    for loser in ["balancer", "alpha", "beta"] {
        world.assert_event(reason::SERVICE_CONFLICT, &[&format!("Service/shop/{loser}"), "Service/shop/cluster"]);
        assert!(left_out(&world, &format!("shop/{loser}"), key).contains("Service shop/cluster has it"));
    }
    assert_eq!(world.events().len(), 3, "{:?}", world.events());
    // Only that frontend is left out, and it goes to the next when the holder goes.
    assert_led(&world, "10.96.0.4:80/TCP", &["10.0.2.4:8080"]);
    for (gone, next) in [("cluster", "10.0.2.2"), ("balancer", "10.0.2.3"), ("alpha", "10.0.2.4")] {
        world.apply(Change::ServiceGone(service_name(&format!("shop/{gone}"))));
        assert_led(&world, key, &[&format!("{next}:8080")]);
    }
    assert!(world.events().is_empty());
}

#[test]
fn of_two_services_with_one_node_port_the_lower_name_has_it() {
    let object = |name: &str, address: &str| {
        let mut object = service(name, address);
        object.kind = ServiceKind::NodePort;
        object.ports[0].node_port = Some(30080);
        object
    };
    let mut world = world();
    world.apply(Change::Service(object("shop/b", "10.96.0.1")));
    world.apply(Change::Service(object("shop/a", "10.96.0.2")));
    world.assert_event(reason::SERVICE_CONFLICT, &["Service/shop/b", "Service/shop/a"]);
    let desired = world.desired();
    let number = frontend(&world, "node:30080/TCP").unwrap().set;
    assert_eq!(desired.services.owner(number), Some(&service_name("shop/a")));
    // The other's set is still used by its cluster address.
    assert_eq!(desired.state.services.sets.len(), 2);
}

#[test]
fn a_set_that_no_frontend_leads_to_is_not_there() {
    let mut world = world();
    world.apply(Change::Service(service("shop/a", "10.96.0.1")));
    world.apply(Change::Service(service("shop/b", "10.96.0.1")));
    assert_eq!(world.desired().state.services.sets.len(), 1);
    world.apply(Change::ServiceGone(service_name("shop/a")));
    assert_eq!(world.desired().state.services.sets.len(), 1);
    assert_eq!(
        world.desired().services.owner(frontend(&world, "10.96.0.1:80/TCP").unwrap().set).unwrap().name,
        "b".into()
    );
}

#[test]
fn endpoints_that_cannot_be_used_are_left_out_and_told() {
    let mut world = with(cart(), vec![endpoint("10.0.2.5", 2), endpoint("127.0.0.1", 2), endpoint("169.254.1.1", 2)]);
    assert_led(&world, "10.96.0.1:80/TCP", &["10.0.2.5:8080"]);
    world.assert_event(reason::SERVICE_ADDRESS_REFUSED, &["EndpointSlice/shop/some"]);
    assert_eq!(world.events().len(), 2);
    let object = EndpointSliceObject { no_addresses: vec!["x".into()], ..slice("shop/some", "cart", &["10.0.2.5"]) };
    world.apply(Change::EndpointSlice(object));
    assert!(
        world.desired().events.first().unwrap().message.contains("\"x\" is left out"),
        "{:?}",
        world.desired().events
    );
}

#[test]
fn nothing_is_said_of_services_before_everything_is_known_or_while_they_are_switched_off() {
    let mut world = World::new();
    world.local.settings.services = true;
    world.apply(Change::Service(cart()));
    assert_eq!(world.desired().state.services, Services::default());
    world.apply(Change::Synced);
    assert_eq!(world.desired().state.services.frontends.len(), 1);
    world.local.settings.services = false;
    let followed = world.follow();
    assert!(followed.scope.is_everything());
    assert_eq!(*world.incremental, world.desired());
    assert_eq!(world.desired().state.services, Services::default());
    let desired = world.desired();
    let view = view::find(&world.model, &desired.services, "shop", "cart").unwrap();
    assert_eq!(view.frontends, []);
}

#[test]
fn a_change_of_a_service_looks_at_that_service_alone() {
    let mut world = with(cart(), vec![endpoint("10.0.2.5", 2)]);
    world.apply(Change::Service(service("shop/pay", "10.96.0.2")));
    let set = frontend(&world, "10.96.0.1:80/TCP").unwrap().set;
    world.hear(Change::EndpointSlice(slice("shop/some", "cart", &["10.0.2.6"])));
    let scope = world.follow().scope.services;
    assert_eq!(scope, Scope { sets: Keys::These([set].into()), ..Scope::default() });
    world.hear(Change::EndpointSlice(EndpointSliceObject {
        origin: "moved".into(),
        ..slice("shop/some", "cart", &["10.0.2.6"])
    }));
    assert_eq!(world.follow().scope.services, Scope::default());
}

#[test]
fn a_sets_number_follows_from_its_name_alone() {
    let number = |namespace: &str, name: &str, port: &str, is_ipv4, policy| {
        let port = ServicePort { name: port.into(), ..cart().ports[0].clone() };
        set_number(&ServiceName::new(namespace, name), &port, is_ipv4, policy)
    };
    let cluster = TrafficPolicy::Cluster;
    // The kernel of a running node has these numbers: they stay over versions.
    assert_eq!(number("shop", "cart", "web", true, cluster), GOLDEN);
    let others = [
        number("shop", "cart", "web", false, cluster),
        number("shop", "cart", "web", true, TrafficPolicy::Local),
        number("shopc", "art", "web", true, cluster),
        number("shop", "cartw", "eb", true, cluster),
        number("shop", "cart", "", true, cluster),
    ];
    assert!(others.iter().all(|other| *other != GOLDEN));
}

const GOLDEN: SetNumber = 0xc7f2_102e_08df_baeb;

/// Looks at all services with a hash that knows one number only.
fn colliding(world: &World) -> (Claims, Services) {
    looked_at(world, |_, _, _, _| 7)
}

/// Looks at all services with this hash.
fn looked_at(
    world: &World,
    number: fn(&ServiceName, &ServicePort, bool, TrafficPolicy) -> SetNumber,
) -> (Claims, Services) {
    let places = Places::claimed(&world.model, &world.local, &mut Collector::default());
    let desired = world.desired();
    let facts = Facts {
        model: &world.model,
        local: &world.local,
        places: &places,
        endpoints: &desired.state.identities.endpoints,
        number,
    };
    let (mut claims, mut held) = (Claims::default(), Services::default());
    let names: Vec<ServiceName> = world.model.services().map(|object| object.name.clone()).collect();
    for name in names.into_iter().rev() {
        claims.look(&facts, [name], &mut held, &mut Scope::default());
    }
    (claims, held)
}

#[test]
fn a_sets_number_that_two_services_share_is_the_lower_names() {
    let mut world = world();
    world.apply(Change::EndpointSlice(slice("shop/a-1", "a", &["10.0.2.5"])));
    world.apply(Change::Service(service("shop/a", "10.96.0.1")));
    world.apply(Change::Service(service("shop/b", "10.96.0.2")));
    let (claims, held) = colliding(&world);
    assert_eq!(held.frontends.keys().map(FrontendKey::to_string).collect::<Vec<_>>(), ["10.96.0.1:80/TCP"]);
    assert_eq!(held.sets[&7].len(), 1);
    let mut events = Collector::default();
    for name in ["shop/a", "shop/b"] {
        claims.tell(&world.model, &service_name(name), &mut events);
    }
    let events = events.finish();
    assert_eq!(events.len(), 1);
    let event = events.first().unwrap();
    assert_eq!(
        (event.reason, &*event.objects),
        (reason::SERVICE_SET_TAKEN, &["Service/shop/b", "Service/shop/a"].map(String::from)[..])
    );
}

#[test]
fn of_a_services_own_sets_with_one_number_the_first_holds() {
    let mut object = cart();
    object.ports.push(ServicePort { name: "more".into(), port: 81, ..cart().ports[0].clone() });
    let (claims, held) = colliding(&with(object, vec![]));
    assert_eq!(held.frontends.keys().map(FrontendKey::to_string).collect::<Vec<_>>(), ["10.96.0.1:80/TCP"]);
    assert_eq!(claims.derived(&service_name("shop/cart")).unwrap().sets.len(), 1);
}

#[test]
fn a_steps_service_is_known() {
    let mut world = with(cart(), vec![]);
    world.apply(Change::Service(service("shop/rival", "10.96.0.1")));
    let desired = world.desired();
    let (key, frontend) = desired.state.services.frontends.first_key_value().unwrap();
    let name = service_name("shop/cart");
    for step in [
        ServiceStep::PutFrontend(*key, *frontend),
        ServiceStep::RemoveFrontend(*key),
        ServiceStep::PutSet(frontend.set, [].into()),
        ServiceStep::RemoveSet(frontend.set),
    ] {
        assert_eq!(desired.service_of(&Step::Service(step.clone())), Some(&name), "{step}");
    }
    assert_eq!(desired.service_of(&Step::Service(ServiceStep::RemoveSet(1))), None);
    assert_eq!(Step::Service(ServiceStep::RemoveFrontend(*key)).object(), "service address/10.96.0.1:80/TCP");
}

#[test]
fn a_view_has_all_frontends_and_endpoints_with_what_becomes_of_them() {
    let object =
        ServiceObject { affinity: Some(60), external_addresses: vec![ip("203.0.113.1"), ip("10.0.2.9")], ..cart() };
    let not_ready = Endpoint { ready: false, serving: false, node: None, ..endpoint("10.0.2.7", 2) };
    let mut world = with(object, vec![endpoint("10.0.2.5", 2), terminating("10.0.3.6", 3), not_ready]);
    world.apply(Change::EndpointSlice(EndpointSliceObject {
        endpoints: vec![terminating("10.0.2.5", 2)],
        ..slice("shop/another", "cart", &[])
    }));
    world.apply(Change::Service(service("shop/rival", "203.0.113.1")));
    let desired = world.desired();
    let all: Vec<_> = view::services(&world.model, &desired.services).collect();
    assert_eq!(all.iter().map(|view| &*view.object.name.name).collect::<Vec<_>>(), ["cart", "rival"]);
    assert_eq!(Some(&all[0]), view::find(&world.model, &desired.services, "shop", "cart").as_ref());
    assert_eq!(view::find(&world.model, &desired.services, "shop", "none"), None);

    let frontends: Vec<_> = all[0]
        .frontends
        .iter()
        .map(|it| (it.key.to_string(), it.kind, it.port_name, it.affinity, it.usable, it.left_out.is_some()))
        .collect();
    let expected = [
        ("10.0.2.9:80/TCP".to_owned(), FrontendKind::ExternalAddress, "web", 60, 0, true),
        ("10.96.0.1:80/TCP".to_owned(), FrontendKind::ClusterAddress, "web", 60, 1, false),
        ("203.0.113.1:80/TCP".to_owned(), FrontendKind::ExternalAddress, "web", 60, 1, true),
    ];
    assert_eq!(frontends, expected);
    let backends: Vec<_> = all[0]
        .backends
        .iter()
        .map(|it| (it.backend.address.to_string(), it.backend.port, it.port_name, it.node, it.condition, it.used))
        .collect();
    let expected = [
        ("10.0.2.5".to_owned(), 8080, "web", Some("n2"), Condition::Ready, true),
        ("10.0.2.7".to_owned(), 8080, "web", None, Condition::NotReady, false),
        ("10.0.3.6".to_owned(), 8080, "web", Some("n3"), Condition::Terminating, false),
    ];
    assert_eq!(backends, expected);
}

#[test]
fn a_service_that_does_not_fit_is_left_out_as_a_whole_and_the_others_are_not() {
    let mut world = world();
    world.local.settings.services_room = Some(ServicesRoom { frontends: 8, backends: 3 });
    world.apply(Change::Service(cart()));
    world.apply(Change::EndpointSlice(slice("shop/cart-1", "cart", &["10.0.2.5", "10.0.2.6"])));
    let mut large = service("shop/a-large", "10.96.0.2");
    large.external_addresses = (0..20_000).map(|last| ip(&format!("198.18.{}.{}", last / 256, last % 256))).collect();
    let port = |number| ServicePort { name: format!("p{number}").into(), port: number, ..large.ports[0].clone() };
    large.ports = (1..500).map(port).collect();
    world.apply(Change::Service(large));
    world.apply(Change::Service(service("shop/pay", "10.96.0.3")));
    world.apply(Change::EndpointSlice(slice("shop/pay-1", "pay", &["10.0.2.7", "10.0.2.8"])));
    assert_led(&world, "10.96.0.1:80/TCP", &["10.0.2.5:8080", "10.0.2.6:8080"]);
    assert_eq!(world.desired().state.services.frontends.len(), 1);
    assert!(left_out(&world, "shop/a-large", "10.96.0.2:1/TCP").contains("do not fit"));
    assert!(left_out(&world, "shop/pay", "10.96.0.3:80/TCP").contains("do not fit"));
    let told = world.events().iter().filter(|(reason, _)| *reason == reason::SERVICE_LEFT_OUT).count();
    assert_eq!(told, 2, "{:?}", world.events());

    // Room that is given back goes to a service that waits for it.
    assert_eq!(frontend(&world, "10.96.0.3:80/TCP"), None);
    world.apply(Change::EndpointSlice(slice("shop/cart-1", "cart", &["10.0.2.5"])));
    assert_led(&world, "10.96.0.3:80/TCP", &["10.0.2.7:8080", "10.0.2.8:8080"]);
}
