//! Reading a packet. The parser's result is stored in a map, where the verifier does not track
//! values. In the parser the verifier has seen every value of every fact; it would walk the rules
//! again for each combination, hundreds of thousands of instructions in all.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::packet::{
    Bytes, EXTENSION_HEADERS, Link, Malformed, Packet, parse_extension, parse_header, parse_link, parse_transport,
};

use crate::carry::skb;
use crate::lookup::Skb;
use crate::maps::PACKET;

/// What a frame or packet is.
pub enum Read {
    /// IPv4 or IPv6: the packet at hand.
    Ip(&'static Packet),
    /// ARP, which begins at this offset.
    Arp(u32),
    /// Anything else.
    Other,
    /// Truncated or contradictory.
    Malformed,
}

/// Reads a frame, or a packet that begins with its IP header.
#[inline(always)]
pub fn read<const ETHERNET: bool>(context: &TcContext) -> Read {
    let bytes = &Skb(context);
    let link = if ETHERNET { parse_link(bytes) } else { no_link(bytes) };
    let (offset, version, tagged) = match link {
        Ok(Link::Ip { offset, version, tagged }) => (offset, version, tagged),
        Ok(Link::Arp(offset)) => return Read::Arp(offset),
        Ok(Link::Other) => return Read::Other,
        Err(Malformed) => return Read::Malformed,
    };
    if read_packet(skb(context), offset, version, u32::from(tagged)) == 0 {
        return Read::Malformed;
    }
    match PACKET.get(0) {
        Some(packet) => Read::Ip(packet),
        None => Read::Malformed,
    }
}

#[inline(always)]
fn no_link(bytes: &Skb<'_>) -> Result<Link, Malformed> {
    match bytes.load::<1>(0) {
        Some([first]) if matches!(first >> 4, 4 | 6) => {
            Ok(Link::Ip { offset: 0, version: u32::from(first >> 4), tagged: false })
        }
        Some(_) => Ok(Link::Other),
        None => Err(Malformed),
    }
}

/// Stores the packet whose header is at `offset`; 0 if it is malformed. Verified by itself: see
/// [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_packet(skb: *mut __sk_buff, offset: u32, version: u32, tagged: u32) -> u32 {
    let Some(slot) = PACKET.get_ptr_mut(0) else { return 0 };
    let Ok(mut packet) = parse_header(&Skb(&TcContext::new(skb)), offset, version) else { return 0 };
    packet.tagged = tagged != 0;
    let extended = packet.is_extended();
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    unsafe { *slot = packet };
    if extended && read_extensions(skb, offset) == 0 {
        return 0;
    }
    read_transport(skb, offset)
}

/// Reads the extension headers of the packet at hand, whose header is at `offset`; 0 if they are
/// malformed. Verified by itself, and each step as well: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_extensions(skb: *mut __sk_buff, offset: u32) -> u32 {
    let mut followed = 0;
    while followed < EXTENSION_HEADERS {
        match read_extension(skb, offset) {
            ONE_MORE => followed += 1,
            other => return other,
        }
    }
    0
}

const ONE_MORE: u32 = 2;

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_extension(skb: *mut __sk_buff, offset: u32) -> u32 {
    let Some(slot) = PACKET.get_ptr_mut(0) else { return 0 };
    // SAFETY: as above.
    let packet = unsafe { &mut *slot };
    match parse_extension(&Skb(&TcContext::new(skb)), offset, packet) {
        Ok(()) if packet.is_extended() => ONE_MORE,
        Ok(()) => 1,
        Err(Malformed) => 0,
    }
}

/// Reads the transport header of the packet at hand, whose header is at `offset`. Verified by
/// itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_transport(skb: *mut __sk_buff, offset: u32) -> u32 {
    let Some(slot) = PACKET.get_ptr_mut(0) else { return 0 };
    // SAFETY: as above.
    parse_transport(&Skb(&TcContext::new(skb)), offset, unsafe { &mut *slot });
    1
}
