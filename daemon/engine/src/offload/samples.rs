//! Well-formed packets for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::virtio::{Gso, Header};
use super::{checksum, ip};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn source(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 0, 1, 7)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 7)),
        }
    }

    pub fn destination(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 0, 2, 9)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 9)),
        }
    }

    pub fn ip_header(self) -> usize {
        match self {
            Family::V4 => ip::V4_HEADER,
            Family::V6 => ip::V6_HEADER,
        }
    }
}

/// The parts of a TCP segment that tests vary.
#[derive(Clone, Debug)]
pub struct Tcp {
    pub family: Family,
    pub id: u16,
    pub source_port: u16,
    pub sequence: u32,
    pub flags: u8,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Tcp {
    pub fn new(family: Family, sequence: u32, payload: &[u8]) -> Tcp {
        Tcp { family, id: 1, source_port: 5000, sequence, flags: 0x10, options: vec![], payload: payload.to_vec() }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend_from_slice(&self.source_port.to_be_bytes());
        segment.extend_from_slice(&80u16.to_be_bytes());
        segment.extend_from_slice(&self.sequence.to_be_bytes());
        segment.extend_from_slice(&77u32.to_be_bytes());
        segment.push((((20 + self.options.len()) / 4) << 4) as u8);
        segment.push(self.flags);
        segment.extend_from_slice(&[0x12, 0x34, 0, 0, 0, 0]);
        segment.extend_from_slice(&self.options);
        segment.extend_from_slice(&self.payload);
        packet(self.family, self.id, ip::TCP, 16, segment)
    }
}

pub fn udp(family: Family, source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&source_port.to_be_bytes());
    datagram.extend_from_slice(&destination_port.to_be_bytes());
    datagram.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    packet(family, 1, ip::UDP, 6, datagram)
}

/// Turns a finished packet into a super-packet as the kernel passes it on: its checksum covers only
/// the pseudo header.
pub fn as_super_packet(packet: &mut [u8], size: u16) -> Header {
    let (family, addresses, protocol) = match packet[0] >> 4 {
        4 => (Family::V4, packet[12..20].to_vec(), packet[9]),
        _ => (Family::V6, packet[8..40].to_vec(), packet[6]),
    };
    let start = family.ip_header();
    let (offset, gso) = match (protocol, family) {
        (ip::TCP, Family::V4) => (16, Gso::TcpV4),
        (ip::TCP, Family::V6) => (16, Gso::TcpV6),
        _ => (6, Gso::Udp),
    };
    let pseudo = checksum::fold(checksum::pseudo_header(&addresses, protocol, packet.len() - start));
    packet[start + offset..start + offset + 2].copy_from_slice(&pseudo.to_ne_bytes());
    Header {
        needs_checksum: true,
        gso,
        header_length: 0,
        gso_size: size,
        checksum_start: start as u16,
        checksum_offset: offset as u16,
    }
}

/// Sets the ECN code point, keeping the checksum right.
pub fn with_ecn(mut packet: Vec<u8>, ecn: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[1] = packet[1] & !3 | ecn;
        fill_v4_checksum(&mut packet);
    } else {
        packet[1] = packet[1] & !0x30 | ecn << 4;
    }
    packet
}

/// Whether every checksum in a TCP or UDP packet without IP options is right.
pub fn is_sound(packet: &[u8]) -> bool {
    let (at, addresses, protocol) = match packet[0] >> 4 {
        4 => (ip::V4_HEADER, &packet[12..20], packet[9]),
        _ => (ip::V6_HEADER, &packet[8..40], packet[6]),
    };
    let pseudo = checksum::pseudo_header(addresses, protocol, packet.len() - at);
    let header_sound = at != ip::V4_HEADER || checksum::is_valid(checksum::add(0, &packet[..at]));
    header_sound && checksum::is_valid(checksum::add(pseudo, &packet[at..]))
}

fn packet(family: Family, id: u16, protocol: u8, checksum_at: usize, mut transport: Vec<u8>) -> Vec<u8> {
    let mut packet = Vec::new();
    let length = transport.len() as u16;
    match family {
        Family::V4 => {
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&(length + 20).to_be_bytes());
            packet.extend_from_slice(&id.to_be_bytes());
            packet.extend_from_slice(&[0, 0, 64, protocol, 0, 0]);
        }
        Family::V6 => {
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&length.to_be_bytes());
            packet.extend_from_slice(&[protocol, 64]);
        }
    }
    for address in [family.source(), family.destination()] {
        match address {
            IpAddr::V4(address) => packet.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => packet.extend_from_slice(&address.octets()),
        }
    }
    let addresses = match family {
        Family::V4 => &packet[12..20],
        Family::V6 => &packet[8..40],
    };
    let pseudo = checksum::pseudo_header(addresses, protocol, transport.len());
    let sum = checksum::finish(checksum::add(pseudo, &transport));
    transport[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    if family == Family::V4 {
        fill_v4_checksum(&mut packet);
    }
    packet.extend_from_slice(&transport);
    packet
}

fn fill_v4_checksum(packet: &mut [u8]) {
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum::finish(checksum::add(0, &packet[..ip::V4_HEADER]));
    packet[10..12].copy_from_slice(&sum);
}
