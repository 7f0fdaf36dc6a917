//! `GET /v1/services`: where services are reached, and who answers there.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::words::Vocabulary;
use crate::{Encryption, Why, Word};

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its type, as Kubernetes writes it: `ClusterIP`, `NodePort`, `LoadBalancer` or
    /// `ExternalName`.
    pub kind: Word<ServiceKind>,
    /// The addresses and ports at which clients reach it.
    pub frontends: Vec<ServiceFrontend>,
    /// Everyone who may answer, also who does not now.
    pub backends: Vec<ServiceBackend>,
    /// How many connections clients outside the cluster have to it at this node; none if it is not
    /// led to from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// An address and port at which clients reach a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFrontend {
    /// The address; none for every address of every node.
    pub address: Option<IpAddr>,
    /// `ipv4` or `ipv6`.
    pub family: Word<AddressFamily>,
    /// The port.
    pub port: u16,
    /// `tcp`, `udp`, `sctp`, or the protocol's number.
    pub protocol: String,
    /// What the address is: `cluster_address`, `node_port`, `load_balancer` or `external_address`.
    pub kind: Word<FrontendKind>,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// For how many seconds after its last connection a client keeps its backend; 0 if it does not.
    pub affinity_seconds: u32,
    /// How many backends connections from this node may be led to. Without any they are refused.
    pub usable: usize,
    /// Why the frontend is left to kube-proxy, if it is.
    pub left_out: Option<String>,
    /// How this node leads clients outside the cluster that reach the frontend here; none if it
    /// does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<FromOutside>,
}

/// How clients outside the cluster are led from a frontend to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromOutside {
    /// Whose backends they are led to, the service's `externalTrafficPolicy`: `cluster` or `local`.
    pub policy: Word<TrafficPolicy>,
    /// How many backends they may be led to.
    pub usable: usize,
    /// The clients that are admitted, its `loadBalancerSourceRanges` of the frontend's family; none
    /// for all clients.
    pub source_ranges: Option<Vec<IpNet>>,
}

/// Who may answer for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceBackend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The name of the service's port for which it answers; empty if that has none.
    pub port_name: String,
    /// The node it is on, where known.
    pub node: Option<String>,
    /// `ready`, `terminating` or `not_ready`.
    pub condition: Word<BackendCondition>,
    /// Whether new connections from this node are led to it.
    pub used: bool,
    /// Whether new connections of clients outside the cluster that arrive at this node are led to
    /// it; none if the service is not led to from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<bool>,
    /// How packets of a process on this node's own network travel to it: `encrypted`, `plain`,
    /// `local`, `world` or `refused`. A pod's packets may be treated otherwise: `explain` says how.
    pub encryption: Option<Word<Encryption>>,
    /// The rule for it, as in flow records.
    pub why: Option<Word<Why>>,
}

/// The services of a node, in [`crate::Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesStatus {
    /// Who leads connections to services to a backend: `sockets`, `sockets and devices`, or `beside
    /// kube-proxy` if hauberk leaves them all to kube-proxy.
    pub mode: Word<ServiceMode>,
    /// Services that are read.
    pub services: usize,
    /// Addresses and ports at which connections are led to a backend.
    pub frontends: usize,
    /// Backends over all sets.
    pub backends: usize,
    /// Connections and datagrams that were led to a backend since the tables were made.
    pub balanced: u64,
    /// Connections and datagrams to a service without backends: they were refused.
    pub refused: u64,
    /// Connections and datagrams for which no backend could be read: they were refused.
    pub failed: u64,
    /// Connections of clients outside the cluster at the last count, which is made every ten
    /// seconds; none if they are not led, or not counted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// The type of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    /// Reached at an address inside the cluster.
    ClusterIp,
    /// Also at a port of every node.
    NodePort,
    /// Also at an address of a load balancer.
    LoadBalancer,
    /// A name in DNS, without addresses.
    ExternalName,
}

/// What a frontend's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// The service's address inside the cluster.
    ClusterAddress,
    /// Any address of any node.
    NodePort,
    /// An address that a load balancer gave it.
    LoadBalancer,
    /// One of its `externalIPs`.
    ExternalAddress,
}

/// The family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a backend's endpoint says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendCondition {
    /// It takes connections.
    Ready,
    /// It is about to end, and still takes connections: it is used while there is no ready one.
    Terminating,
    /// It takes none.
    NotReady,
}

/// Whose backends clients are led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Those of every node.
    Cluster,
    /// Those of the node at which the client arrives.
    Local,
}

/// Who leads connections to services to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceMode {
    /// kube-proxy alone.
    BesideKubeProxy,
    /// Programs at the sockets of this node's processes; kube-proxy does the rest.
    Sockets,
    /// Also programs at this node's devices, for clients outside the cluster.
    SocketsAndDevices,
}

words!(ServiceKind {
    ClusterIp = "ClusterIP",
    NodePort = "NodePort",
    LoadBalancer = "LoadBalancer",
    ExternalName = "ExternalName",
});
words!(FrontendKind {
    ClusterAddress = "cluster_address",
    NodePort = "node_port",
    LoadBalancer = "load_balancer",
    ExternalAddress = "external_address",
});
words!(AddressFamily { V4 = "ipv4", V6 = "ipv6" });
words!(BackendCondition { Ready = "ready", Terminating = "terminating", NotReady = "not_ready" });
words!(TrafficPolicy { Cluster = "cluster", Local = "local" });
words!(ServiceMode {
    BesideKubeProxy = "beside kube-proxy",
    Sockets = "sockets",
    SocketsAndDevices = "sockets and devices",
});
