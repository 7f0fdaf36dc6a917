//! hauberk's eBPF programs. Those at tc judge packets: each looks up the identities of a packet's
//! two ends, asks [`hauberk_abi::judge`], records the verdict and carries it out.
//!
//! | program | where |
//! |---|---|
//! | `from_pod` | ingress of the host side of a pod's veth |
//! | `to_pod` | egress of the same |
//! | `from_tunnel` | ingress of the tunnel device |
//! | `from_wire` | ingress of the uplinks |
//! | `to_wire` | egress of the uplinks: the last guard |
//! | `from_wire_ip`, `to_wire_ip` | the same on devices whose packets have no Ethernet header |
//!
//! Those at a cgroup lead connections to services to a backend: `connect4`, `send4`, `receive4`,
//! `peer_name4`, and the same for IPv6. See [`socket`].
//!
//! # Functions that are verified by themselves
//!
//! The verifier walks every path through a program. A function that is `extern "C"` and `no_mangle`
//! is a *global* function for it (Linux 5.6, `btf_func_linkage`): it is walked once, for arguments
//! of any value, and its result may be any number. So the costs of functions add up instead of
//! multiplying: tens of thousands of instructions instead of hundreds of thousands. Linux before
//! 6.2 needs that most: in a program with functions it takes two states as equal only if every
//! number in them is equal.
//!
//! Every function that is not inlined is global. Linux before 6.4 prunes a path inside a static
//! function without marking the caller's numbers that must be equal for that (commit fde2a3882bd0
//! marks them). It then removes branches of the caller as dead code: once it removed a refusal.
//!
//! Such functions take the context and numbers. All other data is in maps: the packet at hand in
//! `PACKET`, its flow in `SCRATCH`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod answer;
mod balance;
mod carry;
mod connection;
mod detour;
mod encapsulated;
mod lookup;
mod maps;
mod neighbour;
mod pod;
mod quoted;
mod read;
mod recent;
mod record;
mod refusal;
mod rewrite;
mod route;
mod socket;
mod too_big;
mod tunnel;
mod wire;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};

#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    pod::from_pod(&context)
}

#[classifier]
pub fn to_pod(context: TcContext) -> i32 {
    pod::to_pod(&context)
}

#[classifier]
pub fn from_tunnel(context: TcContext) -> i32 {
    tunnel::from_tunnel(&context)
}

#[classifier]
pub fn from_wire(context: TcContext) -> i32 {
    wire::from_wire(&context)
}

#[classifier]
pub fn to_wire(context: TcContext) -> i32 {
    wire::to_wire(&context)
}

#[classifier]
pub fn from_wire_ip(context: TcContext) -> i32 {
    wire::from_wire_ip(&context)
}

#[classifier]
pub fn to_wire_ip(context: TcContext) -> i32 {
    wire::to_wire_ip(&context)
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    socket::connect::<false>(&context)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    socket::connect::<true>(&context)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn send4(context: SockAddrContext) -> i32 {
    socket::send::<false>(&context)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn send6(context: SockAddrContext) -> i32 {
    socket::send::<true>(&context)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn receive4(context: SockAddrContext) -> i32 {
    socket::receive::<false>(&context)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn receive6(context: SockAddrContext) -> i32 {
    socket::receive::<true>(&context)
}

#[cgroup_sock_addr(getpeername4)]
pub fn peer_name4(context: SockAddrContext) -> i32 {
    socket::peer_name::<false>(&context)
}

#[cgroup_sock_addr(getpeername6)]
pub fn peer_name6(context: SockAddrContext) -> i32 {
    socket::peer_name::<true>(&context)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// The kernel offers its GPL-only helpers to programs that declare a GPL-compatible license.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
