//! A plain pod's way to a pod of another node: by the host's routes and neighbours, without the host's stack and what hangs
//! in it (netfilter, connection tracking).
//!
//! The packet leaves by an uplink, and so by [`crate::wire::to_wire`], which judges it once more.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup, bpf_redir_neigh as NextHop,
    },
    helpers::{bpf_fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use hauberk_abi::{
    address::Address,
    layout::{Settings, mark, token},
    packet::{Bytes, Packet},
};

use crate::carry::{pass, redirected, segment, set_marks, skb};
use crate::lookup::{Skb, is_uplink};
use crate::maps::LOOKUP;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ETHERNET: usize = 14;

/// By which device and to which neighbour.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Way {
    uplink: u32,
    next_hop: NextHop,
}

/// A question to the routes and its answer. In a map because clearing it on the stack costs more than asking: what the
/// kernel does not read may be left from the last question.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lookup {
    question: FibLookup,
    way: Way,
}

/// Whether a packet may go past the stack: not if it must not live any longer, if its header has options, or if it would not
/// fit the tunnel. Pods' routes say the same to all, so that a namespace can be opted in at any time.
#[inline(always)]
pub fn may_forward(context: &TcContext, settings: &Settings, packet: &Packet) -> bool {
    packet.hop_limit > 1 && !packet.detour && packet.fits(settings.tunnel_mtu, segment(context))
}

/// The way by which the host would forward the packet, whatever its size; none if that is not by an uplink.
#[inline(always)]
pub fn find(context: &TcContext, interface: u32, settings: &Settings, packet: &Packet) -> Option<&'static Way> {
    let lookup = LOOKUP.get_ptr_mut(0)?;
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let lookup = unsafe { &mut *lookup };
    if ask(context, interface, settings, packet, lookup) && is_uplink(lookup.way.uplink) {
        Some(&lookup.way)
    } else {
        None
    }
}

/// Sends the packet on; up the stack if it cannot be written to.
#[inline(always)]
pub fn forward(context: &TcContext, settings: &Settings, packet: &Packet, way: &Way) -> i32 {
    if age(context, packet).is_err() {
        return pass();
    }
    // As if it had gone through the stack: the guard of packet sockets at the uplink lets it by.
    set_marks(context, settings, mark::STACK, token::FROM_POD);
    let size = size_of::<NextHop>() as i32;
    // SAFETY: the next hop is part of a map's value and of that size; the kernel only reads it.
    redirected(unsafe { bpf_redirect_neigh(way.uplink, (&raw const way.next_hop).cast_mut(), size, 0) })
}

/// Asks for the device and the neighbour by which the host would forward the packet.
#[inline(always)]
fn ask(context: &TcContext, interface: u32, settings: &Settings, packet: &Packet, lookup: &mut Lookup) -> bool {
    let question = &mut lookup.question;
    question.family = if packet.source.is_v4() { AF_INET } else { AF_INET6 };
    question.l4_protocol = packet.protocol;
    // For routes over several uplinks: one flow, one way.
    question.sport = packet.source_port.to_be();
    question.dport = packet.destination_port.to_be();
    // Not the packet's own length: others of its flow will go the same way.
    question.__bindgen_anon_1.tot_len = settings.tunnel_mtu as u16;
    question.ifindex = interface;
    question.__bindgen_anon_2.flowinfo = 0;
    question.__bindgen_anon_3.ipv6_src = words(&packet.source);
    question.__bindgen_anon_4.ipv6_dst = words(&packet.destination);
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the parameters are a map's value of that size.
    let result = unsafe { bpf_fib_lookup(skb(context).cast(), &raw mut *question, size, 0) };
    lookup.way.uplink = question.ifindex;
    lookup.way.next_hop.nh_family = u32::from(question.family);
    // SAFETY: the union holds words only.
    lookup.way.next_hop.__bindgen_anon_1.ipv6_nh = unsafe { question.__bindgen_anon_4.ipv6_dst };
    // Whether the neighbour is known yet does not matter: the redirection asks for it.
    result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// The address as routes have it: an IPv4 one in the first of the words.
#[inline(always)]
fn words(address: &Address) -> [u32; 4] {
    let words = address.words();
    if address.is_v4() { [words[3], 0, 0, 0] } else { words }
}

/// One hop less to live, as every router takes it (RFC 1812 section 5.3.1, RFC 8200 section 3).
#[inline(always)]
fn age(context: &TcContext, packet: &Packet) -> Result<(), i64> {
    if !packet.source.is_v4() {
        return context.store(ETHERNET + 7, &(packet.hop_limit - 1), 0);
    }
    // Time to live, protocol, checksum: one word. What the first loses the last gains (RFC 1624).
    let Some([word]) = Skb(context).near(ETHERNET as u32 + 8) else { return Err(0) };
    let word = u32::from_be(word);
    let sum = (word & 0xffff) + 0x0100;
    let word = ((word & 0xffff_0000) - 0x0100_0000) | (((sum & 0xffff) + (sum >> 16)) & 0xffff);
    context.store(ETHERNET + 8, &word.to_be(), 0)
}
