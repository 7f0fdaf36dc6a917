//! Clients outside the cluster: which frontends they reach, who of them is admitted, and what load
//! balancers are told.

use super::*;
use crate::objects::NodeAddress;
use crate::plan::{Execution, plan};
use crate::services::health::{HealthCheck, health_checks};
use crate::state::State;

const BALANCER: &str = "203.0.113.1:80/TCP";
const EXTERNAL: &str = "192.0.2.2:80/TCP";
const NODE_PORT: &str = "node:30080/TCP";

fn outside_world() -> World {
    let mut world = world();
    world.local.settings.services_outside = true;
    world
}

/// A world whose clients outside the cluster are led, with a service and these endpoints.
fn outside(object: ServiceObject, endpoints: Vec<Endpoint>) -> World {
    let mut world = outside_world();
    world.apply(Change::Service(object));
    world.apply(Change::EndpointSlice(EndpointSliceObject { endpoints, ..slice("shop/some", "cart", &[]) }));
    world
}

/// A service that clients outside the cluster reach in every way.
fn everywhere(external_policy: TrafficPolicy) -> ServiceObject {
    ServiceObject {
        external_policy,
        kind: ServiceKind::LoadBalancer,
        ports: vec![ServicePort { node_port: Some(30080), ..cart().ports[0].clone() }],
        balancer_addresses: vec![ip("203.0.113.1")],
        external_addresses: vec![ip("192.0.2.2")],
        ..cart()
    }
}

fn limited(ranges: &[&str]) -> ServiceObject {
    ServiceObject {
        source_ranges: ranges.iter().map(|range| net(range)).collect(),
        ..everywhere(TrafficPolicy::Cluster)
    }
}

/// The backends that clients outside the cluster are led to.
fn led_outside(world: &World, key: &str) -> Vec<String> {
    let frontend = frontend(world, key).unwrap();
    assert_ne!(frontend.flags & frontend_flag::OUTSIDE, 0, "{key}");
    let backends = Arc::clone(&world.desired().state.services.sets[&frontend.outside]);
    backends.iter().map(|it| format!("{}:{}", it.address, it.port)).collect()
}

fn flags(world: &World, key: &str) -> u32 {
    frontend(world, key).unwrap().flags
}

/// The ranges that are admitted, without their sets.
fn admitted(world: &World) -> Vec<String> {
    let sources = world.desired().state.services.sources;
    sources.iter().map(|range| range.to_string().split(' ').next().unwrap().to_owned()).collect()
}

fn reached(world: &World) -> State {
    let mut actual = State::default();
    for step in plan(&actual, &world.desired()) {
        actual.apply(&step);
    }
    actual
}

/// The steps to what the world wants, in short.
fn steps(actual: &State, world: &World) -> Vec<String> {
    plan(actual, &world.desired()).iter().map(in_short).collect()
}

fn in_short(step: &Step) -> String {
    let text = step.to_string();
    text.split(" to set").next().unwrap().to_owned()
}

#[test]
fn clients_outside_are_led_to_what_the_external_policy_says() {
    let endpoints = || vec![endpoint("10.0.1.5", 1), endpoint("10.0.2.5", 2)];
    let all = ["10.0.1.5:8080", "10.0.2.5:8080"];
    let world = outside(everywhere(TrafficPolicy::Cluster), endpoints());
    for key in [BALANCER, EXTERNAL, NODE_PORT] {
        assert_eq!(led_outside(&world, key), all, "{key}");
        let frontend = frontend(&world, key).unwrap();
        assert_eq!((frontend.outside, frontend.flags), (frontend.set, frontend_flag::OUTSIDE), "{key}");
    }
    let inside = frontend(&world, "10.96.0.1:80/TCP").unwrap();
    assert_eq!((inside.outside, inside.flags), (0, 0), "nobody outside reaches a cluster address");

    let object = ServiceObject { internal_policy: TrafficPolicy::Local, ..everywhere(TrafficPolicy::Local) };
    let world = outside(object, endpoints());
    let local = frontend(&world, "10.96.0.1:80/TCP").unwrap().set;
    for key in [BALANCER, EXTERNAL, NODE_PORT] {
        assert_eq!(led_outside(&world, key), all[..1], "{key}");
        assert_led(&world, key, &all);
        assert_eq!(frontend(&world, key).unwrap().outside, local, "both policies share the set");
        assert_eq!(flags(&world, key) & frontend_flag::ELSEWHERE, 0);
    }
    assert_eq!(world.desired().state.services.sets.len(), 2);
    assert_eq!(flags(&world, NODE_PORT), frontend_flag::OUTSIDE | frontend_flag::OWN_NODE);
}

#[test]
fn nobody_outside_is_led_unless_that_is_switched_on() {
    let mut world = with(limited(&["198.51.100.0/24"]), vec![endpoint("10.0.1.5", 1)]);
    assert_eq!(flags(&world, EXTERNAL), 0);
    assert!(left_out(&world, "shop/cart", BALANCER).contains("loadBalancerSourceRanges"));
    let services = world.desired().state.services;
    assert_eq!((services.sources.len(), services.masquerade), (0, [Address::UNSPECIFIED; 2]));
    world.local.settings.services_outside = true;
    assert!(world.follow().scope.is_everything());
    assert_eq!(*world.incremental, world.desired());
    assert_eq!(flags(&world, BALANCER), frontend_flag::OUTSIDE | frontend_flag::LIMITED);
}

#[test]
fn with_the_policy_local_the_other_nodes_endpoints_only_tell_that_there_are_some() {
    let elsewhere = |endpoints| flags(&outside(everywhere(TrafficPolicy::Local), endpoints), BALANCER);
    let (set, clear) = (frontend_flag::OUTSIDE | frontend_flag::ELSEWHERE, frontend_flag::OUTSIDE);
    assert_eq!(elsewhere(vec![endpoint("10.0.2.5", 2)]), set);
    assert_eq!(elsewhere(vec![terminating("10.0.2.5", 2)]), set);
    assert_eq!(elsewhere(vec![Endpoint { serving: false, ..terminating("10.0.2.5", 2) }]), clear);
    assert_eq!(elsewhere(vec![]), clear);
    assert_eq!(elsewhere(vec![endpoint("10.0.2.5", 2), endpoint("10.0.1.5", 1)]), clear);
    // One that is ending here serves, although others are ready elsewhere (KEP-1669).
    let ending = vec![endpoint("10.0.2.5", 2), terminating("10.0.1.5", 1)];
    let world = outside(everywhere(TrafficPolicy::Local), ending);
    assert_eq!((led_outside(&world, BALANCER), flags(&world, BALANCER)), (vec!["10.0.1.5:8080".to_owned()], clear));
    let world = outside(everywhere(TrafficPolicy::Cluster), vec![]);
    assert_eq!(flags(&world, BALANCER), clear);
}

#[test]
fn hints_are_followed_for_all_clients_alike() {
    let endpoints = vec![hinted("10.0.2.5", &["a"], &[]), hinted("10.0.2.6", &["b"], &[])];
    let mut world = outside(everywhere(TrafficPolicy::Cluster), endpoints);
    world.apply(Change::Node(NodeObject { zone: Some("b".into()), ..node(1) }));
    assert_eq!(led_outside(&world, BALANCER), ["10.0.2.6:8080"]);
}

#[test]
fn a_load_balancer_admits_the_source_ranges_of_its_family() {
    let mut object = limited(&["198.51.100.7/24", "198.51.100.0/24", "192.0.2.64/26", "2001:db8::/32"]);
    let world = outside(object.clone(), vec![]);
    assert_eq!(admitted(&world), ["198.51.100.0/24", "192.0.2.64/26"]);
    let balancer = frontend(&world, BALANCER).unwrap();
    assert_eq!(balancer.flags, frontend_flag::OUTSIDE | frontend_flag::LIMITED);
    for range in &world.desired().state.services.sources {
        assert_eq!(range.key.set(), balancer.outside);
    }
    for key in [EXTERNAL, NODE_PORT] {
        assert_eq!((flags(&world, key), left_out(&world, "shop/cart", key)), (frontend_flag::OUTSIDE, String::new()));
    }

    object.cluster_addresses.push(ip("fd96::1"));
    object.balancer_addresses.push(ip("2001:db8:1::1"));
    let world = outside(object.clone(), vec![]);
    assert_eq!(admitted(&world), ["2001:db8::/32", "198.51.100.0/24", "192.0.2.64/26"]);

    object.source_ranges = vec![net("198.51.100.0/24")];
    let world = outside(object, vec![]);
    assert_eq!(admitted(&world), ["198.51.100.0/24"], "no IPv6 client is admitted");
    assert_ne!(flags(&world, "[2001:db8:1::1]:80/TCP") & frontend_flag::LIMITED, 0);
    assert!(world.events().is_empty());
}

#[test]
fn what_is_no_source_range_admits_nobody_and_is_told() {
    let object = ServiceObject { no_source_ranges: vec!["10.0.0.0".into()], ..limited(&[]) };
    let world = outside(object.clone(), vec![]);
    assert_eq!(admitted(&world), [] as [&str; 0]);
    assert_ne!(flags(&world, BALANCER) & frontend_flag::LIMITED, 0);
    world.assert_event(reason::SERVICE_ADDRESS_REFUSED, &["Service/shop/cart"]);
    assert!(world.desired().events.first().unwrap().message.contains("\"10.0.0.0\""));
    // It is no reason to admit everybody while kube-proxy serves it either.
    assert!(left_out(&with(object, vec![]), "shop/cart", BALANCER).contains("loadBalancerSourceRanges"));
}

#[test]
fn ranges_are_there_while_a_limited_frontend_asks_for_them() {
    let mut world = outside(limited(&["198.51.100.0/24"]), vec![]);
    assert_eq!(admitted(&world).len(), 1);
    world.apply(Change::Service(service("shop/rival", "203.0.113.1")));
    assert_eq!(admitted(&world), [] as [&str; 0], "the rival has the address");
    world.apply(Change::ServiceGone(service_name("shop/rival")));
    assert_eq!(admitted(&world).len(), 1);
    world.hear(Change::Service(limited(&["192.0.2.64/26"])));
    let scope = world.follow().scope.services;
    assert_eq!((scope.frontends, scope.sets), (Keys::default(), Keys::default()));
    assert!(matches!(scope.sources, Keys::These(ranges) if ranges.len() == 2));
    world.apply(Change::Service(everywhere(TrafficPolicy::Cluster)));
    assert_eq!(admitted(&world), [] as [&str; 0]);
    assert_eq!(flags(&world, BALANCER), frontend_flag::OUTSIDE);
}

#[test]
fn a_set_is_there_while_a_frontend_leads_to_it_for_whatever_clients() {
    let mut world = outside(everywhere(TrafficPolicy::Local), vec![endpoint("10.0.1.5", 1)]);
    // The cluster addresses and external addresses of the others are better claims.
    world.apply(Change::Service(service("shop/a", "203.0.113.1")));
    world.apply(Change::Service(service("shop/b", "192.0.2.77")));
    let sets = |world: &World| world.desired().state.services.sets.len();
    assert_eq!(sets(&world), 4);
    world.apply(Change::Service(ServiceObject { kind: ServiceKind::ClusterIp, ..everywhere(TrafficPolicy::Local) }));
    assert_eq!(sets(&world), 4, "the external address still leads to this node's endpoints");
    world.apply(Change::Service(service("shop/b", "192.0.2.2")));
    world.assert_event(reason::SERVICE_ADDRESS_REFUSED, &["Service/shop/b"]);
    world.apply(Change::Service(ServiceObject { external_addresses: vec![], ..cart() }));
    assert_eq!(sets(&world), 2, "the cluster address's, and that of the service that took the other");
}

#[test]
fn a_set_for_clients_outside_that_is_another_services_is_not_taken() {
    let mut world = outside_world();
    let object = |name: &str, address: &str, external: &str| ServiceObject {
        external_policy: TrafficPolicy::Local,
        external_addresses: vec![ip(external)],
        ..service(name, address)
    };
    world.apply(Change::Service(object("shop/a", "10.96.0.1", "203.0.113.1")));
    world.apply(Change::Service(object("shop/b", "10.96.0.2", "203.0.113.2")));
    // Only the sets with this node's endpoints have one number.
    let (claims, held) = looked_at(&world, |name, port, is_ipv4, policy| match policy {
        TrafficPolicy::Local => 7,
        TrafficPolicy::Cluster => set_number(name, port, is_ipv4, policy),
    });
    let keys: Vec<String> = held.frontends.keys().map(FrontendKey::to_string).collect();
    assert_eq!(keys, ["10.96.0.1:80/TCP", "10.96.0.2:80/TCP", "203.0.113.1:80/TCP"]);
    assert_eq!(held.sets.len(), 3);
    let mut events = Collector::default();
    claims.tell(&world.model, &service_name("shop/b"), &mut events);
    assert_eq!(events.finish().first().map(|event| event.reason), Some(reason::SERVICE_SET_TAKEN));

    // Of one service, the sets for clients inside and outside must not be one either.
    let (_, held) = looked_at(&world, |name, _, _, _| if *name == service_name("shop/a") { 7 } else { 8 });
    let keys: Vec<String> = held.frontends.keys().map(FrontendKey::to_string).collect();
    assert_eq!(keys, ["10.96.0.1:80/TCP", "10.96.0.2:80/TCP"]);
}

#[test]
fn room_is_counted_for_the_sets_of_all_clients_and_for_ranges() {
    let fits = |frontends, backends, object: ServiceObject| {
        let mut world = outside_world();
        world.local.settings.services_room = Some(ServicesRoom { frontends, backends });
        world.apply(Change::EndpointSlice(slice("shop/other", "cart", &["10.0.2.5", "10.0.2.6"])));
        let here = EndpointSliceObject { endpoints: vec![endpoint("10.0.1.5", 1)], ..slice("shop/some", "cart", &[]) };
        world.apply(Change::EndpointSlice(here));
        world.apply(Change::Service(object));
        let fits = !world.desired().state.services.frontends.is_empty();
        assert_eq!(world.events().iter().any(|(reason, _)| *reason == reason::SERVICE_LEFT_OUT), !fits);
        fits
    };
    // Three backends everywhere, one of them here.
    assert!(!fits(100, 3, everywhere(TrafficPolicy::Local)));
    assert!(fits(100, 4, everywhere(TrafficPolicy::Local)));
    assert!(fits(100, 3, everywhere(TrafficPolicy::Cluster)));
    let ranges: Vec<String> = (0..9).map(|number| format!("198.51.100.{number}/32")).collect();
    let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
    assert!(!fits(8, 100, limited(&ranges)));
    assert!(fits(9, 100, limited(&ranges)));
}

#[test]
fn packets_to_other_nodes_get_the_nodes_first_usable_address() {
    let mut world = outside_world();
    let masquerade = |world: &World| world.desired().state.services.masquerade.map(|address| address.to_string());
    assert_eq!(masquerade(&world), ["192.0.2.1", "::"]);
    let addresses = |given: &[(&str, bool)]| -> Vec<NodeAddress> {
        given.iter().map(|(address, internal)| NodeAddress { address: ip(address), internal: *internal }).collect()
    };
    let given = addresses(&[("192.0.2.9", false), ("2001:db8::1", true), ("192.0.2.1", true), ("192.0.2.5", true)]);
    world.hear(Change::Node(NodeObject { addresses: given, ..node(1) }));
    assert!(world.follow().scope.services.masquerade);
    assert_eq!(*world.incremental, world.desired());
    assert_eq!(masquerade(&world), ["192.0.2.1", "2001:db8::1"]);
    for (devices, expected) in [
        (&["192.0.2.5", "192.0.2.9", "198.51.100.1"][..], ["192.0.2.5", "::"]),
        (&["192.0.2.9", "2001:db8::1"], ["192.0.2.9", "2001:db8::1"]),
        (&["198.51.100.1"], ["::", "::"]),
    ] {
        world.local.addresses = devices.iter().map(|address| ip(address)).collect();
        assert!(world.follow().scope.services.masquerade);
        assert_eq!(*world.incremental, world.desired());
        assert_eq!(masquerade(&world), expected);
    }
    world.local.addresses.clear();
    world.apply(Change::NodeGone("n1".into()));
    assert_eq!(masquerade(&world), ["::", "::"]);
}

#[test]
fn what_an_agent_that_starts_has_not_read_yet_stays() {
    let world = outside(limited(&["198.51.100.0/24"]), vec![endpoint("10.0.2.5", 2)]);
    let actual = reached(&world);
    let mut world = World::new();
    world.local.settings = Settings { services_outside: true, services: true, ..world.local.settings };
    world.apply(Change::Node(node(1)));
    assert_eq!(
        steps(&actual, &world).iter().filter(|step| !step.contains("peer")).collect::<Vec<_>>(),
        [] as [&String; 0]
    );
}

#[test]
fn addresses_for_packets_come_before_frontends_and_go_after_them() {
    let mut world = outside(everywhere(TrafficPolicy::Cluster), vec![]);
    let put = steps(&State::default(), &world);
    let place = |steps: &[String], start: &str| steps.iter().position(|step| step.starts_with(start)).unwrap();
    assert!(place(&put, "masquerade") < place(&put, "put frontend"), "{put:?}");
    let actual = reached(&world);
    world.local.settings.services = false;
    let gone = steps(&actual, &world);
    assert!(gone.last().unwrap().starts_with("masquerade with :: and ::"), "{gone:?}");
}

#[test]
fn a_range_that_replaces_another_comes_first_and_no_new_frontend_finds_the_old_one() {
    let mut world = outside(limited(&["198.51.100.0/24"]), vec![]);
    let actual = reached(&world);
    let mut object = limited(&["198.51.100.0/25"]);
    object.balancer_addresses.push(ip("203.0.113.2"));
    world.apply(Change::Service(object));
    let expected = ["admit 198.51.100.0/25", "admit 198.51.100.0/24 to set no more", "put frontend 203.0.113.2:80/TCP"];
    let actual_steps: Vec<String> = plan(&actual, &world.desired()).iter().map(without_set).collect();
    assert_eq!(actual_steps, expected);
}

/// The step without its set's number.
fn without_set(step: &Step) -> String {
    let text = step.to_string();
    let is_number = |word: &str| word.len() == 16 && SetNumber::from_str_radix(word, 16).is_ok();
    let words: Vec<&str> = text.split(' ').filter(|word| !is_number(word)).collect();
    let text = words.join(" ");
    text.trim_end_matches(" to set").to_owned()
}

#[test]
fn a_frontend_that_goes_is_gone_before_its_set_admits_more() {
    let mut world = outside(limited(&["198.51.100.0/24"]), vec![]);
    let actual = reached(&world);
    let mut object = limited(&["198.51.100.0/24", "192.0.2.64/26"]);
    object.balancer_addresses = vec![ip("203.0.113.2")];
    world.apply(Change::Service(object));
    let planned: Vec<String> = plan(&actual, &world.desired()).iter().map(without_set).collect();
    assert_eq!(
        planned,
        ["remove frontend 203.0.113.1:80/TCP", "admit 192.0.2.64/26", "put frontend 203.0.113.2:80/TCP"]
    );
    // If it is still there, the set admits no more clients. The new frontend admits the old ones.
    let mut execution = Execution::new(plan(&actual, &world.desired()));
    let mut done = Vec::new();
    while let Some(next) = execution.next_steps() {
        for step in next {
            done.push(without_set(&step));
            if matches!(step, Step::Service(ServiceStep::RemoveFrontend(_))) {
                execution.failed(&step);
            }
        }
    }
    assert_eq!(done, ["remove frontend 203.0.113.1:80/TCP", "put frontend 203.0.113.2:80/TCP"]);
}

#[test]
fn a_frontend_that_admits_all_from_now_on_does_so_before_its_ranges_go() {
    let mut world = outside(limited(&["198.51.100.0/24"]), vec![]);
    let actual = reached(&world);
    world.apply(Change::Service(everywhere(TrafficPolicy::Cluster)));
    let planned: Vec<String> = plan(&actual, &world.desired()).iter().map(without_set).collect();
    assert_eq!(planned, ["put frontend 203.0.113.1:80/TCP", "admit 198.51.100.0/24 to set no more"]);
}

#[test]
fn a_limited_frontend_waits_for_what_its_set_must_not_admit() {
    let mut world = outside(limited(&["198.51.100.0/24"]), vec![]);
    let actual = reached(&world);
    let mut object = limited(&["192.0.2.64/26"]);
    object.balancer_addresses.push(ip("203.0.113.2"));
    object.external_addresses.push(ip("192.0.2.3"));
    world.apply(Change::Service(object));
    let mut execution = Execution::new(plan(&actual, &world.desired()));
    let mut done = Vec::new();
    while let Some(next) = execution.next_steps() {
        for step in next {
            done.push(without_set(&step));
            if matches!(step, Step::Service(ServiceStep::RemoveSource(_))) {
                execution.failed(&step);
            }
        }
    }
    assert_eq!(
        done,
        ["admit 192.0.2.64/26", "put frontend 192.0.2.3:80/TCP", "admit 198.51.100.0/24 to set no more"],
        "203.0.113.2 is not put"
    );
}

#[test]
fn a_frontend_waits_for_both_its_sets() {
    let world = outside(everywhere(TrafficPolicy::Local), vec![endpoint("10.0.1.5", 1)]);
    let balancer = frontend(&world, BALANCER).unwrap();
    for failing in [balancer.set, balancer.outside] {
        let mut execution = Execution::new(plan(&State::default(), &world.desired()));
        let mut put = Vec::new();
        while let Some(next) = execution.next_steps() {
            for step in next {
                match &step {
                    Step::Service(ServiceStep::PutSet(number, _)) if *number == failing => execution.failed(&step),
                    Step::Service(ServiceStep::PutFrontend(key, _)) => put.push(key.to_string()),
                    _ => {}
                }
            }
        }
        let expected: &[&str] = if failing == balancer.set { &[] } else { &["10.96.0.1:80/TCP"] };
        assert_eq!(put, expected);
    }
}

#[test]
fn the_service_of_a_range_is_known() {
    let world = outside(limited(&["198.51.100.0/24"]), vec![]);
    let desired = world.desired();
    let range = *desired.state.services.sources.first().unwrap();
    for step in [ServiceStep::PutSource(range), ServiceStep::RemoveSource(range)] {
        assert_eq!(desired.service_of(&Step::Service(step)), Some(&service_name("shop/cart")));
    }
    assert_eq!(desired.service_of(&Step::Service(ServiceStep::Masquerade(desired.state.services.masquerade))), None);
}

fn checked(port: u16) -> ServiceObject {
    ServiceObject { health_check_port: Some(port), ..everywhere(TrafficPolicy::Local) }
}

#[test]
fn a_health_check_counts_the_ready_endpoints_here_once() {
    let not_ready = Endpoint { ready: false, ..endpoint("10.0.1.7", 1) };
    let endpoints = vec![
        endpoint("10.0.1.5", 1),
        endpoint("10.0.1.6", 1),
        not_ready,
        terminating("10.0.1.8", 1),
        endpoint("10.0.2.5", 2),
        endpoint("127.0.0.1", 1),
    ];
    let mut world = outside(checked(32100), endpoints);
    let checks = |world: &World| health_checks(&world.desired().services);
    let expected =
        |local_endpoints| vec![HealthCheck { port: 32100, service: service_name("shop/cart"), local_endpoints }];
    assert_eq!(checks(&world), expected(2));
    // Another port of the same pods, and their addresses of the other family.
    let more = EndpointSliceObject {
        ports: vec![EndpointPort { name: "dns".into(), protocol: protocol::UDP, port: 53 }],
        endpoints: vec![endpoint("10.0.1.6", 1), endpoint("10.0.1.9", 1)],
        ..slice("shop/more", "cart", &[])
    };
    world.apply(Change::EndpointSlice(more));
    let six = vec![endpoint("fd00::5", 1), endpoint("fd00::6", 1)];
    world.apply(Change::EndpointSlice(EndpointSliceObject {
        endpoints: six,
        ..slice("shop/six", "cart", &["fd00::1"])
    }));
    assert_eq!(checks(&world), expected(3));
    world.apply(Change::EndpointSliceGone(service_name("shop/more")));
    world.apply(Change::EndpointSlice(slice("shop/some", "cart", &["10.0.2.5"])));
    world.apply(Change::EndpointSliceGone(service_name("shop/six")));
    assert_eq!(checks(&world), expected(0));

    world.apply(Change::Service(ServiceObject { other_proxy: Some("mesh".into()), ..checked(32100) }));
    assert_eq!(checks(&world), []);
    assert_eq!(checks(&with(checked(32100), vec![])), [], "nobody outside is led");
}

#[test]
fn of_two_health_checks_with_one_port_the_lower_name_has_it() {
    let mut world = outside(checked(32100), vec![]);
    let checked = |name: &str, address: &str, port| ServiceObject {
        health_check_port: Some(port),
        kind: ServiceKind::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        ..service(name, address)
    };
    let checks = |world: &World| -> Vec<(u16, String)> {
        let checks = health_checks(&world.desired().services).into_iter();
        checks.map(|check| (check.port, check.service.name.to_string())).collect()
    };
    world.apply(Change::Service(checked("shop/a", "10.96.0.2", 32100)));
    world.apply(Change::Service(checked("shop/z", "10.96.0.3", 32099)));
    assert_eq!(checks(&world), [(32099, "z".into()), (32100, "a".into())]);
    world.assert_event(reason::SERVICE_CONFLICT, &["Service/shop/cart", "Service/shop/a"]);
    assert_eq!(world.events().len(), 1);
    world.apply(Change::Service(checked("shop/a", "10.96.0.2", 32101)));
    assert_eq!(checks(&world), [(32099, "z".into()), (32100, "cart".into()), (32101, "a".into())]);
    assert!(world.events().is_empty());
    world.apply(Change::Service(checked("shop/a", "10.96.0.2", 32099)));
    world.assert_event(reason::SERVICE_CONFLICT, &["Service/shop/z", "Service/shop/a"]);
    world.apply(Change::ServiceGone(service_name("shop/a")));
    assert!(world.events().is_empty());
    assert_eq!(checks(&world), [(32099, "z".into()), (32100, "cart".into())]);
}
