//! Gives a packet other addresses and ports, and corrects its checksums (RFC 1624).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes},
    programs::TcContext,
};
use hauberk_abi::{
    address::Address,
    connection::Direction,
    packet::{Bytes, Fragment, Packet, protocol},
};

use crate::lookup::Skb;
use crate::maps::{BALANCE, PACKET};
use crate::record::put;

/// Offsets of the addresses in their headers, and of IPv4's checksum.
const SOURCE_V4: u32 = 12;
const DESTINATION_V4: u32 = 16;
const CHECKSUM_V4: u32 = 10;
const SOURCE_V6: u32 = 8;
const DESTINATION_V6: u32 = 24;
/// Offsets of the checksums in their headers.
const CHECKSUM_TCP: u32 = 16;
const CHECKSUM_UDP: u32 = 6;
/// Bytes of an IPv4 header without options, and of an IPv6 header with and without the extension
/// header of a fragment.
const HEADER_V4: u32 = 20;
const HEADER_V6: u32 = 40;
const FRAGMENT_V6: u32 = 8;
const FRAGMENT: u8 = 44;

/// Where the transport header of the packet at hand begins, counted from its IP header; 0 if that
/// cannot be told, because there are IPv6 extension headers.
#[inline(always)]
pub fn transport(bytes: &Skb<'_>, offset: u32, packet: &Packet) -> u32 {
    if packet.source.is_v4() {
        return HEADER_V4;
    }
    match bytes.load::<1>(offset + 6) {
        Some([next]) if next == packet.protocol => HEADER_V6,
        Some([FRAGMENT]) if matches!(bytes.load::<1>(offset + HEADER_V6), Some([next]) if next == packet.protocol) => {
            HEADER_V6 + FRAGMENT_V6
        }
        _ => 0,
    }
}

/// Gives the packet at hand, whose IP header is at `offset`, the addresses and ports that are
/// wanted; 0 if that failed, and then the packet must be dropped. Verified by itself: see
/// [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rewrite(skb: *mut __sk_buff, offset: u32) -> u32 {
    let (Some(packet), Some(balance)) = (PACKET.get_ptr_mut(0), BALANCE.get_ptr_mut(0)) else { return 0 };
    // SAFETY: the slots belong to this CPU and to the program that runs on it.
    let (packet, balance) = unsafe { (&mut *packet, &mut *balance) };
    let transport = transport(&Skb(&TcContext::new(skb)), offset, packet);
    if transport == 0 {
        return 0;
    }
    let transport = offset + transport;
    // A later fragment has no transport header.
    let has_ports = !matches!(packet.fragment, Fragment::Later);
    let (checksum, flags) = match packet.protocol {
        protocol::TCP => (transport + CHECKSUM_TCP, 0),
        // A datagram may have no checksum (RFC 768).
        _ => (transport + CHECKSUM_UDP, u64::from(BPF_F_MARK_MANGLED_0)),
    };
    let wanted = &balance.wanted;
    let done = if packet.source.is_v4() {
        address_v4(skb, offset, SOURCE_V4, has_ports, checksum, flags, &packet.source, &wanted.source)
            && address_v4(
                skb,
                offset,
                DESTINATION_V4,
                has_ports,
                checksum,
                flags,
                &packet.destination,
                &wanted.destination,
            )
    } else {
        address_v6(skb, offset + SOURCE_V6, has_ports, checksum, flags, &packet.source, &wanted.source)
            && address_v6(
                skb,
                offset + DESTINATION_V6,
                has_ports,
                checksum,
                flags,
                &packet.destination,
                &wanted.destination,
            )
    };
    if !done {
        return 0;
    }
    if has_ports
        && !(port(skb, transport, checksum, flags, packet.source_port, wanted.source_port)
            && port(skb, transport + 2, checksum, flags, packet.destination_port, wanted.destination_port))
    {
        return 0;
    }
    put(&mut packet.source, &wanted.source);
    put(&mut packet.destination, &wanted.destination);
    if has_ports {
        packet.source_port = wanted.source_port;
        packet.destination_port = wanted.destination_port;
    }
    1
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn address_v4(
    skb: *mut __sk_buff,
    offset: u32,
    place: u32,
    has_ports: bool,
    checksum: u32,
    flags: u64,
    from: &Address,
    to: &Address,
) -> bool {
    let (from, to) = (from.words()[3], to.words()[3]);
    if from == to {
        return true;
    }
    // SAFETY: plain helper calls; the bytes to store are on the stack.
    unsafe {
        if has_ports {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | flags | 4;
            if bpf_l4_csum_replace(skb, checksum, from.into(), to.into(), flags) != 0 {
                return false;
            }
        }
        bpf_l3_csum_replace(skb, offset + CHECKSUM_V4, from.into(), to.into(), 4) == 0
            && bpf_skb_store_bytes(skb, offset + place, (&raw const to).cast(), 4, 0) == 0
    }
}

#[inline(always)]
fn address_v6(
    skb: *mut __sk_buff,
    place: u32,
    has_ports: bool,
    checksum: u32,
    flags: u64,
    from: &Address,
    to: &Address,
) -> bool {
    if from == to {
        return true;
    }
    let (mut before, mut after) = (from.words(), to.words());
    // SAFETY: plain helper calls; what they read is on the stack and 16 bytes long.
    unsafe {
        if has_ports {
            let difference = bpf_csum_diff(before.as_mut_ptr(), 16, after.as_mut_ptr(), 16, 0);
            let flags = u64::from(BPF_F_PSEUDO_HDR) | flags;
            if bpf_l4_csum_replace(skb, checksum, 0, difference as u64, flags) != 0 {
                return false;
            }
        }
        // For a packet with `CHECKSUM_COMPLETE` the kernel takes each change of a pseudo-header for
        // IPv4's, where the header's own checksum makes up for it (mended in Linux 6.16 by a new
        // flag). The sum over the stored bytes makes up for it here, in every version.
        let flags = if has_ports { u64::from(BPF_F_RECOMPUTE_CSUM) } else { 0 };
        bpf_skb_store_bytes(skb, place, after.as_ptr().cast(), 16, flags) == 0
    }
}

#[inline(always)]
fn port(skb: *mut __sk_buff, place: u32, checksum: u32, flags: u64, from: u16, to: u16) -> bool {
    if from == to {
        return true;
    }
    let (from, to) = (from.to_be(), to.to_be());
    // SAFETY: as above.
    unsafe {
        bpf_l4_csum_replace(skb, checksum, from.into(), to.into(), flags | 2) == 0
            && bpf_skb_store_bytes(skb, place, (&raw const to).cast(), 2, 0) == 0
    }
}

/// Copies a direction word by word: see [`put`].
#[inline(always)]
pub fn put_direction(slot: &mut Direction, direction: &Direction) {
    put(&mut slot.source, &direction.source);
    put(&mut slot.destination, &direction.destination);
    slot.source_port = direction.source_port;
    slot.destination_port = direction.destination_port;
    slot.protocol = direction.protocol;
}
