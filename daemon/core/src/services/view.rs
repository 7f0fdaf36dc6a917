//! Services as users see them: where each is reached, who answers there, and what is left out and
//! why.

use std::collections::BTreeMap;

use hauberk_abi::service::{Backend, FrontendKey};

use crate::model::{Model, Service};
use crate::names::ServiceName;
use crate::objects::{Endpoint, ServiceObject, ServicePort};
use crate::services::Claims;
use crate::services::derive::{Derived, is_ready, of_port};

pub use crate::services::FrontendKind;

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView<'a> {
    /// Its object.
    pub object: &'a ServiceObject,
    /// Where it is reached, by address; none while services are not looked at.
    pub frontends: Vec<FrontendView<'a>>,
    /// Its endpoints, by port and address.
    pub backends: Vec<BackendView<'a>>,
}

/// An address and port at which a service is reached, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendView<'a> {
    /// The address and port.
    pub key: FrontendKey,
    /// How the service comes to it.
    pub kind: FrontendKind,
    /// The name of the service's port.
    pub port_name: &'a str,
    /// For how many seconds a client keeps its backend; 0 if it does not.
    pub affinity: u32,
    /// Among how many backends connections are shared out.
    pub usable: usize,
    /// Why connections to it are not led to a backend, in a sentence without a full stop.
    pub left_out: Option<String>,
}

/// An endpoint of a service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView<'a> {
    /// Its address and port.
    pub backend: Backend,
    /// The name of the service's port.
    pub port_name: &'a str,
    /// The node it is on.
    pub node: Option<&'a str>,
    /// Its condition.
    pub condition: Condition,
    /// Whether connections are led to it.
    pub used: bool,
}

/// An endpoint's condition. Of several that are told of one endpoint the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Ready.
    Ready,
    /// It ends, and still serves.
    Terminating,
    /// It does not serve.
    NotReady,
}

/// Every service that has an object, in the order of their names.
pub fn services<'a>(model: &'a Model, claims: &'a Claims) -> impl Iterator<Item = ServiceView<'a>> {
    model.services.iter().map(|(name, object, service)| view(claims, name, object, service))
}

/// The service of this name.
pub fn find<'a>(model: &'a Model, claims: &'a Claims, namespace: &str, name: &str) -> Option<ServiceView<'a>> {
    let name = ServiceName::new(namespace, name);
    let (object, service) = model.services.find(&name)?;
    Some(view(claims, &name, object, service))
}

fn view<'a>(
    claims: &'a Claims,
    name: &ServiceName,
    object: &'a ServiceObject,
    service: &'a Service,
) -> ServiceView<'a> {
    let derived = claims.derived(name);
    let of_claims = derived.into_iter().flat_map(|derived| derived.claims.iter().map(move |claim| (derived, claim)));
    let frontends = of_claims.map(|(derived, claim)| FrontendView {
        key: claim.key,
        kind: claim.kind,
        port_name: &object.ports[usize::from(claim.port)].name,
        affinity: object.affinity.unwrap_or_default(),
        usable: derived.set(claim.frontend.set).map_or(0, |set| set.backends.len()),
        left_out: claims.left_out(name, claim).map(|why| why.to_string()),
    });
    ServiceView { object, frontends: frontends.collect(), backends: backends(derived, object, service) }
}

fn backends<'a>(derived: Option<&Derived>, object: &'a ServiceObject, service: &'a Service) -> Vec<BackendView<'a>> {
    let mut backends: BTreeMap<(usize, Backend), BackendView<'a>> = BTreeMap::new();
    for (place, port) in object.ports.iter().enumerate() {
        for is_ipv4 in [true, false] {
            for (endpoint, backend) in of_port(service, port, is_ipv4) {
                let condition = condition(object, endpoint);
                let view = backends.entry((place, backend)).or_insert_with(|| BackendView {
                    backend,
                    port_name: &port.name,
                    node: endpoint.node.as_deref(),
                    condition,
                    used: is_used(derived, object, port, backend),
                });
                view.condition = view.condition.min(condition);
            }
        }
    }
    backends.into_values().collect()
}

fn condition(object: &ServiceObject, endpoint: &Endpoint) -> Condition {
    if is_ready(object, endpoint) {
        Condition::Ready
    } else if endpoint.serving && endpoint.terminating {
        Condition::Terminating
    } else {
        Condition::NotReady
    }
}

fn is_used(derived: Option<&Derived>, object: &ServiceObject, port: &ServicePort, backend: Backend) -> bool {
    derived.into_iter().flat_map(|derived| &derived.sets).any(|set| {
        let of = &object.ports[usize::from(set.port)];
        of.name == port.name && of.protocol == port.protocol && set.backends.binary_search(&backend).is_ok()
    })
}
