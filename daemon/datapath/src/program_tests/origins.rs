//! Where a packet came from, by device and by source address: what no map holds is on the protected
//! side.

use super::*;

#[test]
fn a_pod_receives_by_an_unguarded_device_nothing_that_claims_to_be_local() {
    let mut bench = Bench::new(flag::SYNCED | flag::STACK);
    // Neither the tunnel nor a device where a program saw the packet.
    let unguarded = 7;
    for (source, reason) in [
        ("10.0.1.3", DropReason::Martian),
        ("10.0.1.1", DropReason::Martian),
        ("192.168.0.1", DropReason::Martian),
        ("10.0.2.1", DropReason::PlaintextToProtected),
        ("192.168.0.2", DropReason::PlaintextToProtected),
        ("8.8.8.8", DropReason::WorldToProtected),
    ] {
        let before = bench.drops(reason);
        assert_eq!(bench.run_frame(Hook::ToPod, &udp(source, "10.0.1.1"), unguarded), SHOT, "{source}");
        assert_eq!(bench.drops(reason), before + 1, "{source}: {reason}");
    }
    assert_eq!(bench.run_frame(Hook::ToPod, &udp("10.0.1.3", "10.0.1.2"), unguarded), OK, "neither is protected");
}

#[test]
fn an_address_of_the_node_that_is_not_known_yet_sends_nothing_to_protected_pods() {
    let mut bench = Bench::new(flag::SYNCED);
    bench.refuses(Hook::ToWire, "172.16.0.9", "10.0.2.1", DropReason::UnknownSource);
    bench.refuses(Hook::ToWire, "172.16.0.9", "10.0.2.99", DropReason::UnknownSource);
    bench.refuses(Hook::ToWire, "172.16.0.9", "10.0.1.1", DropReason::NotLocal);
    assert_eq!(bench.run(Hook::ToWire, "172.16.0.9", "10.0.2.3"), OK, "nothing of that is protected");
    let forwarded = udp("172.16.0.9", "10.0.2.1");
    assert_eq!(bench.run_frame(Hook::ToWire, &forwarded, 7), SHOT, "from the world by way of this node");
    let mut bench = Bench::new(flag::SYNCED | flag::WORLD_DIRECT);
    assert_eq!(bench.run_frame(Hook::ToWire, &forwarded, 7), OK, "as the configuration allows");
    bench.refuses(Hook::ToWire, "172.16.0.9", "10.0.2.1", DropReason::UnknownSource);
}

/// A port of another node that leads to a protected pod: the asking node cannot know, and the
/// answer arrives encrypted.
#[test]
fn a_connection_that_is_answered_sealed_goes_on_sealed() {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let (here, there) = ("192.168.0.1", "192.168.0.2");
    let mut bench = Bench::new(flag::SYNCED);
    assert_eq!(bench.run_frame(Hook::ToWire, &tcp(here, there, SYN), 0), OK);
    assert_eq!(bench.run_frame(Hook::ToWire, &tcp(here, there, SYN), 0), OK);
    let mut answer = tcp(there, here, SYN | ACK);
    // The answer has the ports swapped.
    let (source, destination) = (14 + 20, 14 + 22);
    let ports = [answer[destination], answer[destination + 1], answer[source], answer[source + 1]];
    answer[source..source + 4].copy_from_slice(&ports);
    assert_eq!(bench.run_frame(Hook::FromTunnel, &answer[14..], 0), OK);
    assert_eq!(bench.run_frame(Hook::ToWire, &tcp(here, there, ACK), 0), REDIRECT);
}
