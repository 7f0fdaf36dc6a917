//! The pods as the model keeps them. A cluster has tens of thousands, so repeated strings are
//! shared and nothing is stored twice.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::words::Words;
use crate::names::PodName;
use crate::objects::PodObject;

/// A pod as its object last said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// As [`PodObject::namespace`].
    pub namespace: Arc<str>,
    /// As [`PodObject::name`].
    pub name: Box<str>,
    /// As [`PodObject::uid`].
    pub uid: Option<Box<str>>,
    /// As [`PodObject::node`].
    pub node: Option<Arc<str>>,
    /// As [`PodObject::addresses`].
    pub addresses: Box<[IpAddr]>,
    /// As [`PodObject::encryption`].
    pub encryption: Option<Arc<str>>,
    /// As [`PodObject::origin`].
    pub origin: Box<str>,
    /// As [`PodObject::host_network`].
    pub host_network: bool,
    /// As [`PodObject::finished`].
    pub finished: bool,
    /// As [`PodObject::terminating`].
    pub terminating: bool,
}

impl Pod {
    /// Its namespaced name.
    pub fn full_name(&self) -> PodName {
        PodName { namespace: self.namespace.to_string(), name: self.name.to_string() }
    }

    /// Whether the pod, rather than its node, has the addresses in its status.
    pub fn has_network(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// The addresses that belong to the pod itself.
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.has_network() { &self.addresses } else { &[] }
    }
}

/// The pods, by namespace and name.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    by_namespace: BTreeMap<Arc<str>, BTreeSet<ByName>>,
    words: Words,
}

impl Pods {
    /// The pod as it was before, if it existed, and as it is now; none if nothing has changed.
    pub(crate) fn put(&mut self, object: PodObject) -> Option<(Option<Arc<Pod>>, Arc<Pod>)> {
        let before = self.find(&object.namespace, &object.name).cloned();
        let namespace = match self.by_namespace.get_key_value(object.namespace.as_str()) {
            Some((namespace, _)) => Arc::clone(namespace),
            None => object.namespace.into(),
        };
        let pod = Pod {
            namespace,
            name: object.name.into(),
            uid: object.uid.map(Into::into),
            node: object.node.map(|node| self.words.share(node)),
            addresses: object.addresses.into(),
            encryption: object.encryption.map(|label| self.words.share(label)),
            origin: object.origin.into(),
            host_network: object.host_network,
            finished: object.finished,
            terminating: object.terminating,
        };
        if before.as_deref() == Some(&pod) {
            return None;
        }
        let pod = Arc::new(pod);
        self.by_namespace.entry(Arc::clone(&pod.namespace)).or_default().replace(ByName(Arc::clone(&pod)));
        Some((before, pod))
    }

    /// Removes the pod.
    pub(crate) fn remove(&mut self, name: &PodName) -> Option<Arc<Pod>> {
        let pods = self.by_namespace.get_mut(name.namespace.as_str())?;
        let pod = pods.take(name.name.as_str())?.0;
        if pods.is_empty() {
            self.by_namespace.remove(name.namespace.as_str());
        }
        Some(pod)
    }

    /// The pod of this name.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.by_namespace.get(namespace)?.get(name).map(|ByName(pod)| pod)
    }

    /// Every pod, ordered by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_namespace.values().flatten().map(|ByName(pod)| pod)
    }

    /// The namespace's pods, ordered by name.
    pub(crate) fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_namespace.get(namespace).into_iter().flatten().map(|ByName(pod)| pod)
    }

    /// The namespaces that have pods.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.by_namespace.keys().map(|name| &**name)
    }
}

/// A pod in its namespace's set, which is ordered and searched by name.
#[derive(Debug)]
struct ByName(Arc<Pod>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &ByName) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &ByName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &ByName) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    #[test]
    fn a_pod_is_replaced_found_and_taken_away() {
        let mut pods = Pods::default();
        let object = pod("a/x", 1, &["10.0.1.5"]);
        assert!(matches!(pods.put(object.clone()), Some((None, _))));
        assert!(pods.put(object.clone()).is_none());
        let (before, now) = pods.put(PodObject { terminating: true, ..object }).unwrap();
        assert!(!before.unwrap().terminating && now.terminating);
        assert!(pods.find("a", "x").unwrap().terminating);
        assert_eq!(pods.namespaces().collect::<Vec<_>>(), ["a"]);
        assert!(pods.remove(&now.full_name()).is_some());
        assert_eq!((pods.iter().count(), pods.namespaces().count()), (0, 0));
    }
}
