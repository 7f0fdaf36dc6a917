//! The parts of IP that the tunnel reads: addresses, length, flow and congestion.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum;
use crate::backlog::Flow;

/// Length of an IPv4 header without options, bytes.
pub const V4_HEADER: usize = 20;
/// Length of an IPv6 header without extension headers, bytes.
pub const V6_HEADER: usize = 40;
/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of UDP.
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Congestion experienced, the ECN code point (RFC 3168, 5).
const CONGESTION: u8 = 0b11;

/// What routing needs to know about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// Length according to the header: never more than the bytes at hand.
    pub length: usize,
}

/// Reads the envelope; `None` if the headers contradict themselves or the length of the bytes.
#[inline]
pub fn envelope(packet: &[u8]) -> Option<Envelope> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<V4_HEADER>()?;
            let header_length = usize::from(header[0] & 0x0f) * 4;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            if header_length < V4_HEADER || length < header_length || length > packet.len() {
                return None;
            }
            let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
            Some(Envelope {
                source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
                destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
                length,
            })
        }
        6 => {
            let header = packet.first_chunk::<V6_HEADER>()?;
            let length = V6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
            if length > packet.len() {
                return None;
            }
            let address = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&header[at..at + 16]);
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            Some(Envelope { source: address(8), destination: address(24), length })
        }
        _ => None,
    }
}

/// Whether a packet whose envelope was read is a fragment: IPv4's "more fragments" flag or offset,
/// or IPv6's fragment header directly behind the first header (RFC 8200 section 4.5). The kernel
/// puts it there unless there are hop-by-hop options.
#[inline]
pub fn is_fragment(packet: &[u8]) -> bool {
    const V6_FRAGMENT: u8 = 44;
    match packet {
        [first, _, _, _, _, _, high, low, ..] if first >> 4 == 4 => u16::from_be_bytes([*high, *low]) & 0x3fff != 0,
        [_, _, _, _, _, _, next, ..] => *next == V6_FRAGMENT,
        _ => false,
    }
}

/// The flow of a packet whose headers are complete.
#[inline]
pub fn flow(packet: &[u8]) -> Option<Flow> {
    let word = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let (ends, protocol, start) = match packet.first()? >> 4 {
        4 => {
            let ends = u64::from(word(12)?) << 32 | u64::from(word(16)?);
            (ends, *packet.get(9)?, usize::from(packet[0] & 0x0f) * 4)
        }
        6 => {
            let words = packet.get(8..40)?.as_chunks::<8>().0;
            let mix = |mixed: u64, word: &[u8; 8]| mixed.rotate_left(23) ^ u64::from_be_bytes(*word);
            (words.iter().fold(0, mix), *packet.get(6)?, V6_HEADER)
        }
        _ => return None,
    };
    let ports = match protocol {
        _ if is_fragment(packet) => None,
        TCP | UDP => word(start).map(|ports| u64::from(protocol) << 32 | u64::from(ports)),
        ICMP | ICMPV6 => Some(u64::from(protocol) << 32),
        _ => None,
    };
    Some(Flow { ends, ports })
}

/// The ECN code point of a packet whose envelope was read.
#[inline]
pub fn ecn(packet: &[u8]) -> u8 {
    traffic_class(packet) & 0b11
}

/// DSCP and ECN of a packet whose envelope was read (RFC 2474, 3).
#[inline]
pub fn traffic_class(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => *second,
        [first, second, ..] => first << 4 | second >> 4,
        _ => 0,
    }
}

/// Carries a congestion mark of the outer packet over to the inner packet (RFC 6040, 4.2), if the
/// inner packet's sender supports ECN.
#[inline]
pub fn mark_congestion(outer: u8, packet: &mut [u8]) {
    if outer & 0b11 != CONGESTION || ecn(packet) == 0 || packet.len() < V4_HEADER {
        return;
    }
    if packet[0] >> 4 == 4 {
        let before = u16::from_be_bytes([packet[0], packet[1]]);
        packet[1] |= CONGESTION;
        let after = u16::from_be_bytes([packet[0], packet[1]]);
        // RFC 1624: adjust the header's checksum by what changed.
        let old = u64::from(!u16::from_ne_bytes([packet[10], packet[11]]));
        let sum = checksum::add_word(checksum::remove_word(old, before), after);
        packet[10..12].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
    } else {
        packet[1] |= CONGESTION << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, Family};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_flow_is_known_by_its_headers_and_fragments_may_be_of_any() {
        for family in [Family::V4, Family::V6] {
            let one = flow(&samples::udp(family, 1, 2, b"one")).unwrap();
            assert_eq!(flow(&samples::udp(family, 1, 2, b"another")), Some(one));
            assert_ne!(flow(&samples::udp(family, 1, 3, b"one")), Some(one));
            let tcp = samples::Tcp::new(family, 1, b"one").build();
            assert_eq!(flow(&tcp).unwrap().ends, one.ends);
            assert_ne!(flow(&tcp).unwrap().ports, one.ports);
            let mut fragment = samples::udp(family, 1, 2, b"one");
            match family {
                Family::V4 => fragment[6] = 0x20,
                Family::V6 => fragment[6] = 44,
            }
            assert_eq!(flow(&fragment), Some(Flow { ports: None, ..one }));
            for length in 0..tcp.len() {
                // With anything missing, nothing panics.
                let _ = flow(&tcp[..length]);
            }
        }
    }

    #[test]
    fn reads_addresses_and_trims_padding() {
        for family in [Family::V4, Family::V6] {
            let packet = samples::udp(family, 1000, 2000, b"hello");
            let mut padded = packet.clone();
            padded.extend_from_slice(&[0; 11]);
            let envelope = envelope(&padded).unwrap();
            assert_eq!(envelope.length, packet.len());
            assert_eq!(envelope.source, family.source());
            assert_eq!(envelope.destination, family.destination());
        }
    }

    #[test]
    fn refuses_contradictions() {
        let packet = samples::udp(Family::V4, 1, 2, b"hello");
        assert_eq!(envelope(&packet[..packet.len() - 1]), None, "shorter than it says");
        let mut short_header = packet.clone();
        short_header[0] = 0x44;
        assert_eq!(envelope(&short_header), None);
        let mut no_length = packet.clone();
        no_length[2..4].copy_from_slice(&[0, 10]);
        assert_eq!(envelope(&no_length), None, "ends inside its own header");
        let packet = samples::udp(Family::V6, 1, 2, b"hello");
        assert_eq!(envelope(&packet[..packet.len() - 1]), None);
        assert_eq!(envelope(&[]), None);
        assert_eq!(envelope(&[0x50; 60]), None);
    }

    #[test]
    fn congestion_is_carried_over_only_to_those_who_understand_it() {
        for family in [Family::V4, Family::V6] {
            for (inner, expected) in [(0, 0), (1, 3), (2, 3), (3, 3)] {
                let mut packet = samples::with_ecn(samples::udp(family, 1, 2, b"x"), inner);
                mark_congestion(CONGESTION, &mut packet);
                assert_eq!(ecn(&packet), expected);
                if family == Family::V4 {
                    assert!(checksum::is_valid(checksum::add(0, &packet[..V4_HEADER])));
                }
                let mut untouched = samples::with_ecn(samples::udp(family, 1, 2, b"x"), inner);
                mark_congestion(2, &mut untouched);
                assert_eq!(ecn(&untouched), inner);
            }
        }
    }

    #[test]
    fn the_traffic_class_is_where_each_family_has_it() {
        assert_eq!(traffic_class(&[0x45, 0xb8, 0, 0]), 0xb8);
        assert_eq!(traffic_class(&[0x6b, 0x8f, 0xff, 0xff]), 0xb8);
    }

    proptest! {
        #[test]
        fn never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..100), outer in any::<u8>()) {
            if let Some(envelope) = envelope(&bytes) {
                prop_assert!(envelope.length <= bytes.len());
            }
            is_fragment(&bytes);
            mark_congestion(outer, &mut bytes);
        }
    }
}
