//! The unsafe blocks of this crate, all of them: what aya offers no safe form of.

use std::io;

use nix::libc;

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
