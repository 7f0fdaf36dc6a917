//! The `virtio_net_hdr` in front of each packet on the TUN device (linux/virtio_net.h).

/// Length of the header; the kernel's default for TUN devices.
pub const HEADER_LENGTH: usize = 10;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set if the first segment has CWR, which the TCP flags also show.
const GSO_ECN: u8 = 0x80;

/// The kind of super-packet that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// One packet.
    None,
    /// A run of TCP segments over IPv4.
    TcpV4,
    /// A run of TCP segments over IPv6.
    TcpV6,
    /// A run of UDP datagrams.
    Udp,
}

/// The parsed header. All numbers are in the machine's byte order on TUN devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The checksum field holds only the pseudo header's sum and must be completed.
    pub needs_checksum: bool,
    /// The kind of super-packet.
    pub gso: Gso,
    /// Length of the headers that each segment repeats. Only a hint.
    pub header_length: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksummed part begins: the transport header.
    pub checksum_start: u16,
    /// Offset of the checksum field from there.
    pub checksum_offset: u16,
}

impl Header {
    /// The header of an ordinary packet.
    pub const PLAIN: Header = Header {
        needs_checksum: false,
        gso: Gso::None,
        header_length: 0,
        gso_size: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Reads the header. `None` for a kind of super-packet that the device does not offer.
    #[inline]
    pub fn parse(bytes: [u8; HEADER_LENGTH]) -> Option<Header> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Header {
            needs_checksum: bytes[0] & FLAG_NEEDS_CHECKSUM != 0,
            gso: match bytes[1] & !GSO_ECN {
                GSO_NONE => Gso::None,
                GSO_TCP_V4 => Gso::TcpV4,
                GSO_TCP_V6 => Gso::TcpV6,
                GSO_UDP_L4 => Gso::Udp,
                _ => return None,
            },
            header_length: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        })
    }

    /// The header in the kernel's form.
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0] = if self.needs_checksum { FLAG_NEEDS_CHECKSUM } else { 0 };
        bytes[1] = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCP_V4,
            Gso::TcpV6 => GSO_TCP_V6,
            Gso::Udp => GSO_UDP_L4,
        };
        bytes[2..4].copy_from_slice(&self.header_length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for gso in [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::Udp] {
            let header = Header {
                needs_checksum: gso != Gso::None,
                gso,
                header_length: 40,
                gso_size: 1348,
                checksum_start: 20,
                checksum_offset: 16,
            };
            assert_eq!(Header::parse(header.to_bytes()), Some(header));
        }
    }

    #[test]
    fn the_ecn_flag_is_no_other_kind_and_strangers_are_refused() {
        let mut bytes = Header { gso: Gso::TcpV4, ..Header::PLAIN }.to_bytes();
        bytes[1] |= GSO_ECN;
        assert_eq!(Header::parse(bytes).map(|header| header.gso), Some(Gso::TcpV4));
        bytes[1] = 3; // legacy UFO
        assert_eq!(Header::parse(bytes), None);
    }
}
