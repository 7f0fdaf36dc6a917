//! ICMP errors about packets of translated connections (RFC 792, RFC 4443). Who gets one must find
//! in it the packet that it sent, so the addresses and ports of the quoted packet are translated as
//! well as those of the error (RFC 5508 section 4).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes},
    programs::TcContext,
};
use hauberk_abi::{
    address::Address,
    connection::Direction,
    packet::{Bytes, Packet, protocol},
};

use crate::connection::{Balance, NONE, OF_BACKEND, OF_CLIENT, balance};
use crate::encapsulated::ends_at;
use crate::lookup::{Skb, at_hand};
use crate::maps::{CONNECTIONS, PACKET, REPLIES};
use crate::record::put;
use crate::rewrite::put_direction;

/// Bytes between the error's IP header and the packet that it quotes.
const ICMP_HEADER: u32 = 8;
/// Offset of the checksum in the error's ICMP header.
const CHECKSUM_ICMP: u32 = 2;
/// IPv4: the first byte of a header without options, and the offset of the header's checksum.
const PLAIN_V4: u8 = 0x45;
const CHECKSUM_V4: u32 = 10;

/// Finds the connection that the error at hand is about, whose IP header is at `offset`, and stores
/// what the error becomes. The result is like that of [`crate::connection::find`]. Verified by
/// itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_quoted(skb: *mut __sk_buff, offset: u32) -> u32 {
    let (Some((_, packet)), Some(balance)) = (at_hand(), balance()) else { return NONE };
    let quote = offset + packet.header_length + ICMP_HEADER;
    if !name(&Skb(&TcContext::new(skb)), quote, packet, &mut balance.key) {
        return NONE;
    }
    // The packet went to the client: the backend must be told.
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&balance.key) {
        // SAFETY: the entry stays valid while the program runs, and these fields do not change.
        let connection = unsafe { &*connection };
        put(&mut balance.inner.source, &connection.backend.address);
        put(&mut balance.inner.destination, &connection.source);
        balance.inner.source_port = connection.backend.port;
        balance.inner.destination_port = connection.source_port;
        let is_masked = connection.source != balance.key.source;
        put(&mut balance.wanted.source, if is_masked { &connection.source } else { &packet.source });
        put(&mut balance.wanted.destination, &connection.backend.address);
        return OF_CLIENT;
    }
    // It went to the backend: the client must be told, and by the address that it knows.
    // SAFETY: an entry is made and removed with its connection, and not written in between.
    let Some(client) = (unsafe { REPLIES.get(&balance.key) }) else { return NONE };
    put_direction(&mut balance.inner, client);
    put(&mut balance.wanted.source, &client.destination);
    put(&mut balance.wanted.destination, &client.source);
    OF_BACKEND
}

/// Names the direction of the answers to the quoted packet, which begins at `quote`; false if its
/// ports cannot be read.
#[inline(always)]
fn name(bytes: &Skb<'_>, quote: u32, packet: &Packet, key: &mut Direction) -> bool {
    let Some((source, destination)) = ends_at(bytes, quote) else { return false };
    if source.is_v4() != packet.source.is_v4() {
        return false;
    }
    let Some(protocol) = transport_of(bytes, quote, source.is_v4()) else { return false };
    let Some([ports]) = bytes.words(quote + header(source.is_v4())) else { return false };
    let ports = u32::from_be(ports);
    put(&mut key.source, &destination);
    put(&mut key.destination, &source);
    key.source_port = ports as u16;
    key.destination_port = (ports >> 16) as u16;
    key.protocol = protocol.into();
    true
}

/// The protocol of the quoted packet, if it is TCP or UDP that follows a plain header.
#[inline(always)]
fn transport_of(bytes: &Skb<'_>, quote: u32, is_v4: bool) -> Option<u8> {
    let protocol = if is_v4 {
        let [first, second, third] = bytes.words(quote)?;
        let (first, second, third) = (u32::from_be(first), u32::from_be(second), u32::from_be(third));
        // A later fragment has no ports.
        if (first >> 24) as u8 != PLAIN_V4 || second & 0x1fff != 0 {
            return None;
        }
        (third >> 16) as u8
    } else {
        bytes.load::<1>(quote + 6)?[0]
    };
    matches!(protocol, protocol::TCP | protocol::UDP).then_some(protocol)
}

#[inline(always)]
fn header(is_v4: bool) -> u32 {
    if is_v4 { 20 } else { 40 }
}

/// Gives the error at hand, whose IP header is at `offset`, the addresses that are wanted, and the
/// packet that it quotes those that its sender knows; 0 if that failed, and then the error must be
/// dropped. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rewrite_quoted(skb: *mut __sk_buff, offset: u32) -> u32 {
    let (Some(packet), Some(balance)) = (PACKET.get_ptr_mut(0), balance()) else { return 0 };
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let packet = unsafe { &mut *packet };
    let is_v4 = packet.source.is_v4();
    let message = offset + packet.header_length;
    let quote = message + ICMP_HEADER;
    let checksum = message + CHECKSUM_ICMP;
    let Balance { key, inner, wanted, .. } = balance;
    let ports = quote + header(is_v4);
    // The key is the direction of the answers: the quoted packet turned round.
    let done = if is_v4 {
        address_v4(skb, quote, 12, &key.destination, &inner.source)
            && address_v4(skb, quote, 16, &key.source, &inner.destination)
            && address_v4(skb, offset, 12, &packet.source, &wanted.source)
            && address_v4(skb, offset, 16, &packet.destination, &wanted.destination)
    } else {
        address_v6(skb, quote + 8, checksum, false, &key.destination, &inner.source)
            && address_v6(skb, quote + 24, checksum, false, &key.source, &inner.destination)
            && address_v6(skb, offset + 8, checksum, true, &packet.source, &wanted.source)
            && address_v6(skb, offset + 24, checksum, true, &packet.destination, &wanted.destination)
    };
    if !done
        || !port(skb, ports, checksum, key.destination_port, inner.source_port)
        || !port(skb, ports + 2, checksum, key.source_port, inner.destination_port)
    {
        return 0;
    }
    put(&mut packet.source, &wanted.source);
    put(&mut packet.destination, &wanted.destination);
    1
}

/// An address in an IPv4 header at `header`. What the header's checksum gains makes up for it in
/// the checksum of a message that quotes the header.
#[inline(always)]
fn address_v4(skb: *mut __sk_buff, header: u32, place: u32, from: &Address, to: &Address) -> bool {
    let (from, to) = (from.words()[3], to.words()[3]);
    // SAFETY: plain helper calls; the bytes to store are on the stack.
    from == to
        || unsafe {
            bpf_l3_csum_replace(skb, header + CHECKSUM_V4, from.into(), to.into(), 4) == 0
                && bpf_skb_store_bytes(skb, header + place, (&raw const to).cast(), 4, 0) == 0
        }
}

/// An address of the error (`outer`), which its pseudo-header has, or of the packet that it quotes.
#[inline(always)]
fn address_v6(skb: *mut __sk_buff, place: u32, checksum: u32, outer: bool, from: &Address, to: &Address) -> bool {
    if from == to {
        return true;
    }
    let (mut before, mut after) = (from.words(), to.words());
    // For the sum over the stored bytes see `crate::rewrite`.
    let (pseudo, recompute) = if outer { (BPF_F_PSEUDO_HDR.into(), BPF_F_RECOMPUTE_CSUM.into()) } else { (0, 0) };
    // SAFETY: plain helper calls; what they read is on the stack and 16 bytes long.
    unsafe {
        let difference = bpf_csum_diff(before.as_mut_ptr(), 16, after.as_mut_ptr(), 16, 0);
        bpf_l4_csum_replace(skb, checksum, 0, difference as u64, pseudo) == 0
            && bpf_skb_store_bytes(skb, place, after.as_ptr().cast(), 16, recompute) == 0
    }
}

/// A port of the quoted packet. Its own checksum is left: a quote is often cut off before its end.
#[inline(always)]
fn port(skb: *mut __sk_buff, place: u32, checksum: u32, from: u16, to: u16) -> bool {
    let (from, to) = (from.to_be(), to.to_be());
    // SAFETY: as above.
    from == to
        || unsafe {
            bpf_l4_csum_replace(skb, checksum, from.into(), to.into(), 2) == 0
                && bpf_skb_store_bytes(skb, place, (&raw const to).cast(), 2, 0) == 0
        }
}
