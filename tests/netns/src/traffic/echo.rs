//! Echo request and reply (RFC 792, RFC 4443).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Protocol, SockAddr, Type};

use super::exchange::Shared;
use super::raw::{self, internet_checksum};
use super::socket;

pub(super) fn ask(
    local: IpAddr,
    target: IpAddr,
    bytes: usize,
    patience: Duration,
    shared: &Shared,
) -> Result<(bool, String)> {
    let deadline = Instant::now() + patience;
    let (protocol, request_type, reply_type) = match local {
        IpAddr::V4(_) => (Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Protocol::ICMPV6, 128, 129),
    };
    let socket = socket::bound(Type::RAW, Some(protocol), SocketAddr::new(local, 0))?;
    let payload = shared.request.fill(bytes);
    let mut message = vec![request_type, 0, 0, 0, 0x68, 0x62, 0, 1];
    message.extend_from_slice(&payload);
    // The kernel fills in ICMPv6 checksums: they cover the addresses.
    if local.is_ipv4() {
        let sum = internet_checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let mut said = "no reply".to_owned();
    while Instant::now() < deadline {
        if let Err(error) = socket.send_to(&message, &SockAddr::from(SocketAddr::new(target, 0))) {
            said = format!("send: {error}");
        }
        let again = Instant::now() + 4 * socket::GLANCE;
        while Instant::now() < again.min(deadline) {
            match raw::receive(&socket, local) {
                Ok(Some((from, packet))) => {
                    if from == target && packet.first() == Some(&reply_type) && packet.get(8..) == Some(&payload[..]) {
                        shared.deliver(None);
                        return Ok((true, String::new()));
                    }
                }
                Ok(None) => {}
                Err(error) => return Err(error).context("receive echo reply"),
            }
        }
    }
    Ok((false, said))
}
