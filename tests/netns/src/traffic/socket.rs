//! Sockets with the settings that all traffic here shares.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::syscalls::set_option;

/// How long a receive waits before it checks whether to stop.
pub(super) const GLANCE: Duration = Duration::from_millis(50);
/// The largest datagram.
pub(super) const LARGEST: usize = 1 << 16;

/// A socket bound to an address, whose receives give up after [`GLANCE`].
pub(super) fn bound(kind: Type, protocol: Option<Protocol>, address: SocketAddr) -> Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, kind, protocol).with_context(|| format!("socket for {address}"))?;
    socket.set_reuse_address(true).context("SO_REUSEADDR")?;
    // Raw sockets take a protocol where others take a port; the kernel refuses one in the address.
    let local = if kind == Type::RAW { SocketAddr::new(address.ip(), 0) } else { address };
    socket.bind(&SockAddr::from(local)).with_context(|| format!("bind to {local}"))?;
    socket.set_read_timeout(Some(GLANCE)).context("SO_RCVTIMEO")?;
    Ok(socket)
}

/// A UDP socket whose sends are super-packets of datagrams of `bytes` each (UDP_SEGMENT, udp(7)).
pub(super) fn segmenting(address: SocketAddr, bytes: usize) -> Result<UdpSocket> {
    let socket = bound(Type::DGRAM, None, address)?;
    set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, bytes as i32).context("UDP_SEGMENT")?;
    Ok(UdpSocket::from(socket))
}

/// Whether an error only means that nothing has arrived yet, or that a host on the path refused:
/// datagrams continue.
pub(super) fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable, PermissionDenied,
        TimedOut, WouldBlock,
    };
    let kind = error.kind();
    matches!(
        kind,
        WouldBlock
            | TimedOut
            | Interrupted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkUnreachable
            | PermissionDenied
    ) || matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS | libc::EPROTO))
}
