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
    layout::{Settings, mark},
    packet::Packet,
};

use crate::carry::{interface, redirected, segment, set_marks, skb};
use crate::lookup::is_uplink;
use crate::maps::LOOKUP;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ETHERNET: usize = 14;

/// A question to the routes and its answer. In a map because clearing it on the stack costs more than asking: what the
/// kernel does not read may be left from the last question.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lookup {
    question: FibLookup,
    next_hop: NextHop,
}

/// Sends the packet on; none if only the stack can: there is no such route, the packet does not fit it, it must not live any
/// longer, or its header has options. What would not fit the tunnel does not fit here: pods' routes say the same to all,
/// so that a namespace can be opted in at any time.
#[inline(always)]
pub fn forward(context: &TcContext, settings: &Settings, packet: &Packet) -> Option<i32> {
    if packet.hop_limit <= 1 || packet.detour || !packet.fits(settings.tunnel_mtu, segment(context)) {
        return None;
    }
    let lookup = LOOKUP.get_ptr_mut(0)?;
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    let lookup = unsafe { &mut *lookup };
    if !ask(context, packet, lookup) || !is_uplink(lookup.question.ifindex) || age(context, packet).is_err() {
        return None;
    }
    // As if it had gone through the stack: the guard of packet sockets at the uplink lets it by.
    set_marks(context, settings, mark::STACK);
    let size = size_of::<NextHop>() as i32;
    // SAFETY: the next hop is a map's value of that size.
    Some(redirected(unsafe { bpf_redirect_neigh(lookup.question.ifindex, &raw mut lookup.next_hop, size, 0) }))
}

/// Asks for the device and the neighbour by which the host would forward the packet.
#[inline(always)]
fn ask(context: &TcContext, packet: &Packet, lookup: &mut Lookup) -> bool {
    let Ok(length) = u16::try_from(packet.largest(segment(context))) else { return false };
    let question = &mut lookup.question;
    question.family = if packet.source.is_v4() { AF_INET } else { AF_INET6 };
    question.l4_protocol = packet.protocol;
    // For routes over several uplinks: one flow, one way.
    question.sport = packet.source_port.to_be();
    question.dport = packet.destination_port.to_be();
    question.__bindgen_anon_1.tot_len = length;
    question.ifindex = interface(context);
    question.__bindgen_anon_2.flowinfo = 0;
    question.__bindgen_anon_3.ipv6_src = words(&packet.source);
    question.__bindgen_anon_4.ipv6_dst = words(&packet.destination);
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the parameters are a map's value of that size.
    let result = unsafe { bpf_fib_lookup(skb(context).cast(), &raw mut *question, size, 0) };
    lookup.next_hop.nh_family = u32::from(question.family);
    // SAFETY: the union holds words only.
    lookup.next_hop.__bindgen_anon_1.ipv6_nh = unsafe { question.__bindgen_anon_4.ipv6_dst };
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
    let now = packet.hop_limit - 1;
    if !packet.source.is_v4() {
        return context.store(ETHERNET + 7, &now, 0);
    }
    // The checksum sums 16-bit words; this one holds the time to live and the protocol.
    let word = |hop_limit: u8| u64::from(u16::from_ne_bytes([hop_limit, 0]));
    context.l3_csum_replace(ETHERNET + 10, word(packet.hop_limit), word(now), 2)?;
    context.store(ETHERNET + 8, &now, 0)
}
