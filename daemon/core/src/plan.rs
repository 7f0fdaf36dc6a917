//! The steps from what the kernel and the tunnel hold to what they should hold.
//!
//! The order matters: first everything that denies more, then the pods' interfaces, then tunnels
//! and routes, then everything that denies less or is removed, and last the SYNCED flag, which says
//! that the node knows the whole cluster. A plan that stops at any step leaves every address judged
//! at least as strictly as before the plan or as after it; the next plan continues from there.
//! Until the sources have been read completely, the second half is left out.

mod execution;
mod identities;
mod pods;
mod scope;
mod tunnels;

use std::fmt;

use crate::desired::Desired;

pub use execution::Execution;
pub use identities::{Identities, IdentityStep};
pub use pods::{PodStep, Pods};
pub use scope::Scope;
pub use tunnels::{TunnelStep, Tunnels};

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
}

impl Step {
    /// The object that the step concerns, named as in problems.
    pub fn object(&self) -> String {
        match self {
            Step::Identity(step) => step.object(),
            Step::Pod(step) => step.object(),
            Step::Tunnel(step) => step.object(),
        }
    }

    /// Whether its failure leaves in doubt what this node enforces. A missing route or peer only
    /// denies.
    pub fn concerns_enforcement(&self) -> bool {
        match self {
            Step::Identity(_) | Step::Pod(_) => true,
            Step::Tunnel(_) => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Identity(step) => step.fmt(f),
            Step::Pod(step) => step.fmt(f),
            Step::Tunnel(step) => step.fmt(f),
        }
    }
}

/// What the kernel and the tunnel hold: as read back at start, with possible leftovers of an older
/// run, and as changed by every step since.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Actual {
    /// ENDPOINTS and RANGES, and what follows from them.
    pub identities: Identities,
    /// Pods' interfaces.
    pub pods: Pods,
    /// The tunnel, PEERS and routes.
    pub tunnels: Tunnels,
}

impl Actual {
    /// Records that a step has been carried out.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Identity(step) => self.identities.apply(step),
            Step::Pod(step) => pods::apply(&mut self.pods, step),
            Step::Tunnel(step) => self.tunnels.apply(step),
        }
    }
}

/// Steps of one subject in two halves.
#[derive(Debug)]
struct Order<S> {
    /// Steps that make nothing less strict.
    stricter: Vec<S>,
    /// The rest, removals included.
    weaker: Vec<S>,
}

impl<S> Default for Order<S> {
    fn default() -> Order<S> {
        Order { stricter: Vec::new(), weaker: Vec::new() }
    }
}

/// The steps from `actual` to `desired`. If they are carried out in order, no step leaves an
/// address weaker than both before and after the plan. Once all are carried out, the next plan is
/// empty.
pub fn plan(actual: &Actual, desired: &Desired) -> Vec<Step> {
    plan_within(actual, desired, &Scope::everything())
}

/// The same steps, for callers who know that the two differ only within the scope.
pub fn plan_within(actual: &Actual, desired: &Desired, scope: &Scope) -> Vec<Step> {
    let identities = identities::order(&actual.identities, desired, scope);
    let pods = pods::order(&actual.pods, desired, scope);
    let tunnels = tunnels::order(&actual.tunnels, desired, scope);
    let mut steps: Vec<Step> = identities.stricter.into_iter().map(Step::Identity).collect();
    steps.extend(pods.stricter.into_iter().map(Step::Pod));
    steps.extend(tunnels.stricter.into_iter().map(Step::Tunnel));
    if desired.prune {
        steps.extend(identities.weaker.into_iter().map(Step::Identity));
        steps.extend(pods.weaker.into_iter().map(Step::Pod));
        steps.extend(tunnels.weaker.into_iter().map(Step::Tunnel));
        if !actual.identities.synced {
            steps.push(Step::Identity(IdentityStep::SetSynced(true)));
        }
    }
    steps
}

#[cfg(test)]
mod tests;
