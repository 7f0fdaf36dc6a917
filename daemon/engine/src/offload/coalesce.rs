//! Joins decrypted packets of one flow into super-packets for the device.
//!
//! A joined packet tells the kernel that its checksums are right, so they are verified first: a
//! packet that arrives with a wrong checksum must be delivered with it. Packets of one flow keep
//! their order.

use super::virtio::{Gso, HEADER_LENGTH, Header};
use super::{checksum, ip};

/// Flows that are joined at the same time; a new one replaces the oldest.
const FLOWS: usize = 8;
/// The longest super-packet: the limit of an IPv4 length field.
const LONGEST: usize = 65_535;
/// The most datagrams in a UDP super-packet (UDP_MAX_SEGMENTS, linux/udp.h).
const MOST_DATAGRAMS: usize = 64;

const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
const TCP_ECE: u8 = 0x40;

/// The most bytes that are ever put behind a super-packet: one datagram, which contains the packet.
const LONGEST_ROOM: usize = 1 << 16;
/// The longest headers in front of a payload that is joined: IPv6, and TCP with all its options.
const LONGEST_HEADERS: usize = ip::V6_HEADER + 60;

/// Super-packets under construction.
///
/// A packet is decrypted directly to its final place if it continues the flow that got the last
/// packet ([`Coalescer::room`]). Its payload then lies right behind that flow's other payloads. Its
/// headers overwrite the last bytes of these, which are saved until the packet is delivered. So
/// payloads are not copied.
pub struct Coalescer {
    open: Vec<Joined>,
    /// The one that got the last packet.
    recent: Option<usize>,
    /// Room for packets that are not decrypted behind others.
    apart: Joined,
    /// The saved bytes that the packet now in the room overwrites.
    covered: [u8; LONGEST_HEADERS],
    /// Where the room is, once the caller has asked for it.
    place: Option<Place>,
    /// Buffers of packets that have been written.
    spare: Vec<Joined>,
    tcp: bool,
    udp: bool,
}

/// Where the room for the next packet is.
#[derive(Clone, Copy)]
enum Place {
    /// Behind the super-packet that got the last packet.
    Behind(usize),
    /// In a separate buffer.
    Apart,
}

/// One super-packet under construction.
struct Joined {
    /// Room for a virtio header, then the packet, then room for more.
    buffer: Box<[u8]>,
    /// Where the packet ends.
    end: usize,
    shape: Shape,
    count: usize,
    /// Whether the checksums of the first packet were verified; those of the others always are.
    verified: bool,
    /// Nothing may follow: the last payload was smaller, or it ended a burst.
    is_closed: bool,
}

/// The layout of a packet that can be joined to others.
#[derive(Clone, Copy)]
struct Shape {
    protocol: u8,
    transport: usize,
    headers: usize,
    payload: usize,
}

/// How joining treats a packet.
enum Class {
    /// May be joined.
    Joinable(Shape),
    /// TCP or UDP that must go alone, after the packets held for its flow.
    Alone { protocol: u8, transport: usize },
    /// TCP or UDP whose flow cannot be read easily: goes alone, after all held packets.
    Obscure,
    /// Any other packet, which has no order to keep.
    Other,
}

impl Coalescer {
    /// Joins TCP and UDP if the device accepts such packets.
    pub fn new(tcp: bool, udp: bool) -> Coalescer {
        Coalescer {
            open: Vec::with_capacity(FLOWS),
            recent: None,
            apart: Joined::empty(),
            covered: [0; LONGEST_HEADERS],
            place: None,
            spare: Vec::new(),
            tcp,
            udp,
        }
    }

    /// Room for the next packet, longer than any datagram. It stays the same until a packet is
    /// delivered.
    pub fn room(&mut self) -> &mut [u8] {
        let place = *self.place.get_or_insert_with(|| {
            let recent = self.recent.and_then(|index| Some((index, self.open.get_mut(index)?)));
            let Some((index, joined)) = recent.filter(|(_, joined)| joined.has_room_behind()) else {
                return Place::Apart;
            };
            // The packet's end is about to be overwritten, so it must be verified now.
            if !joined.verify() {
                return Place::Apart;
            }
            let headers = joined.shape.headers;
            self.covered[..headers].copy_from_slice(&joined.buffer[joined.end - headers..joined.end]);
            Place::Behind(index)
        });
        match place {
            Place::Behind(index) => {
                let joined = &mut self.open[index];
                &mut joined.buffer[joined.end - joined.shape.headers..][..LONGEST_ROOM]
            }
            Place::Apart => &mut self.apart.buffer[HEADER_LENGTH..][..LONGEST_ROOM],
        }
    }

    /// Takes the packet in the room. Its envelope has been read, and it is as long as the envelope
    /// says. Gives `write` each complete packet, with a virtio header in front.
    pub fn deliver(&mut self, length: usize, write: &mut dyn FnMut(&[u8])) {
        match self.place.take() {
            Some(Place::Behind(index)) if self.deliver_behind(index, length) => {
                if self.open[index].is_closed {
                    self.finish(index, write);
                }
            }
            _ => self.push(length, write),
        }
    }

    /// Writes all held packets.
    pub fn flush(&mut self, write: &mut dyn FnMut(&[u8])) {
        // The room may hold data that was not delivered.
        if let Some(Place::Behind(index)) = self.place.take() {
            self.uncover(index);
        }
        while !self.open.is_empty() {
            self.finish(0, write);
        }
    }

    /// Joins the packet to the one in front of it. If it does not belong there, it is moved to the
    /// separate buffer for `push`.
    fn deliver_behind(&mut self, index: usize, length: usize) -> bool {
        let joined = &mut self.open[index];
        let start = joined.end - joined.shape.headers;
        let (held, packet) = joined.buffer[..start + length].split_at(start);
        let fits = match classify(packet) {
            Class::Joinable(shape) => joined.takes(&held[HEADER_LENGTH..], packet, shape).then_some(shape),
            _ => None,
        };
        match fits {
            Some(shape) => {
                let pushes = has_push(packet, shape);
                self.uncover(index);
                self.open[index].grow(shape, pushes);
                true
            }
            None => {
                self.apart.buffer[HEADER_LENGTH..][..length].copy_from_slice(packet);
                self.uncover(index);
                false
            }
        }
    }

    fn uncover(&mut self, index: usize) {
        let joined = &mut self.open[index];
        let headers = joined.shape.headers;
        joined.buffer[joined.end - headers..joined.end].copy_from_slice(&self.covered[..headers]);
    }

    /// Takes the packet in the separate buffer.
    fn push(&mut self, length: usize, write: &mut dyn FnMut(&[u8])) {
        self.apart.end = HEADER_LENGTH + length;
        match classify(self.apart.packet()) {
            Class::Joinable(shape) if self.joins(shape.protocol) => self.join(shape, write),
            Class::Joinable(Shape { protocol, transport, .. }) | Class::Alone { protocol, transport } => {
                if let Some(index) = self.position(protocol, transport) {
                    self.finish(index, write);
                }
                self.write_alone(write);
            }
            Class::Obscure => {
                self.flush(write);
                self.write_alone(write);
            }
            Class::Other => self.write_alone(write),
        }
    }

    fn joins(&self, protocol: u8) -> bool {
        if protocol == ip::TCP { self.tcp } else { self.udp }
    }

    fn join(&mut self, shape: Shape, write: &mut dyn FnMut(&[u8])) {
        let pushes = has_push(self.apart.packet(), shape);
        if let Some(index) = self.position(shape.protocol, shape.transport) {
            let packet = self.apart.packet();
            let joined = &mut self.open[index];
            if joined.verify() && joined.takes(joined.packet(), packet, shape) {
                let end = joined.end;
                joined.buffer[end..end + shape.payload].copy_from_slice(&packet[shape.headers..]);
                joined.grow(shape, pushes);
                self.recent = Some(index);
                if self.open[index].is_closed {
                    self.finish(index, write);
                }
                return;
            }
            self.finish(index, write);
        }
        if pushes {
            // This is the end of a burst, so no further packet is expected.
            return self.write_alone(write);
        }
        if self.open.len() == FLOWS {
            self.finish(0, write);
        }
        let next = self.spare.pop().unwrap_or_else(Joined::empty);
        let mut joined = std::mem::replace(&mut self.apart, next);
        joined.begin(shape);
        self.recent = Some(self.open.len());
        self.open.push(joined);
    }

    /// The super-packet of the same flow as the packet in the separate buffer.
    fn position(&self, protocol: u8, transport: usize) -> Option<usize> {
        let packet = self.apart.packet();
        self.open.iter().position(|joined| joined.has_flow(packet, protocol, transport))
    }

    fn finish(&mut self, index: usize, write: &mut dyn FnMut(&[u8])) {
        let mut joined = self.open.remove(index);
        self.recent = None;
        joined.complete();
        write(joined.bytes());
        self.spare.push(joined);
    }

    fn write_alone(&mut self, write: &mut dyn FnMut(&[u8])) {
        self.apart.buffer[..HEADER_LENGTH].copy_from_slice(&Header::PLAIN.to_bytes());
        write(self.apart.bytes());
    }
}

impl Joined {
    fn empty() -> Joined {
        // Zeroed pages cost no memory until they are written.
        let buffer = vec![0; HEADER_LENGTH + LONGEST + LONGEST_ROOM].into_boxed_slice();
        let shape = Shape { protocol: 0, transport: 0, headers: 0, payload: 0 };
        Joined { buffer, end: HEADER_LENGTH, shape, count: 0, verified: false, is_closed: false }
    }

    /// Starts a super-packet with the packet in the buffer.
    fn begin(&mut self, shape: Shape) {
        self.buffer[..HEADER_LENGTH].copy_from_slice(&Header::PLAIN.to_bytes());
        self.shape = shape;
        self.count = 1;
        self.verified = false;
        self.is_closed = false;
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.end]
    }

    fn packet(&self) -> &[u8] {
        &self.buffer[HEADER_LENGTH..self.end]
    }

    fn has_flow(&self, packet: &[u8], protocol: u8, transport: usize) -> bool {
        let held = &self.buffer[HEADER_LENGTH..];
        self.shape.protocol == protocol
            && self.shape.transport == transport
            && addresses(held) == addresses(packet)
            && held[transport..transport + 4] == packet[transport..transport + 4]
    }

    /// Whether a packet's headers fit over its end without reaching its own headers.
    fn has_room_behind(&self) -> bool {
        self.end >= HEADER_LENGTH + 2 * self.shape.headers
    }

    /// Whether the first packet's checksums are right. Nothing is joined to a packet with a wrong
    /// one.
    fn verify(&mut self) -> bool {
        self.verified = self.verified || (self.count == 1 && is_sound(self.packet(), self.shape));
        self.verified
    }

    /// Whether segmentation would produce exactly this packet again after joining. `held` is the
    /// super-packet so far; its end may be overwritten.
    fn takes(&self, held: &[u8], packet: &[u8], shape: Shape) -> bool {
        shape.headers == self.shape.headers
            && shape.payload <= self.shape.payload
            && self.end - HEADER_LENGTH + shape.payload <= LONGEST
            && (shape.protocol != ip::UDP || self.count < MOST_DATAGRAMS)
            && self.has_flow(packet, shape.protocol, shape.transport)
            && self.continues(held, packet)
            && is_sound(packet, shape)
    }

    /// Adds a payload that was put behind the others.
    fn grow(&mut self, shape: Shape, pushes: bool) {
        self.end += shape.payload;
        self.count += 1;
        if pushes {
            self.buffer[HEADER_LENGTH + shape.transport + 13] |= TCP_PSH;
        }
        self.is_closed = pushes || shape.payload < self.shape.payload;
    }

    /// Whether these are the headers of the flow's next packet.
    fn continues(&self, held: &[u8], packet: &[u8]) -> bool {
        let at = self.shape.transport;
        let ip_continues = if held[0] >> 4 == 4 {
            let dont_fragment = held[6] & 0x40 != 0;
            let next = u16::from_be_bytes([held[4], held[5]]).wrapping_add(self.count as u16);
            // Version and traffic class, fragment flags, hop limit; the id has no meaning in a
            // packet that may not be fragmented (RFC 6864, 4.1).
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
            // Acknowledgement and header length, then flags, window, and the rest after the
            // checksum.
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
        let (header, packet) = self.buffer[..self.end].split_at_mut(HEADER_LENGTH);
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
            // Extension headers (RFC 8200, 4.1; also 51, 135, 139, 140) may be followed by either
            // protocol.
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
mod tests;
