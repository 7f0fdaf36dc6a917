//! What an ARP (RFC 826) or neighbour discovery (RFC 4861) message claims about its sender. A
//! receiver writes the claim into its neighbour table, so a pod may claim only its own addresses.

use crate::address::Address;
use crate::packet::{Bytes, Fragment, Malformed, Packet};

/// An ARP message for IPv4 on Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// The sender's address, as the message states it.
    pub sender: Address,
    /// The address that the message asks for or answers to.
    pub target: Address,
}

/// Parses the ARP message at `offset`, behind the Ethernet header and its tags.
#[inline(always)]
pub fn parse_arp<B: Bytes>(bytes: &B, offset: u32) -> Result<Arp, Malformed> {
    let Some(message) = bytes.load::<28>(offset) else { return Err(Malformed) };
    // Ethernet, IPv4, and the lengths of their addresses.
    let [0, 1, 8, 0, 6, 4, rest @ ..] = message else { return Err(Malformed) };
    let [_, _, _, _, _, _, _, _, a, b, c, d, _, _, _, _, _, _, e, f, g, h] = rest;
    Ok(Arp { sender: Address::v4([a, b, c, d]), target: Address::v4([e, f, g, h]) })
}

impl Arp {
    /// The address that must be the sender's own. A sender that has no address yet probes whether
    /// another host has the address it is to get (RFC 5227).
    #[inline(always)]
    pub fn claim(&self) -> Address {
        if self.sender.is_unspecified() { self.target } else { self.sender }
    }
}

const ROUTER_SOLICITATION: u16 = 133;
const NEIGHBOUR_SOLICITATION: u16 = 135;
const NEIGHBOUR_ADVERTISEMENT: u16 = 136;

/// The address that the sender of a [neighbour discovery](Packet::is_neighbour_discovery) packet
/// must own besides its source; the source again if there is no other. `offset` is where the IP
/// header begins. None if no pod may send the packet: it speaks as a router, is fragmented
/// (RFC 6980), goes to a group beyond its link, is behind a tag, or is cut short.
#[inline(always)]
pub fn claim<B: Bytes>(bytes: &B, offset: u32, packet: &Packet) -> Option<Address> {
    let leaves_link = packet.destination.is_multicast() && !packet.destination.is_link_scope();
    if !matches!(packet.fragment, Fragment::Whole) || packet.tagged || leaves_link {
        return None;
    }
    let nobody = packet.source.is_unspecified();
    let kind = packet.destination_port >> 8;
    if kind == ROUTER_SOLICITATION || (kind == NEIGHBOUR_SOLICITATION && !nobody) {
        return Some(packet.source);
    }
    // A host that has no address yet probes whether another host has the one it is to get
    // (RFC 4862). An advertisement always has a source address.
    if kind != NEIGHBOUR_SOLICITATION && (kind != NEIGHBOUR_ADVERTISEMENT || nobody) {
        return None;
    }
    // Type, code, checksum and four more bytes come before the target.
    let target = bytes.words(offset + packet.header_length + 8)?;
    Some(Address::v6_words(target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Frame, parse_frame};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
        bytes.extend([2; 6]);
        bytes.extend(sender);
        bytes.extend([0; 6]);
        bytes.extend(target);
        bytes
    }

    fn discovery(kind: u8, source: [u8; 16], target: [u8; 16]) -> (Vec<u8>, Packet) {
        let mut frame = Vec::new();
        let mut message = vec![0; 4];
        message.extend(target);
        let head = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(source, ALL_NODES, 255);
        head.icmpv6_raw(kind, 0, [0; 4]).write(&mut frame, &message[4..]).unwrap();
        let Ok(Frame::Ip(packet)) = parse_frame(&&frame[..]) else { panic!("no IP packet") };
        assert_eq!(packet.is_neighbour_discovery(), (133..=137).contains(&kind));
        (frame, packet)
    }

    #[test]
    fn arp_claims_its_sender_or_what_it_probes_for() {
        let parse = |bytes: &[u8]| parse_arp(&bytes, 0);
        let asks = parse(&arp([10, 0, 0, 1], [10, 0, 0, 2])).unwrap();
        assert_eq!(asks.claim(), Address::v4([10, 0, 0, 1]));
        let probe = parse(&arp([0; 4], [10, 0, 0, 2])).unwrap();
        assert_eq!(probe.claim(), Address::v4([10, 0, 0, 2]));
        let whole = arp([10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(parse(&whole[..27]), Err(Malformed));
        for byte in 0..6 {
            let mut other = whole.clone();
            other[byte] ^= 1;
            assert_eq!(parse(&other), Err(Malformed), "byte {byte}");
        }
        let behind_tag = [&[0; 18][..], &whole].concat();
        assert_eq!(parse_arp(&&behind_tag[..], 18), Ok(asks));
    }

    #[test]
    fn discovery_claims_its_source_and_what_it_answers_for() {
        let (own, other) = ([7; 16], [9; 16]);
        let claimed = |kind, source| {
            let (frame, packet) = discovery(kind, source, other);
            claim(&&frame[..], 14, &packet)
        };
        let [own_address, other_address] = [own, other].map(Address::v6);
        assert_eq!(claimed(133, own), Some(own_address));
        assert_eq!(claimed(133, [0; 16]), Some(Address::UNSPECIFIED));
        assert_eq!(claimed(135, own), Some(own_address));
        assert_eq!(claimed(135, [0; 16]), Some(other_address));
        assert_eq!(claimed(136, own), Some(other_address));
        assert_eq!(claimed(136, [0; 16]), None);
        assert_eq!(claimed(134, own), None);
        assert_eq!(claimed(137, own), None);
        let (frame, packet) = discovery(136, own, other);
        assert_eq!(claim(&&frame[..frame.len() - 1], 14, &packet), None);
        let group = Address::v6([0xff; 16]);
        for odd in [
            Packet { fragment: Fragment::First, ..packet },
            Packet { tagged: true, ..packet },
            Packet { destination: group, ..packet },
        ] {
            assert_eq!(claim(&&frame[..], 14, &odd), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), offset in any::<u32>(), header in 40u32..200) {
            let _ = parse_arp(&&bytes[..], offset % 64);
            let (_, packet) = discovery(136, [7; 16], [9; 16]);
            let packet = Packet { header_length: header, ..packet };
            let _ = claim(&&bytes[..], offset % 64, &packet);
        }
    }
}
