//! Packets of an exact size that must not be fragmented, and super-packets that the kernel
//! segments.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Protocol, Type};

use super::{raw, socket};
use crate::marker::Marker;
use crate::party::{Family, Party};
use crate::syscalls::set_option;

/// What happened to a packet of some size.
#[derive(Clone, Debug)]
pub struct SizeOutcome {
    /// The marker in the packet.
    pub marker: Marker,
    /// It arrived.
    pub delivered: bool,
    /// The MTU that an ICMP error named.
    pub too_big: Option<u32>,
    /// The sender's own kernel refused it.
    pub refused: Option<String>,
}

/// Sends one UDP packet of `bytes` of IP that must not be fragmented. The sender does not know the
/// path's MTU. The packet is repeated until it arrives, an ICMP error says that it is too big, or
/// `patience` ends.
///
/// # Errors
/// Sockets could not be made.
pub fn send_of_size(from: &Party, to: &Party, family: Family, bytes: usize, patience: Duration) -> Result<SizeOutcome> {
    let marker = Marker::unique();
    let headers = if family == Family::V4 { 28 } else { 48 };
    let payload = marker.fill(bytes.saturating_sub(headers));
    let receiver = to.netns.within(|| {
        let socket = socket::bound(Type::DGRAM, None, SocketAddr::new(to.address(family), 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(5))).context("set timeout")?;
        Ok(UdpSocket::from(socket))
    })?;
    let target = receiver.local_addr().context("local address")?;
    let local = from.address(family);
    let (sender, errors) = from.netns.within(|| {
        let sender = socket::bound(Type::DGRAM, None, SocketAddr::new(local, 0))?;
        forbid_fragments(&sender, family)?;
        let protocol = if family == Family::V4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let errors = socket::bound(Type::RAW, Some(protocol), SocketAddr::new(local, 0))?;
        errors.set_read_timeout(Some(Duration::from_millis(5))).context("set timeout")?;
        Ok((UdpSocket::from(sender), errors))
    })?;
    let mut outcome = SizeOutcome { marker, delivered: false, too_big: None, refused: None };
    let mut buffer = vec![0; socket::LARGEST];
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        outcome.refused = sender.send_to(&payload, target).err().map(|error| error.to_string());
        let again = Instant::now() + Duration::from_millis(200);
        while Instant::now() < again {
            if receiver.recv(&mut buffer).is_ok_and(|count| buffer[..count] == payload) {
                outcome.delivered = true;
                return Ok(outcome);
            }
            if let Some((_, message)) = raw::receive(&errors, local)? {
                outcome.too_big = outcome.too_big.or(named_mtu(&message, local));
            }
            if outcome.too_big.is_some() {
                return Ok(outcome);
            }
        }
    }
    Ok(outcome)
}

/// The MTU in an ICMP error that says "too big" (RFC 1191, RFC 4443 section 3.2).
fn named_mtu(message: &[u8], local: IpAddr) -> Option<u32> {
    match (local, message) {
        (IpAddr::V4(_), [3, 4, _, _, _, _, high, low, ..]) => Some(u32::from(u16::from_be_bytes([*high, *low]))),
        (IpAddr::V6(_), [2, 0, _, _, a, b, c, d, ..]) => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// Sets "don't fragment", and makes the socket ignore the known path MTU.
fn forbid_fragments(socket: &impl AsRawFd, family: Family) -> Result<()> {
    match family {
        Family::V4 => set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        Family::V6 => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
            .and_then(|()| set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)),
    }
    .context("forbid fragments")
}

/// Hands the kernel one super-packet of `segments` datagrams of `bytes` each (UDP_SEGMENT) and
/// returns how many arrived.
///
/// # Errors
/// Sockets could not be made, or the kernel refused the super-packet.
pub fn super_datagram(
    from: &Party,
    to: &Party,
    family: Family,
    segments: usize,
    bytes: usize,
) -> Result<(Marker, usize)> {
    let marker = Marker::unique();
    let receiver = to.netns.within(|| {
        let socket = socket::bound(Type::DGRAM, None, SocketAddr::new(to.address(family), 0))?;
        socket.set_recv_buffer_size(4 << 20).context("SO_RCVBUF")?;
        Ok(UdpSocket::from(socket))
    })?;
    let target = receiver.local_addr().context("local address")?;
    let sender = from.netns.within(|| socket::segmenting(SocketAddr::new(from.address(family), 0), bytes))?;
    let segment = marker.fill(bytes);
    let mut arrived = 0;
    let mut buffer = vec![0; socket::LARGEST];
    let deadline = Instant::now() + Duration::from_secs(20);
    // Repeated as long as nothing arrives: the tunnel may be waiting for its first handshake.
    while arrived == 0 && Instant::now() < deadline {
        sender.send_to(&segment.repeat(segments), target).context("send super-packet")?;
        let until = Instant::now() + Duration::from_secs(2);
        while arrived < segments && Instant::now() < until {
            if receiver.recv(&mut buffer).is_ok_and(|count| buffer[..count] == segment) {
                arrived += 1;
            }
        }
    }
    Ok((marker, arrived))
}
