//! Packets of protected pods encapsulated in packets between nodes, as routes with an encapsulation
//! make them.

use super::*;

const IPV4: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;

/// A frame between the two nodes, with these bytes after its IP header.
fn between_nodes(protocol: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip("192.168.0.1", "192.168.0.2").write(&mut frame, protocol.into(), content).unwrap();
    frame
}

/// The same with an IPv6 segment routing header (RFC 8754) between the two.
fn routed(protocol: u8, content: &[u8]) -> Vec<u8> {
    let mut header = vec![protocol, 2, 4, 0, 0, 0, 0, 0];
    header.extend(std::net::Ipv6Addr::LOCALHOST.octets());
    let mut frame = Vec::new();
    let behind = [&header[..], content].concat();
    ip("fd99::1", "fd99::2").write(&mut frame, 43.into(), &behind).unwrap();
    frame
}

fn packet(source: &str, destination: &str) -> Vec<u8> {
    udp(source, destination)[14..].to_vec()
}

#[test]
fn what_is_protected_does_not_leave_inside_another_packet() {
    let mut bench = Bench::new(flag::SYNCED);
    for pair in
        [["192.168.0.1", "10.0.2.1"], ["10.0.1.1", "10.0.2.3"], ["fd00::1:3", "fd00::2:1"], ["10.0.1.3", "10.0.99.9"]]
    {
        let inner = packet(pair[0], pair[1]);
        let (protocol, ethertype) = if pair[0].contains(':') { (IPV6, [0x86, 0xdd]) } else { (IPV4, [0x08, 0x00]) };
        let gre = [&[0, 0], &ethertype[..], &inner].concat();
        let keyed = [&[0xb0, 0], &ethertype[..], &[0; 12], &inner].concat();
        let bridged = [&[0, 0, 0x65, 0x58][..], &[2; 12], &ethertype, &inner].concat();
        let mut labelled = [&[2; 12][..], &[0x88, 0x47, 0, 1, 0, 64, 0, 2, 1, 64], &inner].concat();
        let frames = [
            between_nodes(protocol, &inner),
            routed(protocol, &inner),
            between_nodes(GRE, &gre),
            between_nodes(GRE, &keyed),
            between_nodes(GRE, &bridged),
            labelled.clone(),
        ];
        for (number, frame) in frames.iter().enumerate() {
            let before = bench.drops(DropReason::PlaintextLeaving);
            assert_eq!(bench.run_frame(Hook::ToWire, frame, 0), SHOT, "{pair:?}, form {number}");
            assert_eq!(bench.drops(DropReason::PlaintextLeaving), before + 1, "{pair:?}, form {number}");
        }
        // More labels than the programs follow.
        labelled.splice(14..14, [0, 1, 0, 64].repeat(3));
        assert_eq!(bench.run_frame(Hook::ToWire, &labelled, 0), SHOT, "{pair:?}");
    }
}

#[test]
fn what_is_not_protected_leaves_as_it_is() {
    let mut bench = Bench::new(flag::SYNCED);
    let inner = packet("10.0.1.3", "10.0.2.3");
    let labelled = [&[2; 12][..], &[0x88, 0x47, 0, 1, 1, 64], &inner].concat();
    for frame in [
        between_nodes(IPV4, &inner),
        between_nodes(IPV4, &packet("10.0.1.1", "8.8.8.8")),
        between_nodes(IPV4, &packet("192.168.0.1", "192.168.0.2")),
        between_nodes(IPV4, &[]),
        between_nodes(GRE, &[0, 0, 0x88, 0x0b, 1, 2, 3, 4]),
        routed(IPV4, &inner),
        labelled,
    ] {
        assert_eq!(bench.run_frame(Hook::ToWire, &frame, 0), OK);
    }
    // The next packet between the same two nodes is inspected again.
    let protected = between_nodes(IPV4, &packet("10.0.1.1", "10.0.2.3"));
    assert_eq!(bench.run_frame(Hook::ToWire, &protected, 0), SHOT);
}

#[test]
fn nothing_of_a_datagram_leaves_whose_beginning_was_refused() {
    let mut bench = Bench::new(flag::SYNCED);
    let mut first = between_nodes(IPV4, &packet("10.0.1.1", "10.0.2.3"));
    first[14 + 4..14 + 8].copy_from_slice(&[0, 9, 0x20, 0]);
    let mut later = between_nodes(IPV4, &[0; 64]);
    later[14 + 4..14 + 8].copy_from_slice(&[0, 9, 0, 8]);
    assert_eq!(bench.run_frame(Hook::ToWire, &later, 0), OK, "nothing is known of it");
    assert_eq!(bench.run_frame(Hook::ToWire, &first, 0), SHOT);
    assert_eq!(bench.run_frame(Hook::ToWire, &later, 0), SHOT);
}

/// A frame between two addresses with an IPv6 routing header of this type that lists these
/// addresses.
fn detoured(kind: u8, left: u8, addresses: &[&str]) -> Vec<u8> {
    let mut header = vec![17, 2 * addresses.len() as u8, kind, left, 0, 0, 0, 0];
    for address in addresses {
        header.extend(address.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    let mut frame = Vec::new();
    let behind = [&header[..], &[0; 8]].concat();
    ip("fd99::1", "fd99::2").write(&mut frame, 43.into(), &behind).unwrap();
    frame
}

/// A frame with IPv4 options, in multiples of four bytes.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut frame = udp("192.168.0.1", "8.8.8.8");
    frame.splice(34..34, options.iter().copied());
    frame[14] += options.len() as u8 / 4;
    let length = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame
}

#[test]
fn a_packet_is_judged_by_every_address_that_it_goes_to() {
    let mut bench = Bench::new(flag::SYNCED);
    let (plain, protected) = ("fd00::2:3", "fd00::2:1");
    let seven = ["fd99::3"; 7];
    let seventeen = ["fd99::3"; 17];
    let source_route = |kind, pointer, last| [kind, 7, pointer, 10, 0, 2, last, 0];
    let refused = [
        detoured(0, 1, &[protected]),
        detoured(2, 1, &[protected]),
        detoured(4, 1, &[protected, "fd99::2"]),
        detoured(4, 7, &[&seven[..], &[protected]].concat()),
        detoured(4, 1, &["fd00::9:9"]),
        // Types that the programs cannot read, and a list that is too long.
        detoured(3, 1, &[plain]),
        detoured(4, 17, &seventeen),
        with_options(&source_route(131, 4, 1)),
        with_options(&source_route(137, 4, 1)),
        with_options(&[&[1, 1, 1, 1][..], &source_route(131, 4, 1)].concat()),
        with_options(&[&[148, 4, 0, 0][..], &source_route(131, 4, 1)].concat()),
    ];
    for (number, frame) in refused.iter().enumerate() {
        let before = bench.drops(DropReason::PlaintextLeaving);
        assert_eq!(bench.run_frame(Hook::ToWire, frame, 0), SHOT, "{number}");
        assert_eq!(bench.drops(DropReason::PlaintextLeaving), before + 1, "{number}");
    }
    let passed = [
        detoured(4, 1, &[plain, "fd99::2"]),
        detoured(0, 0, &[protected]),
        detoured(4, 8, &[&seven[..], &[plain]].concat()),
        with_options(&source_route(131, 4, 3)),
        with_options(&source_route(131, 8, 1)),
        with_options(&[148, 4, 0, 0]),
        with_options(&[0, 131, 7, 4]),
    ];
    for (number, frame) in passed.iter().enumerate() {
        assert_eq!(bench.run_frame(Hook::ToWire, frame, 0), OK, "{number}");
        assert_eq!(bench.run_frame(Hook::ToWire, frame, 0), OK, "{number}, again");
    }
    assert_eq!(bench.run_frame(Hook::ToWire, &refused[0], 0), SHOT, "nothing is remembered of them");
}
