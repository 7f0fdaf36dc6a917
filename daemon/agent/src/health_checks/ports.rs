//! The ports that are listened at. Their connections come to one place, which limits how many there
//! are over all ports: each is an open file, and any host can connect.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::Router;
use axum::serve::Listener;
use hauberk_api::{Problem, Severity};
use hauberk_core::services::health::HealthCheck;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Asked, Checks, answer};
use crate::api::connections::{Bounded, Bounds, serve_each};
use crate::state::SharedState;

/// Connections that the kernel keeps for a port before they are accepted.
const BACKLOG: u32 = 64;

/// The ports, and what is answered there.
pub(super) struct Ports {
    checks: Checks,
    open: BTreeMap<u16, JoinHandle<()>>,
    accepted: mpsc::Sender<(TcpStream, Origin)>,
}

impl Ports {
    /// None so far. Must be called within a runtime.
    pub(super) fn new(agent: SharedState, bounds: Bounds) -> Ports {
        let checks = Checks::default();
        let (accepted, queue) = mpsc::channel(1);
        let asked = Asked { agent, checks: checks.clone(), port: 0 };
        let router = move |origin: &Origin| {
            Router::new().fallback(answer).with_state(Asked { port: origin.port, ..asked.clone() })
        };
        tokio::spawn(serve_each(Queue(queue), router, bounds));
        Ports { checks, open: BTreeMap::new(), accepted }
    }

    /// Listens at the ports of these checks and at no others. Returns a problem for each at which
    /// it cannot.
    pub(super) async fn follow(&mut self, wanted: Vec<HealthCheck>) -> Vec<Problem> {
        let wanted: BTreeMap<u16, HealthCheck> = wanted.into_iter().map(|check| (check.port, check)).collect();
        let gone: Vec<u16> = self.open.keys().copied().filter(|port| !wanted.contains_key(port)).collect();
        for task in gone.iter().filter_map(|port| self.open.remove(port)) {
            task.abort();
            // The port is closed when the task has ended.
            let _ = task.await;
        }
        let mut problems = Vec::new();
        for (port, check) in wanted.iter().filter(|(port, _)| !self.open.contains_key(port)).collect::<Vec<_>>() {
            match listen(*port) {
                Ok(listener) => {
                    self.open.insert(*port, tokio::spawn(accept(listener, *port, self.accepted.clone())));
                }
                Err(error) => problems.push(cannot_listen(check, &error)),
            }
        }
        self.checks.replace(wanted);
        problems
    }
}

fn cannot_listen(check: &HealthCheck, error: &io::Error) -> Problem {
    let message = format!(
        "cannot answer load balancers at its healthCheckNodePort {}: {error}; they may send this node no clients. If another \
         program has the port, as kube-proxy while it runs, stop that program, or give the service another port; it is tried again",
        check.port
    );
    Problem { severity: Severity::Warning, object: format!("Service/{}", check.service), message }
}

/// Listens at all addresses of the node, of both families if it has IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let both = TcpSocket::new_v6().and_then(|socket| {
        // Whatever net.ipv6.bindv6only says.
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
        listen_with(socket, IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
    });
    match both {
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            listen_with(TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
        }
        outcome => outcome,
    }
}

fn listen_with(socket: TcpSocket, address: IpAddr, port: u16) -> io::Result<TcpListener> {
    // Connections of an earlier agent do not keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(address, port))?;
    socket.listen(BACKLOG)
}

/// Accepts a port's connections until the task is dropped.
async fn accept(mut listener: TcpListener, port: u16, accepted: mpsc::Sender<(TcpStream, Origin)>) {
    loop {
        let (stream, from) = Listener::accept(&mut listener).await;
        if accepted.send((stream, Origin { from, port })).await.is_err() {
            return;
        }
    }
}

/// Where a connection comes from, and the port at which it was accepted.
struct Origin {
    from: SocketAddr,
    port: u16,
}

/// The accepted connections of all ports.
struct Queue(mpsc::Receiver<(TcpStream, Origin)>);

impl Listener for Queue {
    type Io = TcpStream;
    type Addr = Origin;

    async fn accept(&mut self) -> (TcpStream, Origin) {
        match self.0.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Origin> {
        // There is one for each port.
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Bounded for Queue {
    fn from(origin: &Origin) -> Option<IpAddr> {
        <TcpListener as Bounded>::from(&origin.from)
    }
}
