//! Services: the addresses at which clients reach them, and the backends behind them.

pub(crate) mod claims;
mod derive;
pub mod health;
mod masquerade;
mod order;
mod refusal;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use hauberk_abi::address::Address;
use hauberk_abi::service::{Backend, Frontend, FrontendKey, SourceRange, frontend_flag};

use crate::scope::Keys;

pub use claims::Claims;
pub(crate) use derive::set_number;
pub(crate) use masquerade::masquerade;
pub(crate) use order::order;
pub(crate) use refusal::Facts;

/// A set's number. It follows from the service's name alone, so it is the same on every node and
/// after every restart.
pub type SetNumber = u64;

/// How a service comes to a frontend. Of two services with one frontend, the one whose kind comes
/// first here has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendKind {
    /// Its cluster address.
    ClusterAddress,
    /// A port of every node.
    NodePort,
    /// An address of a load balancer.
    LoadBalancer,
    /// One of its external addresses.
    ExternalAddress,
}

/// The sets that clients of a frontend are led to: that of clients inside the cluster, then that of
/// clients outside, if it has one.
pub(crate) fn sets_of(frontend: &Frontend) -> impl Iterator<Item = SetNumber> + use<> {
    let outside = (frontend.flags & frontend_flag::OUTSIDE != 0).then_some(frontend.outside);
    [frontend.set].into_iter().chain(outside)
}

/// Whether only some clients may use the frontend.
pub(crate) fn is_limited(frontend: &Frontend) -> bool {
    frontend.flags & frontend_flag::LIMITED != 0
}

/// FRONTENDS, SETS, BACKENDS, MEMBERS, SOURCES and MASQUERADE.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Services {
    /// Where services are reached.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// The backends that clients are led to, in ascending order and each once.
    pub sets: BTreeMap<SetNumber, Arc<[Backend]>>,
    /// The clients that sets admit, of those that do not admit all.
    pub sources: BTreeSet<SourceRange>,
    /// The source address of packets that go on to another node for a client outside the cluster:
    /// IPv4, then IPv6; unspecified if there is none.
    pub masquerade: [Address; 2],
}

impl Services {
    pub(crate) fn apply(&mut self, step: &ServiceStep) {
        match step {
            ServiceStep::PutSet(number, backends) => {
                self.sets.insert(*number, Arc::clone(backends));
            }
            ServiceStep::PutFrontend(key, frontend) => {
                self.frontends.insert(*key, *frontend);
            }
            ServiceStep::RemoveFrontend(key) => {
                self.frontends.remove(key);
            }
            ServiceStep::PutSource(range) => {
                self.sources.insert(*range);
            }
            ServiceStep::RemoveSource(range) => {
                self.sources.remove(range);
            }
            ServiceStep::Masquerade(addresses) => self.masquerade = *addresses,
            ServiceStep::RemoveSet(number) => {
                self.sets.remove(number);
            }
        }
    }
}

/// A change of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceStep {
    /// The set has these backends, in ascending order and each once.
    PutSet(SetNumber, Arc<[Backend]>),
    /// A set admits these clients.
    PutSource(SourceRange),
    /// It admits them no more.
    RemoveSource(SourceRange),
    /// Packets of clients outside the cluster get these source addresses.
    Masquerade([Address; 2]),
    /// Clients reach a service there.
    PutFrontend(FrontendKey, Frontend),
    /// They no longer do.
    RemoveFrontend(FrontendKey),
    /// No frontend leads to the set any more.
    RemoveSet(SetNumber),
}

impl ServiceStep {
    pub(crate) fn object(&self) -> String {
        match self {
            ServiceStep::PutSet(number, _) | ServiceStep::RemoveSet(number) => format!("service set/{number:016x}"),
            ServiceStep::PutFrontend(key, _) | ServiceStep::RemoveFrontend(key) => format!("service address/{key}"),
            ServiceStep::PutSource(range) | ServiceStep::RemoveSource(range) => {
                format!("service set/{:016x}", range.key.set())
            }
            ServiceStep::Masquerade(_) => "masquerade addresses".into(),
        }
    }
}

impl fmt::Display for ServiceStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceStep::PutSet(number, backends) => write!(f, "put set {number:016x}: {} backends", backends.len()),
            ServiceStep::PutFrontend(key, frontend) => write!(f, "put frontend {key} to set {:016x}", frontend.set),
            ServiceStep::RemoveFrontend(key) => write!(f, "remove frontend {key}"),
            ServiceStep::PutSource(range) => write!(f, "admit {range}"),
            ServiceStep::RemoveSource(range) => write!(f, "admit {range} no more"),
            ServiceStep::Masquerade([v4, v6]) => write!(f, "masquerade with {v4} and {v6}"),
            ServiceStep::RemoveSet(number) => write!(f, "remove set {number:016x}"),
        }
    }
}

/// Where the services that the kernel has may differ from what it should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub(crate) frontends: Keys<FrontendKey>,
    pub(crate) sets: Keys<SetNumber>,
    pub(crate) sources: Keys<SourceRange>,
    pub(crate) masquerade: bool,
}

impl Scope {
    pub(crate) fn everything() -> Scope {
        Scope { frontends: Keys::All, sets: Keys::All, sources: Keys::All, masquerade: true }
    }

    pub(crate) fn extend(&mut self, other: Scope) {
        self.frontends.extend(other.frontends);
        self.sets.extend(other.sets);
        self.sources.extend(other.sources);
        self.masquerade |= other.masquerade;
    }
}

#[cfg(test)]
mod tests;
