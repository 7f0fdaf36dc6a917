//! The programs in the kernel: loaded through its verifier and run on packets by
//! `BPF_PROG_TEST_RUN`. Every fixture is a packet in, an action out, and the counter that must have
//! changed.
//!
//! `from_tunnel` is missing here: a test run always has an Ethernet header, and the tunnel device
//! never has one. The suites in `tests/netns` run it on the wire.

use std::net::IpAddr;

use aya::programs::{TestRun, TestRunOptions};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::flow::{EventKind, Flow, FlowEvent, FlowKey};
use hauberk_abi::identity::{Identity, Kind, Protection};
use hauberk_abi::layout::{self, Peer, flag, peer_flag, probe};
use hauberk_abi::reason::DropReason;

use super::*;
use crate::testing::pins;

/// The next program runs, then the stack (TCX_NEXT, TC_ACT_UNSPEC).
const OK: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

const HERE: u32 = 1;
const THERE: u32 = 2;
const LOST: u32 = 3;
/// The loopback device, on which test runs happen.
const LO: u32 = 1;
const SHIFT: u32 = 20;

struct Bench {
    datapath: Datapath,
    ring: Events,
    _pins: tempfile::TempDir,
}

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

impl Bench {
    /// Two nodes with a protected, a permissive and a plain pod each, a third without a key, and
    /// the world.
    fn new(flags: u32) -> Bench {
        let folder = pins();
        let limits = Limits { events: 1 << 16, ..Limits::default() };
        let mut datapath = Datapath::load(&folder.path().join("hauberk"), &limits, AttachMode::Auto)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        datapath
            .configure(&Settings {
                node: HERE,
                tunnel: LO,
                tunnel_mtu: 1420,
                flags,
                mark_shift: SHIFT,
                flow_idle_ms: 60_000,
                tunnel_port: 51_840,
                reserved: 0,
            })
            .unwrap();
        let maps = datapath.maps_mut();
        for base in ["10.0.0.0", "fd00::"] {
            maps.put_range(
                Prefix::new(base.parse().unwrap(), 16),
                Identity::new(Kind::UnknownPod, Protection::Enabled, 0),
            )
            .unwrap();
        }
        for node in [HERE, THERE, LOST] {
            for (last, protection) in [(1, Protection::Enabled), (2, Protection::Permissive), (3, Protection::None)] {
                for text in [format!("10.0.{node}.{last}"), format!("fd00::{node}:{last}")] {
                    maps.put_endpoint(address(&text), Identity::new(Kind::Pod, protection, node)).unwrap();
                    if node == HERE {
                        let attachment = layout::Attachment { interface: LO, macs: [[2; 6], [4; 6]] };
                        maps.put_attachment(address(&text), attachment).unwrap();
                    }
                }
            }
            maps.put_endpoint(address(&format!("192.168.0.{node}")), Identity::new(Kind::Node, Protection::None, node))
                .unwrap();
        }
        maps.put_peer(THERE, Peer { flags: peer_flag::KEY | peer_flag::READY, epoch: 1 }).unwrap();
        let ring = maps.take_events().unwrap();
        Bench { datapath, ring, _pins: folder }
    }

    fn run_frame(&mut self, hook: Hook, frame: &[u8], came_by: u32) -> u32 {
        // In struct __sk_buff (linux/bpf.h) `ingress_ifindex` is the tenth word; the kernel takes
        // it from here.
        let mut context = [0u8; 192];
        context[36..40].copy_from_slice(&came_by.to_ne_bytes());
        let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
        program(&mut self.datapath.ebpf, hook.as_str()).unwrap().test_run(options).unwrap().return_value
    }

    fn run(&mut self, hook: Hook, source: &str, destination: &str) -> u32 {
        self.run_frame(hook, &udp(source, destination), 0)
    }

    fn flows(&self) -> Vec<(FlowKey, Flow)> {
        self.datapath.maps().flows(now()).unwrap()
    }

    /// All events that the programs have sent so far.
    fn events(&mut self) -> Vec<FlowEvent> {
        self.ring.by_ref().map(|event| event.expect("an event of the usual size")).collect()
    }

    fn kinds(&mut self) -> Vec<u32> {
        self.events().iter().map(|event| event.kind).collect()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.datapath.maps().drops().unwrap().into_iter().find(|(known, _)| *known == reason).unwrap().1
    }

    /// Runs and expects a drop for exactly this reason.
    fn refuses(&mut self, hook: Hook, source: &str, destination: &str, reason: DropReason) {
        let before = self.drops(reason);
        assert_eq!(self.run(hook, source, destination), SHOT, "{hook:?} {source} -> {destination}");
        assert_eq!(self.drops(reason), before + 1, "{hook:?} {source} -> {destination}: {reason}");
    }
}

fn udp(source: &str, destination: &str) -> Vec<u8> {
    udp_from(1000, source, destination)
}

fn udp_from(port: u16, source: &str, destination: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(source, destination).udp(port, 2000).write(&mut frame, b"payload").unwrap();
    frame
}

fn tcp(source: &str, destination: &str, flags: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(source, destination).tcp(1000, 2000, 1, 1000).write(&mut frame, b"payload").unwrap();
    // The 14th byte of the TCP header (RFC 9293 section 3.1).
    frame[14 + 20 + 13] = flags;
    frame
}

fn ip(source: &str, destination: &str) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ethernet.ipv4(s.octets(), d.octets(), 64),
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), 64),
        _ => panic!("two families"),
    }
}

/// Runs the rest of this thread on one CPU.
fn move_to(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
}

/// Two CPUs that this thread may run on; the same one twice if there is only one.
fn two_cpus() -> [usize; 2] {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let mut allowed = (0..nix::sched::CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap());
    let first = allowed.next().unwrap();
    [first, allowed.next().unwrap_or(first)]
}

#[test]
fn the_last_guard_encrypts_or_drops_what_is_protected() {
    let mut bench = Bench::new(flag::SYNCED);
    for (source, destination) in [
        ("10.0.1.1", "10.0.2.3"),
        ("10.0.1.3", "10.0.2.1"),
        ("fd00::1:1", "fd00::2:3"),
        ("192.168.0.1", "10.0.2.1"),
        ("10.0.1.1", "192.168.0.2"),
        ("10.0.1.2", "10.0.2.3"),
    ] {
        assert_eq!(bench.run(Hook::ToWire, source, destination), REDIRECT, "{source} -> {destination}");
    }
    bench.refuses(Hook::ToWire, "10.0.1.1", "10.0.3.1", DropReason::NoPeer);
    bench.refuses(Hook::ToWire, "10.0.1.3", "10.0.99.9", DropReason::UnknownDestination);
    bench.refuses(Hook::ToWire, "10.0.1.1", "10.0.1.9", DropReason::UnknownDestination);
    assert_eq!(bench.run(Hook::ToWire, "10.0.1.3", "10.0.2.3"), OK);
    assert_eq!(bench.run(Hook::ToWire, "192.168.0.1", "192.168.0.2"), OK);
    assert_eq!(bench.run(Hook::ToWire, "192.168.0.1", "8.8.8.8"), OK);
}

#[test]
fn translated_packets_of_protected_pods_stay_protected() {
    let mut bench = Bench::new(flag::SYNCED | flag::STACK);
    // Masqueraded: from the node's address to a plain pod of another node.
    assert_eq!(bench.run(Hook::ToWire, "192.168.0.1", "10.0.2.3"), REDIRECT);
    // And the reply.
    assert_eq!(bench.run(Hook::ToWire, "10.0.1.3", "192.168.0.2"), REDIRECT);
}

#[test]
fn plaintext_from_the_wire_does_not_reach_protected_pods() {
    let mut bench = Bench::new(flag::SYNCED);
    bench.refuses(Hook::FromWire, "10.0.2.3", "10.0.1.1", DropReason::PlaintextToProtected);
    bench.refuses(Hook::FromWire, "192.168.0.2", "10.0.1.1", DropReason::PlaintextToProtected);
    bench.refuses(Hook::FromWire, "10.0.2.1", "10.0.1.3", DropReason::PlaintextFromProtected);
    bench.refuses(Hook::FromWire, "10.0.2.99", "10.0.1.3", DropReason::PlaintextFromProtected);
    bench.refuses(Hook::FromWire, "10.0.2.1", "192.168.0.1", DropReason::PlaintextFromProtected);
    bench.refuses(Hook::FromWire, "8.8.8.8", "10.0.1.1", DropReason::WorldToProtected);
    bench.refuses(Hook::FromWire, "10.0.1.3", "10.0.1.1", DropReason::Martian);
    bench.refuses(Hook::FromWire, "fd00::2:3", "fd00::1:1", DropReason::PlaintextToProtected);
    assert_eq!(bench.run(Hook::FromWire, "192.168.0.2", "192.168.0.1"), OK);
    assert_eq!(bench.run(Hook::FromWire, "10.0.2.3", "10.0.1.2"), REDIRECT, "permissive accepts plaintext");
}

#[test]
fn pods_speak_for_themselves_only() {
    let mut bench = Bench::new(flag::SYNCED);
    bench.refuses(Hook::FromPod, "10.0.2.1", "10.0.1.1", DropReason::SpoofedSource);
    bench.refuses(Hook::FromPod, "10.0.1.77", "10.0.2.1", DropReason::SpoofedSource);
    assert_eq!(bench.run(Hook::FromPod, "10.0.1.1", "10.0.2.3"), REDIRECT);
    assert_eq!(bench.run(Hook::FromPod, "10.0.1.1", "8.8.8.8"), OK);
    bench.refuses(Hook::FromPod, "10.0.1.1", "10.0.3.3", DropReason::NoPeer);
    bench.refuses(Hook::FromPod, "10.0.1.1", "239.1.2.3", DropReason::Multicast);
}

#[test]
fn nothing_goes_to_the_world_before_everything_was_read() {
    let mut bench = Bench::new(0);
    bench.refuses(Hook::FromPod, "10.0.1.1", "8.8.8.8", DropReason::NotReady);
    assert_eq!(bench.run(Hook::FromPod, "10.0.1.3", "8.8.8.8"), OK);
}

#[test]
fn a_pod_receives_in_clear_only_what_is_local() {
    let mut bench = Bench::new(flag::SYNCED | flag::STACK);
    assert_eq!(bench.run(Hook::ToPod, "10.0.1.3", "10.0.1.1"), OK);
    assert_eq!(bench.run(Hook::ToPod, "192.168.0.1", "10.0.1.1"), OK);
    bench.refuses(Hook::ToPod, "10.0.2.3", "10.0.1.1", DropReason::PlaintextToProtected);
    let frame = udp("10.0.2.3", "10.0.1.1");
    assert_eq!(bench.run_frame(Hook::ToPod, &frame, LO), OK, "it came by the tunnel device");
    bench.refuses(Hook::ToPod, "10.0.2.3", "10.0.1.99", DropReason::NotLocal);
}

#[test]
fn odd_frames_are_on_the_protected_side() {
    let mut bench = Bench::new(flag::SYNCED);
    // Shorter than the length in the IP header.
    let mut frame = udp("10.0.1.1", "10.0.2.1");
    frame[16..18].copy_from_slice(&2000u16.to_be_bytes());
    let before = bench.drops(DropReason::Malformed);
    for hook in [Hook::FromPod, Hook::ToPod, Hook::FromWire, Hook::ToWire] {
        assert_eq!(bench.run_frame(hook, &frame, 0), SHOT, "{hook:?}");
    }
    assert_eq!(bench.drops(DropReason::Malformed), before + 4);
    // Not IP, from an unknown interface.
    let mut frame = udp("10.0.1.1", "10.0.2.1");
    frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(bench.run_frame(Hook::FromPod, &frame, 0), SHOT);
    assert_eq!(bench.drops(DropReason::NotIp), 1);
}

#[test]
fn vlan_tags_hide_nothing() {
    let mut bench = Bench::new(flag::SYNCED);
    let plain = udp("10.0.1.1", "10.0.2.3");
    let mut tagged = plain[..12].to_vec();
    tagged.extend([0x81, 0x00, 0x00, 0x07]);
    tagged.extend(&plain[12..]);
    assert_eq!(bench.run_frame(Hook::ToWire, &tagged, 0), SHOT);
    assert_eq!(bench.drops(DropReason::PlaintextLeaving), 1);
    assert_eq!(bench.run_frame(Hook::FromPod, &tagged, 0), SHOT);
    assert_eq!(bench.drops(DropReason::NotIp), 1);
}

#[test]
fn packets_larger_than_the_tunnel_take_the_way_that_tells_the_sender() {
    let mut bench = Bench::new(flag::SYNCED);
    let big = |payload: usize| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 1, 1], [10, 0, 2, 3], 64)
            .udp(1, 2)
            .write(&mut frame, &vec![0; payload])
            .unwrap();
        frame
    };
    assert_eq!(bench.run_frame(Hook::FromPod, &big(1420 - 28), 0), REDIRECT);
    assert_eq!(bench.run_frame(Hook::FromPod, &big(1421 - 28), 0), OK);
    // The packet itself is dropped; the ICMP answer goes up the stack in its place.
    assert_eq!(bench.run_frame(Hook::ToWire, &big(1421 - 28), 0), REDIRECT);
    assert_eq!(bench.drops(DropReason::TooBig), 1);
    // A fragment's sender cannot be told a smaller size: the fragment is encrypted as it is.
    let mut fragment = big(1421 - 28);
    fragment[14 + 6] |= 0x20;
    assert_eq!(bench.run_frame(Hook::ToWire, &fragment, 0), REDIRECT);
    assert_eq!(bench.drops(DropReason::TooBig), 1);
}

#[test]
fn probes_are_eaten_and_counted() {
    let mut bench = Bench::new(flag::SYNCED);
    let to = |bytes: [u8; 16]| udp("100::1", &std::net::Ipv6Addr::from(bytes).to_string());
    for hook in [Hook::FromPod, Hook::ToPod, Hook::ToWire] {
        assert_eq!(bench.run_frame(hook, &to(probe::DROP), 0), SHOT, "{hook:?}");
    }
    for hook in [Hook::FromWire, Hook::FromPod] {
        assert_eq!(bench.run_frame(hook, &to(probe::TURN), 0), SHOT, "{hook:?}");
    }
    assert_eq!(bench.drops(DropReason::SelfTest), 5);
    assert_eq!(bench.run_frame(Hook::ToWire, &to(probe::TURN), 0), REDIRECT);
    assert_eq!(bench.run_frame(Hook::ToWire, &to(probe::TUNNEL), 0), REDIRECT);
}

#[test]
fn flows_carry_their_verdict_and_events_tell_of_it() {
    let mut bench = Bench::new(flag::SYNCED);
    for _ in 0..3 {
        bench.run(Hook::FromPod, "10.0.1.1", "10.0.2.3");
    }
    let flows = bench.flows();
    let (key, flow) = flows.iter().find(|(key, _)| key.destination == address("10.0.2.3")).unwrap();
    assert_eq!((key.source_port, key.destination_port, key.protocol), (1000, 2000, 17));
    assert_eq!((flow.packets, flow.node, flow.epoch), (3, THERE, 1));
    assert_eq!(flow.encryption, hauberk_abi::reason::Encryption::Encrypted as u8);
    assert_eq!(flow.why, hauberk_abi::reason::Why::SourceOptedIn as u8);
    assert_eq!(bench.kinds(), [EventKind::Start as u32], "the flow's start was told, once");
}

/// A pod with another protection than before.
fn pod(protection: Protection, node: u32) -> Identity {
    Identity::new(Kind::Pod, protection, node)
}

#[test]
fn what_is_remembered_of_a_flow_is_void_with_the_next_change() {
    type Change = fn(&mut Maps);
    let changes: [(Hook, &str, &str, u32, Change, u32); 9] = [
        (
            Hook::ToWire,
            "10.0.1.3",
            "10.0.2.3",
            OK,
            |maps| maps.put_endpoint(address("10.0.2.3"), pod(Protection::Enabled, THERE)).unwrap(),
            REDIRECT,
        ),
        (
            Hook::ToWire,
            "192.168.0.1",
            "192.168.0.2",
            OK,
            |maps| maps.put_endpoint(address("192.168.0.2"), pod(Protection::Enabled, THERE)).unwrap(),
            REDIRECT,
        ),
        (
            Hook::FromWire,
            "10.0.2.3",
            "10.0.1.3",
            REDIRECT,
            |maps| maps.put_endpoint(address("10.0.1.3"), pod(Protection::Enabled, HERE)).unwrap(),
            SHOT,
        ),
        (
            Hook::FromWire,
            "fd00::2:3",
            "fd00::1:3",
            REDIRECT,
            // A destination that is not known any more is protected.
            |maps| maps.remove_endpoint(address("fd00::2:3")).unwrap(),
            SHOT,
        ),
        (
            Hook::FromWire,
            "10.0.2.3",
            "10.0.1.3",
            REDIRECT,
            |maps| maps.remove_attachment(address("10.0.1.3"), LO).unwrap(),
            OK,
        ),
        (
            Hook::FromWire,
            "192.168.0.2",
            "192.168.0.1",
            OK,
            |maps| maps.put_endpoint(address("192.168.0.1"), pod(Protection::Enabled, HERE)).unwrap(),
            SHOT,
        ),
        (Hook::FromPod, "10.0.1.1", "10.0.2.3", REDIRECT, |maps| maps.remove_peer(THERE).unwrap(), SHOT),
        (
            Hook::FromPod,
            "10.0.1.1",
            "10.0.2.3",
            REDIRECT,
            |maps| maps.put_attachment(address("10.0.1.1"), layout::Attachment::default()).unwrap(),
            SHOT,
        ),
        (
            Hook::FromPod,
            "10.0.1.3",
            "10.0.1.1",
            REDIRECT,
            |maps| maps.remove_attachment(address("10.0.1.1"), LO).unwrap(),
            OK,
        ),
    ];
    for (hook, source, destination, before, change, after) in changes {
        let mut bench = Bench::new(flag::SYNCED);
        for _ in 0..3 {
            assert_eq!(bench.run(hook, source, destination), before, "{hook:?} {source} -> {destination}");
        }
        change(bench.datapath.maps_mut());
        assert_eq!(bench.run(hook, source, destination), after, "{hook:?} {source} -> {destination}");
    }
}

#[test]
fn what_is_remembered_of_a_flow_is_void_when_it_turns_out_to_be_translated() {
    let mut bench = Bench::new(flag::SYNCED);
    for _ in 0..3 {
        assert_eq!(bench.run(Hook::FromPod, "10.0.1.1", "10.0.2.3"), REDIRECT);
    }
    // Only what netfilter translated enters a pod from the stack; the reply must pass the stack as
    // well.
    assert_eq!(bench.run_frame(Hook::ToPod, &udp("10.0.2.3", "10.0.1.1"), LO), OK);
    assert_eq!(bench.run(Hook::FromPod, "10.0.1.1", "10.0.2.3"), OK);
}

/// Only an agent that dies in the middle of a change does not announce it.
#[test]
fn what_is_remembered_of_a_flow_is_soon_forgotten() {
    let mut bench = Bench::new(flag::SYNCED);
    let mut remembered = 0;
    for round in 0..20 {
        let (now, other) = if round % 2 == 0 { (OK, REDIRECT) } else { (REDIRECT, OK) };
        let protection = if now == OK { Protection::Enabled } else { Protection::None };
        assert_eq!(bench.run(Hook::ToWire, "10.0.1.3", "10.0.2.3"), now);
        bench.datapath.maps_mut().put_endpoint_and_die(address("10.0.2.3"), pod(protection, THERE));
        remembered += u32::from(bench.run(Hook::ToWire, "10.0.1.3", "10.0.2.3") == now);
        while bench.run(Hook::ToWire, "10.0.1.3", "10.0.2.3") != other {}
    }
    // An encrypted flow is not remembered here, and now and then the time is up between two runs.
    assert!((1..=10).contains(&remembered), "{remembered} of 10");
}

#[test]
fn packets_of_one_flow_are_recorded_each_whether_remembered_or_not() {
    let mut bench = Bench::new(flag::SYNCED);
    for _ in 0..50 {
        bench.run(Hook::FromWire, "10.0.2.3", "10.0.1.3");
        bench.run(Hook::FromPod, "10.0.1.1", "10.0.2.3");
    }
    let flows = bench.flows();
    assert_eq!(flows.len(), 2);
    for (key, flow) in flows {
        assert_eq!((flow.packets, flow.node), (50, THERE), "{key:?}");
    }
}

#[test]
fn flows_that_share_a_slot_lose_no_packet() {
    let mut bench = Bench::new(flag::SYNCED);
    for _ in 0..10 {
        for port in 1..=500 {
            for _ in 0..2 {
                bench.run_frame(Hook::FromPod, &udp_from(port, "10.0.1.1", "10.0.2.3"), 0);
            }
        }
    }
    let flows = bench.flows();
    assert_eq!(flows.len(), 500);
    for (key, flow) in flows {
        assert_eq!(flow.packets, 20, "{key:?}");
    }
    assert_eq!(bench.kinds(), [EventKind::Start as u32; 500]);
}

#[test]
fn what_is_gathered_of_a_flow_is_soon_in_its_entry() {
    let mut bench = Bench::new(flag::SYNCED);
    move_to(two_cpus()[0]);
    let start = now();
    let mut packets = 0;
    // Longer than a decision is remembered.
    while now() - start < 50_000_000 {
        bench.run(Hook::FromPod, "10.0.1.1", "10.0.2.3");
        packets += 1;
    }
    let entries = bench.datapath.maps().flow_entries();
    let [(_, entry)] = entries[..] else { panic!("{entries:?}") };
    assert!(entry.packets > 2, "{} of {packets}", entry.packets);
    let [(_, flow)] = bench.flows()[..] else { panic!() };
    assert_eq!((flow.packets, flow.bytes), (packets, packets * entry.bytes / entry.packets));
    assert!(flow.first >= start && flow.last >= entry.last && flow.last <= now());
}

#[test]
fn the_end_of_a_connection_tells_of_all_its_packets() {
    use hauberk_abi::flow::{TCP_FIN, TCP_RST};
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    for end in [TCP_FIN | ACK, TCP_RST] {
        let mut bench = Bench::new(flag::SYNCED);
        move_to(two_cpus()[0]);
        for flags in [SYN, ACK, ACK, ACK, end, ACK, end] {
            bench.run_frame(Hook::FromPod, &tcp("10.0.1.1", "10.0.2.3", flags), 0);
        }
        let told: Vec<_> = bench.events().iter().map(|event| (event.kind, event.flow.packets)).collect();
        assert_eq!(told, [(EventKind::Start as u32, 1), (EventKind::End as u32, 5)], "{end:#x}");
        let [(_, flow)] = bench.flows()[..] else { panic!() };
        assert_eq!((flow.packets, flow.tcp_flags), (7, SYN | ACK | end));
    }
}

/// Each CPU gathers for itself: what a CPU has not added yet is from before the change.
#[test]
fn what_was_gathered_before_another_verdict_does_not_undo_it() {
    let cpus = two_cpus();
    for cpus in [cpus, [cpus[0]; 2]] {
        let mut bench = Bench::new(flag::SYNCED);
        move_to(cpus[0]);
        for _ in 0..5 {
            bench.run(Hook::FromWire, "10.0.2.3", "10.0.1.3");
        }
        let plain = bench.flows();
        assert_eq!((plain.len(), plain[0].1.packets, plain[0].1.drop), (1, 5, 0));
        bench.datapath.maps_mut().put_endpoint(address("10.0.1.3"), pod(Protection::Enabled, HERE)).unwrap();
        move_to(cpus[1]);
        bench.run(Hook::FromWire, "10.0.2.3", "10.0.1.3");
        let is_refused = |bench: &Bench, packets: u64| {
            let [(_, flow)] = bench.flows()[..] else { panic!() };
            assert_eq!((flow.packets, flow.drop), (packets, DropReason::PlaintextToProtected as u8));
        };
        is_refused(&bench, 1);
        move_to(cpus[0]);
        bench.run(Hook::FromWire, "10.0.2.3", "10.0.1.3");
        is_refused(&bench, 2);
        assert_eq!(bench.kinds(), [EventKind::Start as u32, EventKind::Refused as u32]);
    }
}

/// The agent ends the flow with what is gathered; that must not start it again.
#[test]
fn a_flow_that_was_ended_for_its_silence_stays_ended() {
    let mut bench = Bench::new(flag::SYNCED);
    move_to(two_cpus()[0]);
    let settings = bench.datapath.maps().settings().unwrap();
    bench.datapath.configure(&Settings { flow_idle_ms: 30, ..settings }).unwrap();
    for _ in 0..3 {
        bench.run(Hook::FromPod, "10.0.1.1", "10.0.2.3");
    }
    let [(key, flow)] = bench.flows()[..] else { panic!() };
    assert_eq!(flow.packets, 3);
    while now() - flow.last <= 30_000_000 {
        std::thread::yield_now();
    }
    bench.datapath.maps_mut().remove_flow(&key).unwrap();
    assert_eq!(bench.flows(), []);
    // Other flows use the slot next.
    for port in 1..=500 {
        bench.run_frame(Hook::FromPod, &udp_from(port, "10.0.1.3", "10.0.1.1"), 0);
    }
    assert!(bench.flows().iter().all(|(known, _)| *known != key));
    assert!(!bench.events().iter().skip(1).any(|event| event.key == key));
    bench.run(Hook::FromPod, "10.0.1.1", "10.0.2.3");
    let again = bench.flows().into_iter().find(|(known, _)| *known == key).unwrap();
    assert_eq!(again.1.packets, 1);
    assert_eq!(bench.events().iter().filter(|event| event.key == key).count(), 1, "it began again");
}

mod answers;
mod balance;
mod encapsulated;
mod loading;
mod neighbours;
mod origins;
mod services;
