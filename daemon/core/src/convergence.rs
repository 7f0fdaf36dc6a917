//! Which nodes enforce which namespace by now.
//!
//! Each agent writes into its own Node object, annotation `hauberk.io/enforced`, a digest of what it enforces for each
//! opted-in namespace: `{"version":1,"namespaces":{"payments":"0123456789abcdef"}}`. A namespace has converged when every
//! node that has a tunnel acknowledges the digest this node computes itself.

use std::collections::{BTreeMap, BTreeSet};

use blake2::{Blake2s256, Digest};
use hauberk_abi::identity::Protection;
use serde::{Deserialize, Serialize};

use crate::api::NamespaceStatus;
use crate::desired::Policy;
use crate::model::Model;
use crate::protection;

/// The form's version that this agent writes and reads.
pub const VERSION: u64 = 1;

/// No annotation is longer, bytes: what Kubernetes allows for all annotations of an object.
pub const MAX_LENGTH: usize = 256 * 1024;

/// Why an annotation was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnforcedError {
    /// Longer than [`MAX_LENGTH`].
    #[error("it is {length} bytes long, more than the {MAX_LENGTH} an object's annotations may have")]
    TooLong {
        /// Its length, bytes.
        length: usize,
    },
    /// Not the JSON it should be.
    #[error("it is not the JSON that hauberk writes ({reason})")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// Written by an agent of another generation.
    #[error(
        "it has version {version}, and this agent reads version {VERSION} only: upgrade the older of the two agents"
    )]
    Version {
        /// The version it has.
        version: u64,
    },
}

#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Body {
    version: u64,
    namespaces: BTreeMap<String, String>,
}

/// Reads an annotation: digest by namespace.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, EnforcedError> {
    if text.len() > MAX_LENGTH {
        return Err(EnforcedError::TooLong { length: text.len() });
    }
    let json = |error: serde_json::Error| EnforcedError::Json { reason: error.to_string() };
    let head: Head = serde_json::from_str(text).map_err(json)?;
    if head.version != VERSION {
        return Err(EnforcedError::Version { version: head.version });
    }
    let body: Body = serde_json::from_str(text).map_err(json)?;
    Ok(body.namespaces)
}

/// Writes an annotation; [`parse`] reads it back.
pub fn render(enforced: &BTreeMap<String, String>) -> String {
    // Strings only: this cannot fail.
    serde_json::to_string(&Body { version: VERSION, namespaces: enforced.clone() }).unwrap_or_default()
}

/// What this node is to acknowledge: the digest of each namespace that is opted in or holds a pod that is.
pub fn enforced(model: &Model, policy: &Policy) -> BTreeMap<String, String> {
    summaries(model, policy)
        .into_iter()
        .filter(|(_, summary)| summary.opted_in())
        .map(|(name, summary)| (name.to_owned(), summary.digest()))
        .collect()
}

/// The digest to acknowledge of one namespace; none if neither it nor any of its pods is opted in.
pub(crate) fn enforced_in(model: &Model, policy: &Policy, namespace: &str) -> Option<String> {
    summary(model, policy, namespace).filter(Summary::opted_in).map(|summary| summary.digest())
}

/// The state of each namespace that is opted in or holds a pod that is, by name.
pub fn convergence(model: &Model, policy: &Policy) -> Vec<NamespaceStatus> {
    let own = model.node();
    let has_tunnel = |node: &&str| *node == own || model.nodes.get(*node).is_some_and(|node| node.held.is_some());
    let mut nodes: Vec<&str> = model.nodes.keys().map(String::as_str).filter(has_tunnel).collect();
    if !nodes.contains(&own) {
        nodes.push(own);
    }
    summaries(model, policy)
        .into_iter()
        .filter(|(_, summary)| summary.opted_in())
        .map(|(name, summary)| {
            let digest = summary.digest();
            let acknowledged =
                |node: &&str| model.nodes.get(*node).and_then(|node| node.enforced.get(name)) == Some(&digest);
            let waiting_for: Vec<String> =
                nodes.iter().filter(|node| !acknowledged(node)).map(|node| (*node).to_owned()).collect();
            NamespaceStatus {
                name: name.to_owned(),
                protection: summary.protection,
                pods: summary.pods,
                protected_pods: summary.protected_pods,
                converged_nodes: nodes.len() - waiting_for.len(),
                nodes: nodes.len(),
                waiting_for,
                since: None,
            }
        })
        .collect()
}

/// A namespace's pods, as far as protection goes.
struct Summary<'a> {
    protection: Protection,
    pods: usize,
    protected_pods: usize,
    /// Pods that are protected otherwise than their namespace says, by name.
    different: Vec<(&'a str, Protection)>,
}

impl Summary<'_> {
    fn opted_in(&self) -> bool {
        self.protection > Protection::None || self.protected_pods > 0
    }

    /// Short, and the same on every node and in every version: what was decided, not how.
    fn digest(&self) -> String {
        let mut hash = Blake2s256::new();
        hash.update([self.protection as u8]);
        for (pod, protection) in &self.different {
            hash.update((pod.len() as u64).to_be_bytes());
            hash.update(pod.as_bytes());
            hash.update([*protection as u8]);
        }
        hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn summaries<'a>(model: &'a Model, policy: &Policy) -> BTreeMap<&'a str, Summary<'a>> {
    let names: BTreeSet<&str> = model.namespaces.keys().map(String::as_str).chain(model.pods.namespaces()).collect();
    names.into_iter().filter_map(|name| Some((name, summary(model, policy, name)?))).collect()
}

/// None of a namespace that has neither an object nor a pod of its own network.
fn summary<'a>(model: &'a Model, policy: &Policy, name: &str) -> Option<Summary<'a>> {
    let namespace = model.namespace(name);
    let ruling = protection::of_namespace(policy, namespace);
    let mut summary = Summary { protection: ruling.protection, pods: 0, protected_pods: 0, different: Vec::new() };
    for pod in model.pods.of_namespace(name).filter(|pod| pod.has_network()) {
        let label = pod.encryption.as_deref();
        let protection = protection::strengthen(ruling, label, policy.allow_pod_opt_out).protection;
        summary.pods += 1;
        summary.protected_pods += usize::from(protection > Protection::None);
        if protection != summary.protection {
            summary.different.push((&pod.name, protection));
        }
    }
    (namespace.is_some() || summary.pods > 0).then_some(summary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::reason;
    use crate::model::{Change, NodeObject, PodObject};
    use crate::testing::{World, namespace, node, pod};
    use proptest::prelude::*;

    fn acknowledge(world: &mut World, number: u8, enforced: &BTreeMap<String, String>) {
        world.apply(Change::Node(NodeObject { enforced: Some(render(enforced)), ..node(number) }));
    }

    fn status(world: &World, name: &str) -> NamespaceStatus {
        convergence(&world.model, &world.policy).into_iter().find(|status| status.name == name).unwrap()
    }

    #[test]
    fn a_namespace_has_converged_when_every_node_with_a_tunnel_says_so() {
        let mut world = World::three_nodes();
        world.apply(Change::Node(NodeObject { keys: None, ..node(4) }));
        let now = enforced(&world.model, &world.policy);
        assert_eq!(now.keys().collect::<Vec<_>>(), ["secret", "soft"], "what is not opted in needs no word");
        assert_eq!(status(&world, "secret").waiting_for, ["n1", "n2", "n3"]);
        for number in 1..=3 {
            acknowledge(&mut world, number, &now);
        }
        let status = status(&world, "secret");
        assert_eq!((status.converged_nodes, status.nodes), (3, 3));
        assert!(status.waiting_for.is_empty());
    }

    #[test]
    fn this_node_counts_before_its_object_is_read() {
        let mut world = World::new();
        world.apply(namespace("secret", Some("enabled")));
        let status = status(&world, "secret");
        assert_eq!((status.converged_nodes, status.nodes), (0, 1));
        assert_eq!(status.waiting_for, ["n1"]);
    }

    #[test]
    fn a_change_of_any_label_that_counts_waits_for_every_node_anew() {
        let mut world = World::three_nodes();
        world.apply(Change::Pod(pod("open/a", 2, &["10.0.2.5"])));
        world.apply(Change::Pod(pod("soft/b", 2, &["10.0.2.6"])));
        let before = enforced(&world.model, &world.policy);
        let labelled = |name, label: &str| {
            Change::Pod(PodObject { encryption: Some(label.into()), ..pod(name, 2, &["10.0.2.5"]) })
        };
        world.apply(labelled("open/a", "enabled"));
        let one = enforced(&world.model, &world.policy);
        assert!(!before.contains_key("open") && one.contains_key("open"));
        assert_eq!(before["secret"], one["secret"]);
        world.apply(labelled("open/a", "permissive"));
        assert_ne!(one["open"], enforced(&world.model, &world.policy)["open"]);
        world.apply(namespace("soft", Some("enabled")));
        assert_ne!(before["soft"], enforced(&world.model, &world.policy)["soft"]);
        for number in 1..=3 {
            acknowledge(&mut world, number, &before);
        }
        assert_eq!(status(&world, "secret").converged_nodes, 3);
        assert_eq!(status(&world, "soft").converged_nodes, 0);
    }

    #[test]
    fn pods_that_come_and_go_do_not_disturb_what_has_converged() {
        let mut world = World::three_nodes();
        let before = enforced(&world.model, &world.policy);
        world.apply(Change::Pod(pod("secret/a", 2, &["10.0.2.5"])));
        world.apply(Change::Pod(PodObject { encryption: Some("enabled".into()), ..pod("secret/b", 2, &[]) }));
        world.apply(Change::Pod(PodObject { encryption: Some("disabled".into()), ..pod("secret/c", 2, &[]) }));
        assert_eq!(before, enforced(&world.model, &world.policy));
        assert_eq!((status(&world, "secret").pods, status(&world, "secret").protected_pods), (3, 3));
    }

    #[test]
    fn the_digest_is_the_same_in_every_version() {
        // The first eight bytes of BLAKE2s of the byte 2 (`enabled`): agents of two versions must agree.
        let world = World::three_nodes();
        let now = enforced(&world.model, &world.policy);
        assert_eq!(now["secret"], "2ca4b2f5cb29b023");
    }

    #[test]
    fn a_broken_acknowledgement_counts_as_none_and_is_told() {
        for (text, expected) in
            [("{", "not the JSON"), (r#"{"version":7}"#, "version 7"), (&" ".repeat(MAX_LENGTH + 1), "bytes long")]
        {
            let mut world = World::three_nodes();
            let now = enforced(&world.model, &world.policy);
            acknowledge(&mut world, 2, &now);
            assert_eq!(status(&world, "secret").converged_nodes, 1);
            world.apply(Change::Node(NodeObject { enforced: Some(text.to_owned()), ..node(2) }));
            assert_eq!(status(&world, "secret").converged_nodes, 0);
            world.assert_event(reason::ENFORCED_INVALID, &["Node/n2"]);
            assert!(world.told[0].message.contains(expected), "{}", world.told[0].message);
        }
    }

    proptest! {
        #[test]
        fn no_annotation_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read_back(enforced in prop::collection::btree_map(".{0,20}", "[0-9a-f]{16}", 0..5)) {
            prop_assert_eq!(parse(&render(&enforced)).unwrap(), enforced);
        }
    }
}
