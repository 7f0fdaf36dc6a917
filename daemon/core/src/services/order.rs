//! The order of changes to services' tables: no frontend ever leads to a set that is not there, and
//! no frontend ever admits a client that it admits neither before the plan nor after it.
//!
//! Only a limited frontend asks which clients its set admits. So
//!
//! 1. a limited frontend that is to be gone, or to lead elsewhere, goes before its set admits more
//!    clients;
//! 2. a set admits new clients before the frontends that ask for them are put;
//! 3. frontends that admit everybody are put before their set admits fewer;
//! 4. limited frontends are put when their set admits no others any more.
//!
//! What a set still admits when no limited frontend leads there is removed last.

use std::collections::BTreeSet;

use hauberk_abi::address::Address;
use hauberk_abi::service::{FrontendKey, SourceRange};

use crate::order::Order;
use crate::services::{Scope, ServiceStep, Services, SetNumber, is_limited};

/// Sets come before the frontends that lead to them, and go after them. The addresses for packets
/// to other nodes are set before there are frontends that need them, and taken away after these.
pub(crate) fn order(actual: &Services, desired: &Services, scope: &Scope) -> Order<ServiceStep> {
    let mut order = Order::default();
    for (number, backends) in scope.sets.of(&desired.sets) {
        if actual.sets.get(number) != Some(backends) {
            order.stricter.push(ServiceStep::PutSet(*number, backends.clone()));
        }
    }
    let new: Vec<SourceRange> = scope.sources.of_set(&desired.sources, &actual.sources);
    let leaving = leaving(actual, desired, scope, &new);
    order.stricter.extend(leaving.iter().copied().map(ServiceStep::RemoveFrontend));
    order.stricter.extend(new.into_iter().map(ServiceStep::PutSource));
    let masquerade = (scope.masquerade && actual.masquerade != desired.masquerade)
        .then_some(ServiceStep::Masquerade(desired.masquerade));
    let has_addresses = desired.masquerade != [Address::UNSPECIFIED; 2];
    order.stricter.extend(masquerade.clone().filter(|_| has_addresses));

    let frontends = scope.frontends.of(&desired.frontends);
    let changed = frontends.filter(|(key, frontend)| actual.frontends.get(key) != Some(frontend));
    let (limited, open): (Vec<_>, Vec<_>) = changed.partition(|(_, frontend)| is_limited(frontend));
    let put = |(key, frontend): (&FrontendKey, &_)| ServiceStep::PutFrontend(*key, *frontend);
    let gone = scope.sources.of_set(&actual.sources, &desired.sources);
    let (narrowed, unused) = narrowed(desired, gone);
    order.stricter.extend(open.into_iter().map(put));
    order.stricter.extend(narrowed.into_iter().map(ServiceStep::RemoveSource));
    order.stricter.extend(limited.into_iter().map(put));

    let gone = scope.frontends.of(&actual.frontends).map(|(key, _)| key);
    let gone = gone.filter(|key| !desired.frontends.contains_key(key) && !leaving.contains(key));
    order.weaker.extend(gone.copied().map(ServiceStep::RemoveFrontend));
    order.weaker.extend(unused.into_iter().map(ServiceStep::RemoveSource));
    let gone = scope.sets.of(&actual.sets).filter(|(number, _)| !desired.sets.contains_key(number));
    order.weaker.extend(gone.map(|(number, _)| ServiceStep::RemoveSet(*number)));
    order.weaker.extend(masquerade.filter(|_| !has_addresses));
    order
}

/// Limited frontends to sets that admit more clients from now on, which these clients must not find
/// there: the frontend is to be gone, or to ask another set.
fn leaving(actual: &Services, desired: &Services, scope: &Scope, new: &[SourceRange]) -> BTreeSet<FrontendKey> {
    let widened: BTreeSet<SetNumber> = new.iter().map(|range| range.key.set()).collect();
    if widened.is_empty() {
        return BTreeSet::new();
    }
    let leaving = scope.frontends.of(&actual.frontends).filter(|(key, frontend)| {
        let stays = |wanted: &_| !is_limited(wanted) || wanted.outside == frontend.outside;
        let may_wait = || desired.frontends.get(key).is_some_and(stays);
        is_limited(frontend) && widened.contains(&frontend.outside) && !may_wait()
    });
    leaving.map(|(key, _)| *key).collect()
}

/// The ranges that go, of sets that limited frontends lead to, and of the others.
fn narrowed(desired: &Services, gone: Vec<SourceRange>) -> (Vec<SourceRange>, Vec<SourceRange>) {
    if gone.is_empty() {
        return Default::default();
    }
    let limited = desired.frontends.values().filter(|frontend| is_limited(frontend));
    let limited: BTreeSet<SetNumber> = limited.map(|frontend| frontend.outside).collect();
    gone.into_iter().partition(|range| limited.contains(&range.key.set()))
}
