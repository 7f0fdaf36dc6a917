//! What load balancers ask a node: how many endpoints of a service are here
//! (`spec.healthCheckNodePort`). They send a service's clients only to nodes that have some.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::local_node::Settings;
use crate::model::Service;
use crate::names::ServiceName;
use crate::objects::ServiceObject;
use crate::reserved;
use crate::services::Claims;
use crate::services::derive::is_ready;

/// A service that answers at a port of this node for its own health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of this node.
    pub port: u16,
    /// The service.
    pub service: ServiceName,
    /// How many of its endpoints are ready on this node, over all its ports.
    pub local_endpoints: usize,
}

/// The health checks that this node answers, in the order of their ports. None unless clients
/// outside the cluster are led to backends. Of several services with one port the one with the
/// lowest name has it.
pub fn health_checks(claims: &Claims) -> Vec<HealthCheck> {
    let checks = claims.health_ports().filter_map(|(port, service)| {
        let local_endpoints = claims.derived(service)?.health?.local_endpoints;
        Some(HealthCheck { port, service: service.clone(), local_endpoints })
    });
    checks.collect()
}

/// What follows from a service's objects for its health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) port: u16,
    pub(super) local_endpoints: usize,
}

impl Health {
    pub(super) fn derive(settings: &Settings, node: &str, object: &ServiceObject, service: &Service) -> Option<Health> {
        let port = object.health_check_port.filter(|_| settings.services_outside && object.other_proxy.is_none())?;
        let endpoints = service.slices().flat_map(|slice| &slice.endpoints);
        let here = endpoints.filter(|it| it.node.as_deref() == Some(node) && is_ready(object, it));
        let addresses: BTreeSet<IpAddr> =
            here.map(|endpoint| endpoint.address).filter(|address| reserved::address(*address).is_none()).collect();
        // A pod of both families is one endpoint.
        let of_ipv4 = addresses.iter().filter(|address| address.is_ipv4()).count();
        Some(Health { port, local_endpoints: of_ipv4.max(addresses.len() - of_ipv4) })
    }
}
