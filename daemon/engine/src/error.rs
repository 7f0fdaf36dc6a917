//! What can go wrong, with messages for the person who has to fix it.

use std::io;
use std::net::SocketAddr;

/// Why the engines could not start, or could not do what they were asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name cannot be an interface name.
    #[error("device name {name:?} is not usable: it must have 1 to 15 bytes, without '/' or white space")]
    DeviceName {
        /// The name that was given.
        name: String,
    },
    /// The number of threads is out of range.
    #[error("a tunnel has 1 to {most} threads, {threads} were asked for", most = crate::channels::MOST_ENGINES)]
    Threads {
        /// The number that was asked for.
        threads: usize,
    },
    /// A system call on the device failed.
    #[error("device {name}: could not {step}: {source}{}", hint(.source))]
    Device {
        /// The device.
        name: String,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The UDP sockets could not be opened.
    #[error("UDP {address}: could not {step}: {source}{}", hint(.source))]
    Socket {
        /// Address of the socket.
        address: SocketAddr,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The engine's own resources (epoll, eventfd, thread) could not be created.
    #[error("tunnel engine: could not {step}: {source}{}", hint(.source))]
    Engine {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The engine is not running any more.
    #[error("the tunnel engine has stopped: {reason}; restart the agent, protected traffic is dropped until then")]
    Stopped {
        /// Why it stopped.
        reason: String,
    },
}

/// The likely cause of common errors, appended to the kernel's message.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (CAP_NET_ADMIN is needed in this network namespace)",
        Some(libc::ENOENT | libc::ENODEV) => " (is the kernel module `tun` loaded and /dev/net/tun there?)",
        Some(libc::EBUSY) => " (another process holds it)",
        Some(libc::EADDRINUSE) => " (another WireGuard or another agent listens on this port)",
        Some(libc::EINVAL) => " (does a device of another kind have this name?)",
        _ => "",
    }
}
