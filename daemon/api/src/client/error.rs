//! The errors between a client and its agent, with messages that say what to do about them.

use std::io;
use std::path::PathBuf;

use hyper::StatusCode;

/// A call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket does not exist.
    #[error(
        "no agent on this node: the socket {socket} does not exist; start hauberkd, or name the socket it is configured \
         with (`paths.socket`)"
    )]
    NoSocket {
        /// The socket.
        socket: PathBuf,
    },

    /// The socket exists, but no process listens on it.
    #[error(
        "nobody listens on {socket}: the agent stopped and left its socket behind; start hauberkd (what it pinned \
         under paths.pins stays in force meanwhile, and drops opted-in traffic that has no tunnel)"
    )]
    NotListening {
        /// The socket.
        socket: PathBuf,
    },

    /// The kernel denied access to the socket.
    #[error("not allowed to open {socket}: the agent's socket belongs to root; run as root")]
    Permission {
        /// The socket.
        socket: PathBuf,
    },

    /// Any other failure to connect.
    #[error("cannot connect to the agent on {socket}: {source}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },

    /// The agent did not answer in time.
    #[error(
        "the agent on {socket} did not answer {call} within {seconds} s: it is starting, overloaded or stuck; look at its log"
    )]
    Deadline {
        /// The path that was called.
        call: String,
        /// The socket.
        socket: PathBuf,
        /// The deadline, seconds.
        seconds: f32,
    },

    /// The agent answered with an error.
    #[error("{message}")]
    Refused {
        /// HTTP status, 4xx or 5xx.
        status: StatusCode,
        /// The agent's message: what failed, on which object, likely cause, what to do.
        message: String,
    },

    /// The connection broke.
    #[error("the connection to the agent on {socket} broke: {source}; the agent was probably restarted, try again")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// The error of the connection.
        source: hyper::Error,
    },

    /// This version does not understand the answer.
    #[error("the answer to {call} is not understood ({reason}): agent and client are probably of different versions")]
    Answer {
        /// The path that was called.
        call: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The request could not be written.
    #[error("cannot write the request {call}: {reason}")]
    Request {
        /// The path, or `body`.
        call: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ClientError {
    /// True if the agent is not there or not able *yet*, so that the same call may succeed later.
    pub fn is_unavailable(&self) -> bool {
        match self {
            ClientError::NoSocket { .. }
            | ClientError::NotListening { .. }
            | ClientError::Connect { .. }
            | ClientError::Deadline { .. }
            | ClientError::Broken { .. } => true,
            ClientError::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            ClientError::Permission { .. } | ClientError::Answer { .. } | ClientError::Request { .. } => false,
        }
    }

    pub(crate) fn connecting(socket: &std::path::Path, source: io::Error) -> ClientError {
        let socket = socket.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket { socket },
            io::ErrorKind::ConnectionRefused => ClientError::NotListening { socket },
            io::ErrorKind::PermissionDenied => ClientError::Permission { socket },
            _ => ClientError::Connect { socket, source },
        }
    }
}
