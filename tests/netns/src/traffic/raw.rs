//! Other protocols, over raw sockets on both sides: traffic that a node must carry without
//! understanding it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{SockAddr, Socket, Type};

use super::exchange::{Protocol, Shared};
use super::socket;
use crate::marker::Marker;

/// Ports in the SCTP header; no program listens there.
const SCTP_PORTS: [u8; 4] = [0x9c, 0x40, 0x9c, 0x41];

pub(super) fn serve(
    protocol: Protocol,
    address: IpAddr,
    bytes: usize,
    shared: &Shared,
    port: &Sender<u16>,
) -> Result<()> {
    let socket = raw_socket(protocol, address)?;
    port.send(0).context("report port")?;
    let reply = packet(protocol, shared.reply, bytes);
    while !shared.is_over() {
        let Some((client, received)) = receive(&socket, address)? else { continue };
        if received == packet(protocol, shared.request, bytes) {
            shared.deliver(Some(client));
            socket.send_to(&reply, &SockAddr::from(SocketAddr::new(client, 0))).ok();
        }
    }
    Ok(())
}

pub(super) fn ask(
    protocol: Protocol,
    local: IpAddr,
    target: IpAddr,
    bytes: usize,
    patience: Duration,
    shared: &Shared,
) -> Result<(bool, String)> {
    let deadline = Instant::now() + patience;
    let socket = raw_socket(protocol, local)?;
    let request = packet(protocol, shared.request, bytes);
    let reply = packet(protocol, shared.reply, bytes);
    let mut said = "no reply".to_owned();
    while Instant::now() < deadline {
        if let Err(error) = socket.send_to(&request, &SockAddr::from(SocketAddr::new(target, 0))) {
            said = format!("send: {error}");
        }
        let again = Instant::now() + 4 * socket::GLANCE;
        while Instant::now() < again.min(deadline) {
            if receive(&socket, local)?.is_some_and(|(from, received)| from == target && received == reply) {
                return Ok((true, String::new()));
            }
        }
    }
    Ok((false, said))
}

fn raw_socket(protocol: Protocol, address: IpAddr) -> Result<Socket> {
    let number = match protocol {
        Protocol::Gre => 47,
        Protocol::Sctp => 132,
        _ => 50,
    };
    socket::bound(Type::RAW, Some(socket2::Protocol::from(number)), SocketAddr::new(address, 0))
}

/// The next packet on a raw socket without its IP header, and its sender; none if nothing came for
/// a short time.
pub(super) fn receive(socket: &Socket, address: IpAddr) -> Result<Option<(IpAddr, Vec<u8>)>> {
    let mut bytes = vec![0; socket::LARGEST];
    let (count, from) = match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut bytes).map_err(io::Error::from) {
        Ok(received) => received,
        Err(error) if socket::is_passing(&error) => return Ok(None),
        Err(error) => return Err(error).context("receive on raw socket"),
    };
    bytes.truncate(count);
    let from = from.context("a packet without a sender")?;
    let v4 = from.as_sockaddr_in().map(|from| IpAddr::from(from.ip()));
    let from = v4.or_else(|| from.as_sockaddr_in6().map(|from| from.ip().into())).context("sender's address")?;
    // IPv4 raw sockets deliver the IP header too.
    let header = if address.is_ipv4() { usize::from(bytes.first().copied().unwrap_or(0) & 15) * 4 } else { 0 };
    Ok(Some((from, bytes.get(header..).unwrap_or_default().to_vec())))
}

/// A packet of `protocol` that contains `marker`, well-formed as far as connection tracking checks.
fn packet(protocol: Protocol, marker: Marker, bytes: usize) -> Vec<u8> {
    let payload = marker.fill(bytes);
    match protocol {
        // Version 0, no options, a payload of an experimental ethertype.
        Protocol::Gre => [&[0, 0, 0x88, 0xb5][..], &payload].concat(),
        Protocol::Sctp => sctp(&payload),
        // An arbitrary parameter index and sequence number.
        _ => [&[0x68, 0x61, 0x75, 0x62, 0, 0, 0, 1][..], &payload].concat(),
    }
}

/// An SCTP packet with one DATA chunk (RFC 9260 section 3).
fn sctp(payload: &[u8]) -> Vec<u8> {
    let length = (16 + payload.len()) as u16;
    let mut packet = Vec::new();
    packet.extend_from_slice(&SCTP_PORTS);
    packet.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
    packet.extend_from_slice(&[0, 3]);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0]);
    packet.extend_from_slice(payload);
    packet.resize(packet.len().next_multiple_of(4), 0);
    let sum = sctp_checksum(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// CRC-32C as SCTP uses it (RFC 9260 appendix A).
pub fn sctp_checksum(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    });
    !crc
}

/// The one's complement sum (RFC 1071).
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_published_values() {
        assert_eq!(sctp_checksum(b"123456789"), 0xe306_9283);
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
