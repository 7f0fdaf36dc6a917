//! The order of changes to pods' interfaces on this node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::order::Order;
use crate::pods::{LocalPod, PodStep, Pods};

/// What belongs to one interface alone.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    addresses: BTreeSet<IpAddr>,
    interfaces: BTreeSet<u32>,
}

impl Claims {
    pub(crate) fn add(&mut self, pod: &LocalPod) {
        self.addresses.extend(pod.addresses.iter().copied());
        self.interfaces.insert(pod.host_index);
    }

    /// Whether any of it is also the pod's.
    pub(crate) fn overlap(&self, pod: &LocalPod) -> bool {
        self.interfaces.contains(&pod.host_index)
            || pod.addresses.iter().any(|address| self.addresses.contains(address))
    }
}

/// First, every interface is put in its desired state, but none becomes less protected than it is.
/// An old interface that shares an address or the index with a new one is removed first, even
/// before the sources are read: a later removal would delete the new interface's entries.
pub(crate) fn order(actual: &Pods, desired: &Pods) -> Order<PodStep> {
    let mut order = Order::default();
    let mut puts = Vec::new();
    let mut claims = Claims::default();
    for (key, pod) in desired {
        let before = actual.get(key);
        let protection = before.map_or(pod.protection, |before| before.protection.max(pod.protection));
        let put = LocalPod { protection, ..pod.clone() };
        if before != Some(&put) {
            claims.add(&put);
            puts.push(put);
        }
    }
    for (key, before) in actual {
        match desired.get(key) {
            Some(pod) if pod.protection < before.protection => order.weaker.push(PodStep::Put(pod.clone())),
            Some(_) => {}
            None if claims.overlap(before) => order.stricter.push(PodStep::Remove(before.clone())),
            None => order.weaker.push(PodStep::Remove(before.clone())),
        }
    }
    order.stricter.extend(puts.into_iter().map(PodStep::Put));
    order
}
