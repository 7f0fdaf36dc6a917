//! A pod's interface on this node, as the CNI plugin asked for it and made it.

use std::net::IpAddr;

use hauberk_api::MacAddress;

use crate::names::{AttachmentKey, PodName};

/// A pod's interface on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The container, and the interface inside it.
    pub key: AttachmentKey,
    /// The pod, if the runtime named it.
    pub pod: Option<NamedPod>,
    /// The addresses that are the pod's alone.
    pub addresses: Vec<IpAddr>,
    /// The host side's name.
    pub host_interface: String,
    /// The interface itself; none while only addresses are reserved.
    pub pair: Option<VethPair>,
    /// Another CNI plugin made the interface and gave the addresses.
    pub adopted: bool,
    /// It was recovered from what the kernel held, which does not name the pod: its pod is the one
    /// that has its addresses.
    pub recovered: bool,
}

/// A pod as the runtime named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPod {
    /// Namespace and name.
    pub name: PodName,
    /// Its uid, where known.
    pub uid: Option<String>,
}

/// The two ends of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethPair {
    /// Interface index of the host side.
    pub host_index: u32,
    /// MAC address of the host side.
    pub host_mac: MacAddress,
    /// MAC address inside the pod.
    pub pod_mac: MacAddress,
}
