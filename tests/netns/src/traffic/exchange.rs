//! One request and one reply, and what is known for certain about them afterwards.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{datagram, echo, raw, segment};
use crate::marker::Marker;
use crate::party::{Family, Party};
use crate::wait::eventually;

/// The protocol of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// UDP datagrams.
    Udp,
    /// Echo request and reply; the destination's kernel answers.
    Icmp,
    /// UDP datagrams larger than any MTU on the way.
    Fragments,
    /// ESP packets (50), or packets that look like them.
    Esp,
    /// GRE packets (47).
    Gre,
    /// SCTP packets (132).
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 7] = [
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Icmp,
        Protocol::Fragments,
        Protocol::Esp,
        Protocol::Gre,
        Protocol::Sctp,
    ];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Icmp => "ICMP",
            Protocol::Fragments => "fragments",
            Protocol::Esp => "ESP",
            Protocol::Gre => "GRE",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// One request and one reply.
#[derive(Clone, Debug)]
pub struct Exchange<'a> {
    /// The protocol.
    pub protocol: Protocol,
    /// The address family.
    pub family: Family,
    /// The party that sends the request.
    pub client: &'a Party,
    /// The party that sends the reply.
    pub server: &'a Party,
    /// The address the client sends to, if it is not the server's: a service. Only for TCP and UDP.
    pub service: Option<SocketAddr>,
    /// The server's port; 0 for any.
    pub port: u16,
    /// Bytes of payload each way.
    pub bytes: usize,
    /// How long the client keeps trying.
    pub patience: Duration,
}

impl<'a> Exchange<'a> {
    /// An exchange with the server's own address.
    pub fn new(protocol: Protocol, family: Family, client: &'a Party, server: &'a Party) -> Exchange<'a> {
        let bytes = if protocol == Protocol::Fragments { 4000 } else { 400 };
        Exchange { protocol, family, client, server, service: None, port: 0, bytes, patience: Duration::from_secs(20) }
    }

    /// Sends to a service address that is translated to the server's address and `port`.
    pub fn via(mut self, service: SocketAddr, port: u16) -> Exchange<'a> {
        self.service = Some(service);
        self.port = port;
        self
    }

    /// Gives up sooner: for exchanges that are expected to fail.
    pub fn patience(mut self, patience: Duration) -> Exchange<'a> {
        self.patience = patience;
        self
    }

    /// The server's own address.
    pub(super) fn server_address(&self) -> IpAddr {
        self.server.address(self.family)
    }

    /// The address the client sends to, given the port the server got.
    pub(super) fn target(&self, port: u16) -> SocketAddr {
        self.service.unwrap_or(SocketAddr::new(self.server_address(), port))
    }
}

impl fmt::Display for Exchange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} -> {}", self.protocol, self.family, self.client.name, self.server.name)?;
        if let Some(service) = self.service {
            write!(f, " through {service}")?;
        }
        Ok(())
    }
}

/// The result of an exchange.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The marker in the request.
    pub request: Marker,
    /// The marker in the reply; for ICMP the same one.
    pub reply: Marker,
    /// The server received the whole request.
    pub delivered: bool,
    /// The client received the whole reply, from the address it had sent to.
    pub answered: bool,
    /// The client address that the server saw.
    pub seen_client: Option<IpAddr>,
    /// What the client or the server reports.
    pub said: String,
}

/// What the two threads of an exchange share.
pub(super) struct Shared {
    pub request: Marker,
    pub reply: Marker,
    /// The client is done, so the server can stop.
    pub over: AtomicBool,
    pub delivered: AtomicBool,
    pub seen_client: Mutex<Option<IpAddr>>,
}

impl Shared {
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Records that the server has the request.
    pub(super) fn deliver(&self, client: Option<IpAddr>) {
        *self.seen_client.lock().unwrap_or_else(PoisonError::into_inner) = client;
        self.delivered.store(true, Ordering::SeqCst);
    }
}

/// Performs an exchange and returns its outcome. A failed exchange is an outcome, not an error.
///
/// # Errors
/// Sockets could not be made: the test is at fault.
pub fn exchange(exchange: &Exchange<'_>) -> Result<Outcome> {
    let request = Marker::unique();
    let reply = if exchange.protocol == Protocol::Icmp { request } else { Marker::unique() };
    let shared = Shared {
        request,
        reply,
        over: AtomicBool::new(false),
        delivered: AtomicBool::new(false),
        seen_client: Mutex::new(None),
    };
    let (answered, said) = perform(exchange, &shared).with_context(|| exchange.to_string())?;
    Ok(Outcome {
        request,
        reply,
        delivered: shared.delivered.load(Ordering::SeqCst),
        answered,
        seen_client: *shared.seen_client.lock().unwrap_or_else(PoisonError::into_inner),
        said,
    })
}

/// Does the server's and the client's work, each on a thread in its own namespace.
fn perform(exchange: &Exchange<'_>, shared: &Shared) -> Result<(bool, String)> {
    thread::scope(|scope| {
        let (port_sender, port_receiver) = std::sync::mpsc::channel();
        let server = scope.spawn(move || -> Result<()> {
            exchange.server.netns.enter()?;
            let address = SocketAddr::new(exchange.server_address(), exchange.port);
            match exchange.protocol {
                Protocol::Tcp => segment::serve(address, exchange.bytes, shared, &port_sender),
                Protocol::Udp | Protocol::Fragments => datagram::serve(address, exchange.bytes, shared, &port_sender),
                Protocol::Icmp => port_sender.send(0).context("report port"),
                Protocol::Esp | Protocol::Gre | Protocol::Sctp => {
                    raw::serve(exchange.protocol, address.ip(), exchange.bytes, shared, &port_sender)
                }
            }
        });
        let client = scope.spawn(move || -> Result<(bool, String)> {
            // A server that could not start reports the reason itself.
            let Ok(port) = port_receiver.recv() else { return Ok((false, "no server".into())) };
            exchange.client.netns.enter()?;
            let local = exchange.client.address(exchange.family);
            let target = exchange.target(port);
            match exchange.protocol {
                Protocol::Tcp => segment::ask(local, target, exchange.bytes, exchange.patience, shared),
                Protocol::Udp | Protocol::Fragments => {
                    datagram::ask(local, target, exchange.bytes, exchange.patience, shared)
                }
                Protocol::Icmp => echo::ask(local, target.ip(), exchange.bytes, exchange.patience, shared),
                Protocol::Esp | Protocol::Gre | Protocol::Sctp => {
                    raw::ask(exchange.protocol, local, target.ip(), exchange.bytes, exchange.patience, shared)
                }
            }
        });
        let result = client.join().unwrap_or_else(|_| anyhow::bail!("the client panicked"));
        shared.over.store(true, Ordering::SeqCst);
        server.join().unwrap_or_else(|_| anyhow::bail!("the server panicked"))?;
        result
    })
}

/// Performs many exchanges, some at a time. Outcomes are in the order of the exchanges.
///
/// # Errors
/// As [`exchange`].
pub fn exchange_all(exchanges: &[Exchange<'_>]) -> Result<Vec<Outcome>> {
    const AT_ONCE: usize = 8;
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<Option<Result<Outcome>>>> = Mutex::new(exchanges.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(exchanges.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some(one) = exchanges.get(index) else { return };
                    let outcome = exchange(one);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.into_iter().map(|outcome| outcome.context("not done")?).collect()
}

/// Repeats an exchange until it is answered, and returns that outcome.
///
/// # Errors
/// As [`eventually`]; the message has the last outcome.
pub fn wait_answered(one: &Exchange<'_>) -> Result<Outcome> {
    eventually(one, || {
        let outcome = exchange(one)?;
        ensure!(outcome.answered, "{outcome:?}");
        Ok(Some(outcome))
    })
}

/// Fails unless one party answers the other over both families, by each of the protocols.
///
/// # Errors
/// An exchange was not answered; the message names it and has the client's report.
pub fn assert_answered(from: &Party, to: &Party, protocols: &[Protocol]) -> Result<()> {
    for family in Family::ALL {
        for protocol in protocols {
            let one = Exchange::new(*protocol, family, from, to);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {}", outcome.said);
        }
    }
    Ok(())
}
