//! The UDP sockets: batches of encrypted datagrams to and from the network.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
    getsockname, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::outbox::{Batch, DatagramSink};
use super::syscalls;
use crate::error::Error;

/// Size of the socket buffers. With 1 MB, four streams lose tens of thousands of packets.
const BUFFER_BYTES: usize = 4 << 20;
/// How long a full send buffer may block the engine before datagrams are dropped, in ms.
const SEND_PATIENCE: u16 = 20;

/// A socket for each address family that the machine has.
pub(crate) struct Sockets {
    pub(crate) v4: Option<Socket>,
    pub(crate) v6: Option<Socket>,
}

/// One bound, non-blocking socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    family: AddressFamily,
    gso: bool,
    gro: bool,
    control: Vec<u8>,
}

/// The result of one receive.
pub(crate) struct Received {
    pub(crate) from: SocketAddr,
    pub(crate) length: usize,
    /// Size of each datagram except the last.
    pub(crate) size: usize,
    pub(crate) ecn: u8,
}

impl Sockets {
    /// Binds to the port on all addresses. A machine with only one family gets only that socket.
    pub(crate) fn bind(port: u16, mark: Option<u32>) -> Result<Sockets, Error> {
        Sockets::bind_one(port, mark, false)
    }

    /// Binds this many at one port. The filter, a classic BPF program, chooses by payload which of
    /// them gets a datagram. The bool is false if the kernel refuses the filter: then all datagrams
    /// of a sender reach the same one, but it is not known which.
    pub(crate) fn bind_group(
        port: u16,
        mark: Option<u32>,
        count: usize,
        filter: &[libc::sock_filter],
    ) -> Result<(Vec<Sockets>, bool), Error> {
        // The first binds without sharing the port, so that another program at the port is noticed;
        // the others then join it.
        let first = Sockets::bind(port, mark)?;
        if count == 1 {
            return Ok((vec![first], true));
        }
        let port = first.each().find_map(Socket::port).unwrap_or(port);
        for socket in first.each() {
            setsockopt(&socket.fd, sockopt::ReusePort, &true).map_err(|errno| Error::Socket {
                address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
                step: "let more sockets join it",
                source: errno.into(),
            })?;
        }
        let mut group = vec![first];
        for _ in 1..count {
            group.push(Sockets::bind_one(port, mark, true)?);
        }
        let set = group[0].each().try_for_each(|socket| syscalls::set_group_filter(socket.as_fd(), filter));
        if let Err(error) = &set {
            tracing::warn!(
                %error,
                port,
                "the kernel does not let us choose among sockets (SO_ATTACH_REUSEPORT_CBPF): datagrams reach their thread by way \
                 of others, which takes more CPU time"
            );
        }
        Ok((group, set.is_ok()))
    }

    fn bind_one(port: u16, mark: Option<u32>, joins: bool) -> Result<Sockets, Error> {
        let v4 = Socket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), mark, joins)?;
        // An ephemeral port must be the same for both.
        let port = match &v4 {
            Some(socket) => socket.port().unwrap_or(port),
            None => port,
        };
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let v6 = Socket::bind(address, mark, joins)?;
        if v4.is_none() && v6.is_none() {
            let source = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
            return Err(Error::Socket { address, step: "open a socket of any family", source });
        }
        Ok(Sockets { v4, v6 })
    }

    pub(crate) fn gso(&self) -> bool {
        self.each().all(|socket| socket.gso)
    }

    pub(crate) fn gro(&self) -> bool {
        self.each().all(|socket| socket.gro)
    }

    fn each(&self) -> impl Iterator<Item = &Socket> {
        self.v4.iter().chain(&self.v6)
    }
}

impl DatagramSink for Sockets {
    fn send(&mut self, batch: &Batch) -> usize {
        let socket = match batch.to() {
            Some(SocketAddr::V4(_)) => &mut self.v4,
            _ => &mut self.v6,
        };
        match socket {
            Some(socket) => socket.send(batch),
            None => batch.count(),
        }
    }

    fn takes_batches(&self) -> bool {
        self.gso()
    }
}

impl Socket {
    /// `None` if the machine does not have this family.
    fn bind(address: SocketAddr, mark: Option<u32>, joins: bool) -> Result<Option<Socket>, Error> {
        let failed = |step| move |errno: Errno| Error::Socket { address, step, source: errno.into() };
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = match socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None) {
            Err(Errno::EAFNOSUPPORT) => return Ok(None),
            other => other.map_err(failed("open a socket"))?,
        };
        if address.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true).map_err(failed("keep it to IPv6"))?;
        }
        if let Some(mark) = mark {
            setsockopt(&fd, sockopt::Mark, &mark).map_err(failed("set its mark"))?;
        }
        if joins {
            setsockopt(&fd, sockopt::ReusePort, &true).map_err(failed("let it share the port"))?;
        }
        match bind(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
            // IPv6 is compiled in but switched off.
            Err(Errno::EADDRNOTAVAIL) if address.is_ipv6() => return Ok(None),
            other => other.map_err(failed("bind it"))?,
        }
        // If the path MTU is smaller than the tunnel's MTU assumes, packets must be fragmented, not
        // dropped: do not set DF.
        let (level, option, dont) = match family {
            AddressFamily::Inet => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            _ => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        };
        syscalls::set_option(fd.as_fd(), level, option, dont).map_err(|source| Error::Socket {
            address,
            step: "let its packets be fragmented",
            source,
        })?;
        enlarge_buffers(fd.as_fd());
        let _ = match family {
            // Without this, congestion marks are not carried over; nothing else depends on it.
            AddressFamily::Inet => setsockopt(&fd, sockopt::IpRecvTos, &true),
            _ => setsockopt(&fd, sockopt::Ipv6RecvTClass, &true),
        };
        let gro = setsockopt(&fd, sockopt::UdpGroSegment, &true).is_ok();
        // Zero switches it off, but a kernel that does not know the option returns an error.
        let gso = setsockopt(&fd, sockopt::UdpGsoSegment, &0).is_ok();
        // Room for the segment size and the traffic class, an int each.
        let control = cmsg_space!(libc::c_int, libc::c_int);
        Ok(Some(Socket { fd, family, gso, gro, control }))
    }

    fn port(&self) -> Option<u16> {
        let address: SockaddrStorage = getsockname(self.fd.as_raw_fd()).ok()?;
        socket_address(&address).map(|address| address.port())
    }

    /// Receives one datagram or one run of datagrams. `Ok(None)` if there is none.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut slices = [IoSliceMut::new(buffer)];
        let message = match recvmsg::<SockaddrStorage>(
            self.fd.as_raw_fd(),
            &mut slices,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let length = message.bytes;
        let (mut size, mut ecn) = (length, 0);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::UdpGroSegments(bytes) => size = usize::try_from(bytes).unwrap_or(length),
                ControlMessageOwned::Ipv4Tos(tos) => ecn = tos & 0b11,
                ControlMessageOwned::Ipv6TClass(class) => ecn = (class & 0b11) as u8,
                _ => {}
            }
        }
        let from = message.address.as_ref().and_then(socket_address);
        // A packet without a sender cannot occur; the unspecified address would stand for it.
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Ok(Some(Received { from: from.unwrap_or(unknown), length, size: size.max(1), ecn }))
    }

    /// Sends a batch, in one call if the path supports it. Returns how many datagrams were refused.
    fn send(&mut self, batch: &Batch) -> usize {
        let Some(to) = batch.to() else { return 0 };
        let to = SockaddrStorage::from(to);
        if batch.count() > 1 {
            let size = batch.size() as u16;
            match self.send_message(batch.bytes(), Some(size), batch.class(), &to) {
                Ok(()) => return 0,
                // The interface lacks checksum offload, and that will not change.
                Err(errno @ (Errno::EIO | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP)) => {
                    self.gso = false;
                    tracing::warn!(
                        %errno,
                        to = ?batch.to(),
                        "the path takes no runs of packets (UDP_SEGMENT): from now on they leave one by one, which takes more \
                         CPU time; does the interface lack checksum offload (ethtool -k)?"
                    );
                }
                // The path MTU is smaller than a datagram: the kernel fragments single datagrams
                // only.
                Err(Errno::EMSGSIZE | Errno::EINVAL) => {}
                Err(_) => return batch.count(),
            }
        }
        let mut refused = 0;
        for (index, datagram) in batch.datagrams().enumerate() {
            match self.send_message(datagram, None, batch.class(), &to) {
                Ok(()) => {}
                // No room even after waiting: waiting again for each datagram would block every
                // peer.
                Err(Errno::EAGAIN) => return refused + batch.count() - index,
                Err(_) => refused += 1,
            }
        }
        refused
    }

    fn send_message(&self, bytes: &[u8], size: Option<u16>, class: u8, to: &SockaddrStorage) -> Result<(), Errno> {
        let slices = [IoSlice::new(bytes)];
        let class_v6 = i32::from(class);
        let segments = size.as_ref().map(ControlMessage::UdpGsoSegments);
        let marks = (class != 0).then_some(match self.family {
            AddressFamily::Inet => ControlMessage::Ipv4Tos(&class),
            _ => ControlMessage::Ipv6TClass(&class_v6),
        });
        let mut control = [ControlMessage::Ipv6TClass(&class_v6), ControlMessage::Ipv6TClass(&class_v6)];
        let mut used = 0;
        for message in segments.into_iter().chain(marks) {
            control[used] = message;
            used += 1;
        }
        let mut waited = false;
        loop {
            match sendmsg(self.fd.as_raw_fd(), &slices, &control[..used], MsgFlags::MSG_DONTWAIT, Some(to)) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                // Back-pressure: while the engine waits, the device's queue fills up and senders
                // slow down.
                Err(Errno::EAGAIN) if !waited => {
                    waited = true;
                    let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut fds, PollTimeout::from(SEND_PATIENCE));
                }
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// As large as permitted: above the system's limit if privileged, up to it otherwise.
fn enlarge_buffers(fd: BorrowedFd<'_>) {
    if setsockopt(&fd, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        let _ = setsockopt(&fd, sockopt::RcvBuf, &BUFFER_BYTES);
    }
    if setsockopt(&fd, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
        let _ = setsockopt(&fd, sockopt::SndBuf, &BUFFER_BYTES);
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((v4.ip(), v4.port())));
    }
    let v6 = address.as_sockaddr_in6()?;
    Some(SocketAddr::from((v6.ip(), v6.port())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::outbox::Outbox;
    use crate::stats::Counters;

    #[test]
    fn batches_arrive_as_the_datagrams_they_were() {
        assert_arrive(Sockets::bind(0, None).unwrap());
    }

    /// The kernel does not segment packets without a checksum.
    #[test]
    fn batches_that_are_refused_leave_one_by_one() {
        let sender = Sockets::bind(0, None).unwrap();
        let v4 = sender.v4.as_ref().unwrap();
        syscalls::set_option(v4.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        assert_arrive(sender);
    }

    fn assert_arrive(mut sender: Sockets) {
        let mut receiver = Sockets::bind(0, None).unwrap();
        let port = receiver.v4.as_ref().unwrap().port().unwrap();
        for loopback in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
            let socket = if loopback.is_ipv4() { receiver.v4.as_mut() } else { receiver.v6.as_mut() };
            let Some(socket) = socket else { continue };
            let mut batch = Batch::new();
            let counters = Counters::default();
            let mut outbox = Outbox::new(&mut batch, &mut sender, &counters);
            for index in 0..10u8 {
                outbox.post_with(loopback, 2, if index == 9 { 50 } else { 1000 }, |room| {
                    room.fill(index);
                    true
                });
            }
            outbox.flush();
            assert_eq!(counters.drops().total(), 0);

            let mut received = Vec::new();
            let mut buffer = vec![0; 1 << 16];
            while received.len() < 10 {
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                assert_ne!(poll(&mut fds, PollTimeout::from(5000u16)).unwrap(), 0, "datagrams are missing");
                while let Some(run) = socket.receive(&mut buffer).unwrap() {
                    assert_eq!(run.ecn, 2);
                    received.extend(buffer[..run.length].chunks(run.size).map(<[u8]>::to_vec));
                }
            }
            for (index, datagram) in received.iter().enumerate() {
                assert_eq!(datagram.len(), if index == 9 { 50 } else { 1000 });
                assert!(datagram.iter().all(|byte| usize::from(*byte) == index));
            }
        }
    }
}
