//! Hand-made frames, sent where they do not belong: on the wire, or into a valid tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;

use crate::netns::Netns;
use crate::syscalls;

/// The protocols a forged packet may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forged {
    /// A UDP datagram.
    Udp,
    /// The first packet of a TCP connection, with data.
    TcpSyn,
    /// An echo request.
    Echo,
    /// A TCP reset, which leak checkers tend to forget.
    TcpReset,
}

impl Forged {
    /// All of them. The last one is a SYN: the leak detector looks at each SYN, and only at some of
    /// the others. So the latest leak that it knows is a SYN.
    pub const ALL: [Forged; 4] = [Forged::Udp, Forged::Echo, Forged::TcpReset, Forged::TcpSyn];
}

/// An Ethernet frame with an IP packet.
///
/// # Errors
/// The addresses are of different families.
pub fn frame(
    macs: ([u8; 6], [u8; 6]),
    source: IpAddr,
    destination: IpAddr,
    what: Forged,
    port: u16,
    payload: &[u8],
) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(macs.0, macs.1);
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let builder = builder.ipv4(source.octets(), destination.octets(), 64);
            match what {
                Forged::Udp => builder.udp(4000, port).write(&mut bytes, payload),
                Forged::TcpSyn => builder.tcp(4000, port, 1, 60000).syn().write(&mut bytes, payload),
                Forged::TcpReset => builder.tcp(4000, port, 1, 0).rst().write(&mut bytes, payload),
                Forged::Echo => builder.icmpv4_echo_request(7, 7).write(&mut bytes, payload),
            }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let builder = builder.ipv6(source.octets(), destination.octets(), 64);
            match what {
                Forged::Udp => builder.udp(4000, port).write(&mut bytes, payload),
                Forged::TcpSyn => builder.tcp(4000, port, 1, 60000).syn().write(&mut bytes, payload),
                Forged::TcpReset => builder.tcp(4000, port, 1, 0).rst().write(&mut bytes, payload),
                Forged::Echo => builder.icmpv6_echo_request(7, 7).write(&mut bytes, payload),
            }
        }
        _ => anyhow::bail!("{source} and {destination} are of different families"),
    }
    .context("build packet")?;
    Ok(bytes)
}

/// An ARP message: a request (1) or a reply (2).
pub fn arp(mac: [u8; 6], operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation];
    [&[0xff; 6][..], &mac, &head, &mac, &sender.octets(), &[0xff; 6], &target.octets()].concat()
}

/// What a neighbour discovery message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solicits {
    /// The neighbour that the message is sent to.
    Neighbour,
    /// Routers.
    Router,
    /// Nothing: the message advertises its sender.
    Nothing,
}

/// A neighbour discovery message with its sender's MAC address (RFC 4861).
///
/// # Errors
/// No known case.
pub fn discovery(macs: ([u8; 6], [u8; 6]), what: Solicits, source: Ipv6Addr, destination: Ipv6Addr) -> Result<Vec<u8>> {
    let (kind, target, option) = match what {
        Solicits::Neighbour => (135, Some(destination), 1),
        Solicits::Router => (133, None, 1),
        Solicits::Nothing => (136, Some(source), 2),
    };
    let target = target.map(|target| target.octets().to_vec()).unwrap_or_default();
    let message = [&target[..], &[option, 1], &macs.0].concat();
    // An advertisement overrides what the receiver knows.
    let flags = if what == Solicits::Nothing { [0x20, 0, 0, 0] } else { [0; 4] };
    let head = PacketBuilder::ethernet2(macs.0, macs.1).ipv6(source.octets(), destination.octets(), 255);
    let mut bytes = Vec::new();
    head.icmpv6_raw(kind, 0, flags).write(&mut bytes, &message).context("build packet")?;
    Ok(bytes)
}

/// The same frame behind VLAN tags of these types, outermost first (IEEE 802.1Q).
pub fn tagged(frame: &[u8], types: &[u16]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12.min(frame.len()));
    let tags = types.iter().flat_map(|kind| [(kind >> 8) as u8, *kind as u8, 0, 5]);
    addresses.iter().copied().chain(tags).chain(rest.iter().copied()).collect()
}

/// How a packet socket sends a frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Bypasses the interface's queueing discipline, and with it the hooks there.
    pub bypass: bool,
    /// SO_MARK.
    pub mark: u32,
    /// The frame type that the socket states; 0 takes it from the frame.
    pub protocol: u16,
}

/// Sends a frame out of an interface. `bypass` skips the queueing discipline and the hooks there.
///
/// # Errors
/// A system call fails.
pub fn send(netns: &Netns, interface: &str, frame: &[u8], bypass: bool) -> Result<()> {
    send_as(netns, interface, frame, Manner { bypass, ..Manner::default() })
}

/// Sends frames out of an interface, one after the other. A frame that a program on the way drops
/// counts as sent.
///
/// # Errors
/// A system call fails.
pub fn send_all(netns: &Netns, interface: &str, frames: &[Vec<u8>]) -> Result<()> {
    let index = netns.interface(interface)?;
    netns.within(|| {
        let socket = syscalls::packet_socket(index).context("packet socket")?;
        for frame in frames {
            match nix::sys::socket::send(socket.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty()) {
                Ok(_) | Err(nix::errno::Errno::ENOBUFS) => {}
                Err(error) => return Err(error).with_context(|| format!("send out of {interface}")),
            }
        }
        Ok(())
    })
}

/// Like [`send`], with all options of a packet socket.
///
/// # Errors
/// A system call fails.
pub fn send_as(netns: &Netns, interface: &str, frame: &[u8], manner: Manner) -> Result<()> {
    let index = netns.interface(interface)?;
    netns.within(|| {
        let socket = match manner.protocol {
            0 => syscalls::packet_socket(index),
            protocol => syscalls::packet_socket_of(index, protocol),
        };
        let socket = socket.context("packet socket")?;
        if manner.mark != 0 {
            syscalls::set_option(&socket, libc::SOL_SOCKET, libc::SO_MARK, manner.mark as i32).context("SO_MARK")?;
        }
        if manner.bypass {
            syscalls::set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)
                .context("PACKET_QDISC_BYPASS")?;
        }
        let sent = match nix::sys::socket::send(socket.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty()) {
            // The error means that a program on the way out dropped the frame. The socket did send
            // it.
            Err(nix::errno::Errno::ENOBUFS) => return Ok(()),
            sent => sent,
        };
        let sent = sent.with_context(|| format!("send {} bytes out of {interface}", frame.len()))?;
        ensure!(sent == frame.len(), "sent {sent} of {} bytes", frame.len());
        Ok(())
    })
}

/// A machine's MAC address.
///
/// # Errors
/// No such interface.
pub fn mac(netns: &Netns, interface: &str) -> Result<[u8; 6]> {
    let mut command = netns.command("ip");
    command.args(["-j", "link", "show", interface]);
    let text = crate::netns::feed(command, "")?;
    let links: serde_json::Value = serde_json::from_str(&text).context("parse `ip -j link`")?;
    parse_mac(links[0]["address"].as_str().unwrap_or_default())
}

/// Parses `aa:bb:cc:dd:ee:ff`.
///
/// # Errors
/// The text is no MAC address.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("MAC address {text:?}"))
}
