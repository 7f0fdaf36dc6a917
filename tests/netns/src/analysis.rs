//! Classifies the frames on the wire. They are parsed with `etherparse` and searched byte by byte,
//! so that no mistake of the product's own parser is repeated here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use memchr::memmem;

use crate::capture::Frame;
use crate::marker::Marker;

/// UDP port of the tunnels.
pub const TUNNEL_PORT: u16 = 51840;

/// The kinds of frame a wire carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A WireGuard message between the tunnels' ports.
    Tunnel,
    /// ARP.
    Arp,
    /// Neighbour and router discovery (RFC 4861).
    NeighbourDiscovery,
    /// Any other IP packet: in the clear.
    Clear,
    /// Neither IP nor ARP.
    Other,
}

/// The outermost IP header and the ports behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Ports, unless the protocol has none or this is a later fragment.
    pub ports: Option<(u16, u16)>,
    /// Whether it is part of a fragmented packet.
    pub fragment: bool,
    /// Length that the IP header states, bytes (0 in some GSO super-packets).
    pub length: usize,
    /// IPv4's "don't fragment".
    pub dont_fragment: bool,
}

/// The kind of a frame, and its IP packet if it has one.
pub fn dissect(bytes: &[u8]) -> (Kind, Option<Packet>) {
    let Ok(sliced) = LaxSlicedPacket::from_ethernet(bytes) else { return (Kind::Other, None) };
    let (packet, payload_is_fragment) = match &sliced.net {
        Some(LaxNetSlice::Arp(_)) => return (Kind::Arp, None),
        Some(LaxNetSlice::Ipv4(slice)) => {
            let header = slice.header();
            let packet = Packet {
                source: header.source_addr().into(),
                destination: header.destination_addr().into(),
                protocol: slice.payload().ip_number.0,
                ports: None,
                fragment: slice.payload().fragmented,
                length: usize::from(header.total_len()),
                dont_fragment: header.dont_fragment(),
            };
            (packet, slice.payload().fragmented)
        }
        Some(LaxNetSlice::Ipv6(slice)) => {
            let header = slice.header();
            let packet = Packet {
                source: header.source_addr().into(),
                destination: header.destination_addr().into(),
                protocol: slice.payload().ip_number.0,
                ports: None,
                fragment: slice.payload().fragmented,
                length: usize::from(header.payload_length()) + 40,
                dont_fragment: true,
            };
            (packet, slice.payload().fragmented)
        }
        None => return (Kind::Other, None),
    };
    let mut packet = packet;
    let kind = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => {
            packet.ports = Some((udp.source_port(), udp.destination_port()));
            let tunnel = packet.ports == Some((TUNNEL_PORT, TUNNEL_PORT)) && is_wireguard(udp.payload());
            if tunnel { Kind::Tunnel } else { Kind::Clear }
        }
        Some(TransportSlice::Tcp(tcp)) => {
            packet.ports = Some((tcp.source_port(), tcp.destination_port()));
            Kind::Clear
        }
        Some(TransportSlice::Icmpv6(icmp)) if (133..=137).contains(&icmp.type_u8()) && !payload_is_fragment => {
            Kind::NeighbourDiscovery
        }
        _ => Kind::Clear,
    };
    // Every host that is up sends multicast listener reports (types 143 and 130..=132). They have a
    // hop-by-hop header.
    let listener =
        matches!(&sliced.transport, Some(TransportSlice::Icmpv6(icmp)) if matches!(icmp.type_u8(), 130..=132 | 143));
    if listener { (Kind::NeighbourDiscovery, Some(packet)) } else { (kind, Some(packet)) }
}

/// Whether the payload begins with a WireGuard message type and its three zero bytes.
fn is_wireguard(payload: &[u8]) -> bool {
    matches!(payload, [1..=4, 0, 0, 0, ..])
}

/// A frame that should not be on the wire.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The frame.
    pub frame: Arc<Frame>,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, packet) = dissect(&self.frame.bytes);
        let way = if self.frame.to_machine { "out of" } else { "into" };
        write!(
            f,
            "{} [{kind:?}, {} bytes, {way} the wire at port {}",
            self.why,
            self.frame.bytes.len(),
            self.frame.port
        )?;
        if let Some(packet) = packet {
            write!(f, ", {} -> {} protocol {}", packet.source, packet.destination, packet.protocol)?;
            if let Some((source, destination)) = packet.ports {
                write!(f, " ports {source} -> {destination}")?;
            }
        }
        write!(f, ", at {}.{:09}]", self.frame.time_ns / 1_000_000_000, self.frame.time_ns % 1_000_000_000)
    }
}

/// The first few sightings, as text for a message.
pub fn list(sightings: &[Sighting]) -> String {
    let mut text = format!("{} frames:", sightings.len());
    for sighting in sightings.iter().take(8) {
        text.push_str(&format!("\n    {sighting}"));
    }
    text
}

/// Frames that carry a packet from or to one of `addresses` in the clear. They are found by their
/// IP header, or by the address anywhere else outside ciphertext (other tunnels, quoted packets in
/// ICMP errors).
///
/// ARP and neighbour discovery are left out, because they are not packets from or to a pod. Nothing
/// else is left out.
pub fn cleartext_of(frames: &[Arc<Frame>], addresses: &[IpAddr]) -> Vec<Sighting> {
    let wanted: HashSet<IpAddr> = addresses.iter().copied().collect();
    let finders: Vec<(IpAddr, memmem::Finder<'_>)> = {
        let octets = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        wanted.iter().map(|address| (*address, memmem::Finder::new(&octets(address)).into_owned())).collect()
    };
    let judge = |frame: &Arc<Frame>| -> Option<String> {
        let (kind, packet) = dissect(&frame.bytes);
        if matches!(kind, Kind::Arp | Kind::NeighbourDiscovery) {
            return None;
        }
        if let Some(packet) = packet {
            if wanted.contains(&packet.source) {
                return Some(format!("in the clear from {}", packet.source));
            }
            if wanted.contains(&packet.destination) {
                return Some(format!("in the clear to {}", packet.destination));
            }
        }
        // Four bytes appear in ciphertext by chance, sixteen do not. TCP may carry TLS, so there an
        // IPv4 address counts only inside an IPv4 header.
        let in_stream = packet.is_some_and(|packet| packet.protocol == TCP);
        finders
            .iter()
            .filter(|(address, _)| kind != Kind::Tunnel || address.is_ipv6())
            .find(|(address, finder)| {
                let mut found = finder.find_iter(&frame.bytes);
                found.any(|at| !in_stream || address.is_ipv6() || is_in_header(&frame.bytes, at))
            })
            .map(|(address, _)| format!("{address} inside"))
    };
    frames.iter().filter_map(|frame| judge(frame).map(|why| Sighting { frame: frame.clone(), why })).collect()
}

/// The protocol number of TCP.
const TCP: u8 = 6;

/// Whether the four bytes at `at` are the source or destination of an IPv4 header with a correct
/// checksum (RFC 791).
fn is_in_header(bytes: &[u8], at: usize) -> bool {
    [12, 16].iter().any(|offset| {
        let Some(header) = at.checked_sub(*offset).and_then(|start| bytes.get(start..)) else { return false };
        let length = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || length < 20 || header.len() < length {
            return false;
        }
        let words = header[..length].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        (sum & 0xffff) + (sum >> 16) == 0xffff
    })
}

/// Frames that contain one of `markers`.
pub fn payload_of(frames: &[Arc<Frame>], markers: &BTreeSet<Marker>) -> Vec<Sighting> {
    let seen = |frame: &Arc<Frame>| {
        let marker = Marker::all_in(&frame.bytes).intersection(markers).next().copied()?;
        Some(Sighting { frame: frame.clone(), why: format!("payload {marker} in the clear") })
    };
    frames.iter().filter_map(seen).collect()
}

/// Every marker that was on the wire, with one frame that contains it.
pub fn markers(frames: &[Arc<Frame>]) -> BTreeMap<Marker, Arc<Frame>> {
    let mut seen = BTreeMap::new();
    for frame in frames {
        for marker in Marker::all_in(&frame.bytes) {
            seen.entry(marker).or_insert_with(|| frame.clone());
        }
    }
    seen
}

/// Frames in the clear with this port on either side. After address translation the port is all
/// that identifies the traffic.
pub fn clear_port(frames: &[Arc<Frame>], port: u16) -> Vec<Sighting> {
    let seen = |frame: &Arc<Frame>| {
        let (kind, packet) = dissect(&frame.bytes);
        let ports = packet?.ports?;
        let hit = kind != Kind::Tunnel && (ports.0 == port || ports.1 == port);
        hit.then(|| Sighting { frame: frame.clone(), why: format!("port {port} in the clear") })
    };
    frames.iter().filter_map(seen).collect()
}

/// The number of frames of each kind.
pub fn count(frames: &[Arc<Frame>]) -> BTreeMap<Kind, usize> {
    let mut counts = BTreeMap::new();
    for frame in frames {
        *counts.entry(dissect(&frame.bytes).0).or_insert(0) += 1;
    }
    counts
}

/// Frames of one kind.
pub fn of_kind(frames: &[Arc<Frame>], kind: Kind) -> Vec<Arc<Frame>> {
    frames.iter().filter(|frame| dissect(&frame.bytes).0 == kind).cloned().collect()
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(bytes: Vec<u8>) -> Arc<Frame> {
        Arc::new(Frame { port: 0, to_machine: false, time_ns: 0, bytes: bytes.into() })
    }

    fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(ports.0, ports.1);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        bytes
    }

    #[test]
    fn only_wireguard_messages_between_the_tunnel_ports_are_tunnel_frames() {
        assert_eq!(dissect(&udp((TUNNEL_PORT, TUNNEL_PORT), &[4, 0, 0, 0, 9, 9])).0, Kind::Tunnel);
        assert_eq!(dissect(&udp((TUNNEL_PORT, TUNNEL_PORT), b"plain text")).0, Kind::Clear);
        assert_eq!(dissect(&udp((TUNNEL_PORT, 53), &[4, 0, 0, 0])).0, Kind::Clear);
        assert_eq!(dissect(&[0; 3]).0, Kind::Other);
    }

    #[test]
    fn an_address_is_found_in_the_header_and_anywhere_else_in_clear_frames() {
        let pod = IpAddr::from([10, 0, 0, 2]);
        assert_eq!(cleartext_of(&[frame(udp((1, 2), b""))], &[pod]).len(), 1);
        let quoted = IpAddr::from([10, 9, 9, 9]);
        assert_eq!(cleartext_of(&[frame(udp((1, 2), &[0, 10, 9, 9, 9]))], &[quoted]).len(), 1);
        let sealed = udp((TUNNEL_PORT, TUNNEL_PORT), &[4, 0, 0, 0, 10, 9, 9, 9]);
        assert_eq!(cleartext_of(&[frame(sealed)], &[quoted]).len(), 0);
    }

    #[test]
    fn in_a_stream_an_address_counts_only_in_a_header() {
        let stream = |payload: &[u8]| {
            let mut bytes = Vec::new();
            let builder =
                PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 3, 4);
            builder.write(&mut bytes, payload).unwrap();
            frame(bytes)
        };
        let by_chance = IpAddr::from([10, 9, 9, 9]);
        assert_eq!(cleartext_of(&[stream(&[0, 10, 9, 9, 9, 1])], &[by_chance]).len(), 0);
        // A packet of another pod inside the stream, from and to the address.
        let carried = udp((1, 2), b"payload");
        for end in [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from) {
            let mut inner = carried[14..].to_vec();
            inner.insert(0, 7);
            let outer = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 1], [10, 1, 0, 2], 64).tcp(1, 2, 3, 4);
            let mut bytes = Vec::new();
            outer.write(&mut bytes, &inner).unwrap();
            assert_eq!(cleartext_of(&[frame(bytes)], &[end]).len(), 1, "{end}");
        }
    }

    #[test]
    fn a_marker_is_found_even_in_what_claims_to_be_a_tunnel_frame() {
        let marker = Marker::unique();
        let mut payload = vec![4, 0, 0, 0];
        payload.extend(marker.fill(100));
        let frames = [frame(udp((TUNNEL_PORT, TUNNEL_PORT), &payload))];
        assert_eq!(payload_of(&frames, &BTreeSet::from([marker])).len(), 1);
        assert!(markers(&frames).contains_key(&marker));
    }
}
