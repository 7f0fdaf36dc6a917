//! What the kernel and the tunnel hold, or should hold: all subjects together. A subject has its
//! part of the state, its steps and its scope in a folder of its own.

use std::collections::BTreeSet;
use std::fmt;

use hauberk_abi::address::Address;

use crate::identities::{self, Identities, IdentityStep};
use crate::pods::{self, PodStep, Pods};
use crate::scope::Keys;
use crate::services::{self, ServiceStep, Services};
use crate::tunnels::{self, TunnelStep, Tunnels};

/// What the kernel and the tunnel hold, or what they should hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct State {
    /// ENDPOINTS and RANGES, and what follows from them.
    pub identities: Identities,
    /// Pods' interfaces.
    pub pods: Pods,
    /// The tunnel, PEERS and routes.
    pub tunnels: Tunnels,
    /// FRONTENDS, SETS, BACKENDS and MEMBERS.
    pub services: Services,
}

impl State {
    /// Records that a step has been carried out.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Identity(step) => self.identities.apply(step),
            Step::Pod(step) => pods::apply(&mut self.pods, step),
            Step::Tunnel(step) => self.tunnels.apply(step),
            Step::Service(step) => self.services.apply(step),
        }
    }
}

/// One operation of the reconciler, by subject. Each can fail and be repeated. Each leaves a state
/// that is no more open than the state before it or the state the plan leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Who has an address, and how it is protected.
    Identity(IdentityStep),
    /// A pod's interface on this node.
    Pod(PodStep),
    /// The tunnel to another node, and the routes into it.
    Tunnel(TunnelStep),
    /// Where services are reached, and the backends behind them.
    Service(ServiceStep),
}

impl Step {
    /// The object that the step concerns, named as in problems. For a step of a service,
    /// [`crate::desired::Desired::service_of`] knows the service.
    pub fn object(&self) -> String {
        match self {
            Step::Identity(step) => step.object(),
            Step::Pod(step) => step.object(),
            Step::Tunnel(step) => step.object(),
            Step::Service(step) => step.object(),
        }
    }

    /// Whether its failure leaves in doubt what this node enforces. A missing route or peer only
    /// denies, and packets to a service's backends are judged like all others.
    pub fn concerns_enforcement(&self) -> bool {
        match self {
            Step::Identity(_) | Step::Pod(_) => true,
            Step::Tunnel(_) | Step::Service(_) => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Identity(step) => step.fmt(f),
            Step::Pod(step) => step.fmt(f),
            Step::Tunnel(step) => step.fmt(f),
            Step::Service(step) => step.fmt(f),
        }
    }
}

/// Where the desired state may differ from the actual one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub(crate) identities: identities::Scope,
    /// Pods' interfaces. There are few, so a plan looks at all of them.
    pub(crate) pods: bool,
    pub(crate) tunnels: tunnels::Scope,
    pub(crate) services: services::Scope,
}

impl Scope {
    /// Anywhere: at the start, and after a failure.
    pub fn everything() -> Scope {
        Scope {
            identities: identities::Scope::everything(),
            pods: true,
            tunnels: tunnels::Scope::everything(),
            services: services::Scope::everything(),
        }
    }

    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        *self == Scope::everything()
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        *self == Scope::default()
    }

    /// Addresses whose party or protection may differ; none if that can be any address.
    pub fn addresses(&self) -> Option<&BTreeSet<Address>> {
        match &self.identities.endpoints {
            Keys::All => None,
            Keys::These(addresses) => Some(addresses),
        }
    }

    /// Adds the other scope to this one.
    pub fn extend(&mut self, other: Scope) {
        self.identities.extend(other.identities);
        self.pods |= other.pods;
        self.tunnels.extend(other.tunnels);
        self.services.extend(other.services);
    }
}
