//! Packets inside packets between nodes. A route can encapsulate packets (segment routing,
//! RFC 8986; MPLS, RFC 3032) without a device of its own that would have a guard. So the last guard
//! looks one level deep.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    address::Address,
    judge::{self, Need},
    layout::Settings,
    packet::{Bytes, Packet},
};

use crate::lookup::{Skb, at_hand, identity, place, settings};

/// IP protocol numbers (IANA) of encapsulations that carry an IP packet.
const IPV4: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;
/// EtherTypes (IANA).
const MPLS: u16 = 0x8847;
const MPLS_MULTICAST: u16 = 0x8848;
const BRIDGED: u16 = 0x6558;
const ETHERNET: u32 = 14;
/// Largest number of MPLS labels that are followed. A packet behind more labels counts as
/// protected.
const LABELS: u32 = 4;

/// Whether this packet may carry another IP packet.
#[inline(always)]
pub fn may_hold_another(packet: &Packet) -> bool {
    matches!(packet.protocol, IPV4 | IPV6 | GRE)
}

/// Offset of the packet's IP header. All bytes of the frame beyond the packet's own length are the
/// link header, because a frame is padded only in its driver.
#[inline(always)]
pub fn start(bytes: &Skb<'_>, packet: &Packet) -> u32 {
    bytes.length().saturating_sub(packet.length)
}

/// 1 if the packet at hand carries a packet that must be encrypted. Verified by itself: see
/// [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hides_protected(skb: *mut __sk_buff) -> u32 {
    let Some((settings, packet)) = at_hand() else { return 1 };
    let bytes = Skb(&TcContext::new(skb));
    let mut offset = start(&bytes, packet) + packet.header_length;
    if packet.protocol == GRE {
        // RFC 2784, RFC 2890: flags that say whether checksum, key and sequence number are there,
        // then the inner protocol.
        let Some([head]) = bytes.words(offset) else { return 0 };
        let head = u32::from_be(head);
        offset += 4 * (1 + (head >> 31 & 1) + (head >> 29 & 1) + (head >> 28 & 1));
        if head as u16 == BRIDGED {
            offset += ETHERNET;
        }
    }
    u32::from(is_protected(&bytes, settings, offset))
}

/// 1 if a frame that is not IP has MPLS labels and carries a packet that must be encrypted.
/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn labels_hide_protected(skb: *mut __sk_buff) -> u32 {
    let Some(settings) = settings() else { return 1 };
    let bytes = Skb(&TcContext::new(skb));
    let Some([ethertype]) = bytes.words(ETHERNET - 4) else { return 0 };
    if !matches!(u32::from_be(ethertype) as u16, MPLS | MPLS_MULTICAST) {
        return 0;
    }
    let mut offset = ETHERNET;
    while offset < ETHERNET + 4 * LABELS {
        let Some([label]) = bytes.words(offset) else { return 0 };
        offset += 4;
        // The bottom of the label stack.
        if u32::from_be(label) & 0x100 != 0 {
            return u32::from(is_protected(&bytes, settings, offset));
        }
    }
    1
}

#[inline(always)]
fn is_protected(bytes: &Skb<'_>, settings: &Settings, offset: u32) -> bool {
    match ends_at(bytes, offset) {
        Some((source, destination)) => are_protected(settings, &source, &destination),
        None => false,
    }
}

/// The source and the destination of the IP packet at `offset`.
#[inline(always)]
pub fn ends_at(bytes: &Skb<'_>, offset: u32) -> Option<(Address, Address)> {
    let [first] = bytes.load::<1>(offset)?;
    match first >> 4 {
        4 => {
            let [source, destination] = bytes.words(offset + 12)?;
            Some((Address::v4_word(source), Address::v4_word(destination)))
        }
        6 => {
            let [s0, s1, s2, s3, d0, d1, d2, d3] = bytes.words(offset + 8)?;
            Some((Address::v6_words([s0, s1, s2, s3]), Address::v6_words([d0, d1, d2, d3])))
        }
        _ => None,
    }
}

/// Whether traffic between these two addresses must be encrypted.
#[inline(always)]
pub fn are_protected(settings: &Settings, source: &Address, destination: &Address) -> bool {
    matches!(judge::need(&identity(source), &identity(destination), &place(settings, 0)), Need::Encrypt(_))
}
