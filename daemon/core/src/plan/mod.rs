//! The steps from what the kernel and the tunnel hold to what they should hold.
//!
//! The order matters: first everything that denies more, then the pods' interfaces, then tunnels
//! and routes, then services, whose backends must be known by then, then in the same order
//! everything that denies less or is removed, and last the SYNCED flag, which says that the node
//! knows the whole cluster. A plan that stops at any step leaves every address judged
//! at least as strictly as before the plan or as after it; the next plan continues from there.
//! Until the sources have been read completely, the second half is left out.

mod execution;

use crate::desired::Desired;
use crate::identities::{self, IdentityStep};
use crate::order::Order;
use crate::pods;
use crate::services;
use crate::state::{Scope, State, Step};
use crate::tunnels;

pub use execution::Execution;

/// The steps from `actual` to `desired`. If they are carried out in order, no step leaves an
/// address weaker than both before and after the plan. Once all are carried out, the next plan is
/// empty.
pub fn plan(actual: &State, desired: &Desired) -> Vec<Step> {
    plan_within(actual, desired, &Scope::everything())
}

/// The same steps, for callers who know that the two differ only within the scope.
pub fn plan_within(actual: &State, desired: &Desired, scope: &Scope) -> Vec<Step> {
    let (state, prune) = (&desired.state, desired.prune());
    let identities = identities::order(&actual.identities, &state.identities, &scope.identities);
    let pods = if scope.pods { pods::order(&actual.pods, &state.pods) } else { Order::default() };
    let tunnels = tunnels::order(&actual.tunnels, &state.tunnels, prune, &scope.tunnels);
    let services = services::order(&actual.services, &state.services, &scope.services);
    let mut steps: Vec<Step> = identities.stricter.into_iter().map(Step::Identity).collect();
    steps.extend(pods.stricter.into_iter().map(Step::Pod));
    steps.extend(tunnels.stricter.into_iter().map(Step::Tunnel));
    steps.extend(services.stricter.into_iter().map(Step::Service));
    if prune {
        steps.extend(identities.weaker.into_iter().map(Step::Identity));
        steps.extend(pods.weaker.into_iter().map(Step::Pod));
        steps.extend(tunnels.weaker.into_iter().map(Step::Tunnel));
        steps.extend(services.weaker.into_iter().map(Step::Service));
        if !actual.identities.synced {
            steps.push(Step::Identity(IdentityStep::SetSynced(true)));
        }
    }
    steps
}

#[cfg(test)]
mod tests;
