//! Cuts a super-packet read from the device into its packets.
//!
//! The packet stays as it was read until the first segment is requested.
//!
//! Cutting is in place: the headers of each segment are written right in front of its payload. They
//! overwrite the payload of the previous segment, which is encrypted by then. So a segment is valid
//! only until the next one is requested.

use super::virtio::{Gso, Header};
use super::{checksum, ip};

/// The longest headers that are repeated: IPv6 with extension headers, and TCP with all its
/// options.
const LONGEST_HEADERS: usize = 256;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// The virtio header does not fit the packet behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The segments of one super-packet, or a single packet.
#[allow(clippy::large_enum_variant)] // lives on one stack frame; a box would be an allocation per read
pub enum Segments<'a> {
    /// One packet, and its checksum if it must be completed.
    Single(Option<&'a mut [u8]>, Option<Checksum>),
    /// A super-packet of several.
    Run(Run<'a>),
}

/// A super-packet that is being cut.
pub struct Run<'a> {
    packet: &'a mut [u8],
    /// The headers as read: those in the packet are overwritten.
    headers: [u8; LONGEST_HEADERS],
    headers_length: usize,
    /// Where the transport header begins.
    transport: usize,
    kind: Transport,
    /// Payload bytes per segment.
    size: usize,
    /// Sum of the pseudo header without the length.
    pseudo: u64,
    next: usize,
}

/// The incomplete checksum of a single packet: it covers everything from `start`, and is stored at
/// `at`.
#[derive(Clone, Copy)]
pub struct Checksum {
    start: usize,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn checksum_offset(self) -> usize {
        match self {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }
}

impl<'a> Segments<'a> {
    /// Checks the virtio header against the packet. The envelope must have been read, and the
    /// packet must be exactly as long as it says.
    ///
    /// # Errors
    /// [`Malformed`].
    #[inline]
    pub fn new(header: Header, packet: &'a mut [u8]) -> Result<Segments<'a>, Malformed> {
        let kind = match (header.gso, packet.first().map(|first| first >> 4)) {
            (Gso::None, _) => {
                let checksum = header.needs_checksum.then(|| Checksum::of(header, packet)).transpose()?;
                return Ok(Segments::Single(Some(packet), checksum));
            }
            (Gso::TcpV4, Some(4)) | (Gso::TcpV6, Some(6)) => Transport::Tcp,
            (Gso::Udp, Some(4 | 6)) => Transport::Udp,
            _ => return Err(Malformed),
        };
        // A finished checksum could not be right for every segment, so the kernel leaves it partial
        // in a super-packet.
        if !header.needs_checksum || usize::from(header.checksum_offset) != kind.checksum_offset() {
            return Err(Malformed);
        }
        let run = Run::new(header, kind, packet)?;
        if run.packet.len() - run.headers_length <= run.size {
            let packet = run.packet;
            let checksum = Checksum::of(header, packet)?;
            return Ok(Segments::Single(Some(packet), Some(checksum)));
        }
        Ok(Segments::Run(run))
    }

    /// Length of the longest packet, and their number. Call it before the first packet is
    /// requested.
    #[inline]
    pub fn extent(&self) -> (usize, usize) {
        match self {
            Segments::Single(packet, _) => (packet.as_ref().map_or(0, |packet| packet.len()), 1),
            Segments::Run(run) => {
                let payload = run.packet.len() - run.headers_length;
                (run.headers_length + run.size.min(payload), payload.div_ceil(run.size))
            }
        }
    }

    /// The next finished packet.
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "a packet borrows from the run it is cut from")]
    pub fn next(&mut self) -> Option<&mut [u8]> {
        match self {
            Segments::Single(packet, checksum) => {
                let packet = packet.take()?;
                if let Some(checksum) = checksum {
                    checksum.complete(packet);
                }
                Some(packet)
            }
            Segments::Run(run) => run.next(),
        }
    }
}

impl<'a> Run<'a> {
    fn new(header: Header, kind: Transport, packet: &'a mut [u8]) -> Result<Run<'a>, Malformed> {
        let transport = usize::from(header.checksum_start);
        let shortest = if packet[0] >> 4 == 4 { ip::V4_HEADER } else { ip::V6_HEADER };
        let bytes = packet.get(transport..).ok_or(Malformed)?;
        let transport_length = match kind {
            Transport::Tcp => match bytes.get(12) {
                Some(offset) if offset >> 4 >= 5 => usize::from(offset >> 4) * 4,
                _ => return Err(Malformed),
            },
            Transport::Udp => 8,
        };
        let headers_length = transport + transport_length;
        if transport < shortest
            || headers_length > packet.len()
            || headers_length > LONGEST_HEADERS
            || header.gso_size == 0
        {
            return Err(Malformed);
        }
        let at = transport + kind.checksum_offset();
        let field = u16::from_ne_bytes([packet[at], packet[at + 1]]);
        let length = packet.len() - transport;
        let mut headers = [0; LONGEST_HEADERS];
        headers[..headers_length].copy_from_slice(&packet[..headers_length]);
        Ok(Run {
            headers,
            headers_length,
            transport,
            kind,
            size: usize::from(header.gso_size),
            // The kernel's sum has the length of the whole super-packet; each segment adds its own
            // length.
            pseudo: checksum::remove_word(u64::from(field), length as u16),
            next: 0,
            packet,
        })
    }

    fn next(&mut self) -> Option<&mut [u8]> {
        let index = self.next;
        let start = index * self.size;
        let left = (self.packet.len() - self.headers_length).checked_sub(start)?;
        if left == 0 {
            return None;
        }
        self.next += 1;
        let payload = left.min(self.size);
        let last = left <= self.size;

        let segment = &mut self.packet[start..start + self.headers_length + payload];
        segment[..self.headers_length].copy_from_slice(&self.headers[..self.headers_length]);
        let length = segment.len();
        if segment[0] >> 4 == 4 {
            segment[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(index as u16);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
            segment[10..12].copy_from_slice(&[0, 0]);
            let header_length = (usize::from(segment[0] & 0x0f) * 4).min(self.transport);
            let sum = checksum::finish(checksum::add(0, &segment[..header_length]));
            segment[10..12].copy_from_slice(&sum);
        } else {
            segment[4..6].copy_from_slice(&((length - ip::V6_HEADER) as u16).to_be_bytes());
        }

        let transport = &mut segment[self.transport..];
        let length = transport.len() as u16;
        match self.kind {
            Transport::Tcp => {
                let sequence = [transport[4], transport[5], transport[6], transport[7]];
                let sequence = u32::from_be_bytes(sequence).wrapping_add(start as u32);
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                if !last {
                    transport[13] &= !(TCP_FIN | TCP_PSH);
                }
                if index > 0 {
                    transport[13] &= !TCP_CWR;
                }
            }
            Transport::Udp => transport[4..6].copy_from_slice(&length.to_be_bytes()),
        }
        let at = self.kind.checksum_offset();
        transport[at..at + 2].copy_from_slice(&[0, 0]);
        let sum = checksum::add(checksum::add_word(self.pseudo, length), transport);
        transport[at..at + 2].copy_from_slice(&checksum::finish(sum));
        Some(segment)
    }
}

impl Checksum {
    fn of(header: Header, packet: &[u8]) -> Result<Checksum, Malformed> {
        let start = usize::from(header.checksum_start);
        let at = start + usize::from(header.checksum_offset);
        if start < ip::V4_HEADER || at + 2 > packet.len() {
            return Err(Malformed);
        }
        Ok(Checksum { start, at })
    }

    /// Completes the checksum.
    fn complete(self, packet: &mut [u8]) {
        let sum = checksum::finish(checksum::add(0, &packet[self.start..]));
        packet[self.at..self.at + 2].copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, Family, Tcp};
    use super::*;
    use proptest::prelude::*;

    fn cut(header: Header, packet: &mut [u8]) -> Result<Vec<Vec<u8>>, Malformed> {
        let mut segments = Segments::new(header, packet)?;
        let mut cut = Vec::new();
        while let Some(segment) = segments.next() {
            cut.push(segment.to_vec());
        }
        Ok(cut)
    }

    #[test]
    fn flags_numbers_and_sums_are_those_of_single_packets() {
        for family in [Family::V4, Family::V6] {
            let mut whole = Tcp::new(family, u32::MAX - 1500, &[7; 2500]);
            whole.id = u16::MAX;
            whole.flags = 0x10 | TCP_PSH | TCP_FIN | TCP_CWR;
            whole.options = vec![1; 12];
            let mut packet = whole.build();
            let header = samples::as_super_packet(&mut packet, 1000);
            let segments = cut(header, &mut packet).unwrap();

            let expected: Vec<_> =
                [(0, 1000, 0x10 | TCP_CWR), (1000, 1000, 0x10), (2000, 500, 0x10 | TCP_PSH | TCP_FIN)]
                    .into_iter()
                    .enumerate()
                    .map(|(index, (start, length, flags))| {
                        let segment = Tcp {
                            id: whole.id.wrapping_add(index as u16),
                            sequence: whole.sequence.wrapping_add(start),
                            flags,
                            payload: vec![7; length],
                            ..whole.clone()
                        };
                        segment.build()
                    })
                    .collect();
            assert_eq!(segments, expected);
        }
    }

    #[test]
    fn finishes_the_checksum_of_a_single_packet() {
        for family in [Family::V4, Family::V6] {
            let finished = samples::udp(family, 1, 2, b"odd");
            let mut packet = finished.clone();
            let header = samples::as_super_packet(&mut packet, 0);
            assert!(!samples::is_sound(&packet));
            let header = Header { gso: Gso::None, ..header };
            assert_eq!(cut(header, &mut packet).unwrap(), vec![finished]);
        }
    }

    /// An engine that finds that another one must encrypt a packet hands it over as it was read.
    #[test]
    fn nothing_is_changed_before_the_first_is_asked_for() {
        for (payload, size) in [(1, 1000), (1000, 1000), (5000, 1000), (1000, 0)] {
            let mut packet = Tcp::new(Family::V4, 1, &vec![7; payload]).build();
            let mut header = samples::as_super_packet(&mut packet, size);
            if size == 0 {
                header.gso = Gso::None;
            }
            let mut read = packet.clone();
            let segments = Segments::new(header, &mut read).unwrap();
            assert_eq!(segments.extent().1, if size == 0 { 1 } else { payload.div_ceil(1000) });
            assert!(read == packet, "{payload} {size}");
        }
    }

    #[test]
    fn refuses_headers_that_do_not_fit() {
        let packet = Tcp::new(Family::V4, 1, &[7; 2500]).build();
        let good = samples::as_super_packet(&mut packet.clone(), 1000);
        for bad in [
            Header { checksum_start: 9000, ..good },
            Header { checksum_start: 0, ..good },
            Header { checksum_offset: 6, ..good },
            Header { gso: Gso::TcpV6, ..good },
            Header { gso_size: 0, ..good },
            Header { needs_checksum: false, ..good },
            Header { gso: Gso::None, checksum_offset: 9000, ..good },
        ] {
            assert!(cut(bad, &mut packet.clone()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn segments_are_sound_and_add_up(
            v4 in any::<bool>(),
            payload in prop::collection::vec(any::<u8>(), 1..20_000),
            size in 1u16..1500,
            tcp in any::<bool>(),
        ) {
            let family = if v4 { Family::V4 } else { Family::V6 };
            let mut packet = if tcp {
                Tcp::new(family, 99, &payload).build()
            } else {
                samples::udp(family, 1, 2, &payload)
            };
            let headers = packet.len() - payload.len();
            let header = samples::as_super_packet(&mut packet, size);
            let segments = cut(header, &mut packet).unwrap();
            prop_assert!(segments.iter().all(|segment| samples::is_sound(segment)));
            prop_assert!(segments.iter().all(|segment| segment.len() <= headers + usize::from(size)));
            let joined: Vec<u8> = segments.iter().flat_map(|segment| segment[headers..].to_vec()).collect();
            prop_assert_eq!(joined, payload);
        }

        #[test]
        fn never_panics(
            bytes in prop::array::uniform10(any::<u8>()),
            gso in 0u8..6,
            mut packet in prop::collection::vec(any::<u8>(), 0..400),
            version in prop::sample::select(vec![4u8, 6]),
        ) {
            let mut bytes = bytes;
            bytes[1] = gso;
            bytes[3] = 0;
            bytes[7] = 0;
            bytes[9] = 0;
            if let Some(first) = packet.first_mut() {
                *first = version << 4 | *first & 0x0f;
            }
            if let Some(header) = Header::parse(bytes) {
                let _ = cut(header, &mut packet);
            }
        }
    }
}
