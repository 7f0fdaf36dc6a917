//! Reads packets. A packet that cannot be read does not matter here: the guard drops it.

use aya_ebpf::programs::TcContext;

use crate::maps::{Found, Inside};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ETHERNET: u16 = 0x6558;

const HOP_BY_HOP: u8 = 0;
const IP_IN_IP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_IN_IP: u8 = 41;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const GRE: u8 = 47;
const DESTINATION_OPTIONS: u8 = 60;

const VXLAN_PORT: u16 = 4789;
/// The port that Linux, and so flannel and Cilium, used before one was assigned.
const VXLAN_LINUX_PORT: u16 = 8472;
const GENEVE_PORT: u16 = 6081;

/// A SYN without an ACK.
const SYN: u8 = 0x02;
const SYN_AND_ACK: u8 = 0x12;

/// Offset of the IP packet in the Ethernet frame at `at`, behind up to two VLAN tags.
#[inline(always)]
pub fn after_ethernet(context: &TcContext, at: u32) -> Option<u32> {
    let mut at = at + 12;
    let mut kind = be16(context, at)?;
    if is_tag(kind) {
        at += 4;
        kind = be16(context, at)?;
    }
    if is_tag(kind) {
        at += 4;
        kind = be16(context, at)?;
    }
    (kind == IPV4 || kind == IPV6).then_some(at + 2)
}

#[inline(always)]
fn is_tag(kind: u16) -> bool {
    matches!(kind, 0x8100 | 0x88a8 | 0x9100)
}

/// Reads the IP packet at `at`. Returns whether there is one.
#[inline(always)]
pub fn packet(context: &TcContext, at: u32, found: &mut Found) -> bool {
    read(context, at, found).is_some()
}

#[inline(always)]
fn read(context: &TcContext, at: u32, found: &mut Found) -> Option<()> {
    found.leak.device = 0;
    found.leak.source_port = 0;
    found.leak.destination_port = 0;
    found.inside = Inside::NOTHING;
    found.opens = false;
    let first: u8 = context.load(at as usize).ok()?;
    let (protocol, at, later_fragment) = match first >> 4 {
        4 => {
            let length = u32::from(first & 0x0f) * 4;
            if length < 20 {
                return None;
            }
            let addresses: [u32; 2] = context.load(at as usize + 12).ok()?;
            found.leak.source = mapped(addresses[0]);
            found.leak.destination = mapped(addresses[1]);
            let fragment = be16(context, at + 6)? & 0x1fff;
            let protocol: u8 = context.load(at as usize + 9).ok()?;
            (protocol, at + length, fragment != 0)
        }
        6 => {
            found.leak.source = context.load(at as usize + 8).ok()?;
            found.leak.destination = context.load(at as usize + 24).ok()?;
            let protocol: u8 = context.load(at as usize + 6).ok()?;
            behind_extensions(context, protocol, at + 40)
        }
        _ => return None,
    };
    found.leak.protocol = u32::from(protocol);
    // Every packet has addresses. Ports and flags are left out if they are missing.
    if !later_fragment {
        let _ = read_transport(context, protocol, at, found);
    }
    Some(())
}

#[inline(always)]
fn mapped(word: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), word]
}

/// Protocol and offset behind at most three extension headers, and whether the packet is a fragment
/// other than the first.
#[inline(always)]
fn behind_extensions(context: &TcContext, protocol: u8, at: u32) -> (u8, u32, bool) {
    let first = behind_extension(context, (protocol, at, false));
    let second = behind_extension(context, first);
    behind_extension(context, second)
}

#[inline(always)]
fn behind_extension(context: &TcContext, (protocol, at, later): (u8, u32, bool)) -> (u8, u32, bool) {
    if !matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) || later {
        return (protocol, at, later);
    }
    let Ok([next, length, high, low]) = context.load::<[u8; 4]>(at as usize) else { return (protocol, at, true) };
    if protocol == FRAGMENT {
        let offset = u16::from_be_bytes([high, low]) & 0xfff8;
        return (next, at + 8, offset != 0);
    }
    (next, at + (u32::from(length) + 1) * 8, false)
}

#[inline(always)]
fn read_transport(context: &TcContext, protocol: u8, at: u32, found: &mut Found) -> Option<()> {
    match protocol {
        TCP => {
            ports(context, at, found)?;
            let flags: u8 = context.load(at as usize + 13).ok()?;
            found.opens = flags & SYN_AND_ACK == SYN;
        }
        UDP => {
            ports(context, at, found)?;
            let port = found.leak.destination_port;
            if port == VXLAN_PORT || port == VXLAN_LINUX_PORT {
                found.inside = Inside::FRAME;
                found.inside_at = at + 16;
            } else if port == GENEVE_PORT {
                let options: u8 = context.load(at as usize + 8).ok()?;
                carries(found, be16(context, at + 10)?, at + 16 + u32::from(options & 0x3f) * 4);
            }
        }
        IP_IN_IP | IPV6_IN_IP => {
            found.inside = Inside::PACKET;
            found.inside_at = at;
        }
        GRE => {
            let flags: u8 = context.load(at as usize).ok()?;
            let words = u32::from(flags >> 7) + u32::from(flags >> 5 & 1) + u32::from(flags >> 4 & 1);
            carries(found, be16(context, at + 2)?, at + 4 + words * 4);
        }
        _ => {}
    }
    Some(())
}

#[inline(always)]
fn carries(found: &mut Found, kind: u16, at: u32) {
    found.inside_at = at;
    found.inside = match kind {
        ETHERNET => Inside::FRAME,
        IPV4 | IPV6 => Inside::PACKET,
        _ => Inside::NOTHING,
    };
}

#[inline(always)]
fn ports(context: &TcContext, at: u32, found: &mut Found) -> Option<()> {
    let [source, destination] = context.load::<[u16; 2]>(at as usize).ok()?;
    found.leak.source_port = u16::from_be(source);
    found.leak.destination_port = u16::from_be(destination);
    Some(())
}

#[inline(always)]
fn be16(context: &TcContext, at: u32) -> Option<u16> {
    context.load::<u16>(at as usize).ok().map(u16::from_be)
}
