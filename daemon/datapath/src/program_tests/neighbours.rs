//! What a pod may send in ARP and neighbour discovery, and how much of the node's neighbour table
//! it may use.

use std::net::Ipv6Addr;

use super::*;

const OWN: &str = "fd00::1:1";
const OTHER: &str = "fd00::1:9";
const ALL_NODES: &str = "ff02::1";

fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = [[0xff; 6], [2; 6]].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend([2; 6]);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

fn discovery(kind: u8, source: &str, destination: &str, target: &str) -> Vec<u8> {
    let [source, destination, target] = [source, destination, target].map(|text| text.parse::<Ipv6Addr>().unwrap());
    let mut frame = Vec::new();
    let head = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(source.octets(), destination.octets(), 255);
    head.icmpv6_raw(kind, 0, [0; 4]).write(&mut frame, &target.octets()).unwrap();
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 0], &frame[12..]].concat()
}

impl Bench {
    fn frame_refused(&mut self, frame: &[u8], reason: DropReason) {
        let before = self.drops(reason);
        assert_eq!(self.run_frame(Hook::FromPod, frame, 0), SHOT, "{reason}");
        assert_eq!(self.drops(reason), before + 1, "{reason}");
    }

    /// Makes the tests' interface a plain pod's.
    fn become_plain(&mut self) {
        let plain = layout::Interface { protection: Protection::None as u8, reserved: [0; 7] };
        self.datapath.maps_mut().put_interface(LO, plain).unwrap();
    }
}

#[test]
fn in_arp_a_pod_speaks_for_its_own_addresses_alone() {
    let mut bench = Bench::new(flag::SYNCED);
    let (own, other, gateway) = ([10, 0, 1, 1], [10, 0, 1, 9], [169, 254, 1, 1]);
    for (sender, target) in [(own, gateway), (own, other), (own, own), ([0; 4], own)] {
        for operation in [1, 2] {
            let frame = arp(operation, sender, target);
            assert_eq!(bench.run_frame(Hook::FromPod, &frame, 0), OK, "{sender:?} {target:?}");
        }
    }
    for (sender, target) in
        [(other, gateway), (gateway, own), (gateway, gateway), ([10, 0, 2, 1], own), ([0; 4], other)]
    {
        for operation in [1, 2] {
            bench.frame_refused(&arp(operation, sender, target), DropReason::SpoofedNeighbour);
        }
    }
    let mut odd = arp(1, own, gateway);
    odd[18] = 8;
    bench.frame_refused(&odd, DropReason::Malformed);
    bench.frame_refused(&arp(1, own, gateway)[..41], DropReason::Malformed);
    // What arrives at the pod is not checked here: its sender speaks for itself.
    assert_eq!(bench.run_frame(Hook::ToPod, &arp(1, other, own), 0), OK);
}

#[test]
fn a_tag_does_not_let_a_plain_pod_speak_for_others() {
    let mut bench = Bench::new(flag::SYNCED);
    bench.become_plain();
    assert_eq!(bench.run_frame(Hook::FromPod, &tagged(&arp(1, [10, 0, 1, 3], [10, 0, 1, 9])), 0), OK);
    bench.frame_refused(&tagged(&arp(1, [10, 0, 1, 9], [10, 0, 1, 3])), DropReason::SpoofedNeighbour);
    assert_eq!(bench.run_frame(Hook::FromPod, &tagged(&udp("10.0.1.3", "10.0.2.3")), 0), OK);
    bench.frame_refused(&tagged(&udp("10.0.1.9", "10.0.2.3")), DropReason::SpoofedSource);
    bench.frame_refused(&tagged(&discovery(136, OTHER, ALL_NODES, OTHER)), DropReason::SpoofedNeighbour);
}

#[test]
fn in_neighbour_discovery_a_pod_speaks_for_its_own_addresses_alone() {
    let mut bench = Bench::new(flag::SYNCED);
    let (mine, gateway) = ("fe80::5", "fe80::1");
    for (kind, source, destination, target) in [
        (133, "::", "ff02::2", "::"),
        (133, OWN, "ff02::2", "::"),
        (133, mine, "ff02::2", "::"),
        (135, "::", "ff02::1:ff00:1", OWN),
        (135, "::", "ff02::1:ff00:5", mine),
        (135, OWN, "ff02::1:ff00:9", OTHER),
        (135, mine, gateway, gateway),
        (135, mine, OTHER, OTHER),
        (136, OWN, ALL_NODES, OWN),
        (136, mine, ALL_NODES, OWN),
        (136, OWN, gateway, mine),
    ] {
        let frame = discovery(kind, source, destination, target);
        assert_eq!(bench.run_frame(Hook::FromPod, &frame, 0), OK, "{kind} {source} {destination} {target}");
    }
    for (kind, source, destination, target) in [
        (133, OTHER, "ff02::2", "::"),
        (134, mine, ALL_NODES, "::"),
        (137, mine, OWN, OTHER),
        (135, "::", "ff02::1:ff00:9", OTHER),
        (135, OTHER, "ff02::1:ff00:1", OWN),
        (135, gateway, "ff02::1:ff00:1", OWN),
        (136, OWN, ALL_NODES, OTHER),
        (136, OTHER, ALL_NODES, OWN),
        (136, mine, ALL_NODES, gateway),
        (136, "::", ALL_NODES, OWN),
        // Sent to one neighbour instead of all nodes on the link.
        (136, OWN, OTHER, OTHER),
    ] {
        bench.frame_refused(&discovery(kind, source, destination, target), DropReason::SpoofedNeighbour);
    }
    // A remembered flow does not let the next message through.
    for _ in 0..2 {
        assert_ne!(bench.run_frame(Hook::FromPod, &discovery(136, OWN, "fd00::1:2", OWN), 0), SHOT);
    }
    bench.frame_refused(&discovery(136, OWN, "fd00::1:2", OTHER), DropReason::SpoofedNeighbour);
}

#[test]
fn a_pod_has_room_for_some_link_local_addresses() {
    let mut bench = Bench::new(flag::SYNCED);
    let to = |number: u32| udp(&format!("fe80::{number}"), "fe80::1");
    let room = layout::neighbours::ROOM;
    for number in (5..5 + room).chain(5..5 + room) {
        assert_eq!(bench.run_frame(Hook::FromPod, &to(number), 0), OK, "{number}");
    }
    for number in 100..200 {
        bench.frame_refused(&to(number), DropReason::NeighbourLimit);
        let asks = discovery(135, &format!("fe80::{number}"), "ff02::1:ff00:1", "fe80::1");
        bench.frame_refused(&asks, DropReason::NeighbourLimit);
    }
    assert_eq!(bench.run_frame(Hook::FromPod, &to(5), 0), OK, "what it had it keeps");
    bench.frame_refused(&udp("fe80::1", "fe80::1"), DropReason::SpoofedSource);
    bench.frame_refused(&udp("224.0.0.9", "169.254.1.1"), DropReason::SpoofedSource);
    bench.frame_refused(&udp("169.254.1.1", "169.254.1.1"), DropReason::SpoofedSource);
}

#[test]
fn a_pod_has_room_for_some_neighbours_that_nobody_knows() {
    let room = layout::neighbours::ROOM;
    let mut bench = Bench::new(flag::SYNCED);
    for number in 5..5 + room {
        assert_eq!(bench.run(Hook::FromPod, OWN, &format!("fe80::{number}")), OK, "{number}");
    }
    bench.refuses(Hook::FromPod, OWN, "fe80::99", DropReason::NeighbourLimit);
    assert_eq!(bench.run(Hook::FromPod, OWN, "fe80::1"), OK, "its gateway");
    // Behind another plugin's bridge the node resolves its neighbours for addresses of its own
    // range.
    let mut bench = Bench::new(flag::SYNCED | flag::STACK | flag::CHAINED);
    for range in ["10.0.1.0", "fd00::1:0"] {
        let length = if range.contains(':') { 112 } else { 24 };
        let unknown = Identity::new(Kind::UnknownPod, Protection::Enabled, HERE);
        bench.datapath.maps_mut().put_range(Prefix::new(range.parse().unwrap(), length), unknown).unwrap();
    }
    for number in 5..5 + room {
        assert_eq!(bench.run(Hook::FromPod, OWN, &format!("fd00::1:{number}")), OK, "{number}");
    }
    for _ in 0..3 {
        bench.refuses(Hook::FromPod, OWN, "fd00::1:99", DropReason::NeighbourLimit);
        bench.refuses(Hook::FromPod, "10.0.1.1", "10.0.1.99", DropReason::NeighbourLimit);
    }
    assert_eq!(bench.run(Hook::FromPod, "10.0.1.1", "10.0.1.3"), OK, "a pod that is known");
    assert_eq!(bench.run(Hook::FromPod, OWN, "fd00::2:99"), OK, "another node's");
}
