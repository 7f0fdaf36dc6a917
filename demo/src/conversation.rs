//! All exchanges between two parties: HTTP, bulk over TCP, UDP, ICMP echo, over IPv4 and IPv6.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hauberk_netns::traffic::{self, Exchange};
use hauberk_netns::{Family, Marker, Party};

use crate::http;

/// The kind of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A request and a response.
    Http,
    /// One TCP connection that carries many bytes, for example a megabyte.
    Bulk,
    /// A datagram and its answer.
    Udp,
    /// Echo request and reply.
    Icmp,
}

impl Protocol {
    /// All kinds, in the order in which they are tried.
    pub const ALL: [Protocol; 4] = [Protocol::Http, Protocol::Bulk, Protocol::Udp, Protocol::Icmp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Http => "HTTP",
            Protocol::Bulk => "TCP bulk",
            Protocol::Udp => "UDP",
            Protocol::Icmp => "ICMP",
        })
    }
}

/// How much is sent, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Bytes of a bulk transfer.
    pub bulk_bytes: usize,
    /// How long an exchange is tried.
    pub patience: Duration,
}

impl Effort {
    /// For exchanges that should get through.
    pub const FULL: Effort = Effort { bulk_bytes: 1 << 20, patience: Duration::from_secs(10) };
    /// The same with few bytes.
    pub const LIGHT: Effort = Effort { bulk_bytes: 64 << 10, patience: Duration::from_secs(10) };
}

/// One finished exchange.
#[derive(Clone, Debug)]
pub struct Said {
    /// The name of the party that sent the request.
    pub client: String,
    /// The name of the party that answered.
    pub server: String,
    /// The kind of exchange.
    pub protocol: Protocol,
    /// The address family.
    pub family: Family,
    /// Both the request and the answer arrived.
    pub delivered: bool,
    /// The markers in the payloads.
    pub markers: BTreeSet<Marker>,
    /// Why it failed, if it did.
    pub trouble: String,
}

/// Performs every kind of exchange for each pair (client, server) over both families, several pairs
/// at a time.
///
/// # Errors
/// Sockets could not be made. An exchange that fails is part of the result.
pub fn all(pairs: &[(&Party, &Party)], effort: Effort) -> Result<Vec<Said>> {
    const AT_ONCE: usize = 8;
    let work: Vec<(&Party, &Party, Family)> =
        pairs.iter().flat_map(|(client, server)| Family::ALL.map(|family| (*client, *server, family))).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(work.len()) {
            scope.spawn(|| {
                while let Some((client, server, family)) = work.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let result = pair(client, server, *family, effort)
                        .with_context(|| format!("traffic from {} to {}", client.name, server.name));
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    let mut said = Vec::new();
    for result in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        said.extend(result?);
    }
    said.sort_by(|a, b| {
        (&a.client, &a.server, a.family, a.protocol).cmp(&(&b.client, &b.server, b.family, b.protocol))
    });
    Ok(said)
}

fn pair(client: &Party, server: &Party, family: Family, effort: Effort) -> Result<Vec<Said>> {
    let mut said: Vec<Said> = Vec::new();
    for protocol in Protocol::ALL {
        // If a request does not get through, the megabyte is not tried.
        if protocol == Protocol::Bulk && said.iter().any(|one| !one.delivered) {
            continue;
        }
        let (markers, trouble) = one(protocol, family, client, server, effort)?;
        said.push(Said {
            client: client.name.clone(),
            server: server.name.clone(),
            protocol,
            family,
            delivered: trouble.is_empty(),
            markers,
            trouble,
        });
    }
    Ok(said)
}

/// The markers, and what went wrong (empty if nothing did).
fn one(
    protocol: Protocol,
    family: Family,
    client: &Party,
    server: &Party,
    effort: Effort,
) -> Result<(BTreeSet<Marker>, String)> {
    let protocol = match protocol {
        Protocol::Http => {
            let answered = http::post(client, server, family, effort.patience)?;
            return Ok((BTreeSet::from([answered.request, answered.response]), answered.trouble));
        }
        Protocol::Bulk => {
            return Ok(match traffic::bulk_tcp(client, server, family, effort.bulk_bytes) {
                Ok(report) => (BTreeSet::from([report.marker]), String::new()),
                Err(error) => (BTreeSet::new(), format!("{error:#}")),
            });
        }
        Protocol::Udp => traffic::Protocol::Udp,
        Protocol::Icmp => traffic::Protocol::Icmp,
    };
    let outcome = traffic::exchange(&Exchange::new(protocol, family, client, server).patience(effort.patience))?;
    let trouble = match (outcome.delivered, outcome.answered) {
        (true, true) => String::new(),
        (true, false) => format!("the answer did not arrive: {}", outcome.said),
        _ => format!("the request did not arrive: {}", outcome.said),
    };
    Ok((BTreeSet::from([outcome.request, outcome.reply]), trouble))
}
