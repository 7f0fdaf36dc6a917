//! System calls that the standard library and `nix` do not offer safely: work between fork and
//! exec, packet sockets.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Mounts that make one machine's file system look like a node's: `/sys` of its network namespace,
/// the sandbox's bpffs, and the node's own `/run/wireguard`, where `wg` looks for sockets.
pub(crate) struct NodeMounts {
    /// The sandbox's bpffs.
    pub bpf: CString,
    /// The node's socket directory.
    pub wireguard: CString,
}

/// Runs `command` in `netns` and, if there is one, in `cgroup`. The kernel kills it when the thread
/// that spawned it ends: spawn long-lived programs from the test's main thread.
pub(crate) fn run_inside(
    command: &mut Command,
    netns: Arc<File>,
    cgroup: Option<Arc<File>>,
    mounts: Option<NodeMounts>,
) {
    let enter = move || -> io::Result<()> {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        if let Some(cgroup) = &cgroup {
            nix::unistd::write(&**cgroup, b"0")?;
        }
        setns(&netns, CloneFlags::CLONE_NEWNET)?;
        if let Some(mounts) = &mounts {
            let none: Option<&std::ffi::CStr> = None;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), MsFlags::empty(), none)?;
            mount(Some(mounts.bpf.as_c_str()), c"/sys/fs/bpf", none, MsFlags::MS_BIND, none)?;
            mount(Some(mounts.wireguard.as_c_str()), c"/run/wireguard", none, MsFlags::MS_BIND, none)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls with strings and descriptors
    // prepared before; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
}

/// Makes the kernel kill the command's process when the thread that spawns it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let die = || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(die) };
}

/// A raw packet socket on one interface, for every ethertype, both directions.
///
/// # Errors
/// A system call fails: usually the privilege is missing or the interface is gone.
pub(crate) fn packet_socket(interface: u32) -> io::Result<OwnedFd> {
    packet_socket_of(interface, libc::ETH_P_ALL as u16)
}

/// A raw packet socket on one interface, for one ethertype. Frames it sends are labelled with that
/// type, whatever their content.
///
/// # Errors
/// A system call fails.
pub(crate) fn packet_socket_of(interface: u32, protocol: u16) -> io::Result<OwnedFd> {
    let socket = unbound_packet_socket()?;
    bind_packet_socket(&socket, interface, protocol)?;
    Ok(socket)
}

fn unbound_packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` is a descriptor that was just opened and that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn bind_packet_socket(socket: &OwnedFd, interface: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = interface as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a sockaddr_ll of that length, alive during the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an integer socket option that `nix` has no name for.
///
/// # Errors
/// A system call fails.
pub(crate) fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer is to an i32 of that length, alive during the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A frame as the kernel handed it over.
pub(crate) struct Received<'a> {
    /// From the destination MAC address on.
    pub bytes: &'a [u8],
    /// Wall clock, nanoseconds since 1970.
    pub time_ns: u64,
    /// True if this side of the cable sent the frame, false if it received it.
    pub outgoing: bool,
    /// A VLAN tag that the kernel took out of the bytes.
    pub vlan: Option<u16>,
    /// The frame did not fit.
    pub truncated: bool,
}

/// The number of blocks in a ring, and the bytes of a block. The kernel hands over a block after a
/// short time even if it is almost empty, so a slow reader needs many blocks. One block must hold
/// the largest super-packet.
const BLOCKS: usize = 512;
const BLOCK: usize = 1 << 18;
/// A block that is not full is handed over after this many milliseconds.
const RETIRE: u32 = 4;

/// A packet socket with a ring (TPACKET_V3): the kernel copies each frame into the ring at the
/// moment it passes. Reading from the socket instead could show a changed frame, because a later
/// receiver may rewrite the same memory.
pub(crate) struct Ring {
    socket: OwnedFd,
    memory: *mut u8,
    next: usize,
    taken: u64,
    offered: u64,
    lost: u64,
}

// SAFETY: the memory belongs to this value alone, in whatever thread it is.
unsafe impl Send for Ring {}

impl Ring {
    /// Starts capturing on an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// A system call fails: usually the privilege is missing or there is too little memory.
    pub(crate) fn open(interface: u32) -> io::Result<Ring> {
        let socket = unbound_packet_socket()?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V3 as i32)?;
        // SAFETY: all zeroes is a valid tpacket_req3.
        let mut request: libc::tpacket_req3 = unsafe { mem::zeroed() };
        request.tp_block_size = BLOCK as u32;
        request.tp_block_nr = BLOCKS as u32;
        request.tp_frame_size = BLOCK as u32;
        request.tp_frame_nr = BLOCKS as u32;
        request.tp_retire_blk_tov = RETIRE;
        let length = size_of::<libc::tpacket_req3>() as libc::socklen_t;
        // SAFETY: the pointer is to a tpacket_req3 of that length, alive during the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_RX_RING,
                (&raw const request).cast(),
                length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of the ring that was just made, of its whole size; the result is
        // checked.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), BLOCK * BLOCKS, access, libc::MAP_SHARED, socket.as_raw_fd(), 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = Ring { socket, memory: memory.cast(), next: 0, taken: 0, offered: 0, lost: 0 };
        bind_packet_socket(&ring.socket, interface, libc::ETH_P_ALL as u16)?;
        Ok(ring)
    }

    /// The socket, to poll it.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Frames taken out of the ring so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Asks the kernel for its counts: (frames that are or were in the ring, frames for which there
    /// was no room).
    ///
    /// # Errors
    /// A system call fails.
    pub(crate) fn count(&mut self) -> io::Result<(u64, u64)> {
        // SAFETY: all zeroes is a valid tpacket_stats_v3.
        let mut statistics: libc::tpacket_stats_v3 = unsafe { mem::zeroed() };
        let mut length = size_of::<libc::tpacket_stats_v3>() as libc::socklen_t;
        // SAFETY: the pointers are to a tpacket_stats_v3 and its length, alive during the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // The kernel's counters restart at zero after each call, and it counts lost frames in both.
        self.lost += u64::from(statistics.tp_drops);
        self.offered += u64::from(statistics.tp_packets);
        Ok((self.offered - self.lost, self.lost))
    }

    /// Takes all frames of the blocks that have been handed over.
    pub(crate) fn take(&mut self, mut each: impl FnMut(Received<'_>)) {
        loop {
            // SAFETY: `next` is below the number of blocks, so the block lies within the mapping; a
            // block starts with its descriptor.
            let block = unsafe { self.memory.add(self.next * BLOCK) };
            // SAFETY: as above; the status word is shared with the kernel and read atomically.
            let status = unsafe {
                let descriptor = block.cast::<libc::tpacket_block_desc>();
                AtomicU32::from_ptr(&raw mut (*descriptor).hdr.bh1.block_status)
            };
            if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return;
            }
            // SAFETY: the block belongs to this process until its status is set back; no other
            // writer exists.
            let bytes = unsafe { std::slice::from_raw_parts(block, BLOCK) };
            self.taken += walk(bytes, &mut each);
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % BLOCKS;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open` with this size and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.cast(), BLOCK * BLOCKS) };
    }
}

/// Passes every frame of a block to `each` and returns their number.
fn walk(block: &[u8], each: &mut impl FnMut(Received<'_>)) -> u64 {
    let descriptor: libc::tpacket_block_desc = structure(block, 0);
    // SAFETY: version 3 rings have this member of the union; that is what was asked for.
    let header = unsafe { descriptor.hdr.bh1 };
    let mut offset = header.offset_to_first_pkt as usize;
    for _ in 0..header.num_pkts {
        let frame: libc::tpacket3_hdr = structure(block, offset);
        let address: libc::sockaddr_ll =
            structure(block, offset + size_of::<libc::tpacket3_hdr>().next_multiple_of(16));
        let start = offset + usize::from(frame.tp_mac);
        each(Received {
            bytes: &block[start..start + frame.tp_snaplen as usize],
            time_ns: u64::from(frame.tp_sec) * 1_000_000_000 + u64::from(frame.tp_nsec),
            outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
            vlan: (frame.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(frame.hv1.tp_vlan_tci as u16),
            truncated: frame.tp_snaplen < frame.tp_len,
        });
        offset += frame.tp_next_offset as usize;
    }
    u64::from(header.num_pkts)
}

/// Reads a C structure at an offset of a block.
fn structure<T: Copy>(block: &[u8], offset: usize) -> T {
    let bytes = &block[offset..offset + size_of::<T>()];
    // SAFETY: the slice has the structure's size; the kernel's structures read here have no invalid
    // bit patterns.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

/// `BPF_PROG_LOAD`, `BPF_PROG_QUERY` and `BPF_LINK_CREATE` (linux/bpf.h).
const PROG_LOAD: libc::c_long = 5;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` (linux/bpf.h).
pub(crate) const TCX_INGRESS: u32 = 46;
pub(crate) const TCX_EGRESS: u32 = 47;

/// A tc program that returns "next" for every packet.
///
/// # Errors
/// A system call fails.
pub(crate) fn foreign_program(answer: i32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 3],
        name: [u8; 16],
    }
    // r0 = answer; exit. Each number has the code and registers, then the constant.
    let instructions: [u64; 2] = [u64::from(answer as u32) << 32 | 0xb7, 0x95];
    let mut load = Load {
        kind: 3,
        count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        rest: [0; 3],
        name: *b"somebody_elses\0\0",
    };
    // SAFETY: the attribute is complete, and the memory it points to outlives the call.
    let raw = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw mut load, size_of::<Load>()) };
    owned(raw)
}

/// Attaches a program to an interface by TCX until the link is closed. `flags`: 0 behind all
/// others, 8 before them.
///
/// # Errors
/// A system call fails.
pub(crate) fn tcx_link(program: &OwnedFd, interface: u32, kind: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut create = [program.as_raw_fd() as u32, interface, kind, flags, 0, 0, 0, 0];
    // SAFETY: the attribute is complete and points to nothing.
    owned(unsafe { libc::syscall(libc::SYS_bpf, LINK_CREATE, &raw mut create, size_of_val(&create)) })
}

/// The ids of the programs that TCX runs on an interface, in their order.
///
/// # Errors
/// A system call fails.
pub(crate) fn tcx_programs(interface: u32, kind: u32) -> io::Result<Vec<u32>> {
    Ok(tcx(interface, kind)?.into_iter().map(|(program, _)| program).collect())
}

/// Detaches the last program that TCX runs on the interface. None if no program is there.
///
/// # Errors
/// A system call fails.
pub(crate) fn detach_last_tcx(interface: u32, kind: u32) -> io::Result<Option<u32>> {
    /// `BPF_LINK_GET_FD_BY_ID` (linux/bpf.h).
    const GET: libc::c_long = 30;
    let Some((program, link)) = tcx(interface, kind)?.pop() else { return Ok(None) };
    let mut get = [link, 0, 0, 0];
    // SAFETY: the attribute is complete and points to nothing.
    let link = owned(unsafe { libc::syscall(libc::SYS_bpf, GET, &raw mut get, size_of_val(&get)) })?;
    detach(&link)?;
    Ok(Some(program))
}

/// The ids of the programs that TCX runs on the interface and of their links, in the order in which
/// they run.
fn tcx(interface: u32, kind: u32) -> io::Result<Vec<(u32, u32)>> {
    #[repr(C)]
    struct Query {
        head: [u32; 4],
        ids: u64,
        count: u32,
        padding: u32,
        flags: u64,
        links: u64,
        rest: [u64; 2],
    }
    let (mut ids, mut links) = ([0u32; 64], [0u32; 64]);
    let mut query = Query {
        head: [interface, kind, 0, 0],
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
        flags: 0,
        links: links.as_mut_ptr() as u64,
        rest: [0; 2],
    };
    // SAFETY: the attribute is complete. The buffers it points to have room for `count` ids each
    // and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids.into_iter().zip(links).take(query.count as usize).collect())
}

fn owned(raw: libc::c_long) -> io::Result<OwnedFd> {
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
}

/// Detaches the program of a pinned link, even while another process has a handle to the link.
///
/// # Errors
/// A system call fails.
pub(crate) fn detach_link(pin: &std::ffi::CStr) -> io::Result<()> {
    /// `BPF_OBJ_GET` (linux/bpf.h).
    const GET: libc::c_long = 7;
    let mut get = [pin.as_ptr() as u64, 0];
    // SAFETY: the attribute is complete, and the path it points to outlives the call.
    let link = owned(unsafe { libc::syscall(libc::SYS_bpf, GET, &raw mut get, size_of_val(&get)) })?;
    detach(&link)
}

fn detach(link: &OwnedFd) -> io::Result<()> {
    /// `BPF_LINK_DETACH` (linux/bpf.h).
    const DETACH: libc::c_long = 34;
    let mut detach = link.as_raw_fd() as u32;
    // SAFETY: the attribute is complete and points to nothing.
    let result = unsafe { libc::syscall(libc::SYS_bpf, DETACH, &raw mut detach, size_of_val(&detach)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
