//! The observer's program in the kernel, run on packets by `BPF_PROG_TEST_RUN`, with the guard's
//! maps for identities.

use std::net::IpAddr;
use std::path::Path;

use aya::programs::TestRunOptions;
use etherparse::PacketBuilder;
use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::{Identity, Kind, Protection};
use hauberk_abi::layout::Settings;

use super::*;
use crate::testing::pins;
use crate::{AttachMode, Datapath, Limits};

const HERE: u32 = 1;
const THERE: u32 = 2;
/// TC_ACT_UNSPEC: the next program runs.
const NEXT: u32 = u32::MAX;

struct Bench {
    observer: Observer,
    _datapath: Datapath,
    _pins: tempfile::TempDir,
}

impl Bench {
    /// Two nodes with a protected (.1), a permissive (.2) and a plain pod (.3) each; everything
    /// else in the ranges is unknown.
    fn new() -> Bench {
        let folder = pins();
        let root: &Path = &folder.path().join("hauberk");
        let limits = Limits { events: 1 << 16, ..Limits::default() };
        let mut datapath = Datapath::load(root, &limits, AttachMode::Auto).unwrap();
        datapath.configure(&Settings { node: HERE, ..Settings::default() }).unwrap();
        let maps = datapath.maps_mut();
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        for base in ["10.0.0.0", "fd00::"] {
            let unknown = Identity::new(Kind::UnknownPod, Protection::Enabled, 0);
            maps.put_range(Prefix::new(base.parse().unwrap(), 16), unknown).unwrap();
        }
        for node in [HERE, THERE] {
            for (last, protection) in [(1, Protection::Enabled), (2, Protection::Permissive), (3, Protection::None)] {
                for text in [format!("10.0.{node}.{last}"), format!("fd00::{node}:{last}")] {
                    maps.put_endpoint(address(&text), Identity::new(Kind::Pod, protection, node)).unwrap();
                }
            }
            let identity = Identity::new(Kind::Node, Protection::None, node);
            maps.put_endpoint(address(&format!("192.168.0.{node}")), identity).unwrap();
        }
        let observer = Observer::load(&Pins::new(root), false).unwrap_or_else(|error| panic!("{error}"));
        Bench { observer, _datapath: datapath, _pins: folder }
    }

    fn run(&mut self, frame: &[u8]) {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        assert_eq!(self.observer.test_run("observe", options), NEXT);
    }

    /// Whether the observer reports this frame, and as what.
    fn seen(&mut self, frame: &[u8]) -> Option<(String, String, u16)> {
        let before = self.packets();
        let earlier = self.observer.leaks();
        self.run(frame);
        let more = self.packets() - before;
        let leaks = self.observer.leaks();
        let leak = leaks.iter().find(|leak| !earlier.contains(leak)).map(|(leak, _)| *leak);
        assert_eq!(more, u64::from(leak.is_some()));
        leak.map(|leak| (leak.source.to_string(), leak.destination.to_string(), leak.destination_port))
    }

    fn packets(&self) -> u64 {
        self.observer.leaked().unwrap().iter().map(|(_, packets)| packets).sum()
    }
}

/// The first packet of a TCP connection to port 443.
fn syn(source: &str, destination: &str) -> Vec<u8> {
    tcp(source, destination, true)
}

fn tcp(source: &str, destination: &str, opens: bool) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let builder = match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => builder.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => builder.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!(),
    };
    let builder = builder.tcp(4_000, 443, 1, 1_000);
    let builder = if opens { builder.syn() } else { builder.ack(1) };
    let mut frame = Vec::new();
    builder.write(&mut frame, b"payload").unwrap();
    frame
}

#[test]
fn only_what_had_to_be_encrypted_is_a_leak() {
    let mut bench = Bench::new();
    let leaks = [
        ("10.0.1.1", "10.0.2.1"),
        ("10.0.1.1", "10.0.2.3"),
        ("10.0.1.1", "192.168.0.2"),
        ("10.0.1.3", "10.0.2.1"),
        ("192.168.0.1", "10.0.2.1"),
        // An unknown end counts as protected.
        ("10.0.1.3", "10.0.2.77"),
        ("10.0.1.77", "10.0.2.3"),
        // Passes through this node.
        ("10.0.2.1", "10.0.9.9"),
        ("fd00::1:1", "fd00::2:3"),
    ];
    for (source, destination) in leaks {
        let expected = Some((source.to_owned(), destination.to_owned(), 443));
        assert_eq!(bench.seen(&syn(source, destination)), expected, "{source} {destination}");
    }
    let fine = [
        // The world.
        ("10.0.1.1", "8.8.8.8"),
        ("8.8.8.8", "10.0.2.1"),
        ("fd00::1:1", "2001:db8::1"),
        // Not opted in, or not strictly.
        ("10.0.1.3", "10.0.2.3"),
        ("10.0.1.2", "10.0.2.3"),
        ("192.168.0.1", "192.168.0.2"),
        // Stays on this node.
        ("10.0.1.1", "10.0.1.3"),
        ("10.0.2.1", "10.0.1.3"),
        ("10.0.1.1", "192.168.0.1"),
    ];
    for (source, destination) in fine {
        assert_eq!(bench.seen(&syn(source, destination)), None, "{source} {destination}");
    }
}

#[test]
fn tags_and_one_overlay_hide_nothing() {
    let mut bench = Bench::new();
    let frame = syn("10.0.1.1", "10.0.2.3");
    let packet = &frame[14..];
    let expected = Some(("10.0.1.1".to_owned(), "10.0.2.3".to_owned(), 443));
    let mut sources = (1..).map(|port: u16| port.to_be_bytes());
    // Each frame is another flow, so that each is reported as a leak of its own.
    let mut fresh = |bytes: &mut Vec<u8>| {
        let at = bytes.len() - packet.len() + 20;
        bytes[at..at + 2].copy_from_slice(&sources.next().unwrap());
    };
    let [to, kind] = [&frame[..12], &frame[12..14]];
    let tag = [0x81, 0, 0, 5];
    let mut cases = vec![
        ("a tag", [to, &tag, kind, packet].concat()),
        ("two tags", [to, &[0x88, 0xa8, 0, 5], &tag, kind, packet].concat()),
    ];
    let mut wrapped = |what, protocol: u8, head: &[u8], inside: &[u8]| {
        let inner = [head, inside].concat();
        let length = (20 + inner.len() as u16).to_be_bytes();
        let outer = [0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0, 192, 168, 0, 1, 192, 168, 0, 2];
        cases.push((what, [to, kind, &outer, &inner].concat()));
    };
    let udp = |port: u16| [[0x30, 0x39], port.to_be_bytes(), [0, 0], [0, 0]].concat();
    let vxlan = [8, 0, 0, 0, 0, 0, 1, 0];
    wrapped("IP in IP", 4, &[], packet);
    wrapped("VXLAN", 17, &[udp(4789), vxlan.to_vec()].concat(), &frame);
    wrapped("VXLAN as Linux had it", 17, &[udp(8472), vxlan.to_vec()].concat(), &frame);
    let geneve = [1, 0, 0x65, 0x58, 0, 0, 1, 0, 9, 9, 9, 9];
    wrapped("Geneve with options", 17, &[udp(6081), geneve.to_vec()].concat(), &frame);
    wrapped("GRE", 47, &[0, 0, 8, 0], packet);
    wrapped("GRE with a key and a number", 47, &[0x30, 0, 0x65, 0x58, 0, 0, 0, 1, 0, 0, 0, 2], &frame);
    for (what, mut bytes) in cases {
        fresh(&mut bytes);
        assert_eq!(bench.seen(&bytes), expected, "{what}");
    }
    // The same overlay around a packet that may be seen.
    let plain = syn("10.0.1.3", "10.0.2.3");
    let mut bytes = [to, kind].concat();
    let length = (20 + plain.len() as u16 - 14).to_be_bytes();
    bytes.extend([0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 4, 0, 0, 192, 168, 0, 1, 192, 168, 0, 2]);
    bytes.extend(&plain[14..]);
    assert_eq!(bench.seen(&bytes), None);
}

#[test]
fn packets_in_the_middle_are_looked_at_now_and_then() {
    let mut bench = Bench::new();
    let frame = tcp("10.0.1.1", "10.0.2.3", false);
    let packets = 64 * 100;
    for _ in 0..packets {
        bench.run(&frame);
    }
    // 100 are expected; 10 standard deviations are also 100.
    assert!((20..300).contains(&bench.packets()), "{} of {packets}", bench.packets());
    assert_eq!(bench.observer.leaks()[0].1.packets, bench.packets());
}
