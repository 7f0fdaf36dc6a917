//! The order of changes to pods' interfaces on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::desired::{Desired, LocalPod};
use crate::names::AttachmentKey;
use crate::plan::{Order, Scope};

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
    pub(super) fn object(&self) -> String {
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

/// Pods' interfaces. A leftover whose container is not known may have any unused key.
pub type Pods = BTreeMap<AttachmentKey, LocalPod>;

pub(super) fn apply(pods: &mut Pods, step: &PodStep) {
    match step {
        PodStep::Put(pod) => {
            pods.insert(pod.key(), pod.clone());
        }
        PodStep::Remove(pod) => {
            pods.remove(&pod.key());
        }
    }
}

/// What belongs to one interface alone.
#[derive(Debug, Default)]
pub(super) struct Claims {
    addresses: BTreeSet<IpAddr>,
    interfaces: BTreeSet<u32>,
}

impl Claims {
    pub(super) fn add(&mut self, pod: &LocalPod) {
        self.addresses.extend(pod.addresses.iter().copied());
        self.interfaces.insert(pod.host_index);
    }

    /// Whether any of it is also the pod's.
    pub(super) fn overlap(&self, pod: &LocalPod) -> bool {
        self.interfaces.contains(&pod.host_index)
            || pod.addresses.iter().any(|address| self.addresses.contains(address))
    }
}

/// First, every interface is put in its desired state, but none becomes less protected than it is.
/// An old interface that shares an address or the index with a new one is removed first, even
/// before the sources are read: a later removal would delete the new interface's entries.
pub(super) fn order(actual: &Pods, desired: &Desired, scope: &Scope) -> Order<PodStep> {
    let mut order = Order::default();
    if !(scope.is_everything() || scope.attachments) {
        return order;
    }
    let mut puts = Vec::new();
    let mut claims = Claims::default();
    for (key, pod) in &desired.attachments {
        let before = actual.get(key);
        let protection = before.map_or(pod.protection, |before| before.protection.max(pod.protection));
        let put = LocalPod { protection, ..pod.clone() };
        if before != Some(&put) {
            claims.add(&put);
            puts.push(put);
        }
    }
    for (key, before) in actual {
        match desired.attachments.get(key) {
            Some(pod) if pod.protection < before.protection => order.weaker.push(PodStep::Put(pod.clone())),
            Some(_) => {}
            None if claims.overlap(before) => order.stricter.push(PodStep::Remove(before.clone())),
            None => order.weaker.push(PodStep::Remove(before.clone())),
        }
    }
    order.stricter.extend(puts.into_iter().map(PodStep::Put));
    order
}
