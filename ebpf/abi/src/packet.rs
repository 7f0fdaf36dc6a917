//! The parser: it reads from a frame's bytes the few facts that verdicts need. It never guesses: an
//! inconsistent packet is [`Malformed`], and the caller treats it as protected.
//!
//! It reads through [`Bytes`], so that the eBPF programs, unit tests and the fuzzer run the same
//! code. Classification is by address alone; ports are for accounting. IPv4: RFC 791; IPv6 and its
//! extension headers: RFC 8200.

use crate::address::Address;

/// Random access to a packet's bytes.
pub trait Bytes {
    /// The `N` bytes at `offset`; none if the packet ends before them.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// The `N` words at `offset`, in network order; none if the packet ends before them. BPF reads
    /// aligned data a word at a time, and other data byte by byte.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
    /// The same for one of a few values of `offset`. The headers that almost every packet has can
    /// be read in a faster way.
    #[inline(always)]
    fn near<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.words(offset)
    }
    /// Bytes in the packet, counted from offset 0.
    fn length(&self) -> u32;
}

impl Bytes for &[u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = offset as usize;
        let bytes = self.get(start..start.checked_add(4 * N)?)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }

    fn length(&self) -> u32 {
        self.len() as u32
    }
}

/// The packet is truncated, contradicts itself, or has more headers than real senders use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// A frame from a device with Ethernet headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// IPv4 or IPv6.
    Ip(Packet),
    /// ARP (RFC 826), which begins at this offset.
    Arp(u32),
    /// Anything else.
    Other,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fragment {
    /// All of it.
    #[default]
    Whole,
    /// The first of several: has the transport header.
    First,
    /// Not the first: has no ports.
    Later,
}

/// An IP packet's facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Bytes from the IP header on (a GSO super-packet's sum).
    pub length: u32,
    /// The identification that a datagram's fragments share (IPv4: 16 bits); 0 for an IPv6 packet
    /// that is no fragment.
    pub identification: u32,
    /// Bytes from the IP header to the end of the transport header: the bytes that every GSO
    /// segment carries in addition to payload.
    pub header_length: u32,
    /// Source port, or 0.
    pub source_port: u16,
    /// Destination port; for ICMP type << 8 | code; or 0.
    pub destination_port: u16,
    /// Transport protocol, found behind the extension headers.
    pub protocol: u8,
    /// TCP flags, or 0.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Which part of a datagram.
    pub fragment: Fragment,
    /// Has IPv4 options or a live IPv6 routing header: the destination address may not be the final
    /// one.
    pub detour: bool,
    /// Behind one or two VLAN tags inside the frame.
    pub tagged: bool,
}

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

impl Packet {
    /// Neighbour discovery (RFC 4861, types 133-137): link-scope by its hop limit of 255.
    #[inline(always)]
    pub fn is_neighbour_discovery(&self) -> bool {
        let kind = self.destination_port >> 8;
        self.protocol == protocol::ICMPV6 && (133..=137).contains(&kind) && self.hop_limit == 255
    }

    /// Multicast listener discovery (RFC 2710, RFC 3810): link-scope by its hop limit of 1.
    #[inline(always)]
    pub fn is_listener_discovery(&self) -> bool {
        let kind = self.destination_port >> 8;
        self.protocol == protocol::ICMPV6 && ((130..=132).contains(&kind) || kind == 143) && self.hop_limit == 1
    }

    /// An ICMP error message (RFC 792 types 3, 4, 5, 11, 12; RFC 4443 types below 128). It quotes
    /// the packet that it is about.
    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        let kind = self.destination_port >> 8;
        match self.protocol {
            protocol::ICMP => matches!(kind, 3..=5 | 11 | 12),
            protocol::ICMPV6 => (1..128).contains(&kind),
            _ => false,
        }
    }

    /// Whether an IPv6 extension header follows the parsed headers. A later fragment has payload
    /// there, whatever its protocol field says.
    #[inline(always)]
    pub fn is_extended(&self) -> bool {
        !self.source.is_v4() && is_extension(self.protocol) && !matches!(self.fragment, Fragment::Later)
    }

    /// Whether every packet this one stands for is at most `mtu` bytes of IP. `segment` is the
    /// payload of a GSO segment in bytes; 0 if this is no super-packet.
    #[inline(always)]
    pub fn fits(&self, mtu: u32, segment: u32) -> bool {
        self.largest(segment) <= mtu
    }

    /// Bytes of IP of the largest packet this one stands for; `segment` as in
    /// [`fits`](Packet::fits).
    #[inline(always)]
    pub fn largest(&self, segment: u32) -> u32 {
        if segment == 0 { self.length } else { self.header_length + segment }
    }
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// What a frame's link header says about the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// An IP packet.
    Ip {
        /// Where it begins.
        offset: u32,
        /// Its version: 4 or 6.
        version: u32,
        /// Behind one or two VLAN tags.
        tagged: bool,
    },
    /// ARP (RFC 826), which begins at this offset.
    Arp(u32),
    /// Anything else.
    Other,
}

/// Parses a frame that begins with an Ethernet header.
#[inline(always)]
pub fn parse_frame<B: Bytes>(bytes: &B) -> Result<Frame, Malformed> {
    match parse_link(bytes)? {
        Link::Ip { offset, version, tagged } => {
            let mut packet = parse_packet(bytes, offset, version)?;
            packet.tagged = tagged;
            Ok(Frame::Ip(packet))
        }
        Link::Arp(offset) => Ok(Frame::Arp(offset)),
        Link::Other => Ok(Frame::Other),
    }
}

/// Parses an Ethernet header and up to two VLAN tags (IEEE 802.3, 802.1Q).
#[inline(always)]
pub fn parse_link<B: Bytes>(bytes: &B) -> Result<Link, Malformed> {
    let Some(ethertype) = bytes.load::<2>(12) else { return Err(Malformed) };
    let mut ethertype = u16::from_be_bytes(ethertype);
    let mut offset = 14;
    let mut tagged = false;
    let mut tags = 0;
    while tags < 2 {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        let Some([tag]) = bytes.words(offset) else { return Err(Malformed) };
        ethertype = u32::from_be(tag) as u16;
        offset += 4;
        tagged = true;
        tags += 1;
    }
    match ethertype {
        ETHERTYPE_IPV4 => Ok(Link::Ip { offset, version: 4, tagged }),
        ETHERTYPE_IPV6 => Ok(Link::Ip { offset, version: 6, tagged }),
        ETHERTYPE_ARP => Ok(Link::Arp(offset)),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(Malformed),
        _ => Ok(Link::Other),
    }
}

/// Parses a packet that begins with its IP header, as on the tunnel device.
#[inline(always)]
pub fn parse_ip<B: Bytes>(bytes: &B) -> Result<Packet, Malformed> {
    let Some([first]) = bytes.load::<1>(0) else { return Err(Malformed) };
    parse_packet(bytes, 0, u32::from(first >> 4))
}

/// All parsing steps in one. The programs run the same steps in separate functions.
#[inline(always)]
fn parse_packet<B: Bytes>(bytes: &B, offset: u32, version: u32) -> Result<Packet, Malformed> {
    let mut packet = parse_header(bytes, offset, version)?;
    let mut followed = 0;
    while packet.is_extended() {
        if followed == EXTENSION_HEADERS {
            return Err(Malformed);
        }
        parse_extension(bytes, offset, &mut packet)?;
        followed += 1;
    }
    parse_transport(bytes, offset, &mut packet);
    Ok(packet)
}

/// Parses the header at `offset` of an IP packet of this `version`, without what follows the
/// header.
#[inline(always)]
pub fn parse_header<B: Bytes>(bytes: &B, offset: u32, version: u32) -> Result<Packet, Malformed> {
    match version {
        4 => parse_v4(bytes, offset),
        6 => parse_v6(bytes, offset),
        _ => Err(Malformed),
    }
}

#[inline(always)]
fn parse_v4<B: Bytes>(bytes: &B, offset: u32) -> Result<Packet, Malformed> {
    let Some([first, second, third, source, destination]) = bytes.near(offset) else { return Err(Malformed) };
    // Version, header length, service, length; identification, fragment; time to live, protocol,
    // checksum.
    let (first, second, third) = (u32::from_be(first), u32::from_be(second), u32::from_be(third));
    let header = ((first >> 24) & 0x0f) * 4;
    if first >> 28 != 4 || header < 20 {
        return Err(Malformed);
    }
    let length = whole_length(first & 0xffff, bytes.length(), offset)?;
    if length < header {
        return Err(Malformed);
    }
    let field = second as u16;
    Ok(Packet {
        source: Address::v4_word(source),
        destination: Address::v4_word(destination),
        length,
        identification: second >> 16,
        header_length: header,
        source_port: 0,
        destination_port: 0,
        protocol: (third >> 16) as u8,
        tcp_flags: 0,
        hop_limit: (third >> 24) as u8,
        fragment: fragment(field & 0x1fff, field & 0x2000 != 0),
        detour: header > 20,
        tagged: false,
    })
}

/// The largest number of extension headers that is parsed. Packets with more count as malformed; no
/// real sender uses more.
pub const EXTENSION_HEADERS: u32 = 7;

#[inline(always)]
fn parse_v6<B: Bytes>(bytes: &B, offset: u32) -> Result<Packet, Malformed> {
    let Some([first, second, s0, s1, s2, s3, d0, d1, d2, d3]) = bytes.near(offset) else { return Err(Malformed) };
    // Version, class, flow label; length, next header, hop limit.
    let (first, second) = (u32::from_be(first), u32::from_be(second));
    if first >> 28 != 6 {
        return Err(Malformed);
    }
    let payload = second >> 16;
    // A payload length of 0 marks a jumbogram (RFC 2675) if the packet is larger than any other
    // packet can be.
    let length = whole_length(
        if payload == 0 && bytes.length() > offset + 65_575 { 0 } else { payload + 40 },
        bytes.length(),
        offset,
    )?;
    let packet = Packet {
        source: Address::v6_words([s0, s1, s2, s3]),
        destination: Address::v6_words([d0, d1, d2, d3]),
        length,
        identification: 0,
        header_length: 40,
        source_port: 0,
        destination_port: 0,
        protocol: (second >> 8) as u8,
        tcp_flags: 0,
        hop_limit: second as u8,
        fragment: Fragment::Whole,
        detour: false,
        tagged: false,
    };
    if packet.source.is_v4() || packet.destination.is_v4() {
        return Err(Malformed);
    }
    Ok(packet)
}

/// Parses one IPv6 extension header of a packet that [has one](Packet::is_extended).
#[inline(always)]
pub fn parse_extension<B: Bytes>(bytes: &B, offset: u32, packet: &mut Packet) -> Result<(), Malformed> {
    let Some([first, second]) = bytes.words(offset + packet.header_length) else { return Err(Malformed) };
    // The next header, the length of this one, and two bytes that depend on its kind.
    let first = u32::from_be(first);
    let (next, units, rest) = ((first >> 24) as u8, (first >> 16) & 0xff, first as u16);
    packet.header_length += match packet.protocol {
        44 => {
            packet.fragment = fragment(rest >> 3, rest & 1 != 0);
            packet.identification = second;
            8
        }
        51 => (units + 2) * 4,
        43 => {
            packet.detour |= rest & 0xff != 0;
            (units + 1) * 8
        }
        _ => (units + 1) * 8,
    };
    if packet.header_length > packet.length {
        return Err(Malformed);
    }
    packet.protocol = next;
    Ok(())
}

/// Whether this is a hop-by-hop, routing, fragment, authentication, destination options, mobility,
/// HIP or shim6 header: those that name the next header in their first byte (RFC 7045 section 2).
#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// Checks the length that an IP header states against the bytes that are there. The kernel writes 0
/// into super-packets that are larger than the field can express ("BIG TCP").
#[inline(always)]
fn whole_length(stated: u32, available: u32, offset: u32) -> Result<u32, Malformed> {
    let rest = available.saturating_sub(offset);
    if stated == 0 && rest > 65_535 {
        return Ok(rest);
    }
    if stated > rest { Err(Malformed) } else { Ok(stated) }
}

#[inline(always)]
fn fragment(position: u16, more: bool) -> Fragment {
    match (position, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

/// Fills in ports and flags. If the transport header is cut short they stay 0: addresses alone
/// decide.
#[inline(always)]
pub fn parse_transport<B: Bytes>(bytes: &B, offset: u32, packet: &mut Packet) {
    if matches!(packet.fragment, Fragment::Later) {
        return;
    }
    let start = offset + packet.header_length;
    let room = packet.length.saturating_sub(packet.header_length);
    match packet.protocol {
        protocol::TCP if room >= 20 => {
            if let Some([ports, _, _, flags]) = header(bytes, start, packet) {
                set_ports(packet, ports);
                let flags = u32::from_be(flags);
                packet.tcp_flags = (flags >> 16) as u8;
                packet.header_length += (flags >> 28) * 4;
            }
        }
        protocol::UDP | protocol::SCTP if room >= 8 => {
            if let Some([ports]) = header(bytes, start, packet) {
                set_ports(packet, ports);
                packet.header_length += 8;
            }
        }
        protocol::ICMP | protocol::ICMPV6 if room >= 2 => {
            if let Some(t) = bytes.load::<2>(start) {
                packet.destination_port = u16::from_be_bytes(t);
            }
        }
        _ => {}
    }
}

/// The first words of the transport header. Almost always it follows an IP header without options,
/// for which there is a faster read.
#[inline(always)]
fn header<const N: usize, B: Bytes>(bytes: &B, start: u32, packet: &Packet) -> Option<[u32; N]> {
    match packet.header_length {
        20 | 40 => bytes.near(start),
        _ => bytes.words(start),
    }
}

#[inline(always)]
fn set_ports(packet: &mut Packet, ports: u32) {
    let ports = u32::from_be(ports);
    packet.source_port = (ports >> 16) as u16;
    packet.destination_port = ports as u16;
}

#[cfg(test)]
mod tests;
