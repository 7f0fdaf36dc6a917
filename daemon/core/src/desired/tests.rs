mod addresses;

use hauberk_abi::identity::{Identity, Kind, Protection};
use hauberk_abi::layout::{self, peer_flag};
use ipnet::IpNet;

use super::*;
use crate::events::reason;
use crate::model::Change;
use crate::objects::{NodeAddress, NodeObject, PodObject};
use crate::pods::LocalPod;
use crate::testing::{World, attachment, ip, keys, namespace, net, node, pod, pod_name, public_key};
use crate::tunnels::{Peer, Route};

fn identity_of_pod(protection: Protection, node: u32) -> Identity {
    Identity::new(Kind::Pod, protection, node)
}

/// A world of three nodes with one pod, changed by the caller.
fn with_pod(change: impl FnOnce(&mut PodObject)) -> World {
    let mut world = World::three_nodes();
    let mut object = pod("open/a", 2, &["10.0.2.5"]);
    change(&mut object);
    world.apply(Change::Pod(object));
    world
}

fn protection_of(world: &World, address: &str) -> Protection {
    world.desired().identity(ip(address)).protection()
}

#[test]
fn the_namespace_decides_and_the_pod_may_strengthen() {
    let cases = [
        ("open", None, Protection::None),
        ("open", Some("permissive"), Protection::Permissive),
        ("open", Some("enabled"), Protection::Enabled),
        ("open", Some("disabled"), Protection::None),
        ("soft", None, Protection::Permissive),
        ("soft", Some("enabled"), Protection::Enabled),
        ("soft", Some("disabled"), Protection::Permissive),
        ("secret", None, Protection::Enabled),
        ("secret", Some("permissive"), Protection::Enabled),
        ("secret", Some("disabled"), Protection::Enabled),
        ("open", Some("Enabled "), Protection::Enabled),
        ("soft", Some(""), Protection::Enabled),
    ];
    for (namespace, label, expected) in cases {
        let world = with_pod(|pod| {
            pod.namespace = namespace.into();
            pod.encryption = label.map(str::to_owned);
        });
        assert_eq!(protection_of(&world, "10.0.2.5"), expected, "{namespace} {label:?}");
    }
}

#[test]
fn a_weakening_pod_label_is_refused_with_an_event_unless_pods_may_opt_out() {
    let mut world = with_pod(|pod| {
        pod.namespace = "secret".into();
        pod.encryption = Some("disabled".into());
    });
    world.assert_event(reason::POD_OPT_OUT_REFUSED, &["Pod/secret/a"]);
    world.local.settings.allow_pod_opt_out = true;
    assert_eq!(protection_of(&world, "10.0.2.5"), Protection::None);
    assert!(world.events().is_empty());
}

#[test]
fn unknown_label_values_protect_and_are_told() {
    let mut world = with_pod(|pod| pod.encryption = Some("yes".into()));
    world.apply(namespace("odd", Some("on")));
    world.apply(Change::Pod(pod("odd/b", 3, &["10.0.3.5"])));
    assert_eq!(protection_of(&world, "10.0.2.5"), Protection::Enabled);
    assert_eq!(protection_of(&world, "10.0.3.5"), Protection::Enabled);
    world.assert_event(reason::UNKNOWN_LABEL_VALUE, &["Pod/open/a"]);
    world.assert_event(reason::UNKNOWN_LABEL_VALUE, &["Namespace/odd"]);
}

#[test]
fn a_pod_whose_namespace_is_not_known_is_protected_even_if_it_may_opt_out() {
    let mut world = with_pod(|pod| {
        pod.namespace = "nowhere".into();
        pod.encryption = Some("disabled".into());
    });
    world.local.settings.allow_pod_opt_out = true;
    assert_eq!(protection_of(&world, "10.0.2.5"), Protection::Enabled);
    world.assert_event(reason::NAMESPACE_UNKNOWN, &["Namespace/nowhere"]);
    world.apply(namespace("nowhere", None));
    assert_eq!(protection_of(&world, "10.0.2.5"), Protection::None);
}

#[test]
fn who_is_not_known_is_protected_inside_the_cluster_and_the_world_outside() {
    let world = World::three_nodes();
    let desired = world.desired();
    let unknown = |node| Identity::new(Kind::UnknownPod, Protection::Enabled, node);
    assert_eq!(desired.identity(ip("10.0.2.77")), unknown(world.number(2)));
    assert_eq!(desired.identity(ip("10.0.99.1")), unknown(0));
    assert_eq!(desired.identity(ip("fd00::1")), unknown(0));
    assert_eq!(desired.identity(ip("192.0.2.99")), Identity::new(Kind::UnknownNode, Protection::None, 0));
    assert_eq!(desired.identity(ip("192.0.2.2")), Identity::new(Kind::Node, Protection::None, world.number(2)));
    assert_eq!(desired.identity(ip("198.51.100.1")), Identity::WORLD);
}

#[test]
fn pods_with_addresses_are_endpoints_and_those_without_are_not() {
    let world = with_pod(|pod| pod.addresses.push(ip("fd00::2:5")));
    let expected = identity_of_pod(Protection::None, world.number(2));
    assert_eq!(world.desired().identity(ip("10.0.2.5")), expected);
    assert_eq!(world.desired().identity(ip("fd00::2:5")), expected);
    let world = with_pod(|pod| pod.terminating = true);
    assert_eq!(world.desired().identity(ip("10.0.2.5")), identity_of_pod(Protection::None, world.number(2)));
    let world = with_pod(|pod| pod.finished = true);
    assert_eq!(world.desired().identity(ip("10.0.2.5")).kind(), Kind::UnknownPod);
    let world = with_pod(|pod| {
        pod.host_network = true;
        pod.addresses = vec![ip("192.0.2.2")];
    });
    assert_eq!(world.desired().identity(ip("192.0.2.2")).kind(), Kind::Node);
    assert!(world.events().is_empty());
}

#[test]
fn a_pod_on_no_known_node_is_where_its_range_is_and_else_on_node_0() {
    for node in [None, Some("n9".to_owned())] {
        let world = with_pod(|pod| {
            pod.node = node;
            pod.addresses.push(ip("10.0.77.5"));
        });
        assert_eq!(world.desired().identity(ip("10.0.77.5")), identity_of_pod(Protection::None, 0));
        assert_eq!(world.desired().identity(ip("10.0.2.5")), identity_of_pod(Protection::None, world.number(2)));
        assert!(world.events().is_empty());
    }
}

#[test]
fn two_pods_with_one_address_get_the_stricter_protection_and_both_are_named() {
    let mut world = with_pod(|_| {});
    world.apply(Change::Pod(pod("secret/b", 2, &["10.0.2.5"])));
    assert_eq!(world.desired().identity(ip("10.0.2.5")), identity_of_pod(Protection::Enabled, world.number(2)));
    world.assert_event(reason::ADDRESS_CONFLICT, &["Pod/open/a", "Pod/secret/b"]);
    let message = &world.desired().events.first().unwrap().message.clone();
    assert!(message.contains("pods/open-a.yaml") && message.contains("pods/secret-b.yaml"), "{message}");
}

#[test]
fn of_two_pods_with_one_address_the_one_that_stays_and_is_somewhere_tells_where_it_is() {
    let mut world = with_pod(|pod| pod.addresses = vec![ip("10.0.77.5")]);
    let place = |world: &World| world.desired().identity(ip("10.0.77.5"));
    world.apply(Change::Pod(PodObject { terminating: true, ..pod("secret/b", 3, &["10.0.77.5"]) }));
    assert_eq!(place(&world), identity_of_pod(Protection::Enabled, world.number(2)));
    world.apply(Change::Pod(PodObject { node: None, ..pod("secret/b", 3, &["10.0.77.5"]) }));
    assert_eq!(place(&world), identity_of_pod(Protection::Enabled, world.number(2)));
    world.apply(Change::Attachment(attachment("c1", Some("open/c"), &["10.0.77.5"])));
    assert_eq!(place(&world), identity_of_pod(Protection::Enabled, world.number(1)));
}

#[test]
fn addresses_that_nobody_can_have_are_refused() {
    for address in
        ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1"]
    {
        let world = with_pod(|pod| pod.addresses.push(ip(address)));
        world.assert_event(reason::ADDRESS_REFUSED, &["Pod/open/a"]);
        assert!(!world.desired().state.identities.endpoints.contains_key(&ip(address).into()), "{address}");
        assert_eq!(protection_of(&world, "10.0.2.5"), Protection::None, "the other address is taken");
    }
    // ::ffff:10.0.3.9 would count as 10.0.3.9.
    let world = with_pod(|pod| pod.addresses.push(ip("::ffff:10.0.3.9")));
    world.assert_event(reason::ADDRESS_REFUSED, &["Pod/open/a"]);
    assert_eq!(world.desired().identity(ip("10.0.3.9")).kind(), Kind::UnknownPod);
    let mut world = World::three_nodes();
    let loopback = NodeAddress { address: ip("127.0.0.1"), internal: true };
    world.apply(Change::Node(NodeObject { addresses: vec![loopback], ..node(2) }));
    world.assert_event(reason::ADDRESS_REFUSED, &["Node/n2"]);
}

#[test]
fn a_pod_cannot_take_a_nodes_address_and_a_node_cannot_take_a_pods() {
    let world = with_pod(|pod| pod.addresses.push(ip("192.0.2.3")));
    assert_eq!(world.desired().identity(ip("192.0.2.3")).kind(), Kind::Node);
    world.assert_event(reason::ADDRESS_CONFLICT, &["Node/n3", "Pod/open/a"]);

    let mut world = with_pod(|pod| pod.namespace = "secret".into());
    let mut thief = node(3);
    thief.addresses.push(NodeAddress { address: ip("10.0.2.5"), internal: true });
    world.apply(Change::Node(thief));
    assert_eq!(world.desired().identity(ip("10.0.2.5")), identity_of_pod(Protection::Enabled, world.number(2)));
    world.assert_event(reason::ADDRESS_REFUSED, &["Node/n3"]);

    let mut world = World::three_nodes();
    world.local.settings.node_ranges.clear();
    world.apply(Change::Attachment(attachment("c1", Some("secret/a"), &["203.0.113.5"])));
    let mut thief = node(3);
    thief.addresses.push(NodeAddress { address: ip("203.0.113.5"), internal: true });
    world.apply(Change::Node(thief));
    assert_eq!(world.desired().identity(ip("203.0.113.5")), identity_of_pod(Protection::Enabled, world.number(1)));
}

#[test]
fn ranges_that_two_nodes_claim_are_nobodys_but_known_pods_are_reached() {
    let mut world = with_pod(|_| {});
    world.apply(Change::Node(NodeObject { pod_ranges: vec![net("10.0.2.128/25"), net("10.0.30.0/24")], ..node(3) }));
    let desired = world.desired();
    let unknown = Identity::new(Kind::UnknownPod, Protection::Enabled, 0);
    assert_eq!(desired.identity(ip("10.0.2.77")), unknown);
    assert_eq!(desired.identity(ip("10.0.2.200")), unknown);
    assert_eq!(desired.identity(ip("10.0.30.1")).node, world.number(3));
    assert_eq!(desired.identity(ip("10.0.2.5")), identity_of_pod(Protection::None, world.number(2)));
    let allowed =
        |node| desired.state.tunnels.peers[&NodeNumber(world.number(node))].allowed.iter().copied().collect::<Vec<_>>();
    assert_eq!(allowed(2), [net("10.0.2.5/32"), net("192.0.2.2/32")]);
    assert_eq!(allowed(3), [net("10.0.30.0/24"), net("192.0.2.3/32")]);
    assert_eq!(
        desired.state.tunnels.routes.keys().copied().collect::<Vec<_>>(),
        [net("10.0.2.5/32"), net("10.0.30.0/24")]
    );
    world.assert_event(reason::RANGE_OVERLAP, &["Node/n2", "Node/n3"]);
}

#[test]
fn the_same_range_twice_is_nobodys_and_told_once() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(NodeObject { pod_ranges: vec![net("10.0.2.9/24")], ..node(3) }));
    assert_eq!(world.desired().identity(ip("10.0.2.77")).node, 0);
    let overlaps: Vec<_> = world.events().into_iter().filter(|(r, _)| *r == reason::RANGE_OVERLAP).collect();
    assert_eq!(overlaps, [(reason::RANGE_OVERLAP, vec!["Node/n2".to_owned(), "Node/n3".to_owned()])]);
}

#[test]
fn one_nodes_own_ranges_may_be_nested() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(NodeObject { pod_ranges: vec![net("10.0.3.0/24"), net("10.0.3.0/26")], ..node(3) }));
    assert_eq!(world.desired().identity(ip("10.0.3.1")).node, world.number(3));
    assert!(world.events().is_empty());
}

#[test]
fn a_range_that_nobody_can_have_is_refused_and_one_outside_the_cluster_is_told() {
    let mut world = World::three_nodes();
    let pod_ranges = vec![net("0.0.0.0/0"), net("::/0"), net("127.1.0.0/16"), net("172.16.3.0/24")];
    world.apply(Change::Node(NodeObject { pod_ranges, ..node(3) }));
    let desired = world.desired();
    assert_eq!(desired.identity(ip("198.51.100.1")), Identity::WORLD);
    assert_eq!(desired.identity(ip("172.16.3.9")).node, world.number(3));
    assert!(desired.state.identities.untranslated.contains(&net("172.16.3.0/24")));
    world.assert_event(reason::RANGE_REFUSED, &["Node/n3"]);
    world.assert_event(reason::RANGE_OUTSIDE_CLUSTER, &["Node/n3"]);
}

#[test]
fn a_peer_has_keys_an_endpoint_and_what_it_may_speak_for() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(NodeObject { keys: Some(keys(&[(4, 40), (5, 50)])), ..node(2) }));
    world.apply(Change::Pod(pod("open/inside", 2, &["10.0.2.5"])));
    world.apply(Change::Pod(pod("open/outside", 2, &["10.0.77.5", "fd00::77"])));
    world.apply(Change::Pod(pod("open/elsewhere", 2, &["10.0.3.5"])));
    let number = NodeNumber(world.number(2));
    let expected = Peer {
        number,
        name: "n2".into(),
        keys: vec![public_key(5, 50), public_key(4, 40)],
        endpoint: Some("192.0.2.2:51840".parse().unwrap()),
        fallbacks: Vec::new(),
        allowed: ["10.0.2.0/24", "10.0.77.5/32", "192.0.2.2/32", "fd00::77/128"].map(net).into(),
    };
    let desired = world.desired();
    assert_eq!(desired.state.tunnels.peers[&number], expected);
    assert_eq!(desired.state.tunnels.peers.len(), 2, "this node is not its own peer");
    assert_eq!(desired.state.tunnels.peer_entries[&number], layout::Peer { flags: peer_flag::KEY, epoch: 5 });
}

#[test]
fn nobody_else_may_speak_for_a_pod_that_is_nowhere_or_here() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(NodeObject { pod_ranges: vec![net("10.0.3.6/32")], ..node(3) }));
    world.apply(Change::Pod(PodObject { node: None, ..pod("open/nowhere", 3, &["10.0.3.5"]) }));
    world.apply(Change::Attachment(attachment("c1", Some("open/here"), &["10.0.3.6"])));
    let allowed = &world.desired().state.tunnels.peers[&NodeNumber(world.number(3))].allowed;
    assert_eq!(*allowed, [net("192.0.2.3/32")].into());
}

#[test]
fn an_address_of_two_interfaces_is_entered_once() {
    let mut world = World::three_nodes();
    world.apply(Change::Attachment(attachment("c1", Some("open/a"), &["10.0.1.5", "10.0.1.5"])));
    world.apply(Change::Attachment(attachment("c2", Some("open/b"), &["10.0.1.5", "10.0.1.6"])));
    let addresses: Vec<_> = world.desired().state.pods.into_values().map(|pod| pod.addresses).collect();
    assert_eq!(addresses, [vec![ip("10.0.1.5")], vec![ip("10.0.1.6")]]);
    world.assert_event(reason::ADDRESS_CONFLICT, &["Pod/open/a", "Pod/open/b"]);
}

#[test]
fn an_address_that_is_refused_is_not_another_ones_by_another_name() {
    let mut world = World::three_nodes();
    world.apply(Change::Pod(pod("open/b", 1, &[])));
    world.apply(Change::Attachment(attachment("c2", Some("open/b"), &["::ffff:10.0.1.5"])));
    world.apply(Change::Attachment(attachment("c1", None, &["10.0.1.5"])));
    let of = |container: &str| {
        let desired = world.desired();
        let found = desired.state.pods.values().find(|pod| pod.container == container);
        found.map(|pod| (pod.addresses.clone(), pod.protection)).unwrap()
    };
    assert_eq!(of("c1"), (vec!["10.0.1.5".parse().unwrap()], Protection::Enabled));
    assert_eq!(of("c2"), (vec![], Protection::None));
    world.assert_event(reason::ADDRESS_REFUSED, &["Pod/open/b"]);
}

#[test]
fn ready_is_said_of_a_peer_that_is() {
    let mut world = World::three_nodes();
    let number = NodeNumber(world.number(2));
    assert!(world.apply(Change::PeerReady { node: "n2".into(), ready: true }));
    assert_eq!(world.desired().state.tunnels.peer_entries[&number].flags, peer_flag::KEY | peer_flag::READY);
    assert!(!world.apply(Change::PeerReady { node: "n2".into(), ready: true }));
    world.apply(Change::NodeGone("n2".into()));
    world.apply(Change::Node(node(2)));
    assert_eq!(world.desired().state.tunnels.peer_entries[&number].flags, peer_flag::KEY, "another node of that name");
}

#[test]
fn the_endpoint_is_internal_and_of_our_family_if_it_can_be() {
    let addresses = |list: &[(&str, bool)]| -> Vec<NodeAddress> {
        list.iter().map(|(address, internal)| NodeAddress { address: ip(address), internal: *internal }).collect()
    };
    let all = [("203.0.113.2", false), ("2001:db8::2", true), ("192.0.2.2", true)];
    let cases = [
        (&all[..], ("192.0.2.1", "192.0.2.2:51840", Some("[2001:db8::2]:51840"))),
        (&all[..], ("2001:db8::1", "[2001:db8::2]:51840", Some("192.0.2.2:51840"))),
        (&all[..2], ("192.0.2.1", "[2001:db8::2]:51840", None)),
        (&all[..1], ("192.0.2.1", "203.0.113.2:51840", None)),
    ];
    for (theirs, (ours, expected, other)) in cases {
        let mut world = World::three_nodes();
        world.apply(Change::Node(NodeObject { addresses: addresses(&[(ours, true)]), ..node(1) }));
        world.apply(Change::Node(NodeObject { addresses: addresses(theirs), ..node(2) }));
        let peer = &world.desired().state.tunnels.peers[&NodeNumber(world.number(2))];
        assert_eq!(peer.endpoint, Some(expected.parse().unwrap()));
        assert_eq!(peer.fallbacks, other.map(|other| other.parse().unwrap()).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_node_without_an_address_has_no_tunnel_to_use_and_no_route() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(NodeObject { addresses: vec![], ..node(2) }));
    let desired = world.desired();
    let number = NodeNumber(world.number(2));
    assert_eq!(desired.state.tunnels.peers[&number].endpoint, None);
    assert_eq!(desired.state.tunnels.peer_entries[&number].flags, 0);
    assert_eq!(desired.state.tunnels.routes.len(), 1);
    world.assert_event(reason::NO_ENDPOINT, &["Node/n2"]);
    world.assert_event(reason::NO_ROUTE, &["Node/n2"]);
}

#[test]
fn routes_go_by_an_address_of_their_family() {
    let mut world = World::three_nodes();
    let both = |number: u8| {
        let mut both = node(number);
        both.addresses.push(NodeAddress { address: ip(&format!("2001:db8::{number}")), internal: true });
        both.pod_ranges.push(net(&format!("fd00:0:0:{number}::/64")));
        Change::Node(both)
    };
    world.apply(both(2));
    assert_eq!(world.desired().state.tunnels.routes.len(), 2, "this node has no address of that family");
    assert!(world.events().iter().all(|(told, _)| *told != reason::NO_ROUTE), "{:?}", world.events());
    world.apply(both(1));
    let routes: Vec<Route> = world.desired().state.tunnels.routes.into_values().collect();
    let route = |destination, via| Route { destination: net(destination), via: ip(via), mtu: Some(1420) };
    let expected =
        [route("10.0.2.0/24", "192.0.2.2"), route("10.0.3.0/24", "192.0.2.3"), route("fd00:0:0:2::/64", "2001:db8::2")];
    assert_eq!(routes, expected);
}

#[test]
fn a_pod_that_keeps_its_address_when_its_nodes_range_changes_is_reached_by_it() {
    let mut world = with_pod(|_| {});
    world.apply(Change::Node(NodeObject { pod_ranges: vec![net("10.0.22.0/24")], ..node(2) }));
    let routes = |world: &World| world.desired().state.tunnels.routes.into_keys().collect::<Vec<_>>();
    assert_eq!(routes(&world), [net("10.0.2.5/32"), net("10.0.3.0/24"), net("10.0.22.0/24")]);
    let route = world.desired().state.tunnels.routes[&net("10.0.2.5/32")];
    assert_eq!((route.via, route.mtu), (ip("192.0.2.2"), Some(1420)));
    let peer = world.desired().state.tunnels.peers[&NodeNumber(world.number(2))].clone();
    assert!(peer.allowed.contains(&net("10.0.2.5/32")));
    // A Pod object's address outside clusterRanges gets no route.
    world.apply(Change::Pod(pod("open/world", 2, &["198.51.100.7"])));
    assert_eq!(routes(&world).len(), 3);
    // Nor does a pod of this node get one: its interface is here.
    world.apply(Change::Pod(pod("open/here", 1, &["10.0.77.1"])));
    assert_eq!(routes(&world).len(), 3);
    world.apply(Change::PodGone(pod_name("open/a")));
    assert_eq!(routes(&world), [net("10.0.3.0/24"), net("10.0.22.0/24")]);
}

#[test]
fn a_broken_annotation_keeps_the_last_good_keys_and_a_removed_one_takes_them_away() {
    let mut world = World::three_nodes();
    let number = NodeNumber(world.number(2));
    world.apply(Change::Node(NodeObject { keys: Some("{oops".into()), ..node(2) }));
    assert_eq!(world.desired().state.tunnels.peers[&number].keys, [public_key(1, 2)]);
    world.assert_event(reason::KEYS_INVALID, &["Node/n2"]);
    assert!(world.told[0].message.contains("existing tunnels are kept"), "{}", world.told[0].message);
    world.apply(Change::Node(NodeObject { keys: None, ..node(2) }));
    assert!(!world.desired().state.tunnels.peers.contains_key(&number));
    assert!(!world.desired().state.tunnels.peer_entries.contains_key(&number));
    world.apply(Change::Node(NodeObject { keys: Some("{oops".into()), ..node(2) }));
    assert!(!world.desired().state.tunnels.peers.contains_key(&number), "there were none to keep");
}

#[test]
fn our_own_key_is_refused() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(NodeObject { keys: Some(keys(&[(3, 9), (2, 1)])), ..node(2) }));
    assert_eq!(
        world.desired().state.tunnels.peers[&NodeNumber(world.number(2))].keys,
        [public_key(3, 9)],
        "the other key is good"
    );
    world.assert_event(reason::KEY_REFUSED, &["Node/n2", "Node/n1"]);
}

#[test]
fn a_newcomer_cannot_take_a_nodes_key() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(NodeObject {
        name: "a0".into(),
        keys: Some(keys(&[(9, 2)])),
        addresses: vec![],
        ..node(4)
    }));
    let desired = world.desired();
    assert_eq!(desired.state.tunnels.peers[&NodeNumber(world.number(2))].keys, [public_key(1, 2)]);
    assert!(!desired.state.tunnels.peers.contains_key(&world.model.node_number("a0").unwrap()));
    world.assert_event(reason::KEY_REFUSED, &["Node/a0", "Node/n2"]);
    // The holder's object changes, but not its key: it keeps its place.
    world.apply(Change::Node(NodeObject { origin: "moved.yaml".into(), ..node(2) }));
    assert_eq!(world.desired().state.tunnels.peers[&NodeNumber(world.number(2))].keys, [public_key(1, 2)]);
    // The holder gives it up, and the other gets it.
    world.apply(Change::NodeGone("n2".into()));
    assert_eq!(world.desired().state.tunnels.peers[&world.model.node_number("a0").unwrap()].keys, [public_key(9, 2)]);
}

#[test]
fn of_two_nodes_that_came_with_one_key_neither_is_believed() {
    let mut world = World::new();
    for number in 1..=3 {
        world.apply(Change::Node(NodeObject { keys: Some(keys(&[(1, number.min(2))])), ..node(number) }));
    }
    world.apply(Change::Synced);
    assert!(world.desired().state.tunnels.peers.is_empty());
    world.assert_event(reason::KEY_REFUSED, &["Node/n2", "Node/n3"]);
    world.assert_event(reason::KEY_REFUSED, &["Node/n3", "Node/n2"]);
}

#[test]
fn an_interface_here_counts_before_the_pods_object_does() {
    let mut world = World::three_nodes();
    world.apply(Change::Attachment(attachment("c1", Some("open/a"), &["10.0.1.5", "fd00::1:5"])));
    let protected = identity_of_pod(Protection::Enabled, world.number(1));
    assert_eq!(world.desired().identity(ip("10.0.1.5")), protected, "a label on the pod could say so");
    assert_eq!(world.desired().state.pods.values().next().unwrap().protection, Protection::Enabled);
    world.apply(Change::Pod(PodObject { addresses: vec![], ..pod("open/a", 1, &[]) }));
    assert_eq!(world.desired().identity(ip("10.0.1.5")), identity_of_pod(Protection::None, world.number(1)));
    let local = world.desired().state.pods.into_values().next().unwrap();
    let expected = LocalPod {
        container: "c1".into(),
        interface: "eth0".into(),
        host_interface: "hbkc1".into(),
        host_index: 7,
        host_mac: [2, 0, 0, 0, 0, 1],
        pod_mac: [2, 0, 0, 0, 0, 2],
        addresses: vec![ip("10.0.1.5"), ip("fd00::1:5")],
        protection: Protection::None,
        adopted: false,
    };
    assert_eq!(local, expected);
}

#[test]
fn an_interface_of_nobody_known_is_protected() {
    let mut world = World::three_nodes();
    world.apply(Change::Attachment(attachment("c1", None, &["10.0.1.5"])));
    assert_eq!(protection_of(&world, "10.0.1.5"), Protection::Enabled);
    let mut other = attachment("c2", Some("open/b"), &["10.0.1.6"]);
    other.pod.as_mut().unwrap().uid = Some("old".into());
    world.apply(Change::Attachment(other));
    world.apply(Change::Pod(PodObject { uid: Some("new".into()), ..pod("open/b", 1, &[]) }));
    assert_eq!(protection_of(&world, "10.0.1.6"), Protection::Enabled, "the object is another pod's");
}

#[test]
fn an_interface_on_record_again_is_of_the_pod_that_has_its_addresses() {
    let mut world = World::three_nodes();
    let mut again = attachment("c1", None, &["10.0.1.5", "fd00::1:5"]);
    again.recovered = true;
    world.apply(Change::Attachment(again));
    assert_eq!(protection_of(&world, "10.0.1.5"), Protection::Enabled, "nobody is known to have it");
    // One of its addresses is enough to identify the pod, and then both are that pod's.
    world.apply(Change::Pod(pod("open/a", 1, &["10.0.1.5"])));
    for address in ["10.0.1.5", "fd00::1:5"] {
        assert_eq!(protection_of(&world, address), Protection::None, "{address}");
    }
    let desired = world.desired();
    assert_eq!(desired.state.pods.values().next().unwrap().protection, Protection::None);
    assert!(desired.events.is_empty(), "one pod, no conflict: {:?}", desired.events);
    world.apply(namespace("open", Some("enabled")));
    assert_eq!(protection_of(&world, "fd00::1:5"), Protection::Enabled, "it follows the pod's labels");
}

#[test]
fn an_interface_on_record_again_of_two_pods_or_of_another_nodes_is_protected() {
    let mut world = World::three_nodes();
    let mut again = attachment("c1", None, &["10.0.1.5", "fd00::1:5"]);
    again.recovered = true;
    world.apply(Change::Attachment(again));
    world.apply(Change::Pod(pod("open/far", 2, &["10.0.1.5"])));
    assert_eq!(protection_of(&world, "10.0.1.5"), Protection::Enabled);
    world.apply(Change::PodGone(pod_name("open/far")));
    world.apply(Change::Pod(pod("open/a", 1, &["10.0.1.5"])));
    assert_eq!(protection_of(&world, "fd00::1:5"), Protection::None);
    world.apply(Change::Pod(pod("open/b", 1, &["fd00::1:5"])));
    assert_eq!(protection_of(&world, "10.0.1.5"), Protection::Enabled);
}

#[test]
fn what_is_only_reserved_has_an_address_but_nothing_to_attach_to() {
    let mut world = World::three_nodes();
    let mut reserved = attachment("c1", Some("open/a"), &["10.0.1.5"]);
    reserved.pair = None;
    world.apply(Change::Attachment(reserved));
    assert!(world.desired().state.pods.is_empty());
    assert_eq!(protection_of(&world, "10.0.1.5"), Protection::Enabled);
}

#[test]
fn an_interface_with_an_impossible_mac_address_is_told() {
    let mut world = World::three_nodes();
    let mut odd = attachment("c1", Some("open/a"), &["10.0.1.5"]);
    odd.pair.as_mut().unwrap().pod_mac = [1, 0, 0x5e, 0, 0, 1].into();
    world.apply(Change::Attachment(odd));
    assert!(world.desired().state.pods.is_empty());
    world.assert_event(reason::ATTACHMENT_INVALID, &["Attachment/c1/eth0"]);
}

#[test]
fn netfilter_leaves_the_whole_cluster_alone() {
    let mut world = with_pod(|_| {});
    world.apply(Change::Pod(pod("open/outside", 2, &["172.16.0.5"])));
    let expected =
        ["10.0.0.0/16", "172.16.0.5/32", "192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32", "fd00::/48"].map(net);
    assert_eq!(world.desired().state.identities.untranslated, expected.into());
}

#[test]
fn nothing_is_acknowledged_and_nothing_pruned_before_everything_is_known() {
    let mut world = World::new();
    world.apply(namespace("secret", Some("enabled")));
    assert!(!world.desired().prune());
    assert_eq!(world.desired().enforced, None);
    world.apply(Change::Synced);
    assert!(world.desired().prune());
    assert_eq!(world.desired().enforced.unwrap().keys().collect::<Vec<_>>(), ["secret"]);
}

#[test]
fn a_change_that_changes_nothing_says_so() {
    let mut world = World::three_nodes();
    world.apply(Change::Pod(pod("open/a", 2, &["10.0.2.5"])));
    world.apply(Change::Attachment(attachment("c1", None, &["10.0.1.5"])));
    for same in [
        Change::Node(node(2)),
        namespace("secret", Some("enabled")),
        Change::Pod(pod("open/a", 2, &["10.0.2.5"])),
        Change::Attachment(attachment("c1", None, &["10.0.1.5"])),
        Change::NodeGone("n9".into()),
        Change::NamespaceGone("none".into()),
        Change::PodGone(pod_name("open/none")),
        Change::Synced,
    ] {
        assert!(!world.apply(same.clone()), "{same:?}");
    }
    assert!(world.apply(Change::PodGone(pod_name("open/a"))));
    assert!(world.apply(Change::NodeGone("n2".into())));
}

#[test]
fn a_flood_of_one_event_is_summed_up() {
    let mut world = World::three_nodes();
    for number in 0..150 {
        let object = pod(&format!("secret/p{number}"), 2, &[]);
        world.apply(Change::Pod(PodObject { encryption: Some("disabled".into()), ..object }));
    }
    let events = world.desired().events;
    assert_eq!(events.len(), crate::events::LIMIT_PER_REASON + 1);
    assert!(events.iter().any(|event| event.message.starts_with("50 more objects")));
}
