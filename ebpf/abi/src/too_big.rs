//! Answers to packets that cannot go on. To one that is too big for the tunnel: ICMP "fragmentation
//! needed" (RFC 792, RFC 1191) or ICMPv6 "packet too big" (RFC 4443 section 3.2). To one for a
//! service without backends: "port unreachable". Each quotes the beginning of the packet.
//!
//! The answer comes from the packet's destination address, like the kernel's own answer where a
//! tunnel is a bridge port. The node has no address of its own that both it and the sender are sure
//! to take for another host's.

/// Bytes that are quoted of a packet that is too big: its IP header, its ports, and the TCP header
/// up to and including the checksum.
pub const QUOTE: usize = 64;
/// Bytes in front of the quote, IPv4: headers of IP and ICMP.
pub const HEAD_V4: usize = 28;
/// Bytes in front of the quote, IPv6.
pub const HEAD_V6: usize = 48;

/// "Fragmentation needed" and "packet too big": type and code. Their value is the largest packet
/// that would have fitted, in bytes.
pub const TOO_BIG: [Kind; 2] = [[3, 4], [2, 0]];
/// "Port unreachable". It has no value: 0.
pub const UNREACHABLE: [Kind; 2] = [[3, 3], [1, 4]];

/// Type and code of a message; in pairs, ICMP's comes before ICMPv6's.
pub type Kind = [u8; 2];

const HOP_LIMIT: u8 = 64;

/// Writes the headers before the quote. The quote is already in its place, up to the end of
/// `answer`. `value`: what the message's kind says.
#[inline(always)]
pub fn head_v4<const LENGTH: usize>(answer: &mut [u8; LENGTH], kind: Kind, value: u32) {
    let length = LENGTH as u16;
    put(answer, 0, [0x45, 0]);
    put(answer, 2, length.to_be_bytes());
    put(answer, 4, [0; 4]);
    put(answer, 8, [HOP_LIMIT, 1, 0, 0]);
    // The quoted destination becomes the source, and the quoted source the destination.
    copy::<4, _>(answer, HEAD_V4 + 16, 12);
    copy::<4, _>(answer, HEAD_V4 + 12, 16);
    put(answer, 20, [kind[0], kind[1], 0, 0]);
    put(answer, 24, value.to_be_bytes());
    let header = fold(sum(answer, 0, 20));
    put(answer, 10, header);
    let message = fold(sum(answer, 20, LENGTH));
    put(answer, 22, message);
}

/// The same as [`head_v4`] for IPv6.
#[inline(always)]
pub fn head_v6<const LENGTH: usize>(answer: &mut [u8; LENGTH], kind: Kind, value: u32) {
    const ICMPV6: u8 = 58;
    let length = (LENGTH - 40) as u16;
    put(answer, 0, [0x60, 0, 0, 0]);
    put(answer, 4, length.to_be_bytes());
    put(answer, 6, [ICMPV6, HOP_LIMIT]);
    copy::<16, _>(answer, HEAD_V6 + 24, 8);
    copy::<16, _>(answer, HEAD_V6 + 8, 24);
    put(answer, 40, [kind[0], kind[1], 0, 0]);
    put(answer, 44, value.to_be_bytes());
    // The pseudo-header is both addresses, the length and the protocol (RFC 8200 section 8.1).
    let message = sum(answer, 8, LENGTH) + u32::from(length) + u32::from(ICMPV6);
    put(answer, 42, fold(message));
}

#[inline(always)]
fn put<const N: usize, const M: usize>(answer: &mut [u8; M], at: usize, bytes: [u8; N]) {
    let mut i = 0;
    while i < N && at + i < M {
        answer[at + i] = bytes[i];
        i += 1;
    }
}

#[inline(always)]
fn copy<const N: usize, const M: usize>(answer: &mut [u8; M], from: usize, to: usize) {
    let mut i = 0;
    while i < N && from + i < M && to + i < M {
        answer[to + i] = answer[from + i];
        i += 1;
    }
}

/// The sum of 16-bit words (RFC 1071) from one even offset to another.
#[inline(always)]
fn sum<const M: usize>(bytes: &[u8; M], from: usize, to: usize) -> u32 {
    let mut total = 0;
    let mut i = from;
    while i < to && i + 1 < M {
        total += u32::from(u16::from_be_bytes([bytes[i], bytes[i + 1]]));
        i += 2;
    }
    total
}

#[inline(always)]
fn fold(sum: u32) -> [u8; 2] {
    let once = (sum & 0xffff) + (sum >> 16);
    (!(((once & 0xffff) + (once >> 16)) as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice, icmpv4};

    use super::*;

    #[test]
    fn both_families_answers_are_what_a_router_would_say() {
        let mut quote = [0xa5; QUOTE];
        quote[..20].copy_from_slice(&[0x45, 0, 5, 0xdc, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9]);
        let mut answer = [0; HEAD_V4 + QUOTE];
        answer[HEAD_V4..].copy_from_slice(&quote);
        head_v4(&mut answer, TOO_BIG[0], 1420);
        let parsed = SlicedPacket::from_ip(&answer).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &parsed.net else { panic!("not IPv4") };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!((header.source, header.destination), ([10, 2, 0, 9], [10, 1, 0, 5]));
        let Some(TransportSlice::Icmpv4(icmp)) = &parsed.transport else { panic!("not ICMP") };
        let expected = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1420 };
        assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(expected.clone()));
        assert_eq!(icmp.checksum(), Icmpv4Type::DestinationUnreachable(expected).calc_checksum(icmp.payload()));
        assert_eq!(icmp.payload(), quote);
    }

    #[test]
    fn a_short_packet_is_quoted_as_far_as_it_goes() {
        let mut answer = [0x5a; HEAD_V4 + 28];
        answer[HEAD_V4..][..20].copy_from_slice(&[0x45, 0, 0, 31, 0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 10, 2, 0, 9]);
        head_v4(&mut answer, UNREACHABLE[0], 0);
        let parsed = SlicedPacket::from_ip(&answer).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = &parsed.transport else { panic!("not ICMP") };
        let expected = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        assert_eq!((icmp.icmp_type(), icmp.checksum()), (expected.clone(), expected.calc_checksum(icmp.payload())));
        assert_eq!(icmp.payload().len(), 28);
        let mut answer = [0x5a; HEAD_V6 + 48];
        head_v6(&mut answer, UNREACHABLE[1], 0);
        let parsed = SlicedPacket::from_ip(&answer).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &parsed.net else { panic!("not IPv6") };
        let Some(TransportSlice::Icmpv6(icmp)) = &parsed.transport else { panic!("not ICMPv6") };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port));
        assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
    }

    #[test]
    fn ipv6() {
        let mut quote = [0x5a; QUOTE];
        quote[..8].copy_from_slice(&[0x60, 0, 0, 0, 5, 0xb4, 17, 64]);
        let mut answer = [0; HEAD_V6 + QUOTE];
        answer[HEAD_V6..].copy_from_slice(&quote);
        answer[HEAD_V6 + 8] = 0xfd;
        head_v6(&mut answer, TOO_BIG[1], 1420);
        let parsed = SlicedPacket::from_ip(&answer).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &parsed.net else { panic!("not IPv6") };
        let header = ip.header().to_header();
        assert_eq!((header.source[0], header.destination[0]), (0x5a, 0xfd));
        let Some(TransportSlice::Icmpv6(icmp)) = &parsed.transport else { panic!("not ICMPv6") };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1420 });
        assert!(icmp.is_checksum_valid(header.source, header.destination));
        assert_eq!(&icmp.payload()[..8], &quote[..8]);
    }
}
