//! What hauberk sets on the host beside its programs: links, routes, neighbours ([`Netlink`]),
//! kernel settings ([`sysctl`]) and netfilter rules ([`netfilter`]).
//!
//! Everything that is made here can be told apart from other programs' settings, and only that is
//! ever removed: routes carry a protocol number of their own ([`ROUTE_PROTOCOL`]), rules are in
//! tables of their own, addresses and neighbours are on pods' interfaces and disappear with them.
#![cfg_attr(not(test), forbid(unsafe_code))]

mod address;
pub mod devices;
mod discipline;
pub mod link;
pub mod netfilter;
pub mod route;
pub mod sysctl;

use std::io;

use tokio::task::JoinHandle;

pub use devices::{Chained, INTERFACE_PREFIX, Role};
pub use discipline::Filter;
pub use link::{Header, Link, LinkKind};
pub use netfilter::{Beside, Netfilter, Ruleset};
pub use route::{Hop, ROUTE_PROTOCOL, Route, Via};

/// Something on the host could not be set or read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel refused a netlink request.
    #[error("cannot {action}: {source}")]
    Netlink {
        /// What was tried, on which object.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another program's filters are in the place that clsact needs.
    #[error(
        "it has an `ingress` queueing discipline with filters of others ({filter}), beside which there can be no clsact: attach these to clsact \
         (tc qdisc add dev NAME clsact), or use a kernel with TCX"
    )]
    Ingress {
        /// One of these filters.
        filter: String,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot set {name} to {value}: {source}{}", hint(.source, "is /proc/sys mounted read-only?"))]
    Sysctl {
        /// The setting's path below `/proc/sys`.
        name: String,
        /// The wanted value.
        value: String,
        /// Why not.
        source: io::Error,
    },
    /// `nft` is not there or cannot be run.
    #[error("cannot run nft: {}{}", .0, hint(.0, "install nftables"))]
    NoNft(io::Error),
    /// `nft` refused a ruleset.
    #[error("nft cannot {action}: {message}")]
    Nft {
        /// What was tried.
        action: &'static str,
        /// nft's own message.
        message: String,
    },
}

/// The likely cause of an error, to append to the kernel's text. `usual` is the usual cause at this
/// place; errors that can occur anywhere have causes of their own.
pub fn hint(error: &io::Error, usual: &str) -> String {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => "; the agent has too many files open: raise its limit (LimitNOFILE)".into(),
        Some(Errno::ENFILE) => "; this node has too many files open: raise fs.file-max".into(),
        Some(Errno::ENOMEM | Errno::EAGAIN) => "; this node is out of memory or processes".into(),
        // A device that disappeared took its settings with it.
        Some(Errno::ENOENT) if usual.contains("/proc") => "; is the device still there?".into(),
        _ => format!("; {usual}"),
    }
}

/// A connection to the kernel's routing tables, in the network namespace of the thread that opened
/// it.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Netlink {
    /// Connects. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if there are no sockets left.
    pub fn connect() -> Result<Netlink, HostError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| HostError::Netlink { action: "open a netlink socket".into(), source })?;
        Ok(Netlink { handle, connection: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The kernel's answer as an error of this module.
fn refused(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> HostError {
    move |error| HostError::Netlink { action: action.into(), source: to_io(error) }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// Whether the kernel's answer is this error number.
fn is_errno(error: &rtnetlink::Error, errno: nix::errno::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code().abs() == errno as i32)
}

#[cfg(test)]
mod tests;
