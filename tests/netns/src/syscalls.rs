//! What the standard library and `nix` have no safe word for: work between fork and exec, packet sockets.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Mounts that make one machine's file system look like a node's: `/sys` of its network namespace, the sandbox's bpffs,
/// and its own `/run/wireguard`, where `wg` looks for sockets.
pub(crate) struct NodeMounts {
    /// The sandbox's bpffs.
    pub bpf: CString,
    /// The node's socket directory.
    pub wireguard: CString,
}

/// Runs `command` in `netns`. It is killed when the thread that spawned it ends: spawn what shall live from the test's
/// main thread.
pub(crate) fn run_inside(command: &mut Command, netns: Arc<File>, mounts: Option<NodeMounts>) {
    let enter = move || -> io::Result<()> {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
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
    // SAFETY: between fork and exec the closure makes system calls with strings and descriptors prepared before; it
    // allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
}

/// Kills the command's process when the thread that spawns it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let die = || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(die) };
}

/// A raw packet socket on one interface, for every ethertype, both directions.
///
/// # Errors
/// What the kernel says: usually missing privilege or an interface that is gone.
pub(crate) fn packet_socket(interface: u32) -> io::Result<OwnedFd> {
    let every = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers; the result is checked before it is owned.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` is a descriptor that was just opened and that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 512 << 20)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every;
    address.sll_ifindex = interface as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a sockaddr_ll of that length, alive during the call.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Sets an integer socket option that `nix` has no name for.
///
/// # Errors
/// What the kernel says.
pub(crate) fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer is to an i32 of that length, alive during the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Packets the kernel could not hand to a packet socket since the last call.
///
/// # Errors
/// What the kernel says.
pub(crate) fn packets_lost(socket: &OwnedFd) -> io::Result<u64> {
    // SAFETY: all zeroes is a valid tpacket_stats.
    let mut statistics: libc::tpacket_stats = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the pointers are to a tpacket_stats and its length, alive during the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from(statistics.tp_drops)) }
}

/// A frame as the kernel handed it over.
pub(crate) struct Received<'a> {
    /// From the destination MAC address on.
    pub bytes: &'a [u8],
    /// Wall clock, nanoseconds since 1970.
    pub time_ns: u64,
    /// Sent by this side of the cable (else: received by it).
    pub outgoing: bool,
    /// A VLAN tag the kernel took out of the bytes.
    pub vlan: Option<u16>,
    /// Did not fit the buffer.
    pub truncated: bool,
}

/// Frames fetched by one system call.
const BATCH: usize = 32;
/// The largest GSO super-packet with its headers.
const FRAME: usize = 1 << 17;
/// Room for a timestamp and the auxiliary data.
const CONTROL: usize = 128;

/// Buffers for [`receive`].
pub(crate) struct Buffers {
    frames: Vec<u8>,
    controls: Vec<[u64; CONTROL / 8]>,
}

impl Buffers {
    pub(crate) fn new() -> Buffers {
        Buffers { frames: vec![0; BATCH * FRAME], controls: vec![[0; CONTROL / 8]; BATCH] }
    }
}

/// Takes what waits on a packet socket, up to a batch; the number of frames taken.
///
/// # Errors
/// `WouldBlock` when there is nothing; otherwise what the kernel says.
pub(crate) fn receive(
    socket: &OwnedFd,
    buffers: &mut Buffers,
    mut each: impl FnMut(Received<'_>),
) -> io::Result<usize> {
    // SAFETY: all zeroes is valid for these plain C structures.
    let mut addresses: [libc::sockaddr_ll; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    for (index, header) in headers.iter_mut().enumerate() {
        vectors[index].iov_base = buffers.frames[index * FRAME..].as_mut_ptr().cast();
        vectors[index].iov_len = FRAME;
        header.msg_hdr.msg_name = (&raw mut addresses[index]).cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        header.msg_hdr.msg_iov = &raw mut vectors[index];
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = buffers.controls[index].as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = CONTROL;
    }
    // SAFETY: every pointer in `headers` is to a live buffer of the length said beside it.
    let count = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, std::ptr::null_mut())
    };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    for (index, header) in headers.iter().enumerate().take(count as usize) {
        let length = (header.msg_len as usize).min(FRAME);
        let (time_ns, vlan) = control_messages(&header.msg_hdr);
        each(Received {
            bytes: &buffers.frames[index * FRAME..index * FRAME + length],
            time_ns,
            outgoing: addresses[index].sll_pkttype == libc::PACKET_OUTGOING,
            vlan,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        });
    }
    Ok(count as usize)
}

/// Timestamp and VLAN tag from a received message's control data.
fn control_messages(header: &libc::msghdr) -> (u64, Option<u16>) {
    let mut time_ns = 0;
    let mut vlan = None;
    // SAFETY: the kernel filled `header`; the CMSG macros walk its control buffer within `msg_controllen`.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: non-null results of the CMSG macros point to a whole cmsghdr; the kinds matched here carry the
        // structures read, at any alignment.
        unsafe {
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    let time: libc::timespec = libc::CMSG_DATA(message).cast::<libc::timespec>().read_unaligned();
                    time_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
                }
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                    let data = libc::CMSG_DATA(message).cast::<libc::tpacket_auxdata>().read_unaligned();
                    if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                        vlan = Some(data.tp_vlan_tci);
                    }
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    (time_ns, vlan)
}
