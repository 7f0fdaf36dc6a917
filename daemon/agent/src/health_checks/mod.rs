//! Answers to load balancers: whether this node has endpoints of a service with
//! `externalTrafficPolicy: Local`. A load balancer asks at the service's `healthCheckNodePort`, and
//! sends clients only to nodes that say yes.
//!
//! The answers are those of kube-proxy, because load balancers and people read both.

mod ports;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hauberk_api::Problem;
use hauberk_core::services::health::{HealthCheck, health_checks};
use serde::Serialize;
use tracing::warn;

use self::ports::Ports;
use crate::api::connections::Bounds;
use crate::state::SharedState;

/// Between looks at which ports there should be.
const LOOK: Duration = Duration::from_millis(500);
/// Any host may connect, to all ports together.
const BOUNDS: Bounds =
    Bounds { connections: 128, request: Duration::from_secs(5), lifetime: Some(Duration::from_secs(30)) };

/// Says how many of the endpoints behind it are here.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// Answers at the ports of all services that have one, until the runtime ends.
pub async fn run(agent: SharedState) {
    let mut ports = Ports::new(agent.clone(), BOUNDS);
    loop {
        let wanted = health_checks(&agent.read().desired.services);
        let problems = ports.follow(wanted).await;
        tell(&agent, problems);
        tokio::time::sleep(LOOK).await;
    }
}

/// Puts the problems into the status, and those that are new into the log.
fn tell(agent: &SharedState, problems: Vec<Problem>) {
    if agent.read().health_checks == problems {
        return;
    }
    let known = std::mem::replace(&mut agent.write().health_checks, problems.clone());
    for problem in problems.iter().filter(|problem| !known.contains(problem)) {
        warn!(object = problem.object, "{}", problem.message);
    }
}

/// What is answered, by port.
#[derive(Clone, Default)]
struct Checks(Arc<RwLock<BTreeMap<u16, HealthCheck>>>);

impl Checks {
    fn replace(&self, checks: BTreeMap<u16, HealthCheck>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = checks;
    }

    fn at(&self, port: u16) -> Option<HealthCheck> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&port).cloned()
    }
}

/// What the answers at one port are made from.
#[derive(Clone)]
struct Asked {
    agent: SharedState,
    checks: Checks,
    port: u16,
}

/// Whether clients may be sent here. As with kube-proxy, the path and the method do not matter.
async fn answer(State(asked): State<Asked>) -> Response {
    let Some(HealthCheck { service, local_endpoints, .. }) = asked.checks.at(asked.port) else {
        // The connection is older than the end of the service.
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::CONNECTION, "close")]).into_response();
    };
    let ready = asked.agent.read().is_ready();
    let mut headers = HeaderMap::new();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, local_endpoints.into());
    let service = Name { namespace: &service.namespace, name: &service.name };
    let status = status(local_endpoints, ready);
    (status, headers, axum::Json(Answer { service, local_endpoints, service_proxy_healthy: ready })).into_response()
}

fn status(local_endpoints: usize, ready: bool) -> StatusCode {
    if local_endpoints > 0 && ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// As kube-proxy's `pkg/proxy/healthcheck` writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}
