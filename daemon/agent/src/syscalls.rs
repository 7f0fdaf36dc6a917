//! The agent's unsafe blocks, all of them: calls for which no crate has a safe form.

use std::io;
use std::os::fd::AsRawFd;

use aya::programs::ProgramId;
use nix::libc;
use nix::sys::socket::{LinkAddr, SockaddrLike as _};
use tokio::io::unix::AsyncFd;

/// `BPF_PROG_QUERY` (linux/bpf.h).
const PROG_QUERY: libc::c_long = 16;
/// More programs than the kernel takes on one hook.
const MOST: usize = 128;

/// The member of `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The ids of the programs that are attached to an interface, in the order in which they run
/// (BPF_PROG_QUERY, bpf(2)).
///
/// # Errors
/// What the kernel says.
pub fn attached_programs(interface: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; MOST];
    let mut query = Query {
        target_ifindex: interface,
        attach_type,
        program_ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: `query` is a whole attribute of the size that is passed. The buffer that it points to
    // has room for `count` ids and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(query.count as usize);
    Ok(ids)
}

/// A program's id as aya has it.
pub fn program_id(id: u32) -> ProgramId {
    // SAFETY: an id is only looked up: if the program is gone, the kernel refuses the call that
    // names it.
    unsafe { ProgramId::new(id) }
}

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
