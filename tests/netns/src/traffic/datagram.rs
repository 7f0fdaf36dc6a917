//! UDP, fragmented or not. The request is repeated until the reply comes.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Socket, Type};

use super::exchange::Shared;
use super::socket;
use crate::syscalls;

pub(super) fn serve(address: SocketAddr, bytes: usize, shared: &Shared, port: &Sender<u16>) -> Result<()> {
    let socket = socket::bound(Type::DGRAM, None, address)?;
    allow_fragments(&socket, address.ip())?;
    let socket = std::net::UdpSocket::from(socket);
    port.send(socket.local_addr().context("local address")?.port()).context("report port")?;
    let mut buffer = vec![0; socket::LARGEST];
    while !shared.is_over() {
        match socket.recv_from(&mut buffer) {
            Ok((count, client)) if buffer[..count] == shared.request.fill(bytes) => {
                shared.deliver(Some(client.ip()));
                // If the reply cannot be sent, the client repeats its request.
                socket.send_to(&shared.reply.fill(bytes), client).ok();
            }
            Ok(_) => {}
            Err(error) if socket::is_passing(&error) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    Ok(())
}

pub(super) fn ask(
    local: IpAddr,
    target: SocketAddr,
    bytes: usize,
    patience: Duration,
    shared: &Shared,
) -> Result<(bool, String)> {
    let deadline = Instant::now() + patience;
    let socket = socket::bound(Type::DGRAM, None, SocketAddr::new(local, 0))?;
    allow_fragments(&socket, local)?;
    let socket = std::net::UdpSocket::from(socket);
    // Connected, so that a reply from another address does not count.
    if let Err(error) = socket.connect(target) {
        return Ok((false, format!("connect to {target}: {error}")));
    }
    let mut said = "no reply".to_owned();
    let mut buffer = vec![0; socket::LARGEST];
    while Instant::now() < deadline {
        if let Err(error) = socket.send(&shared.request.fill(bytes)) {
            said = format!("send: {error}");
        }
        let again = Instant::now() + 4 * socket::GLANCE;
        while Instant::now() < again.min(deadline) {
            match socket.recv(&mut buffer) {
                Ok(count) if buffer[..count] == shared.reply.fill(bytes) => return Ok((true, String::new())),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if socket::is_passing(&error) => said = format!("receive: {error}"),
                Err(error) => return Err(error).context("receive"),
            }
        }
    }
    Ok((false, said))
}

/// Lets the kernel fragment large datagrams instead of refusing them.
fn allow_fragments(socket: &Socket, address: IpAddr) -> Result<()> {
    let (level, name, value) = match address {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
    };
    syscalls::set_option(&AsRawFd::as_raw_fd(socket), level, name, value).context("allow fragments")
}
