//! Pods' interfaces on this node.

pub(crate) mod derive;
mod order;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use hauberk_abi::identity::Protection;

use crate::names::AttachmentKey;

pub(crate) use order::{Claims, order};

/// Pods' interfaces. A leftover whose container is not known may have any unused key.
pub type Pods = BTreeMap<AttachmentKey, LocalPod>;

pub(crate) fn apply(pods: &mut Pods, step: &PodStep) {
    match step {
        PodStep::Put(pod) => {
            pods.insert(pod.key(), pod.clone());
        }
        PodStep::Remove(pod) => {
            pods.remove(&pod.key());
        }
    }
}

/// A pod's interface on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The runtime's container (sandbox) id.
    pub container: String,
    /// The interface's name inside the pod.
    pub interface: String,
    /// The host side's name.
    pub host_interface: String,
    /// The host side's interface index.
    pub host_index: u32,
    /// MAC address of the host side.
    pub host_mac: [u8; 6],
    /// MAC address inside the pod.
    pub pod_mac: [u8; 6],
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The strictest protection of any of them.
    pub protection: Protection,
    /// Another CNI plugin made the interface: hauberk owns only the programs and map entries.
    pub adopted: bool,
}

impl LocalPod {
    /// The container, and the interface inside it.
    pub fn key(&self) -> AttachmentKey {
        AttachmentKey { container: self.container.clone(), interface: self.interface.clone() }
    }
}

/// A change of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodStep {
    /// Programs on its interface, ATTACHMENTS and INTERFACES entries, host routes, neighbours.
    Put(LocalPod),
    /// The pod's interface is gone: remove what `Put` made. A map entry or route that now belongs
    /// to another interface stays.
    Remove(LocalPod),
}

impl PodStep {
    pub(crate) fn object(&self) -> String {
        match self {
            PodStep::Put(pod) | PodStep::Remove(pod) => pod.key().object(),
        }
    }
}

impl fmt::Display for PodStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PodStep::Put(pod) => write!(f, "put interface {} ({})", pod.key(), pod.host_interface),
            PodStep::Remove(pod) => write!(f, "remove interface {} ({})", pod.key(), pod.host_interface),
        }
    }
}
