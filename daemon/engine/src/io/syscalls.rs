//! System calls without a safe wrapper: the TUN and interface ioctls, some socket options, and the
//! eBPF program that chooses a device's queue.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// From linux/if_tun.h; all take an int, a pointer to an int, or an ifreq.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNGETFEATURES: libc::c_ulong = 0x8004_54cf;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const TUNSETSTEERINGEBPF: libc::c_ulong = 0x8004_54e0;

/// An interface name in the kernel's form: at most 15 bytes, then zeros.
pub(super) type Name = [libc::c_char; libc::IFNAMSIZ];

/// Checks a name and pads it.
pub(super) fn interface_name(name: &str) -> Option<Name> {
    let acceptable = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.bytes().any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace());
    let mut padded: Name = [0; libc::IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    acceptable.then_some(padded)
}

/// Attaches an open `/dev/net/tun` to the named device; the kernel creates it if it does not exist.
pub(super) fn tun_set_interface(tun: BorrowedFd<'_>, name: &Name, flags: libc::c_int) -> io::Result<()> {
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    interface_ioctl(tun, TUNSETIFF, &mut request)
}

/// Attaches or detaches this descriptor's queue.
pub(super) fn tun_set_queue(tun: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    let mut request = interface_request(&[0; libc::IFNAMSIZ]);
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    interface_ioctl(tun, TUNSETQUEUE, &mut request)
}

/// The IFF_* flags this kernel's TUN driver knows.
pub(super) fn tun_features(tun: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int to the pointer, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNGETFEATURES, &raw mut features) })?;
    Ok(features as libc::c_int)
}

/// Lets the program choose the queue of each packet: its return value modulo the number of queues.
pub(super) fn tun_set_steering(tun: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int from the pointer, which outlives the call; the
    // kernel holds its own reference to the program.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETSTEERINGEBPF, &raw const program) })
}

/// Loads the eBPF program "return `skb->queue_mapping`", which returns what a program at tc has
/// written there.
pub(super) fn load_queue_mapping_program() -> io::Result<OwnedFd> {
    /// `struct bpf_insn` of linux/bpf.h.
    #[repr(C)]
    struct Instruction {
        code: u8,
        registers: u8,
        offset: i16,
        immediate: i32,
    }
    /// The beginning of `union bpf_attr` of linux/bpf.h, as for `BPF_PROG_LOAD`; the rest counts as
    /// zero.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
    // BPF_LDX | BPF_MEM | BPF_W: r0 = *(u32 *)(r1 + offsetof(struct __sk_buff, queue_mapping));
    // then BPF_JMP | BPF_EXIT.
    let instructions = [
        Instruction { code: 0x61, registers: 0x10, offset: 12, immediate: 0 },
        Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
    ];
    let license = c"Dual MIT/GPL";
    let attributes = Attributes {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the kernel reads `attributes`, and the instructions and license through its pointers;
    // all outlive the call.
    let program =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Attributes>()) };
    if program < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(program as libc::c_int) })
}

/// Lets a classic BPF program choose the socket of the group that gets a datagram. The program sees
/// the payload and returns the socket's number, in the order in which the sockets were bound.
pub(super) fn set_group_filter(socket: BorrowedFd<'_>, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_ptr().cast_mut() };
    // SAFETY: SO_ATTACH_REUSEPORT_CBPF reads a sock_fprog and the instructions it points to; both
    // outlive the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
}

/// Tells the kernel which super-packets and partial checksums this program accepts.
pub(super) fn tun_set_offload(tun: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value; no memory is touched.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// Sets the length of the virtio header.
pub(super) fn tun_set_header_length(tun: BorrowedFd<'_>, length: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int from the pointer, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) })
}

/// Sets whether the device stays when its last descriptor is closed.
pub(super) fn tun_set_persist(tun: BorrowedFd<'_>, persist: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value; no memory is touched.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(persist)) })
}

/// Sets an interface's MTU. `socket` is any socket in its network namespace.
pub(super) fn set_mtu(socket: BorrowedFd<'_>, name: &Name, mtu: u32) -> io::Result<()> {
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).unwrap_or(libc::c_int::MAX);
    interface_ioctl(socket, libc::SIOCSIFMTU as libc::c_ulong, &mut request)
}

/// Sets how many packets may wait to be read.
pub(super) fn set_queue_length(socket: BorrowedFd<'_>, name: &Name, packets: libc::c_int) -> io::Result<()> {
    let mut request = interface_request(name);
    // The kernel's ifr_qlen is at the offset of the union's other ints.
    request.ifr_ifru.ifru_metric = packets;
    interface_ioctl(socket, libc::SIOCSIFTXQLEN as libc::c_ulong, &mut request)
}

/// Brings an interface up.
pub(super) fn bring_up(socket: BorrowedFd<'_>, name: &Name) -> io::Result<()> {
    let mut request = interface_request(name);
    interface_ioctl(socket, libc::SIOCGIFFLAGS as libc::c_ulong, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just written this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    interface_ioctl(socket, libc::SIOCSIFFLAGS as libc::c_ulong, &mut request)
}

/// Asks whether an interface has a link, which makes the kernel process a link change at once. A
/// device without a reader has lost its link, and drops packets until the kernel processes the
/// change.
pub(super) fn process_link_change(socket: BorrowedFd<'_>, name: &Name) -> io::Result<()> {
    /// `struct ethtool_value` of linux/ethtool.h.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_GLINK: u32 = 0x0a;
    let mut value = Value { command: ETHTOOL_GLINK, data: 0 };
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // ETHTOOL_GLINK reads and writes only `value` through the request, and it outlives the call.
    interface_ioctl(socket, libc::SIOCETHTOOL as libc::c_ulong, &mut request)
}

/// Sets a socket option that is an int.
pub(super) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
}

fn interface_request(name: &Name) -> libc::ifreq {
    // SAFETY: ifreq is plain old data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = *name;
    request
}

fn interface_ioctl(fd: BorrowedFd<'_>, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every code passed here accesses at most one ifreq and, with SIOCETHTOOL, the value it
    // points to; both outlive the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code, request as *mut libc::ifreq) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::interface_name;

    #[test]
    fn names_the_kernel_would_refuse_or_misread_are_refused_here() {
        assert!(interface_name("hauberk0").is_some());
        assert!(interface_name("exactly15bytes_").is_some());
        for bad in ["", ".", "..", "sixteen_bytes_xx", "a/b", "a b", "a:b", "nul\0"] {
            assert!(interface_name(bad).is_none(), "{bad:?}");
        }
    }
}
