//! Joins decrypted packets of one flow into super-packets for the device.
//!
//! A joined packet tells the kernel that its checksums are right, so they are verified first: a
//! packet that its sender spoilt must arrive spoilt. Packets of one flow keep their order.

use super::virtio::{Gso, HEADER_LENGTH, Header};
use super::{checksum, ip};

/// Flows that are joined at the same time; the oldest makes room for a new one.
const FLOWS: usize = 8;
/// Longest super-packet: what an IPv4 length field can say.
const LONGEST: usize = 65_535;
/// Most datagrams in a UDP super-packet (UDP_MAX_SEGMENTS, linux/udp.h).
const MOST_DATAGRAMS: usize = 64;

const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
const TCP_ECE: u8 = 0x40;

/// Super-packets in the making.
pub(crate) struct Coalescer {
    open: Vec<Joined>,
    /// Buffers of packets already written.
    spare: Vec<Joined>,
    tcp: bool,
    udp: bool,
}

/// One super-packet in the making.
struct Joined {
    /// A virtio header's room, then the packet.
    buffer: Vec<u8>,
    shape: Shape,
    count: usize,
    /// Whether the checksums of the first packet were looked at; the others' always are.
    verified: bool,
}

/// Where things are in a packet that can be joined to others.
#[derive(Clone, Copy)]
struct Shape {
    protocol: u8,
    transport: usize,
    headers: usize,
    payload: usize,
}

/// What joining may do with a packet.
enum Class {
    /// May be joined.
    Joinable(Shape),
    /// TCP or UDP that must go alone, after what is held of its flow.
    Alone { protocol: u8, transport: usize },
    /// TCP or UDP whose flow is not plain to see: goes alone, after all that is held.
    Obscure,
    /// Something else altogether, without an order to keep.
    Other,
}

impl Coalescer {
    /// Joins TCP and UDP as far as the device takes such packets.
    pub(crate) fn new(tcp: bool, udp: bool) -> Coalescer {
        Coalescer { open: Vec::with_capacity(FLOWS), spare: Vec::new(), tcp, udp }
    }

    /// Takes one packet, whose envelope was read and which is as long as it says. Gives `write`
    /// what is complete: a virtio header, then a packet.
    pub(crate) fn push(&mut self, packet: &[u8], write: &mut dyn FnMut(&[u8])) {
        match classify(packet) {
            Class::Joinable(shape) if self.joins(shape.protocol) => self.join(packet, shape, write),
            Class::Joinable(Shape { protocol, transport, .. }) | Class::Alone { protocol, transport } => {
                if let Some(index) = self.position(packet, protocol, transport) {
                    self.finish(index, write);
                }
                self.write_alone(packet, write);
            }
            Class::Obscure => {
                self.flush(write);
                self.write_alone(packet, write);
            }
            Class::Other => self.write_alone(packet, write),
        }
    }

    /// Writes everything that is held.
    pub(crate) fn flush(&mut self, write: &mut dyn FnMut(&[u8])) {
        while !self.open.is_empty() {
            self.finish(0, write);
        }
    }

    fn joins(&self, protocol: u8) -> bool {
        if protocol == ip::TCP { self.tcp } else { self.udp }
    }

    fn join(&mut self, packet: &[u8], shape: Shape, write: &mut dyn FnMut(&[u8])) {
        if let Some(index) = self.position(packet, shape.protocol, shape.transport) {
            if self.open[index].append(packet, shape) {
                let ends = shape.payload < self.open[index].shape.payload || has_push(packet, shape);
                if ends {
                    self.finish(index, write);
                }
                return;
            }
            self.finish(index, write);
        }
        if has_push(packet, shape) {
            // The end of a burst: nothing follows that it could wait for.
            return self.write_alone(packet, write);
        }
        if self.open.len() == FLOWS {
            self.finish(0, write);
        }
        let buffer = self.spare.pop().map(|joined| joined.buffer).unwrap_or_default();
        self.open.push(Joined::new(buffer, packet, shape));
    }

    /// The super-packet that this flow is joined into.
    fn position(&self, packet: &[u8], protocol: u8, transport: usize) -> Option<usize> {
        self.open.iter().position(|joined| {
            let held = &joined.buffer[HEADER_LENGTH..];
            joined.shape.protocol == protocol
                && joined.shape.transport == transport
                && addresses(held) == addresses(packet)
                && held[transport..transport + 4] == packet[transport..transport + 4]
        })
    }

    fn finish(&mut self, index: usize, write: &mut dyn FnMut(&[u8])) {
        let mut joined = self.open.remove(index);
        joined.complete();
        write(&joined.buffer);
        self.spare.push(joined);
    }

    fn write_alone(&mut self, packet: &[u8], write: &mut dyn FnMut(&[u8])) {
        let mut buffer = self.spare.pop().map(|joined| joined.buffer).unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(&Header::PLAIN.to_bytes());
        buffer.extend_from_slice(packet);
        write(&buffer);
        let shape = Shape { protocol: 0, transport: 0, headers: 0, payload: 0 };
        self.spare.push(Joined { buffer, shape, count: 0, verified: false });
    }
}

impl Joined {
    fn new(mut buffer: Vec<u8>, packet: &[u8], shape: Shape) -> Joined {
        buffer.clear();
        buffer.extend_from_slice(&Header::PLAIN.to_bytes());
        buffer.extend_from_slice(packet);
        Joined { buffer, shape, count: 1, verified: false }
    }

    /// Appends the payload, if segmentation would make the very same packet of it again.
    fn append(&mut self, packet: &[u8], shape: Shape) -> bool {
        let held = &self.buffer[HEADER_LENGTH..];
        if shape.headers != self.shape.headers
            || shape.payload > self.shape.payload
            || held.len() + shape.payload > LONGEST
            || (shape.protocol == ip::UDP && self.count == MOST_DATAGRAMS)
            || !self.continues(held, packet)
        {
            return false;
        }
        if !self.verified {
            let first = &held[..self.shape.headers + self.shape.payload];
            if !is_sound(first, self.shape) {
                return false;
            }
            self.verified = true;
        }
        if !is_sound(packet, shape) {
            return false;
        }
        self.buffer.extend_from_slice(&packet[shape.headers..]);
        self.count += 1;
        if has_push(packet, shape) {
            self.buffer[HEADER_LENGTH + shape.transport + 13] |= TCP_PSH;
        }
        true
    }

    /// Whether the packet's headers are those that come next.
    fn continues(&self, held: &[u8], packet: &[u8]) -> bool {
        let at = self.shape.transport;
        let ip_continues = if held[0] >> 4 == 4 {
            let dont_fragment = held[6] & 0x40 != 0;
            let next = u16::from_be_bytes([held[4], held[5]]).wrapping_add(self.count as u16);
            // Version and traffic class, fragment flags, hop limit; the id means nothing in a packet
            // that may not be fragmented (RFC 6864, 4.1).
            held[..2] == packet[..2]
                && held[6..9] == packet[6..9]
                && (dont_fragment || packet[4..6] == next.to_be_bytes())
        } else {
            held[..4] == packet[..4] && held[7] == packet[7]
        };
        if !ip_continues || self.shape.protocol == ip::UDP {
            return ip_continues;
        }
        let joined = (self.count * self.shape.payload) as u32;
        let sequence = u32::from_be_bytes([held[at + 4], held[at + 5], held[at + 6], held[at + 7]]);
        packet[at + 4..at + 8] == sequence.wrapping_add(joined).to_be_bytes()
            // Acknowledgement and header length, then flags, window, and after the checksum the rest.
            && held[at + 8..at + 13] == packet[at + 8..at + 13]
            && held[at + 13] == packet[at + 13] & !TCP_PSH
            && held[at + 14..at + 16] == packet[at + 14..at + 16]
            && held[at + 18..self.shape.headers] == packet[at + 18..self.shape.headers]
    }

    /// Writes the lengths, the partial checksum and the virtio header.
    fn complete(&mut self) {
        if self.count == 1 {
            return;
        }
        let shape = self.shape;
        let (header, packet) = self.buffer.split_at_mut(HEADER_LENGTH);
        let length = packet.len();
        let version = packet[0] >> 4;
        if version == 4 {
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[10..12].copy_from_slice(&[0, 0]);
            let sum = checksum::finish(checksum::add(0, &packet[..ip::V4_HEADER]));
            packet[10..12].copy_from_slice(&sum);
        } else {
            packet[4..6].copy_from_slice(&((length - ip::V6_HEADER) as u16).to_be_bytes());
        }
        let pseudo = checksum::pseudo_header(addresses(packet), shape.protocol, length - shape.transport);
        let transport = &mut packet[shape.transport..];
        let offset = if shape.protocol == ip::UDP {
            let length = transport.len() as u16;
            transport[4..6].copy_from_slice(&length.to_be_bytes());
            6
        } else {
            16
        };
        transport[offset..offset + 2].copy_from_slice(&checksum::fold(pseudo).to_ne_bytes());
        let virtio = Header {
            needs_checksum: true,
            gso: match (shape.protocol, version) {
                (ip::UDP, _) => Gso::Udp,
                (_, 4) => Gso::TcpV4,
                _ => Gso::TcpV6,
            },
            header_length: shape.headers as u16,
            gso_size: shape.payload as u16,
            checksum_start: shape.transport as u16,
            checksum_offset: offset as u16,
        };
        header.copy_from_slice(&virtio.to_bytes());
    }
}

fn classify(packet: &[u8]) -> Class {
    let (protocol, transport, plain) = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= ip::V4_HEADER => {
            let fragment = packet[6] & 0x3f != 0 || packet[7] != 0;
            (packet[9], ip::V4_HEADER, packet[0] & 0x0f == 5 && !fragment)
        }
        Some(6) if packet.len() >= ip::V6_HEADER => {
            let protocol = packet[6];
            // Extension headers (RFC 8200, 4.1; and 51, 135, 139, 140) may hide either protocol.
            if matches!(protocol, 0 | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140) {
                return Class::Obscure;
            }
            (protocol, ip::V6_HEADER, true)
        }
        _ => return Class::Other,
    };
    match protocol {
        ip::TCP | ip::UDP if !plain => Class::Obscure,
        ip::TCP => classify_tcp(packet, transport),
        ip::UDP => classify_udp(packet, transport),
        _ => Class::Other,
    }
}

fn classify_tcp(packet: &[u8], transport: usize) -> Class {
    let bytes = &packet[transport..];
    if bytes.len() < 20 {
        return Class::Obscure;
    }
    let headers = transport + usize::from(bytes[12] >> 4) * 4;
    let flags = bytes[13];
    let ordinary = flags & TCP_ACK != 0 && flags & !(TCP_ACK | TCP_PSH | TCP_ECE) == 0;
    if bytes[12] >> 4 < 5 || !ordinary || packet.len() <= headers {
        return Class::Alone { protocol: ip::TCP, transport };
    }
    Class::Joinable(Shape { protocol: ip::TCP, transport, headers, payload: packet.len() - headers })
}

fn classify_udp(packet: &[u8], transport: usize) -> Class {
    let bytes = &packet[transport..];
    if bytes.len() < 8 {
        return Class::Obscure;
    }
    let length = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    let without_checksum = bytes[6..8] == [0, 0];
    if length != bytes.len() || length == 8 || without_checksum {
        return Class::Alone { protocol: ip::UDP, transport };
    }
    Class::Joinable(Shape { protocol: ip::UDP, transport, headers: transport + 8, payload: length - 8 })
}

fn has_push(packet: &[u8], shape: Shape) -> bool {
    shape.protocol == ip::TCP && packet[shape.transport + 13] & TCP_PSH != 0
}

fn is_sound(packet: &[u8], shape: Shape) -> bool {
    let header_sound = packet[0] >> 4 != 4 || checksum::is_valid(checksum::add(0, &packet[..ip::V4_HEADER]));
    let pseudo = checksum::pseudo_header(addresses(packet), shape.protocol, packet.len() - shape.transport);
    header_sound && checksum::is_valid(checksum::add(pseudo, &packet[shape.transport..]))
}

/// Source and destination address of a packet with a whole IP header.
fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, Family, Tcp};
    use super::super::segment::Segments;
    use super::*;
    use proptest::prelude::*;

    /// What the coalescer writes for these packets.
    fn joined(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut written = Vec::new();
        let mut coalescer = Coalescer::new(true, true);
        let mut write = |bytes: &[u8]| written.push(bytes.to_vec());
        for packet in packets {
            coalescer.push(packet, &mut write);
        }
        coalescer.flush(&mut write);
        written
    }

    /// What the kernel would make of what was written.
    fn cut_again(written: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for bytes in written {
            let (header, packet) = bytes.split_first_chunk::<HEADER_LENGTH>().unwrap();
            let mut packet = packet.to_vec();
            let mut segments = Segments::new(Header::parse(*header).unwrap(), &mut packet).unwrap();
            while let Some(segment) = segments.next() {
                packets.push(segment.to_vec());
            }
        }
        packets
    }

    fn stream(family: Family, source_port: u16, sizes: &[usize]) -> Vec<Vec<u8>> {
        let mut sequence = u32::MAX - 2000;
        sizes
            .iter()
            .enumerate()
            .map(|(index, size)| {
                let mut tcp = Tcp::new(family, sequence, &vec![index as u8; *size]);
                tcp.id = index as u16;
                tcp.source_port = source_port;
                sequence = sequence.wrapping_add(*size as u32);
                tcp.build()
            })
            .collect()
    }

    #[test]
    fn a_stream_becomes_one_write() {
        for family in [Family::V4, Family::V6] {
            let packets = stream(family, 1, &[1000, 1000, 1000, 400]);
            let written = joined(&packets);
            assert_eq!(written.len(), 1);
            assert_eq!(cut_again(&written), packets);
        }
    }

    #[test]
    fn a_datagram_flow_becomes_one_write() {
        for family in [Family::V4, Family::V6] {
            let packets: Vec<_> = (0..4u8).map(|n| samples::udp(family, 1, 2, &[n; 500])).collect();
            let written = joined(&packets);
            // IPv4 datagrams that may be fragmented need ascending ids to be the same again.
            assert_eq!(written.len(), if family == Family::V4 { 4 } else { 1 });
            assert_eq!(cut_again(&written), packets);
        }
    }

    #[test]
    fn a_spoilt_checksum_stays_spoilt() {
        for spoilt in 0..3 {
            let mut packets = stream(Family::V6, 1, &[1000, 1000, 1000]);
            *packets[spoilt].last_mut().unwrap() ^= 1;
            let out = cut_again(&joined(&packets));
            assert_eq!(out, packets, "packet {spoilt} was repaired or lost");
        }
        let mut packets = stream(Family::V4, 1, &[1000, 1000]);
        packets[1][10] ^= 1;
        assert_eq!(cut_again(&joined(&packets)), packets);
    }

    #[test]
    fn push_ends_a_burst_and_other_flags_go_alone() {
        let mut packets = stream(Family::V4, 1, &[1000, 1000, 1000]);
        let rebuild = |packets: &mut Vec<Vec<u8>>, index: usize, flags: u8| {
            let mut tcp = Tcp::new(Family::V4, 0, &[index as u8; 1000]);
            tcp.sequence = (u32::MAX - 2000).wrapping_add(1000 * index as u32);
            tcp.id = index as u16;
            tcp.source_port = 1;
            tcp.flags = flags;
            packets[index] = tcp.build();
        };
        rebuild(&mut packets, 1, TCP_ACK | TCP_PSH);
        let written = joined(&packets);
        assert_eq!(written.len(), 2);
        assert_eq!(cut_again(&written), packets);
        for flags in [TCP_ACK | 1, TCP_ACK | 2, TCP_ACK | 4, TCP_ACK | 0x20, TCP_ACK | 0x80] {
            rebuild(&mut packets, 1, flags);
            let written = joined(&packets);
            assert_eq!(written.len(), 3);
            assert_eq!(cut_again(&written), packets);
        }
    }

    #[test]
    fn more_flows_than_slots_lose_nothing() {
        let flows: Vec<_> = (0..20).map(|port| stream(Family::V4, port, &[100; 5])).collect();
        let packets: Vec<_> = (0..5).flat_map(|n| flows.iter().map(move |flow| flow[n].clone())).collect();
        let out = cut_again(&joined(&packets));
        assert_eq!(out.len(), packets.len());
        for flow in flows {
            let ordered: Vec<_> = out.iter().filter(|packet| flow.contains(packet)).cloned().collect();
            assert_eq!(ordered, flow);
        }
    }

    #[test]
    fn does_not_grow_past_what_a_length_field_says() {
        for family in [Family::V4, Family::V6] {
            let packets = stream(family, 1, &[1400; 100]);
            let written = joined(&packets);
            assert!(written.iter().all(|bytes| bytes.len() <= HEADER_LENGTH + LONGEST));
            assert_eq!(written.len(), 3);
            assert_eq!(cut_again(&written), packets);
        }
    }

    proptest! {
        #[test]
        fn cutting_undoes_joining(
            v4 in any::<bool>(),
            steps in prop::collection::vec((0u16..3, 1usize..1400, any::<bool>(), 0u8..20), 1..80),
        ) {
            let family = if v4 { Family::V4 } else { Family::V6 };
            let mut next = [(0u32, 0u16); 3];
            let mut packets = Vec::new();
            for (flow, size, repeat, odd) in steps {
                let (sequence, id) = &mut next[usize::from(flow)];
                let size = if repeat { 1000 } else { size };
                let mut tcp = Tcp::new(family, *sequence, &vec![odd; size]);
                tcp.id = *id;
                tcp.source_port = flow;
                match odd {
                    0 => tcp.flags |= TCP_PSH,
                    1 => tcp.flags |= 1,
                    2 => tcp.sequence = tcp.sequence.wrapping_sub(5000),
                    3 => tcp.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
                    _ => {}
                }
                *sequence = sequence.wrapping_add(size as u32);
                *id = id.wrapping_add(1);
                let mut packet = tcp.build();
                if odd == 4 {
                    *packet.last_mut().unwrap() ^= 0x55;
                }
                packets.push((flow, packet));
            }
            let all: Vec<_> = packets.iter().map(|(_, packet)| packet.clone()).collect();
            let out = cut_again(&joined(&all));
            prop_assert_eq!(out.len(), all.len());
            for flow in 0..3u16 {
                let before: Vec<_> = packets.iter().filter(|(of, _)| *of == flow).map(|(_, packet)| packet.clone()).collect();
                let at = family.ip_header();
                let after: Vec<_> = out.iter().filter(|packet| packet[at..at + 2] == flow.to_be_bytes()).cloned().collect();
                prop_assert_eq!(before, after);
            }
        }

        #[test]
        fn never_panics_and_never_loses(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20)) {
            let mut written = 0;
            let mut coalescer = Coalescer::new(true, true);
            let mut shaped = packets;
            for (index, packet) in shaped.iter_mut().enumerate() {
                if packet.len() >= 20 {
                    packet[0] = if index % 2 == 0 { 0x45 } else { 0x60 };
                    let next = if index % 2 == 0 { 9 } else { 6 };
                    packet[next] = if index % 3 == 0 { ip::TCP } else { ip::UDP };
                    packet[6] &= 0x40;
                    packet[7] = 0;
                }
            }
            for packet in &shaped {
                coalescer.push(packet, &mut |_| written += 1);
            }
            coalescer.flush(&mut |_| written += 1);
            prop_assert!(written <= shaped.len());
        }
    }
}
