//! What hauberk's eBPF programs and its agent share: map layouts, packet parsing and verdicts.
//!
//! Everything here is `no_std` and free of kernel calls, so that the code that judges packets in
//! the kernel is also tested and fuzzed on the host. The programs in `ebpf/programs` only look
//! things up, call [`judge`] and carry out its verdict.
//!
//! | module | holds |
//! |---|---|
//! | [`address`] | one key type for IPv4 and IPv6 addresses and prefixes |
//! | [`identity`] | who has an address (pod, node, unknown pod, world) and its protection |
//! | [`packet`] | the parser: Ethernet, VLAN, IPv4, IPv6, extension headers, ports |
//! | [`neighbour`] | what ARP and neighbour discovery say of their sender |
//! | [`judge`] | the rules: encrypt, deliver, pass or drop, and why |
//! | [`reason`] | drop reasons, encryption values and their reasons |
//! | [`flow`] | flow keys, flow entries and the events sent to the agent |
//! | [`too_big`] | the answer to a packet that is too big for the tunnel |
//! | [`framing`] | what a device's packets begin with, and which program reads them there |
//! | [`layout`] | the remaining map values: settings, attachments, peers, marks |
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

pub mod address;
pub mod connection;
pub mod flow;
pub mod framing;
pub mod identity;
pub mod judge;
pub mod layout;
pub mod neighbour;
pub mod packet;
pub mod reason;
pub mod service;
pub mod too_big;
#[cfg(feature = "user")]
#[allow(unsafe_code, reason = "see the module")]
mod user;
