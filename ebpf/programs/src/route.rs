//! Forwards a plain pod's packet to a pod of another node by the host's routes and neighbours,
//! without the host's stack and its hooks (netfilter, connection tracking).
//!
//! The packet leaves by an uplink, and so by [`crate::wire::to_wire`], which judges it once more.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as FibLookup, bpf_redir_neigh as NextHop,
    },
    helpers::{bpf_fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use hauberk_abi::{
    address::Address,
    layout::{Settings, mark, token},
    packet::{Bytes, Packet},
    reason::DropReason,
};

use crate::carry::{add_link_header, drop, interface, pass, redirected, segment, set_marks, skb};
use crate::lookup::{Skb, at_hand, is_uplink};
use crate::maps::LOOKUP;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ETHERNET: usize = 14;

/// The outgoing device and the next hop.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Way {
    uplink: u32,
    next_hop: NextHop,
}

/// A route look-up and its result. It is in a map because clearing it on the stack costs more than
/// the look-up. Fields that the kernel does not read may be left from an earlier look-up.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lookup {
    question: FibLookup,
    way: Way,
}

/// Whether a packet may bypass the stack. It may not if its hop limit ends here, if its header has
/// options, or if it would not fit the tunnel. Pods' routes have the same MTU for all destinations,
/// so that a namespace can be opted in at any time.
#[inline(always)]
pub fn may_forward(context: &TcContext, settings: &Settings, packet: &Packet) -> bool {
    packet.hop_limit > 1 && !packet.detour && packet.fits(settings.tunnel_mtu, segment(context))
}

/// The way by which the host would forward the packet, whatever its size; none if it is not by an
/// uplink.
#[inline(always)]
pub fn find(context: &TcContext, interface: u32, settings: &Settings, packet: &Packet) -> Option<&'static Way> {
    let lookup = LOOKUP.get_ptr_mut(0)?;
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let lookup = unsafe { &mut *lookup };
    // Not the packet's own length: other packets of its flow will go the same way.
    let result = ask(context, interface, settings.tunnel_mtu as u16, packet, lookup);
    if is_found(result) && is_uplink(lookup.way.uplink) { Some(&lookup.way) } else { None }
}

/// Forwards the packet; passes it up the stack if it cannot be written.
#[inline(always)]
pub fn forward(context: &TcContext, settings: &Settings, packet: &Packet, way: &Way) -> i32 {
    if age(context, packet).is_err() {
        return pass();
    }
    // Marked as if it had gone through the stack, so that the guard against packet sockets at the
    // uplink lets it pass.
    set_marks(context, settings, mark::STACK, token::FROM_POD);
    leave(way)
}

/// Sends the packet at hand, which has been judged, to where the host would forward it, by
/// whatever device. `link`: bytes before its IP header, 0 if it has no Ethernet header. The packet
/// is dropped if the host has no route, if the device takes no packet of its size, or if its hop
/// limit ends here.
#[inline(always)]
pub fn send(context: &TcContext, settings: &Settings, marks: u32, origin: u32, link: u32) -> i32 {
    set_marks(context, settings, mark::STACK | marks, origin);
    send_at_hand(skb(context), link)
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send_at_hand(skb: *mut __sk_buff, link: u32) -> i32 {
    let context = &TcContext::new(skb);
    let Some((_, packet)) = at_hand() else { return drop(DropReason::NotReady) };
    let Some(lookup) = LOOKUP.get_ptr_mut(0) else { return drop(DropReason::NotReady) };
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let lookup = unsafe { &mut *lookup };
    // Without a length the kernel compares the packet's own with the device's.
    let result = ask(context, interface(context), 0, packet, lookup);
    if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        return drop(DropReason::TooBig);
    }
    if !is_found(result) {
        return drop(DropReason::NoWay);
    }
    // The kernel redirects to neighbours only what has a link header; it replaces the header.
    if link == 0 && !add_link_header(context, packet, &[[0; 6]; 2]) {
        return drop(DropReason::RedirectFailed);
    }
    if packet.hop_limit <= 1 || age(context, packet).is_err() {
        return drop(DropReason::NoWay);
    }
    leave(&lookup.way)
}

#[inline(always)]
fn leave(way: &Way) -> i32 {
    let size = size_of::<NextHop>() as i32;
    // SAFETY: the next hop is part of a map value and has that size; the kernel only reads it.
    redirected(unsafe { bpf_redirect_neigh(way.uplink, (&raw const way.next_hop).cast_mut(), size, 0) })
}

/// Asks the kernel for the device and neighbour by which the host would forward the packet.
#[inline(always)]
fn ask(context: &TcContext, interface: u32, length: u16, packet: &Packet, lookup: &mut Lookup) -> i64 {
    let question = &mut lookup.question;
    question.family = if packet.source.is_v4() { AF_INET } else { AF_INET6 };
    question.l4_protocol = packet.protocol;
    // Ports matter for routes over several uplinks: all packets of a flow take one way.
    question.sport = packet.source_port.to_be();
    question.dport = packet.destination_port.to_be();
    question.__bindgen_anon_1.tot_len = length;
    question.ifindex = interface;
    question.__bindgen_anon_2.flowinfo = 0;
    question.__bindgen_anon_3.ipv6_src = words(&packet.source);
    question.__bindgen_anon_4.ipv6_dst = words(&packet.destination);
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the parameters are a map value of that size.
    let result = unsafe { bpf_fib_lookup(skb(context).cast(), &raw mut *question, size, 0) };
    lookup.way.uplink = question.ifindex;
    lookup.way.next_hop.nh_family = u32::from(question.family);
    // SAFETY: every member of the union consists of words.
    lookup.way.next_hop.__bindgen_anon_1.ipv6_nh = unsafe { question.__bindgen_anon_4.ipv6_dst };
    result
}

/// Whether there is a way. The neighbour need not be resolved yet: the redirection resolves it.
#[inline(always)]
fn is_found(result: i64) -> bool {
    result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// The address as route look-ups take it: an IPv4 address is in the first word.
#[inline(always)]
fn words(address: &Address) -> [u32; 4] {
    let words = address.words();
    if address.is_v4() { [words[3], 0, 0, 0] } else { words }
}

/// Decrements the hop limit, as every router does (RFC 1812 section 5.3.1, RFC 8200 section 3).
#[inline(always)]
fn age(context: &TcContext, packet: &Packet) -> Result<(), i64> {
    if !packet.source.is_v4() {
        return context.store(ETHERNET + 7, &(packet.hop_limit - 1), 0);
    }
    // Time to live, protocol, checksum: one word. The checksum gains what the time to live loses
    // (RFC 1624).
    let Some([word]) = Skb(context).near(ETHERNET as u32 + 8) else { return Err(0) };
    let word = u32::from_be(word);
    let sum = (word & 0xffff) + 0x0100;
    let word = ((word & 0xffff_0000) - 0x0100_0000) | (((sum & 0xffff) + (sum >> 16)) & 0xffff);
    context.store(ETHERNET + 8, &word.to_be(), 0)
}
