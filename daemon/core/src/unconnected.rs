//! Pods of this node without an interface. Their packets arrive nowhere, whatever the rules say. A
//! pod gets its interface after its addresses and may lose it before them. So a missing interface
//! means something only if it stays missing; the agent decides how long.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::identity::Protection;

use crate::attachment::Attachment;
use crate::local_node::LocalNode;
use crate::model::{Model, Pod, PodOf};
use crate::names::{AttachmentKey, PodName};
use crate::protection;

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The interface that was attached, by its host side's name.
    Gone(String),
    /// The interface: addresses were reserved, but nothing was attached.
    Unmade,
    /// Any record of the pod.
    Unknown,
}

/// A pod without an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconnected {
    /// What is missing.
    pub lack: Lack,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How it is protected.
    pub protection: Protection,
}

/// Pods of this node without an interface, by the object's name in problems: `pod/NAMESPACE/NAME`,
/// or `container/ID/INTERFACE` if the runtime named no pod. `exists` says whether this node has a
/// device with that interface index.
///
/// Left out are pods that end or have no object, because they need no network, and plain pods
/// without a record, because another plugin may have made their interface.
pub fn unconnected(model: &Model, local: &LocalNode, exists: impl Fn(u32) -> bool) -> BTreeMap<String, Unconnected> {
    let mut connected: BTreeSet<(PodName, &str)> = BTreeSet::new();
    let mut on_record: BTreeSet<PodName> = BTreeSet::new();
    let mut lacking: Vec<(&AttachmentKey, &Attachment, Lack)> = Vec::new();
    for (key, attachment) in model.attachments() {
        let pod = model.pod_of(attachment).filter(|pod| running(model, pod).is_some());
        on_record.extend(pod.map(|pod| pod.full_name()));
        match &attachment.pair {
            Some(pair) if exists(pair.host_index) => {
                connected.extend(pod.map(|pod| (pod.full_name(), key.interface.as_str())));
            }
            Some(_) => lacking.push((key, attachment, Lack::Gone(attachment.host_interface.clone()))),
            None => lacking.push((key, attachment, Lack::Unmade)),
        }
    }
    let mut found = BTreeMap::new();
    for (key, attachment, lack) in lacking {
        let addresses = attachment.addresses.clone();
        let (object, protection) = match model.pod_of(attachment) {
            // An earlier container of the pod may be on record still.
            Some(pod) if connected.contains(&(pod.full_name(), key.interface.as_str())) => continue,
            Some(pod) => match running(model, &pod) {
                Some(pod) => (subject(pod), protection::of_pod(model, local, pod).protection),
                None => continue,
            },
            // A container that nobody named may have ended long ago, unless it had an interface
            // until now.
            None if lack == Lack::Unmade => continue,
            None => (format!("container/{key}"), protection::of_attached(model, local, None).protection),
        };
        found.entry(object).or_insert(Unconnected { lack, addresses, protection });
    }
    for pod in model.pods().filter(|pod| needs_network(model, pod) && !pod.addresses.is_empty()) {
        let protection = protection::of_pod(model, local, pod).protection;
        if protection > Protection::None && !on_record.contains(&pod.full_name()) {
            let addresses = pod.addresses.to_vec();
            found.entry(subject(pod)).or_insert(Unconnected { lack: Lack::Unknown, addresses, protection });
        }
    }
    found
}

fn subject(pod: &Pod) -> String {
    format!("pod/{}/{}", pod.namespace, pod.name)
}

/// The object of a pod of this node that needs its network.
fn running<'a>(model: &'a Model, named: &PodOf<'_>) -> Option<&'a Pod> {
    let pod = model.pod(&named.full_name()).filter(|pod| needs_network(model, pod))?;
    let is_another = named.uid.is_some_and(|uid| pod.uid.as_deref().is_some_and(|other| other != uid));
    (!is_another).then_some(pod)
}

/// Whether the pod is on this node, has a network of its own and is not ending.
pub fn needs_network(model: &Model, pod: &Pod) -> bool {
    pod.node.as_deref() == Some(model.node()) && pod.has_network() && !pod.terminating
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::{NamedPod, VethPair};
    use crate::model::Change;
    use crate::objects::PodObject;
    use crate::testing::{World, attachment, ip, pod, pod_name};

    const THERE: u32 = 7;
    const GONE: u32 = 8;

    /// An interface of a container, whose host side has the index; 0: there is none.
    fn interface(container: &str, pod: Option<&str>, address: &str, index: u32) -> Change {
        let made = attachment(container, pod, &[address]);
        let pair = made.pair.filter(|_| index > 0).map(|pair| VethPair { host_index: index, ..pair });
        Change::Attachment(Attachment { pair, ..made })
    }

    fn found(world: &World) -> Vec<(String, Lack, Protection)> {
        let found = unconnected(&world.model, &world.local, |index| index == THERE);
        found.into_iter().map(|(object, one)| (object, one.lack, one.protection)).collect()
    }

    #[test]
    fn a_pod_is_missed_while_no_interface_connects_it() {
        let mut world = World::three_nodes();
        for (name, address, index) in
            [("secret/a", "10.0.1.5", THERE), ("open/b", "10.0.1.6", THERE), ("soft/c", "10.0.1.7", 0)]
        {
            world.apply(Change::Pod(pod(name, 1, &[address])));
            world.apply(interface(name, Some(name), address, index));
        }
        let unmade = ("pod/soft/c".to_owned(), Lack::Unmade, Protection::Permissive);
        assert_eq!(found(&world), std::slice::from_ref(&unmade));
        for (name, address) in [("secret/a", "10.0.1.5"), ("open/b", "10.0.1.6")] {
            world.apply(interface(name, Some(name), address, GONE));
        }
        let gone = |name: &str, protection| (format!("pod/{name}"), Lack::Gone(format!("hbk{name}")), protection);
        let all = [gone("open/b", Protection::None), gone("secret/a", Protection::Enabled), unmade];
        assert_eq!(found(&world), all);
        let missed = unconnected(&world.model, &world.local, |_| false);
        assert_eq!(missed["pod/secret/a"].addresses, [ip("10.0.1.5")]);
        // The runtime calls DEL.
        let key = AttachmentKey { container: "open/b".into(), interface: "eth0".into() };
        world.apply(Change::AttachmentGone(key));
        assert_eq!(found(&world).len(), 2);
    }

    #[test]
    fn a_pod_that_ends_or_has_another_interface_is_not_missed() {
        let mut world = World::three_nodes();
        let object = pod("secret/a", 1, &["10.0.1.5"]);
        world.apply(interface("old", Some("secret/a"), "10.0.1.5", GONE));
        assert!(found(&world).is_empty(), "without an object nobody needs it");
        world.apply(Change::Pod(object.clone()));
        assert_eq!(found(&world).len(), 1);
        for ended in [
            PodObject { terminating: true, ..object.clone() },
            PodObject { finished: true, ..object.clone() },
            PodObject { host_network: true, ..object.clone() },
            PodObject { node: Some("n2".into()), ..object.clone() },
        ] {
            world.apply(Change::Pod(ended));
            assert!(found(&world).is_empty(), "{:?}", world.model.pods().next());
        }
        world.apply(Change::Pod(object));
        world.apply(interface("new", Some("secret/a"), "10.0.1.6", THERE));
        assert!(found(&world).is_empty(), "a container that ended is on record still");
    }

    #[test]
    fn the_next_pod_of_a_name_is_not_the_one_before() {
        let mut world = World::three_nodes();
        let named = |uid: &str| Some(NamedPod { name: pod_name("secret/a"), uid: Some(uid.to_owned()) });
        world.apply(Change::Pod(PodObject { uid: Some("2".into()), ..pod("secret/a", 1, &["10.0.1.6"]) }));
        let mut of_uid = |container: &str, uid: &str, address: &str, index: u32| {
            let mut made = attachment(container, None, &[address]);
            made.pod = named(uid);
            made.pair = made.pair.map(|pair| VethPair { host_index: index, ..pair });
            world.apply(Change::Attachment(made));
            found(&world)
        };
        let before = of_uid("old", "1", "10.0.1.5", GONE);
        assert_eq!(before, [("pod/secret/a".to_owned(), Lack::Unknown, Protection::Enabled)]);
        assert!(of_uid("new", "2", "10.0.1.6", THERE).is_empty());
    }

    #[test]
    fn what_nothing_is_on_record_of_is_missed_if_it_is_opted_in() {
        let mut world = World::three_nodes();
        world.apply(Change::Pod(pod("secret/a", 1, &["10.0.1.5"])));
        world.apply(Change::Pod(pod("open/b", 1, &["10.0.1.6"])));
        world.apply(Change::Pod(pod("secret/elsewhere", 2, &["10.0.2.6"])));
        world.apply(Change::Pod(pod("secret/coming", 1, &[])));
        assert_eq!(found(&world), [("pod/secret/a".to_owned(), Lack::Unknown, Protection::Enabled)]);
    }

    #[test]
    fn a_container_without_a_pods_name_is_missed_when_its_interface_went() {
        let mut world = World::three_nodes();
        world.apply(interface("c1", None, "10.0.1.5", 0));
        world.apply(interface("c2", None, "10.0.1.6", GONE));
        let gone = ("container/c2/eth0".to_owned(), Lack::Gone("hbkc2".into()), Protection::Enabled);
        assert_eq!(found(&world), [gone]);
    }
}
