//! What a source reads of the objects, whichever source it is.

mod service;

use std::net::IpAddr;

use ipnet::IpNet;

pub use service::{
    Endpoint, EndpointPort, EndpointSliceObject, Hints, ServiceKind, ServiceObject, ServicePort, TrafficPolicy,
};

/// A node, as its object says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeObject {
    /// `metadata.name`.
    pub name: String,
    /// `status.addresses`, in their order.
    pub addresses: Vec<NodeAddress>,
    /// `spec.podCIDRs`.
    pub pod_ranges: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Annotation `hauberk.io/keys`.
    pub keys: Option<String>,
    /// Annotation `hauberk.io/addresses`.
    pub published_addresses: Option<String>,
    /// Annotation `hauberk.io/enforced`.
    pub enforced: Option<String>,
    /// Annotation `hauberk.io/plaintext-seen`.
    pub plaintext_seen: Option<String>,
    /// Where the object was read: a file path, or empty.
    pub origin: String,
}

/// One of a node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether its type is `InternalIP`.
    pub internal: bool,
}

/// A namespace, as its object says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NamespaceObject {
    /// `metadata.name`.
    pub name: String,
    /// Label `hauberk.io/encryption`.
    pub encryption: Option<String>,
    /// Where the object was read: a file path, or empty.
    pub origin: String,
}

/// A pod, as its object says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PodObject {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; for the mirror pod of a static pod, the annotation
    /// `kubernetes.io/config.hash`, because the runtime gives that as the uid to the CNI plugin.
    pub uid: Option<String>,
    /// `spec.nodeName`; none while unscheduled.
    pub node: Option<String>,
    /// `spec.hostNetwork`: its addresses are its node's.
    pub host_network: bool,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// `status.phase` is `Succeeded` or `Failed`: its addresses are no longer its own.
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set: its addresses are still its own.
    pub terminating: bool,
    /// Label `hauberk.io/encryption`.
    pub encryption: Option<String>,
    /// Where the object was read: a file path, or empty.
    pub origin: String,
}
