//! The agent's unsafe blocks, all of them: calls for which no crate has a safe form.

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{LinkAddr, SockaddrLike as _};
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime, which then waits until it can be read.
///
/// # Errors
/// What the kernel says.
pub fn readable<T: OwnsDescriptor>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `owner` owns its descriptor and lives as long as the registration.
    unsafe { AsyncFd::register(owner) }.map_err(io::Error::from)
}

/// A type whose descriptor stays open, and the same, for as long as a value of the type lives.
pub trait OwnsDescriptor: AsRawFd {}

/// The address of an interface for a packet socket (packet(7)).
///
/// # Errors
/// The address cannot be expressed.
pub fn packet_address(interface: u32, protocol: u16, hardware: [u8; 6]) -> io::Result<LinkAddr> {
    let [a, b, c, d, e, f] = hardware;
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
    };
    // SAFETY: `raw` is an initialized `sockaddr_ll` and its length is passed. The call copies it.
    let address =
        unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of::<libc::sockaddr_ll>() as libc::socklen_t)) };
    address.ok_or_else(|| io::Error::other("the interface's address cannot be expressed"))
}
