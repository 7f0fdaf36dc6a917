//! Where a packet goes after the address in its header. IPv4's source routes (RFC 791) and IPv6's
//! routing headers (RFC 8200) list more addresses. The last guard looks at each of them.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    address::Address,
    identity::Protection,
    packet::{Bytes, EXTENSION_HEADERS},
};

use crate::encapsulated::{are_protected, start};
use crate::lookup::{Skb, at_hand, identity};

/// Largest number of addresses that are checked. A packet that lists more counts as protected.
const ADDRESSES: u32 = 16;
/// IPv4 options (IANA).
const END: u8 = 0;
const NOTHING: u8 = 1;
const LOOSE: u8 = 131;
const STRICT: u8 = 137;
/// Largest number of option bytes in an IPv4 header.
const OPTIONS: u32 = 40;
/// IPv6's routing header, and those of its types that list whole addresses: RFC 2460, RFC 6275,
/// RFC 8754.
const ROUTING: u8 = 43;
const SOURCE_ROUTE: u8 = 0;
const HOME_ADDRESS: u8 = 2;
const SEGMENTS: u8 = 4;

/// The result of one step through the headers. With this bit: a list of addresses was found, packed
/// into the same number as offset << 8 | count. Without it: where to go on.
const FOUND: u32 = 1 << 31;
/// Instead of a list: there is a list that cannot be read.
const DOUBT: u32 = u32::MAX;

/// 1 if the packet at hand is routed to an address for which it must be encrypted, or to one that
/// cannot be read. Verified by itself, and each step as well: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leads_to_protected(skb: *mut __sk_buff) -> u32 {
    let Some((_, packet)) = at_hand() else { return 1 };
    let is_v4 = packet.source.is_v4();
    let list = if is_v4 { source_route(skb) } else { routing_header(skb) };
    if list == DOUBT {
        return 1;
    }
    let (mut offset, count) = ((list & !FOUND) >> 8, list & 0xff);
    let mut seen = 0;
    while seen < ADDRESSES {
        if seen == count {
            return 0;
        }
        if is_address_protected(skb, offset) != 0 {
            return 1;
        }
        offset += if is_v4 { 4 } else { 16 };
        seen += 1;
    }
    1
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_address_protected(skb: *mut __sk_buff, offset: u32) -> u32 {
    let Some((settings, packet)) = at_hand() else { return 1 };
    let bytes = Skb(&TcContext::new(skb));
    let address = if packet.source.is_v4() {
        bytes.words(offset).map(|[word]| Address::v4_word(word))
    } else {
        bytes.words(offset).map(Address::v6_words)
    };
    let Some(address) = address else { return 1 };
    let protected = identity(&address).protection() == Protection::Enabled;
    u32::from(protected || are_protected(settings, &packet.source, &address))
}

/// The addresses of an IPv4 source route that is not completed; 0 if there is none.
#[inline(always)]
fn source_route(skb: *mut __sk_buff) -> u32 {
    let Some((_, packet)) = at_hand() else { return DOUBT };
    let bytes = Skb(&TcContext::new(skb));
    let header = start(&bytes, packet);
    let Some([first]) = bytes.load::<1>(header) else { return DOUBT };
    let end = header + u32::from(first & 0x0f) * 4;
    let mut at = header + 20;
    let mut looks = 0;
    while looks < OPTIONS {
        let step = read_option(skb, at, end);
        if step == 0 || step & FOUND != 0 {
            return step;
        }
        at = step;
        looks += 1;
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_option(skb: *mut __sk_buff, at: u32, end: u32) -> u32 {
    if at + 3 > end {
        return 0;
    }
    let Some([kind, length, pointer]) = Skb(&TcContext::new(skb)).load::<3>(at) else { return DOUBT };
    match kind {
        END => 0,
        NOTHING => at + 1,
        LOOSE | STRICT if pointer <= length => FOUND | (at + 3) << 8 | u32::from(length.saturating_sub(3)) / 4,
        _ => at + u32::from(length).max(2),
    }
}

/// The addresses of an IPv6 routing header that is not completed.
#[inline(always)]
fn routing_header(skb: *mut __sk_buff) -> u32 {
    let Some((_, packet)) = at_hand() else { return DOUBT };
    let bytes = Skb(&TcContext::new(skb));
    let header = start(&bytes, packet);
    let Some([kind]) = bytes.load::<1>(header + 6) else { return DOUBT };
    let (mut at, mut kind) = (header + 40, u32::from(kind));
    let mut followed = 0;
    while followed < EXTENSION_HEADERS {
        let step = read_routing(skb, at, kind);
        if step & FOUND != 0 {
            return step;
        }
        // Offset and protocol number of the next header.
        (at, kind) = (step >> 8, step & 0xff);
        followed += 1;
    }
    DOUBT
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_routing(skb: *mut __sk_buff, at: u32, kind: u32) -> u32 {
    let Some([next, units, what, left]) = Skb(&TcContext::new(skb)).load::<4>(at) else { return DOUBT };
    let units = u32::from(units);
    let length = match kind as u8 {
        ROUTING if left != 0 => {
            return match what {
                SOURCE_ROUTE | HOME_ADDRESS | SEGMENTS => FOUND | (at + 8) << 8 | units / 2,
                _ => DOUBT,
            };
        }
        44 => 8,
        51 => (units + 2) * 4,
        _ => (units + 1) * 8,
    };
    (at + length) << 8 | u32::from(next)
}
