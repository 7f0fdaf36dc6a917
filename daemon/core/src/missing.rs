//! Nodes that have pods but no Node object: these pods are all that is known of them. Objects
//! arrive in any order, so such a node counts as missing only if the state lasts; the agent decides
//! how long.

use std::collections::BTreeMap;

use hauberk_abi::identity::Protection;

use crate::local_node::LocalNode;
use crate::model::Model;
use crate::names::PodName;
use crate::protection;

/// The most pods that are listed by name.
const NAMED: usize = 3;

/// What is known of a node without an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Some of the pods on it, opted-in ones first.
    pub named: Vec<PodName>,
    /// All of the pods on it.
    pub pods: usize,
    /// Those of them that are opted in.
    pub protected: usize,
}

/// Nodes other than this one that have no object and pods that have not finished, by name.
pub fn missing(model: &Model, local: &LocalNode) -> BTreeMap<String, Missing> {
    let mut found: BTreeMap<String, Missing> = BTreeMap::new();
    for pod in model.pods().filter(|pod| !pod.finished) {
        let Some(node) = pod.node.as_deref() else { continue };
        if node == model.node() || model.node_object(node).is_some() {
            continue;
        }
        let missing = found.entry(node.to_owned()).or_default();
        let ruling = protection::of_pod(model, local, pod);
        let is_protected = pod.has_network() && ruling.protection > Protection::None;
        missing.pods += 1;
        if is_protected {
            missing.named.insert(missing.protected.min(NAMED), pod.full_name());
            missing.protected += 1;
        } else {
            missing.named.push(pod.full_name());
        }
        missing.named.truncate(NAMED);
    }
    found
}

impl Missing {
    /// The pods on it: some by name, the rest by number.
    pub fn pods_in_words(&self) -> String {
        let named = self.named.iter().map(PodName::to_string).collect::<Vec<_>>().join(", ");
        match self.pods.saturating_sub(self.named.len()) {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Change;
    use crate::objects::PodObject;
    use crate::testing::{World, node, pod};

    #[test]
    fn a_node_without_an_object_is_missed_for_its_pods() {
        let mut world = World::three_nodes();
        for number in 1..=3 {
            world.apply(Change::Pod(pod(&format!("open/p{number}"), 4, &[&format!("10.0.4.{number}")])));
        }
        world.apply(Change::Pod(pod("secret/a", 4, &["10.0.4.9"])));
        world.apply(Change::Pod(pod("secret/here", 1, &["10.0.1.9"])));
        world.apply(Change::Pod(PodObject { host_network: true, ..pod("open/host", 5, &[]) }));
        world.apply(Change::Pod(PodObject { finished: true, ..pod("open/done", 6, &[]) }));
        world.apply(Change::Pod(PodObject { node: None, ..pod("open/unscheduled", 6, &[]) }));
        let found = missing(&world.model, &world.local);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["n4", "n5"]);
        assert_eq!((found["n4"].pods, found["n4"].protected), (4, 1));
        assert_eq!(found["n4"].pods_in_words(), "secret/a, open/p1, open/p2 and 1 more");
        assert_eq!(found["n5"].pods_in_words(), "open/host");
        world.apply(Change::Node(node(4)));
        world.apply(Change::Node(node(5)));
        assert!(missing(&world.model, &world.local).is_empty());
    }

    #[test]
    fn this_node_is_not_missed() {
        let mut world = World::new();
        world.apply(Change::Pod(pod("open/p", 1, &["10.0.1.3"])));
        assert!(missing(&world.model, &world.local).is_empty());
    }
}
