//! Services at a device: what becomes of a client's packets and of their answers.

use etherparse::{IpSlice, NetSlice, SlicedPacket, TransportSlice, UdpHeader};
use hauberk_abi::connection::{Connection, Direction};
use hauberk_abi::packet::protocol;
use hauberk_abi::service::{ANY_NODE_V4, ANY_NODE_V6, Backend, Frontend, FrontendKey, SourceRange, frontend_flag};

use super::*;

const PORT: u16 = 30_080;
const TARGET: u16 = 8_080;
const SET: u64 = 7;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x11;
const RST: u8 = 0x04;

/// The addresses of one family.
struct Family {
    client: &'static str,
    node: &'static str,
    other_node: &'static str,
    balancer: &'static str,
    /// Pods of this node: protected, plain.
    here: [&'static str; 2],
    there: [&'static str; 2],
}

const FAMILIES: [Family; 2] = [
    Family {
        client: "198.51.100.9",
        node: "192.168.0.1",
        other_node: "192.168.0.2",
        balancer: "203.0.113.7",
        here: ["10.0.1.1", "10.0.1.3"],
        there: ["10.0.2.1", "10.0.2.3"],
    },
    Family {
        client: "2001:db8:51::9",
        node: "fd99::1",
        other_node: "fd99::2",
        balancer: "2001:db8:7::7",
        here: ["fd00::1:1", "fd00::1:3"],
        there: ["fd00::2:1", "fd00::2:3"],
    },
];

/// What a packet is, as its receiver reads it.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Seen {
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

impl Bench {
    /// A node port and a load balancer's address of both families, that lead to these backends.
    fn serving(backends: &[&str]) -> Bench {
        let mut bench = Bench::new(flag::SYNCED | flag::TRANSLATES);
        let maps = bench.datapath.maps_mut();
        for (text, node) in [("fd99::1", HERE), ("fd99::2", THERE)] {
            maps.put_endpoint(address(text), Identity::new(Kind::Node, Protection::None, node)).unwrap();
        }
        maps.put_masquerade([address("192.168.0.1"), address("fd99::1")]).unwrap();
        for family in &FAMILIES {
            let is_v4 = address(family.client).is_v4();
            let set = if is_v4 { SET } else { SET + 1 };
            let of_family = backends.iter().filter(|text| address(text).is_v4() == is_v4);
            let backends: Vec<Backend> = of_family.map(|text| backend(text)).collect();
            maps.put_set(set, &backends).unwrap();
            let any = if is_v4 { ANY_NODE_V4 } else { ANY_NODE_V6 };
            let frontend = Frontend { set, outside: set, flags: frontend_flag::OUTSIDE, ..Frontend::default() };
            for (at, port) in [(any, PORT), (address(family.balancer), 80)] {
                for protocol in [protocol::TCP, protocol::UDP] {
                    maps.put_frontend(FrontendKey { address: at, port, protocol, reserved: 0 }, frontend).unwrap();
                }
            }
        }
        bench
    }

    /// Runs the hook on the frame. Returns the action and the frame as the hook leaves it.
    fn through(&mut self, hook: Hook, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = program(&mut self.datapath.ebpf, hook.as_str()).unwrap().test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    fn connections(&self) -> Vec<(Direction, Connection)> {
        let maps = self.datapath.maps();
        let connections = maps.connections().unwrap();
        let mut answers: Vec<_> = connections.iter().map(|(key, one)| (one.answers(key.protocol), *key)).collect();
        let mut replies = maps.replies().unwrap();
        answers.sort();
        replies.sort();
        assert_eq!(answers, replies, "each connection has its answers' entry, and nothing else has one");
        connections
    }
}

fn backend(text: &str) -> Backend {
    Backend { address: address(text), port: TARGET, reserved: 0 }
}

fn segment(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut builder = ip(from.0, to.0).tcp(from.1, to.1, 1, 1000);
    if flags & SYN != 0 {
        builder = builder.syn();
    }
    if flags & ACK != 0 {
        builder = builder.ack(5);
    }
    if flags & FIN & !ACK != 0 {
        builder = builder.fin();
    }
    if flags & RST != 0 {
        builder = builder.rst();
    }
    builder.write(&mut frame, b"payload").unwrap();
    frame
}

fn datagram(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(from.0, to.0).udp(from.1, to.1).write(&mut frame, b"payload").unwrap();
    frame
}

/// Reads a frame and checks every checksum in it.
fn seen(frame: &[u8]) -> Seen {
    let parsed = SlicedPacket::from_ethernet(frame).unwrap();
    let (source, destination): (IpAddr, IpAddr) = match parsed.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (header.source.into(), header.destination.into())
        }
        NetSlice::Ipv6(ip) => (ip.header().source().into(), ip.header().destination().into()),
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let slice = IpSlice::from_slice(&frame[14..]).unwrap();
    let payload = &slice.payload().payload;
    let (source_port, destination_port) = match parsed.transport.expect("TCP or UDP") {
        TransportSlice::Tcp(tcp) => {
            let expected = match &slice {
                IpSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
                IpSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
            };
            assert_eq!(tcp.checksum(), expected.unwrap());
            (tcp.source_port(), tcp.destination_port())
        }
        TransportSlice::Udp(udp) => {
            let header = UdpHeader { checksum: 0, ..udp.to_header() };
            let expected = match &slice {
                IpSlice::Ipv4(ip) => {
                    header.calc_checksum_ipv4_raw(ip.header().source(), ip.header().destination(), &payload[8..])
                }
                IpSlice::Ipv6(ip) => {
                    header.calc_checksum_ipv6_raw(ip.header().source(), ip.header().destination(), &payload[8..])
                }
            };
            assert_eq!(udp.checksum(), expected.unwrap());
            (udp.source_port(), udp.destination_port())
        }
        other => panic!("{other:?}"),
    };
    Seen { source: (source, source_port), destination: (destination, destination_port) }
}

fn end(text: &str, port: u16) -> (IpAddr, u16) {
    (text.parse().unwrap(), port)
}

#[test]
fn a_pod_of_this_node_gets_the_packet_and_the_client_the_answer() {
    for family in &FAMILIES {
        for pod in family.here {
            let mut bench = Bench::serving(&[pod]);
            for (at, port) in [(family.node, PORT), (family.balancer, 80)] {
                let client = (family.client, 40_000);
                for (request, answer) in [
                    (segment(client, (at, port), SYN), segment((pod, TARGET), client, SYN | ACK)),
                    (datagram(client, (at, port)), datagram((pod, TARGET), client)),
                ] {
                    let (action, led) = bench.through(Hook::FromWire, &request);
                    let expected = Seen { source: end(family.client, 40_000), destination: end(pod, TARGET) };
                    // A second service's packet from the same port needs another one.
                    let led = seen(&led);
                    assert_eq!(
                        (action, led.destination, led.source.0),
                        (REDIRECT, expected.destination, expected.source.0)
                    );
                    let mut answer = answer;
                    let ports = 14 + if address(pod).is_v4() { 20 } else { 40 };
                    let given = led.source.1;
                    if given != 40_000 {
                        assert_eq!(at, family.balancer, "the first keeps its port");
                        let is_tcp = bench.connections().len() % 2 == 1;
                        answer = if is_tcp {
                            segment((pod, TARGET), (family.client, given), SYN | ACK)
                        } else {
                            datagram((pod, TARGET), (family.client, given))
                        };
                        assert_eq!(answer[ports + 2..ports + 4], given.to_be_bytes());
                    }
                    // No route leads to the client here, so that is where it ends.
                    let (action, answer) = bench.through(Hook::FromPod, &answer);
                    let expected = Seen { source: end(at, port), destination: end(family.client, 40_000) };
                    assert_eq!((action, seen(&answer)), (SHOT, expected));
                    assert!(bench.drops(DropReason::NoWay) > 0);
                }
            }
            assert_eq!(bench.connections().len(), 4);
        }
    }
}

#[test]
fn a_protected_pod_of_another_node_is_reached_through_the_tunnel() {
    for family in &FAMILIES {
        let [protected, plain] = family.there;
        let mut bench = Bench::serving(&[protected]);
        let request = segment((family.client, 40_000), (family.node, PORT), SYN);
        let (action, led) = bench.through(Hook::FromWire, &request);
        let led = seen(&led);
        assert_eq!((action, led.destination, led.source.0), (REDIRECT, end(protected, TARGET), end(family.node, 0).0));
        assert!((1_024..30_000).contains(&led.source.1), "no node port, and none of the node's own: {}", led.source.1);
        // A node's own packet comes in the clear, and must not be sealed from here on only.
        for sender in [family.other_node, plain] {
            let request = segment((sender, 40_000), (family.node, PORT), SYN);
            let before = bench.drops(DropReason::PlaintextToProtected);
            assert_eq!(bench.through(Hook::FromWire, &request).0, SHOT, "{sender}");
            assert_eq!(bench.drops(DropReason::PlaintextToProtected), before + 1);
        }
        // Without a key the packet is refused.
        bench.datapath.maps_mut().remove_peer(THERE).unwrap();
        assert_eq!(bench.through(Hook::FromWire, &request).0, SHOT);
        assert_eq!(bench.drops(DropReason::NoPeer), 1);
    }
}

/// What a protected pod, or this node, seems to send by a wire in the clear makes no connection.
#[test]
fn forged_packets_lead_nowhere() {
    for family in &FAMILIES {
        let mut bench = Bench::serving(&family.there);
        for sender in [family.there[0], family.here[1], family.node] {
            let request = segment((sender, 40_000), (family.node, PORT), SYN);
            let (_, left) = bench.through(Hook::FromWire, &request);
            assert_eq!(left, request, "{sender}");
        }
        let nobody = if address(family.client).is_v4() {
            ["127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.5", "240.0.0.1"]
        } else {
            ["::1", "::", "ff02::5", "fe80::1234", "ff0e::1"]
        };
        for sender in nobody {
            let request = datagram((sender, 40_000), (family.node, PORT));
            let (_, left) = bench.through(Hook::FromWire, &request);
            assert_eq!(left, request, "{sender}");
        }
        let before = segment((family.here[1], 40_000), (family.balancer, 80), SYN);
        let mut spoofed = before.clone();
        spoofed[14 + if address(family.client).is_v4() { 15 } else { 23 }] = 9;
        assert_eq!(bench.through(Hook::FromPod, &spoofed).0, SHOT, "a pod sends from its own address");
        assert!(bench.connections().is_empty());
    }
}

#[test]
fn only_the_clients_that_a_load_balancer_admits_are_led() {
    let family = &FAMILIES[0];
    let mut bench = Bench::serving(&[family.here[1]]);
    let maps = bench.datapath.maps_mut();
    let key = FrontendKey { address: address(family.balancer), port: 80, protocol: protocol::TCP, reserved: 0 };
    let flags = frontend_flag::OUTSIDE | frontend_flag::LIMITED;
    maps.put_frontend(key, Frontend { set: SET, outside: SET, affinity: 0, flags }).unwrap();
    maps.put_source(SourceRange::new(SET, Prefix::new("198.51.100.0".parse().unwrap(), 28))).unwrap();
    maps.put_source(SourceRange::new(SET + 1, Prefix::new("0.0.0.0".parse().unwrap(), 0))).unwrap();
    let mut led = |client: &str, at: (&str, u16)| bench.through(Hook::FromWire, &segment((client, 4_000), at, SYN)).0;
    assert_eq!(led("198.51.100.15", (family.balancer, 80)), REDIRECT);
    assert_eq!(led("198.51.100.16", (family.balancer, 80)), SHOT);
    assert_eq!(led("198.51.100.16", (family.node, PORT)), REDIRECT, "node ports admit all");
    assert_eq!(bench.drops(DropReason::SourceNotAdmitted), 1);
    assert_eq!(bench.connections().len(), 2);
}

#[test]
fn cluster_addresses_are_not_for_clients_outside() {
    let family = &FAMILIES[0];
    let mut bench = Bench::serving(&[family.here[1]]);
    let key = FrontendKey { address: address("10.96.0.1"), port: 80, protocol: protocol::TCP, reserved: 0 };
    bench.datapath.maps_mut().put_frontend(key, Frontend { set: SET, ..Frontend::default() }).unwrap();
    let request = segment((family.client, 40_000), ("10.96.0.1", 80), SYN);
    assert_eq!(bench.through(Hook::FromWire, &request).0, SHOT);
    assert_eq!(bench.drops(DropReason::NoBackend), 1);
    // Pods whose sockets were not led come here.
    for pod in family.here {
        let request = segment((pod, 40_000), ("10.96.0.1", 80), SYN);
        let (action, led) = bench.through(Hook::FromPod, &request);
        assert_eq!((action, seen(&led).destination), (REDIRECT, end(family.here[1], TARGET)));
        // A pod that is led to itself answers to the node.
        let expected = if pod == family.here[1] { family.node } else { pod };
        let source = seen(&led).source;
        assert_eq!(source.0, end(expected, 0).0);
        let answer = segment((family.here[1], TARGET), (expected, source.1), SYN | ACK);
        let (action, answer) = bench.through(Hook::FromPod, &answer);
        assert_eq!(
            (action, seen(&answer).source, seen(&answer).destination),
            (REDIRECT, end("10.96.0.1", 80), end(pod, 40_000))
        );
    }
}

#[test]
fn a_service_without_backends_refuses() {
    for family in &FAMILIES {
        let mut bench = Bench::serving(&[]);
        let frames = [SYN, 0].map(|flags| match flags {
            0 => datagram((family.client, 40_000), (family.node, PORT)),
            flags => segment((family.client, 40_000), (family.node, PORT), flags),
        });
        for frame in frames {
            // It has become an answer, for which there is no route here.
            let (action, answer) = bench.through(Hook::FromWire, &frame);
            assert_eq!(action, SHOT);
            let parsed = SlicedPacket::from_ethernet(&answer).unwrap();
            let is_refusal = match parsed.transport.unwrap() {
                TransportSlice::Icmpv4(icmp) => (icmp.type_u8(), icmp.code_u8()) == (3, 3),
                TransportSlice::Icmpv6(icmp) => (icmp.type_u8(), icmp.code_u8()) == (1, 4),
                _ => false,
            };
            assert!(is_refusal);
        }
        assert_eq!((bench.drops(DropReason::NoBackend), bench.connections().len()), (2, 0));
    }
}

#[test]
fn a_connection_keeps_its_backend_while_it_lasts() {
    let family = &FAMILIES[0];
    let [first, second] = family.here;
    let mut bench = Bench::serving(&[first]);
    let client = (family.client, 40_000);
    let at = (family.node, PORT);
    let led = |bench: &mut Bench, frame: &[u8]| {
        let (action, led) = bench.through(Hook::FromWire, frame);
        assert_eq!(action, REDIRECT);
        seen(&led).destination.0.to_string()
    };
    assert_eq!(led(&mut bench, &segment(client, at, SYN)), first);
    assert_eq!(led(&mut bench, &datagram(client, at)), first);
    bench.datapath.maps_mut().put_set(SET, &[backend(second)]).unwrap();
    assert_eq!(led(&mut bench, &segment(client, at, ACK)), first, "its backend may be ending in peace");
    assert_eq!(led(&mut bench, &datagram(client, at)), second, "datagrams move");
    for closing in [FIN, RST] {
        assert_eq!(led(&mut bench, &segment(client, at, closing)), first);
        bench.through(Hook::FromPod, &segment((first, TARGET), client, FIN));
        assert_eq!(led(&mut bench, &segment(client, at, SYN)), second, "a new connection from the same port");
        bench.datapath.maps_mut().put_set(SET, &[backend(first)]).unwrap();
        assert_eq!(led(&mut bench, &segment(client, at, SYN)), first);
        bench.datapath.maps_mut().put_set(SET, &[backend(second)]).unwrap();
    }
    assert_eq!(bench.connections().len(), 2);
    // What is no beginning, and belongs to no connection, is another program's.
    let late = segment((family.client, 40_001), at, ACK);
    assert_eq!(bench.through(Hook::FromWire, &late), (OK, late));
}

#[test]
fn a_client_keeps_its_backend_if_the_service_says_so() {
    let family = &FAMILIES[0];
    let mut bench = Bench::serving(&[family.here[0], family.here[1]]);
    let any = FrontendKey { address: ANY_NODE_V4, port: PORT, protocol: protocol::TCP, reserved: 0 };
    let frontend = Frontend { set: SET, outside: SET, affinity: 3_600, flags: frontend_flag::OUTSIDE };
    bench.datapath.maps_mut().put_frontend(any, frontend).unwrap();
    let mut backend_of = |client: &str, port: u16| {
        let (_, led) = bench.through(Hook::FromWire, &segment((client, port), (family.node, PORT), SYN));
        seen(&led).destination.0
    };
    for client in ["198.51.100.1", "198.51.100.2", "198.51.100.3"] {
        let first = backend_of(client, 1_000);
        assert!((0..20).all(|port| backend_of(client, 2_000 + port) == first));
    }
}

#[test]
fn where_there_is_no_room_for_a_connection_it_is_refused() {
    let folder = pins();
    let limits = Limits { events: 1 << 16, connections: 1, ..Limits::default() };
    let small = Datapath::load(&folder.path().join("hauberk"), &limits, AttachMode::Auto).unwrap();
    let family = &FAMILIES[0];
    let mut bench = Bench::serving(&[family.here[1]]);
    // The same tables' contents, over a smaller table of connections.
    let other = std::mem::replace(&mut bench.datapath, small);
    bench.datapath.configure(&Settings { ..other.maps().settings().unwrap() }).unwrap();
    let maps = bench.datapath.maps_mut();
    for (key, identity) in other.maps().endpoints().unwrap() {
        maps.put_endpoint(key, identity).unwrap();
    }
    maps.put_attachment(address(family.here[1]), layout::Attachment { interface: LO, macs: [[2; 6], [4; 6]] }).unwrap();
    for (number, backends) in other.maps().sets().unwrap() {
        maps.put_set(number, &backends).unwrap();
    }
    for (key, frontend) in other.maps().frontends().unwrap() {
        maps.put_frontend(key, frontend).unwrap();
    }
    let mut led = |port| bench.through(Hook::FromWire, &segment((family.client, port), (family.node, PORT), SYN)).0;
    assert_eq!((led(1_000), led(1_001), led(1_000)), (REDIRECT, SHOT, REDIRECT));
    assert_eq!((bench.drops(DropReason::ConnectionsFull), bench.connections().len()), (1, 1));
}

#[test]
fn what_is_over_is_forgotten_and_nothing_else() {
    let family = &FAMILIES[0];
    let mut bench = Bench::serving(&[family.here[1]]);
    let at = (family.node, PORT);
    for port in [1_000, 1_001, 1_002] {
        bench.through(Hook::FromWire, &segment((family.client, port), at, SYN));
    }
    let answer = |port| segment((family.here[1], TARGET), (family.client, port), SYN | ACK);
    // An answer to a SYN does not prove that the SYN's sender is there.
    for port in [1_000, 1_001, 1_002] {
        bench.through(Hook::FromPod, &answer(port));
    }
    for port in [1_001, 1_002] {
        bench.through(Hook::FromWire, &segment((family.client, port), at, ACK));
    }
    bench.through(Hook::FromWire, &segment((family.client, 1_002), at, RST));
    let ports = |bench: &Bench| {
        let mut ports: Vec<u16> = bench.connections().iter().map(|(key, _)| key.source_port).collect();
        ports.sort_unstable();
        ports
    };
    let start = now();
    let steps = [(59, vec![1_000, 1_001, 1_002]), (62, vec![1_001, 1_002]), (3_602, vec![1_001]), (86_402, vec![])];
    for (seconds, left) in steps {
        let count = bench.datapath.maps_mut().forget_connections(start + seconds * 1_000_000_000).unwrap();
        assert_eq!((count, ports(&bench)), (left.len(), left), "after {seconds} s");
    }
    assert!(!bench.datapath.maps().has_connections().unwrap());
}

/// Only the first fragment has ports.
#[test]
fn later_fragments_follow_the_first() {
    let family = &FAMILIES[0];
    let mut bench = Bench::serving(&[family.here[1]]);
    let whole = datagram((family.client, 40_000), (family.node, PORT));
    let fragment = |field: u16, id: u8| {
        let mut frame = whole.clone();
        frame[14 + 5] = id;
        frame[14 + 6..14 + 8].copy_from_slice(&field.to_be_bytes());
        // The header's checksum is that of the sum of its other words (RFC 791).
        frame[14 + 10..14 + 12].fill(0);
        let sum: u32 = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        frame[14 + 10..14 + 12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        frame
    };
    let destination = |frame: &[u8]| IpAddr::from(<[u8; 4]>::try_from(&frame[30..34]).unwrap()).to_string();
    let (action, first) = bench.through(Hook::FromWire, &fragment(0x2000, 5));
    assert_eq!((action, destination(&first)), (REDIRECT, family.here[1].to_owned()));
    let (action, later) = bench.through(Hook::FromWire, &fragment(0x0002, 5));
    assert_eq!((action, destination(&later)), (REDIRECT, family.here[1].to_owned()));
    assert_eq!(later[34..], fragment(0x0002, 5)[34..], "there is no port in it");
    let header = etherparse::Ipv4Header::from_slice(&later[14..]).unwrap().0;
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let other = fragment(0x0002, 6);
    assert_eq!(bench.through(Hook::FromWire, &other).1, other, "another datagram's");
}

/// An ICMP error about a packet.
fn error(from: &str, to: &str, about: &[u8]) -> Vec<u8> {
    let quote = &about[14..];
    let mut frame = Vec::new();
    let mtu = 1_280;
    if address(from).is_v4() {
        let header = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
        ip(from, to).icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(header)).write(&mut frame, quote).unwrap();
    } else {
        let kind = etherparse::Icmpv6Type::PacketTooBig { mtu: mtu.into() };
        ip(from, to).icmpv6(kind).write(&mut frame, quote).unwrap();
    }
    frame
}

/// The error's own ends, and the packet that it quotes. Checks the error's checksums.
fn told(frame: &[u8]) -> (IpAddr, IpAddr, Seen) {
    let parsed = SlicedPacket::from_ethernet(frame).unwrap();
    let ends: (IpAddr, IpAddr);
    let quote = match (parsed.net.as_ref().unwrap(), parsed.transport.as_ref().unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
            ends = (header.source.into(), header.destination.into());
            icmp.payload()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let header = ip.header();
            assert!(icmp.is_checksum_valid(header.source(), header.destination()));
            ends = (header.source_addr().into(), header.destination_addr().into());
            icmp.payload()
        }
        other => panic!("{other:?}"),
    };
    let (header, ports) = if ends.0.is_ipv4() { (12..20, 20) } else { (8..40, 40) };
    let half = header.len() / 2;
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    if ends.0.is_ipv4() {
        let inner = etherparse::Ipv4Header::from_slice(quote).unwrap().0;
        assert_eq!(inner.header_checksum, inner.calc_header_checksum(), "the quoted header's");
    }
    let port = |at: usize| u16::from_be_bytes([quote[at], quote[at + 1]]);
    let seen = Seen {
        source: (address(&quote[header.start..header.start + half]), port(ports)),
        destination: (address(&quote[header.start + half..header.end]), port(ports + 2)),
    };
    (ends.0, ends.1, seen)
}

#[test]
fn errors_reach_the_sender_of_what_they_quote() {
    for family in &FAMILIES {
        let [protected, _] = family.there;
        for pod in [family.here[0], protected] {
            let mut bench = Bench::serving(&[pod]);
            let client = (family.client, 40_000);
            for (request, answer) in [
                (segment(client, (family.node, PORT), SYN), segment((family.node, PORT), client, SYN | ACK)),
                (datagram(client, (family.node, PORT)), datagram((family.node, PORT), client)),
            ] {
                let (_, led) = bench.through(Hook::FromWire, &request);
                let forward = seen(&led);
                // A router near the client: what the backend sent is too big.
                let router = if address(family.client).is_v4() { "198.51.100.1" } else { "2001:db8:51::1" };
                let (action, got) = bench.through(Hook::FromWire, &error(router, family.node, &answer));
                let (source, destination, quote) = told(&got);
                let masked = forward.source.0 != end(family.client, 0).0;
                let expected = if masked { end(family.node, 0).0 } else { end(router, 0).0 };
                assert_eq!((action, source, destination), (REDIRECT, expected, end(pod, 0).0));
                assert_eq!(quote, Seen { source: forward.destination, destination: forward.source });
                // The pod: what the client sent has no receiver.
                if pod == family.here[0] {
                    let (_, got) = bench.through(Hook::FromPod, &error(pod, family.client, &led));
                    let (source, destination, quote) = told(&got);
                    assert_eq!((source, destination), (end(family.node, 0).0, end(family.client, 0).0));
                    assert_eq!(quote, seen(&request));
                }
            }
            let stranger = error(family.client, family.node, &datagram((family.node, 9), (family.client, 9)));
            assert_eq!(bench.through(Hook::FromWire, &stranger), (OK, stranger), "about no connection");
        }
    }
}
