//! Services and the endpoints behind them, as their objects say.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::names::ServiceName;

/// A service, as its object says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ServiceObject {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ServiceName,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `spec.clusterIPs`; none for a headless service and while none is given.
    pub cluster_addresses: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_addresses: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, without those whose `ipMode` says that packets must pass
    /// the load balancer.
    pub balancer_addresses: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`: who may use the load balancer's addresses, if not
    /// everybody.
    pub source_ranges: Vec<IpNet>,
    /// What it has besides and is no range: that admits nobody.
    pub no_source_ranges: Vec<String>,
    /// `spec.sessionAffinity: ClientIP`: for how many seconds a client keeps its backend.
    pub affinity: Option<u32>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`: the port of every node that says how many endpoints are there.
    /// Only a load balancer's with the external policy `Local` has one.
    pub health_check_port: Option<u16>,
    /// `spec.publishNotReadyAddresses`.
    pub publishes_not_ready: bool,
    /// Label `service.kubernetes.io/service-proxy-name`: another program serves it.
    pub other_proxy: Option<String>,
    /// Where the object was read: a file path, or empty.
    pub origin: String,
}

impl ServiceObject {
    /// Whether only some clients may use the load balancer's addresses.
    pub(crate) fn is_limited(&self) -> bool {
        !self.source_ranges.is_empty() || !self.no_source_ranges.is_empty()
    }
}

/// How a service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ServiceKind {
    /// `ClusterIP`: inside the cluster.
    #[default]
    ClusterIp,
    /// `NodePort`: also at a port of every node.
    NodePort,
    /// `LoadBalancer`: also at the addresses of a load balancer.
    LoadBalancer,
    /// `ExternalName`: a name in the DNS, and nothing else.
    ExternalName,
}

/// Whose endpoints may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// `Cluster`: those of every node.
    #[default]
    Cluster,
    /// `Local`: those of the node at which the traffic arrives.
    Local,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for a service's only port.
    pub name: Arc<str>,
    /// Transport protocol (IANA).
    pub protocol: u8,
    /// The port of the service's addresses.
    pub port: u16,
    /// The port of every node.
    pub node_port: Option<u16>,
}

/// Some of a service's endpoints, as their object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSliceObject {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ServiceName,
    /// Label `kubernetes.io/service-name`: the service in the same namespace.
    pub service: Arc<str>,
    /// Whether `addressType` is `IPv4`, rather than `IPv6`.
    pub is_ipv4: bool,
    /// `ports`.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
    /// What `endpoints` has as an address and is none of the slice's family.
    pub no_addresses: Vec<String>,
    /// Where the object was read: a file path, or empty.
    pub origin: String,
}

/// A port of every endpoint in a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The service's port of the same name and protocol leads here.
    pub name: Arc<str>,
    /// Transport protocol (IANA).
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// An endpoint. A cluster has hundreds of thousands, so the model shares what repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`: the others mean the same endpoint.
    pub address: IpAddr,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`: it would be ready if it were not terminating.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints`, if there are any.
    pub hints: Option<Arc<Hints>>,
}

/// Whose clients an endpoint is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hints {
    /// `hints.forZones[].name`.
    pub zones: Vec<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub nodes: Vec<Arc<str>>,
}
