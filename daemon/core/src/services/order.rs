//! The order of changes to services' tables: no frontend ever leads to a set that is not there.

use crate::order::Order;
use crate::services::{Scope, ServiceStep, Services};

/// Sets come before the frontends that lead to them, and go after them.
pub(crate) fn order(actual: &Services, desired: &Services, scope: &Scope) -> Order<ServiceStep> {
    let mut order = Order::default();
    for (number, backends) in scope.sets.of(&desired.sets) {
        if actual.sets.get(number) != Some(backends) {
            order.stricter.push(ServiceStep::PutSet(*number, backends.clone()));
        }
    }
    for (key, frontend) in scope.frontends.of(&desired.frontends) {
        if actual.frontends.get(key) != Some(frontend) {
            order.stricter.push(ServiceStep::PutFrontend(*key, *frontend));
        }
    }
    let gone = scope.frontends.of(&actual.frontends).filter(|(key, _)| !desired.frontends.contains_key(key));
    order.weaker.extend(gone.map(|(key, _)| ServiceStep::RemoveFrontend(*key)));
    let gone = scope.sets.of(&actual.sets).filter(|(number, _)| !desired.sets.contains_key(number));
    order.weaker.extend(gone.map(|(number, _)| ServiceStep::RemoveSet(*number)));
    order
}
