use super::*;
use etherparse::PacketBuilder;
use proptest::prelude::*;

fn frame(builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn ip(bytes: &[u8]) -> Packet {
    match parse_frame(&bytes) {
        Ok(Frame::Ip(packet)) => packet,
        other => panic!("not an IP packet: {other:?}"),
    }
}

#[test]
fn udp_over_v4_and_v6_with_and_without_tags() {
    let v4 = frame(PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(7, 9), b"hello");
    let packet = ip(&v4);
    assert_eq!(packet.source, Address::v4([10, 0, 0, 1]));
    assert_eq!(packet.destination, Address::v4([10, 0, 0, 2]));
    assert_eq!((packet.source_port, packet.destination_port, packet.protocol), (7, 9, protocol::UDP));
    assert_eq!((packet.length, packet.header_length), (20 + 8 + 5, 28));
    assert!(!packet.tagged && !packet.detour);

    let tagged = frame(
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .double_vlan(1.try_into().unwrap(), 2.try_into().unwrap())
            .ipv6([1; 16], [2; 16], 9)
            .udp(7, 9),
        b"hello",
    );
    let packet = ip(&tagged);
    assert_eq!(packet.source, Address::v6([1; 16]));
    assert_eq!((packet.source_port, packet.destination_port, packet.hop_limit), (7, 9, 9));
    assert!(packet.tagged);
}

#[test]
fn three_tags_are_malformed_and_other_ethertypes_are_told_apart() {
    let mut bytes = vec![0u8; 12];
    bytes.extend([0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 8, 0, 0x45]);
    assert_eq!(parse_frame(&&bytes[..]), Err(Malformed));
    let mut arp = vec![0u8; 12];
    arp.extend([8, 6, 0, 0]);
    assert_eq!(parse_frame(&&arp[..]), Ok(Frame::Arp(14)));
    let tagged = [&arp[..12], &[0x81, 0, 0, 1], &arp[12..]].concat();
    assert_eq!(parse_frame(&&tagged[..]), Ok(Frame::Arp(18)));
    arp[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(parse_frame(&&arp[..]), Ok(Frame::Other));
    assert_eq!(parse_frame(&&arp[..13]), Err(Malformed));
}

#[test]
fn later_fragments_have_no_ports_and_keep_their_addresses() {
    let mut bytes =
        frame(PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(7, 9), b"hello");
    bytes[20] = 0x20; // more fragments, offset 0
    let first = ip(&bytes);
    assert_eq!((first.fragment, first.source_port), (Fragment::First, 7));
    bytes[20..22].copy_from_slice(&[0x00, 0x10]);
    let later = ip(&bytes);
    assert_eq!((later.fragment, later.source_port, later.destination_port), (Fragment::Later, 0, 0));
    assert_eq!(later.destination, Address::v4([10, 0, 0, 2]));
}

/// Builds an IPv6 packet from (header kind, header bytes) pairs and a UDP header.
fn v6_with(extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut chain = Vec::new();
    for (index, (_, bytes)) in extensions.iter().enumerate() {
        let mut bytes = bytes.clone();
        bytes[0] = extensions.get(index + 1).map_or(protocol::UDP, |next| next.0);
        chain.extend(bytes);
    }
    chain.extend([0, 7, 0, 9, 0, 8, 0, 0]);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((chain.len() as u16).to_be_bytes());
    packet.push(extensions.first().map_or(protocol::UDP, |first| first.0));
    packet.push(64);
    packet.extend([1; 16]);
    packet.extend([2; 16]);
    packet.extend(chain);
    packet
}

#[test]
fn extension_headers_are_followed() {
    let hop_by_hop = (0u8, vec![0u8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let routing_done = (43u8, vec![0u8, 0, 0, 0, 0, 0, 0, 0]);
    let routing_live = (43u8, vec![0u8, 0, 0, 1, 0, 0, 0, 0]);
    let authentication = (51u8, vec![0u8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let options = (60u8, vec![0u8; 8]);
    let bytes = v6_with(&[hop_by_hop.clone(), routing_done, authentication, options.clone()]);
    let packet = parse_ip(&&bytes[..]).unwrap();
    assert_eq!((packet.protocol, packet.source_port, packet.destination_port), (protocol::UDP, 7, 9));
    assert!(!packet.detour);
    assert!(parse_ip(&&v6_with(&[routing_live])[..]).unwrap().detour);

    let many: Vec<_> = (0..9).map(|_| options.clone()).collect();
    assert_eq!(parse_ip(&&v6_with(&many)[..]), Err(Malformed));
}

#[test]
fn v6_fragments_are_classified_by_address() {
    let first = (44u8, vec![0u8, 0, 0, 1, 0, 0, 0, 1]);
    let later = (44u8, vec![0u8, 0, 0, 9, 0, 0, 0, 1]);
    let packet = parse_ip(&&v6_with(&[first])[..]).unwrap();
    assert_eq!((packet.fragment, packet.source_port), (Fragment::First, 7));
    let packet = parse_ip(&&v6_with(&[later])[..]).unwrap();
    assert_eq!((packet.fragment, packet.source_port), (Fragment::Later, 0));
    assert_eq!(packet.destination, Address::v6([2; 16]));
}

#[test]
fn contradictions_are_malformed() {
    let good =
        frame(PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(7, 9), b"hello");
    for (at, value) in [(14, 0x44), (14, 0x55), (14, 0x4f), (17, 0x50), (17, 0x10)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(parse_frame(&&bad[..]), Err(Malformed), "byte {at} = {value:#x}");
    }
    // An IPv4-mapped address on the wire would be taken for an IPv4 pod's address.
    let mut mapped = v6_with(&[]);
    mapped[8..24].copy_from_slice(&Address::v4([10, 0, 0, 1]).octets());
    assert_eq!(parse_ip(&&mapped[..]), Err(Malformed));
}

#[test]
fn super_packets_are_measured_by_segment() {
    let bytes =
        frame(PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(7, 9), &[0; 5000]);
    let packet = ip(&bytes);
    assert!(!packet.fits(1420, 0));
    assert!(packet.fits(1420, 1392));
    assert!(!packet.fits(1420, 1393));
}

proptest! {
    #[test]
    fn any_bytes_parse_without_panic_and_lengths_hold(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(Frame::Ip(packet)) = parse_frame(&&bytes[..]) {
            prop_assert!(packet.length as usize <= bytes.len());
            prop_assert!(!packet.source.is_v4() || bytes.windows(4).any(|w| w == &packet.source.octets()[12..]));
        }
        let _ = parse_ip(&&bytes[..]);
    }

    #[test]
    fn agrees_with_etherparse(source in any::<[u8; 4]>(), destination in any::<[u8; 4]>(), ports in any::<(u16, u16)>(),
                              payload in proptest::collection::vec(any::<u8>(), 0..64), ttl in any::<u8>()) {
        let bytes = frame(PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(source, destination, ttl).udp(ports.0, ports.1), &payload);
        let packet = ip(&bytes);
        prop_assert_eq!(packet.source, Address::v4(source));
        prop_assert_eq!(packet.destination, Address::v4(destination));
        prop_assert_eq!((packet.source_port, packet.destination_port), ports);
    }
}
