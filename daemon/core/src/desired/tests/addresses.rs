//! Which party has an address when nodes and pods claim addresses that are not theirs.

use super::*;
use crate::annotations::addresses;

/// Node `n{number}`, with these addresses published for its devices.
fn with_devices(number: u8, devices: &[&str]) -> NodeObject {
    let devices = devices.iter().map(|address| ip(address)).collect();
    NodeObject { published_addresses: Some(addresses::render(&devices)), ..node(number) }
}

/// Node `n{number}`, with these additional addresses in its status.
fn with_status(number: u8, given: &[&str], internal: bool) -> NodeObject {
    let mut object = node(number);
    object.addresses.extend(given.iter().map(|address| NodeAddress { address: ip(address), internal }));
    object
}

fn identity_of_node(node: u32) -> Identity {
    Identity::new(Kind::Node, Protection::None, node)
}

const CLOSED: Identity = Identity::new(Kind::UnknownNode, Protection::None, 0);

/// The allowed IPs of node `n{number}`.
fn allowed(world: &World, number: u8) -> Vec<IpNet> {
    world.desired().state.tunnels.peers[&NodeNumber(world.number(number))].allowed.iter().copied().collect()
}

fn warnings(world: &World) -> usize {
    world.desired().events.iter().filter(|event| event.warning).count()
}

#[test]
fn every_address_that_a_node_publishes_is_its_own() {
    let mut world = World::three_nodes();
    world.local.settings.node_ranges.clear();
    world.apply(Change::Node(with_devices(2, &["192.0.2.2", "198.51.100.7", "2001:db8::2"])));
    for address in ["192.0.2.2", "198.51.100.7", "2001:db8::2"] {
        assert_eq!(world.desired().identity(ip(address)), identity_of_node(world.number(2)), "{address}");
        assert!(world.desired().state.identities.untranslated.contains(&IpNet::from(ip(address))), "{address}");
    }
    assert_eq!(allowed(&world, 2), ["10.0.2.0/24", "192.0.2.2/32", "198.51.100.7/32", "2001:db8::2/128"].map(net));
    assert!(world.events().is_empty());
    world.apply(Change::Node(with_devices(2, &["192.0.2.2"])));
    assert_eq!(world.desired().identity(ip("198.51.100.7")), CLOSED);
    assert_eq!(allowed(&world, 2), ["10.0.2.0/24", "192.0.2.2/32"].map(net));
}

#[test]
fn a_broken_annotation_leaves_the_last_good_addresses_and_a_removed_one_none() {
    let mut world = World::three_nodes();
    world.local.settings.node_ranges.clear();
    world.apply(Change::Node(with_devices(2, &["198.51.100.7"])));
    let text = r#"{"version":1,"addresses":["198.51.100.8","127.0.0.1"]}"#;
    world.apply(Change::Node(NodeObject { published_addresses: Some(text.into()), ..node(2) }));
    world.assert_event(reason::ADDRESSES_INVALID, &["Node/n2"]);
    assert_eq!(world.desired().identity(ip("198.51.100.7")), identity_of_node(world.number(2)));
    assert_eq!(world.desired().identity(ip("198.51.100.8")), Identity::WORLD);
    world.apply(Change::Node(node(2)));
    assert_eq!(world.desired().identity(ip("198.51.100.7")), CLOSED);
}

#[test]
fn what_a_node_had_is_closed_until_another_one_has_it_or_it_is_forgotten() {
    let mut world = World::three_nodes();
    world.local.settings.node_ranges.clear();
    let who = |world: &World, address: &str| world.desired().identity(ip(address));
    world.apply(Change::Node(with_devices(2, &["198.51.100.7", "10.0.2.1"])));
    world.apply(Change::NodeGone("n2".into()));
    for address in ["192.0.2.2", "198.51.100.7"] {
        assert_eq!(who(&world, address), CLOSED, "{address}");
        assert!(!world.desired().state.identities.untranslated.contains(&IpNet::from(ip(address))), "{address}");
    }
    assert_eq!(who(&world, "10.0.2.1").kind(), Kind::UnknownPod, "no node's in the first place");
    world.assert_event(reason::ADDRESS_DEPARTED, &["Node/n2"]);
    world.apply(Change::Node(with_devices(3, &["198.51.100.7"])));
    assert_eq!(who(&world, "198.51.100.7"), identity_of_node(world.number(3)));
    world.apply(Change::Node(with_devices(3, &[])));
    assert_eq!(who(&world, "198.51.100.7"), CLOSED);
    world.apply(Change::Pod(pod("open/a", 3, &["198.51.100.7"])));
    assert_eq!(who(&world, "198.51.100.7").kind(), Kind::Pod);
    for address in ["192.0.2.2", "198.51.100.7"] {
        assert!(world.apply(Change::AddressForgotten(ip(address))));
    }
    assert_eq!(who(&world, "192.0.2.2"), Identity::WORLD);
    // Addresses of this node are known from its devices, so they do not count as departed.
    world.apply(Change::NodeGone("n1".into()));
    assert_eq!(who(&world, "192.0.2.1"), Identity::WORLD);
}

#[test]
fn a_device_may_be_in_its_own_nodes_pod_range_and_in_no_other() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(with_devices(2, &["10.0.2.1", "10.0.3.1", "10.0.77.1"])));
    let unknown = |node| Identity::new(Kind::UnknownPod, Protection::Enabled, node);
    assert_eq!(world.desired().identity(ip("10.0.2.1")), identity_of_node(world.number(2)));
    assert_eq!(world.desired().identity(ip("10.0.3.1")), unknown(world.number(3)));
    assert_eq!(world.desired().identity(ip("10.0.77.1")), unknown(0));
    // In a range that another node also claims, the address belongs to no node.
    world.apply(Change::Node(NodeObject { pod_ranges: vec![net("10.0.2.0/25")], ..node(3) }));
    assert_eq!(world.desired().identity(ip("10.0.2.1")), unknown(0));
    assert_eq!(allowed(&world, 2), ["192.0.2.2/32"].map(net));
}

#[test]
fn a_pod_that_claims_an_address_of_another_nodes_range_is_protected_but_not_moved_there() {
    let mut world = World::three_nodes();
    world.apply(Change::Pod(pod("open/victim", 2, &["10.0.2.5"])));
    world.apply(Change::Pod(pod("secret/liar", 3, &["10.0.2.5", "10.0.2.6"])));
    let expected = identity_of_pod(Protection::Enabled, world.number(2));
    assert_eq!(world.desired().identity(ip("10.0.2.5")), expected);
    assert_eq!(world.desired().identity(ip("10.0.2.6")), expected);
    assert_eq!(allowed(&world, 2), ["10.0.2.0/24", "192.0.2.2/32"].map(net));
    assert_eq!(allowed(&world, 3), ["10.0.3.0/24", "192.0.2.3/32"].map(net));
    world.assert_event(reason::POD_IN_FOREIGN_RANGE, &["Pod/secret/liar", "Node/n2"]);
    // The same for this node's range.
    world.apply(Change::Pod(pod("secret/liar", 3, &["10.0.1.5"])));
    assert_eq!(world.desired().identity(ip("10.0.1.5")), identity_of_pod(Protection::Enabled, world.number(1)));
    // An interface here is certain.
    world.apply(Change::Attachment(attachment("c1", Some("open/here"), &["10.0.2.9"])));
    assert_eq!(world.desired().identity(ip("10.0.2.9")).node, world.number(1));
}

#[test]
fn an_address_that_two_nodes_claim_is_nobodys_and_still_reaches_their_tunnels() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(with_status(3, &["192.0.2.2"], true)));
    assert_eq!(world.desired().identity(ip("192.0.2.2")), CLOSED);
    assert_eq!(allowed(&world, 2), ["10.0.2.0/24"].map(net));
    assert_eq!(allowed(&world, 3), ["10.0.3.0/24", "192.0.2.3/32"].map(net));
    let desired = world.desired();
    assert_eq!(
        desired.state.tunnels.peers[&NodeNumber(world.number(2))].endpoint,
        Some("192.0.2.2:51840".parse().unwrap())
    );
    assert_eq!(desired.state.tunnels.routes[&net("10.0.2.0/24")].via, ip("192.0.2.2"));
    world.assert_event(reason::ADDRESS_CONFLICT, &["Node/n2", "Node/n3"]);
    // The same for devices' addresses.
    world.apply(Change::Node(with_devices(3, &["192.0.2.2"])));
    assert_eq!(world.desired().identity(ip("192.0.2.2")), CLOSED);
    world.assert_event(reason::ADDRESS_CONFLICT, &["Node/n2", "Node/n3"]);
    // A pod that claims the address does not open it either.
    world.apply(Change::Pod(pod("open/a", 3, &["192.0.2.2"])));
    assert_eq!(world.desired().identity(ip("192.0.2.2")), CLOSED);
    world.apply(Change::Node(node(3)));
    assert_eq!(world.desired().identity(ip("192.0.2.2")), identity_of_node(world.number(2)));
}

#[test]
fn what_a_device_of_this_node_has_is_this_nodes_whoever_claims_it() {
    let mut world = World::three_nodes();
    world.local.addresses = ["192.0.2.1", "203.0.113.1", "10.0.1.1"].map(ip).into();
    world.apply(Change::Node(with_status(3, &["192.0.2.1"], true)));
    world.apply(Change::Node(with_devices(2, &["192.0.2.2", "192.0.2.1", "203.0.113.1"])));
    world.apply(Change::Pod(pod("open/a", 3, &["203.0.113.1"])));
    for address in ["192.0.2.1", "203.0.113.1", "10.0.1.1"] {
        assert_eq!(world.desired().identity(ip(address)), identity_of_node(world.number(1)), "{address}");
    }
    world.assert_event(reason::ADDRESS_CONFLICT, &["Node/n1", "Node/n2", "Node/n3"]);
    world.assert_event(reason::ADDRESS_UNUSABLE, &["Node/n1"]);
    world.apply(Change::NodeGone("n1".into()));
    assert_eq!(world.desired().identity(ip("10.0.1.1")), identity_of_node(world.model.own_number().0));
}

#[test]
fn addresses_that_many_nodes_devices_have_raise_one_event_each_and_no_warning() {
    let mut world = World::new();
    world.local.settings.node_ranges.clear();
    world.local.addresses = [ip("172.17.0.1")].into();
    for number in 1..=40 {
        world.apply(Change::Node(with_devices(number, &["172.17.0.1", "192.168.122.1"])));
    }
    world.apply(Change::Synced);
    assert_eq!(world.desired().identity(ip("172.17.0.1")), identity_of_node(world.number(1)));
    assert_eq!(world.desired().identity(ip("192.168.122.1")), CLOSED);
    assert_eq!(warnings(&world), 0);
    let events = world.desired().events;
    assert_eq!(events.iter().filter(|event| event.reason == reason::ADDRESS_SHARED).count(), 2);
    assert!(events.iter().all(|event| event.message.contains("and 3") && event.message.contains(" more")));
}

#[test]
fn nodes_addresses_lie_in_node_ranges() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(with_status(2, &["198.51.100.7"], true)));
    assert_eq!(world.desired().identity(ip("198.51.100.7")), Identity::WORLD);
    world.assert_event(reason::ADDRESS_REFUSED, &["Node/n2"]);
    // External addresses and devices' addresses are left out without an event; a family without
    // node ranges is not checked.
    for object in [with_status(2, &["198.51.100.7"], false), with_devices(2, &["198.51.100.7", "2001:db8::2"])] {
        world.apply(Change::Node(object));
        assert_eq!(world.desired().identity(ip("198.51.100.7")), Identity::WORLD);
        assert_eq!(warnings(&world), 0);
    }
    assert_eq!(world.desired().identity(ip("2001:db8::2")), identity_of_node(world.number(2)));
}

#[test]
fn no_node_has_an_address_where_pods_are() {
    let mut world = World::three_nodes();
    world.apply(Change::Node(with_status(3, &["10.0.2.5", "10.0.77.5", "10.0.3.5"], true)));
    for (address, node) in [("10.0.2.5", 2), ("10.0.3.5", 3)] {
        assert_eq!(world.desired().identity(ip(address)).kind(), Kind::UnknownPod, "{address}");
        assert_eq!(world.desired().identity(ip(address)).node, world.number(node), "{address}");
    }
    assert_eq!(world.desired().identity(ip("10.0.77.5")).kind(), Kind::UnknownPod);
    assert_eq!(allowed(&world, 3), ["10.0.3.0/24", "192.0.2.3/32"].map(net));
    world.assert_event(reason::ADDRESS_REFUSED, &["Node/n3"]);
    // Where nodes and pods share a range, the longer prefix decides.
    world.local.settings.node_ranges.push(net("10.0.77.0/24"));
    world.apply(Change::Node(with_status(3, &["10.0.77.5"], true)));
    assert_eq!(world.desired().identity(ip("10.0.77.5")), identity_of_node(world.number(3)));
}

#[test]
fn routes_leave_an_address_where_nobody_answers_for_another_of_that_node() {
    let mut world = World::three_nodes();
    let published = with_devices(2, &["192.0.2.2", "192.0.2.22", "192.0.2.23"]).published_addresses;
    world.apply(Change::Node(NodeObject {
        published_addresses: published,
        ..with_status(2, &["192.0.2.22", "2001:db8::2"], true)
    }));
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[], "192.0.2.2"),
        (&[("192.0.2.2", "192.0.2.23")], "192.0.2.23"),
        (&[("192.0.2.2", "192.0.2.3")], "192.0.2.22"),
        (&[("192.0.2.2", "2001:db8::2")], "192.0.2.22"),
        (&[("192.0.2.2", "2001:db8::2"), ("192.0.2.22", "2001:db8::2")], "192.0.2.2"),
        (&[("192.0.2.3", "192.0.2.33")], "192.0.2.2"),
    ];
    for (detours, expected) in cases {
        world.local.detours = detours.iter().map(|(from, to)| (ip(from), ip(to))).collect();
        let _ = world.follow();
        assert_eq!(*world.incremental, world.desired());
        assert_eq!(world.desired().state.tunnels.routes[&net("10.0.2.0/24")].via, ip(expected), "{detours:?}");
    }
}
