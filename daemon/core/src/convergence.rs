//! Which nodes enforce which namespace by now.
//!
//! Each agent acknowledges on its own Node object what it enforces for its opted-in namespaces
//! ([`crate::annotations::enforced`]). This node computes the same digests itself. A namespace has
//! converged when every node that has an object acknowledges the same digest. A node without an
//! agent never does.

use std::collections::{BTreeMap, BTreeSet};

use blake2::{Blake2s256, Digest};
use hauberk_abi::identity::Protection;
use hauberk_api::NamespaceStatus;

use crate::annotations::enforced::{Acknowledged, Buckets, short};
use crate::local_node::LocalNode;
use crate::model::Model;
use crate::protection;

/// What this node acknowledges: the digest of each namespace that is opted in or has an opted-in
/// pod.
pub fn enforced(model: &Model, local: &LocalNode) -> BTreeMap<String, String> {
    summaries(model, local)
        .into_iter()
        .filter(|(_, summary)| summary.opted_in())
        .map(|(name, summary)| (name.to_owned(), summary.digest()))
        .collect()
}

/// The digest to acknowledge for one namespace; none if neither it nor any of its pods is opted in.
pub(crate) fn enforced_in(model: &Model, local: &LocalNode, namespace: &str) -> Option<String> {
    summary(model, local, namespace).filter(Summary::opted_in).map(|summary| summary.digest())
}

/// The state of each namespace that is opted in or has an opted-in pod, by name.
pub fn convergence(model: &Model, local: &LocalNode) -> Vec<NamespaceStatus> {
    let own = model.node();
    let mut nodes: Vec<&str> = model.nodes.keys().map(String::as_str).collect();
    if !nodes.contains(&own) {
        nodes.push(own);
    }
    let enforced = enforced(model, local);
    let buckets = Buckets::of(&enforced);
    summaries(model, local)
        .into_iter()
        .filter(|(_, summary)| summary.opted_in() || !summary.host_network.is_empty())
        .map(|(name, summary)| {
            let acknowledged = |node: &&str| match model.nodes.get(*node).map(|node| &node.enforced) {
                Some(Acknowledged::Namespaces(namespaces)) => namespaces.get(name) == enforced.get(name),
                Some(Acknowledged::Buckets(theirs)) => theirs.of_namespace(name) == buckets.of_namespace(name),
                None => false,
            };
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
                host_network: summary.host_network.iter().map(|pod| (*pod).to_owned()).collect(),
            }
        })
        .collect()
}

/// The protection of a namespace's pods.
struct Summary<'a> {
    protection: Protection,
    pods: usize,
    protected_pods: usize,
    /// Pods whose protection differs from their namespace's, by name.
    different: Vec<(&'a str, Protection)>,
    /// Pods on the host network whose labels opt them in, by name.
    host_network: Vec<&'a str>,
}

impl Summary<'_> {
    fn opted_in(&self) -> bool {
        self.protection > Protection::None || self.protected_pods > 0
    }

    /// A short digest of what was decided, not how; the same on every node and in every version.
    fn digest(&self) -> String {
        let mut hash = Blake2s256::new();
        hash.update([self.protection as u8]);
        for (pod, protection) in &self.different {
            hash.update((pod.len() as u64).to_be_bytes());
            hash.update(pod.as_bytes());
            hash.update([*protection as u8]);
        }
        short(hash)
    }
}

fn summaries<'a>(model: &'a Model, local: &LocalNode) -> BTreeMap<&'a str, Summary<'a>> {
    let names: BTreeSet<&str> = model.namespaces.keys().map(String::as_str).chain(model.pods.namespaces()).collect();
    names.into_iter().filter_map(|name| Some((name, summary(model, local, name)?))).collect()
}

/// None if the namespace has neither an object nor a pod with a network of its own.
fn summary<'a>(model: &'a Model, local: &LocalNode, name: &str) -> Option<Summary<'a>> {
    let namespace = model.namespace(name);
    let ruling = protection::of_namespace(local, namespace);
    let mut summary = Summary {
        protection: ruling.protection,
        pods: 0,
        protected_pods: 0,
        different: Vec::new(),
        host_network: Vec::new(),
    };
    for pod in model.pods.of_namespace(name).filter(|pod| !pod.finished) {
        let label = pod.encryption.as_deref();
        let protection = protection::strengthen(ruling, label, local.settings.allow_pod_opt_out).protection;
        if pod.host_network {
            // No label protects a pod on the host network, so it is not part of what nodes
            // acknowledge.
            if protection > Protection::None {
                summary.host_network.push(&pod.name);
            }
            continue;
        }
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
    use crate::annotations::enforced::{MAX_LENGTH, render};
    use crate::events::reason;
    use crate::model::Change;
    use crate::objects::{NodeObject, PodObject};
    use crate::testing::{World, namespace, node, pod};

    fn acknowledge(world: &mut World, number: u8, enforced: &BTreeMap<String, String>) {
        world.apply(Change::Node(NodeObject { enforced: Some(render(enforced)), ..node(number) }));
    }

    fn status(world: &World, name: &str) -> NamespaceStatus {
        convergence(&world.model, &world.local).into_iter().find(|status| status.name == name).unwrap()
    }

    #[test]
    fn a_namespace_has_converged_when_every_node_says_so() {
        let mut world = World::three_nodes();
        world.apply(Change::Node(NodeObject { keys: None, ..node(4) }));
        let now = enforced(&world.model, &world.local);
        assert_eq!(now.keys().collect::<Vec<_>>(), ["secret", "soft"], "what is not opted in needs no word");
        assert_eq!(status(&world, "secret").waiting_for, ["n1", "n2", "n3", "n4"]);
        for number in 1..=3 {
            acknowledge(&mut world, number, &now);
        }
        let without_agent = status(&world, "secret");
        assert_eq!((without_agent.converged_nodes, without_agent.nodes), (3, 4));
        assert_eq!(without_agent.waiting_for, ["n4"]);
        acknowledge(&mut world, 4, &now);
        let status = status(&world, "secret");
        assert_eq!((status.converged_nodes, status.nodes), (4, 4));
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
        let before = enforced(&world.model, &world.local);
        let labelled = |name, label: &str| {
            Change::Pod(PodObject { encryption: Some(label.into()), ..pod(name, 2, &["10.0.2.5"]) })
        };
        world.apply(labelled("open/a", "enabled"));
        let one = enforced(&world.model, &world.local);
        assert!(!before.contains_key("open") && one.contains_key("open"));
        assert_eq!(before["secret"], one["secret"]);
        world.apply(labelled("open/a", "permissive"));
        assert_ne!(one["open"], enforced(&world.model, &world.local)["open"]);
        world.apply(namespace("soft", Some("enabled")));
        assert_ne!(before["soft"], enforced(&world.model, &world.local)["soft"]);
        for number in 1..=3 {
            acknowledge(&mut world, number, &before);
        }
        assert_eq!(status(&world, "secret").converged_nodes, 3);
        assert_eq!(status(&world, "soft").converged_nodes, 0);
    }

    #[test]
    fn pods_that_come_and_go_do_not_disturb_what_has_converged() {
        let mut world = World::three_nodes();
        let before = enforced(&world.model, &world.local);
        world.apply(Change::Pod(pod("secret/a", 2, &["10.0.2.5"])));
        world.apply(Change::Pod(PodObject { encryption: Some("enabled".into()), ..pod("secret/b", 2, &[]) }));
        world.apply(Change::Pod(PodObject { encryption: Some("disabled".into()), ..pod("secret/c", 2, &[]) }));
        assert_eq!(before, enforced(&world.model, &world.local));
        assert_eq!((status(&world, "secret").pods, status(&world, "secret").protected_pods), (3, 3));
    }

    #[test]
    fn pods_on_their_nodes_network_are_named_and_acknowledged_by_nobody() {
        let mut world = World::three_nodes();
        let before = enforced(&world.model, &world.local);
        let on_host = |name, label: Option<&str>| {
            Change::Pod(PodObject {
                host_network: true,
                encryption: label.map(str::to_owned),
                ..pod(name, 2, &["192.0.2.2"])
            })
        };
        world.apply(on_host("secret/proxy", None));
        world.apply(on_host("open/proxy", None));
        assert_eq!(status(&world, "secret").host_network, ["proxy"]);
        assert_eq!(status(&world, "secret").pods, 0);
        world.assert_event(reason::HOST_NETWORK_POD, &["Pod/secret/proxy"]);
        assert!(convergence(&world.model, &world.local).iter().all(|status| status.name != "open"));
        world.apply(on_host("open/own", Some("enabled")));
        assert_eq!(status(&world, "open").host_network, ["own"]);
        assert_eq!(enforced(&world.model, &world.local), before);
        world.apply(Change::PodGone(crate::testing::pod_name("secret/proxy")));
        assert!(status(&world, "secret").host_network.is_empty());
        // A pod may be read before its namespace.
        let told = |world: &World| {
            let events = world.events();
            events.iter().any(|(told, objects)| *told == reason::HOST_NETWORK_POD && objects == &["Pod/late/proxy"])
        };
        world.apply(on_host("late/proxy", None));
        assert!(!told(&world));
        world.apply(namespace("late", Some("enabled")));
        assert!(told(&world));
    }

    #[test]
    fn the_digest_is_the_same_in_every_version() {
        // The first eight bytes of BLAKE2s of the byte 2 (`enabled`): agents of two versions must
        // compute the same.
        let world = World::three_nodes();
        let now = enforced(&world.model, &world.local);
        assert_eq!(now["secret"], "2ca4b2f5cb29b023");
    }

    #[test]
    fn the_buckets_are_the_same_in_every_version() {
        let world = World::three_nodes();
        let text = render(&enforced(&world.model, &world.local));
        assert_eq!(text, r#"{"version":2,"buckets":{"39":"499afb8a5f93350a","66":"14d1dea1200122b8"}}"#);
    }

    #[test]
    fn an_older_agents_acknowledgement_is_read() {
        let mut world = World::three_nodes();
        let text = r#"{"version":1,"namespaces":{"secret":"2ca4b2f5cb29b023","soft":"0000000000000000"}}"#;
        world.apply(Change::Node(NodeObject { enforced: Some(text.into()), ..node(2) }));
        assert_eq!(status(&world, "secret").waiting_for, ["n1", "n3"]);
        assert_eq!(status(&world, "soft").waiting_for, ["n1", "n2", "n3"]);
    }

    #[test]
    fn ten_thousand_namespaces_are_acknowledged_in_few_bytes() {
        let mut world = World::three_nodes();
        for number in 0..10_000 {
            world.hear(namespace(&format!("team-{number}"), Some("enabled")));
        }
        let all = enforced(&world.model, &world.local);
        let text = render(&all);
        assert!(all.len() > 10_000 && text.len() < 16 * 1024, "{} bytes", text.len());
        for number in 1..=3 {
            acknowledge(&mut world, number, &all);
        }
        let waiting = |world: &World| {
            let all = convergence(&world.model, &world.local).into_iter();
            all.filter(|status| !status.waiting_for.is_empty()).map(|status| status.name).collect::<Vec<_>>()
        };
        assert!(waiting(&world).is_empty());
        // After a change of one namespace, it and the namespaces in its bucket wait for every node
        // again; no others do.
        world.hear(namespace("team-7", Some("permissive")));
        let waits = waiting(&world);
        assert!(waits.contains(&"team-7".to_owned()) && waits.len() < 100, "{} wait", waits.len());
        let all = enforced(&world.model, &world.local);
        for number in 1..=3 {
            acknowledge(&mut world, number, &all);
        }
        assert!(waiting(&world).is_empty());
    }

    #[test]
    fn a_broken_acknowledgement_counts_as_none_and_is_told() {
        for (text, expected) in [
            ("{", "not the JSON"),
            (r#"{"version":7}"#, "version 7"),
            (r#"{"version":2,"buckets":{},"more":1}"#, "not the JSON"),
            (r#"{"version":2,"buckets":{"0A":"0123456789abcdef"}}"#, "hexadecimal"),
            (r#"{"version":2,"buckets":{"+a":"0123456789abcdef"}}"#, "hexadecimal"),
            (r#"{"version":2,"buckets":{"0a":"0123456789abcde"}}"#, "hexadecimal"),
            (&" ".repeat(MAX_LENGTH + 1), "bytes long"),
        ] {
            let mut world = World::three_nodes();
            let now = enforced(&world.model, &world.local);
            acknowledge(&mut world, 2, &now);
            assert_eq!(status(&world, "secret").converged_nodes, 1);
            world.apply(Change::Node(NodeObject { enforced: Some(text.to_owned()), ..node(2) }));
            assert_eq!(status(&world, "secret").converged_nodes, 0);
            world.assert_event(reason::ENFORCED_INVALID, &["Node/n2"]);
            assert!(world.told[0].message.contains(expected), "{}", world.told[0].message);
        }
    }
}
