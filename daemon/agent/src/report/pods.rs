//! What a pod's annotation says: `encrypted`, `permissive`, or why it is not.

use std::collections::BTreeMap;

use hauberk_api::Protection;
use hauberk_core::model::{AttachmentKey, PodName};
use hauberk_core::protection;

use crate::world::World;

/// A pod, and which of those that have had its name.
pub type Instance = (PodName, Option<String>);

/// The text of every opted-in pod on this node.
pub fn texts(world: &World) -> BTreeMap<Instance, String> {
    let own = world.model.node();
    let attached = attached(world);
    let pods = world.model.pods().filter(|pod| pod.node.as_deref() == Some(own) && !pod.host_network && !pod.finished);
    pods.filter_map(|pod| {
        let text = match protection::of_pod(&world.model, &world.policy, pod).protection {
            Protection::None => return None,
            Protection::Enabled => "encrypted",
            Protection::Permissive => "permissive",
        };
        let name = PodName { namespace: pod.namespace.to_string(), name: pod.name.to_string() };
        let found = attached.get(&name).filter(|found| match (&found.uid, &pod.uid) {
            (Some(held), Some(uid)) => **held == **uid,
            _ => true,
        });
        let text = match found {
            // The runtime asks for its network before anything else: until then there is nothing to say.
            None if pod.addresses.is_empty() => return None,
            None => "not attached: its interface is not hauberk's; its traffic between nodes is dropped unless it is encrypted elsewhere".to_owned(),
            Some(Found { failure: Some(failure), .. }) => format!("not attached: {failure}"),
            Some(_) => text.to_owned(),
        };
        Some(((name, pod.uid.as_deref().map(str::to_owned)), text))
    })
    .collect()
}

/// Opted-in local pods that have addresses and no interface of ours, as `namespace/name`. A plain pod may well have an interface
/// that cannot be ours (macvlan, SR-IOV), and waits for nothing.
pub fn unattached(world: &World) -> Vec<String> {
    let own = world.model.node();
    let attached = attached(world);
    let pods = world.model.pods().filter(|pod| pod.node.as_deref() == Some(own) && !pod.host_network && !pod.finished);
    let opted_in = |pod: &_| protection::of_pod(&world.model, &world.policy, pod).protection > Protection::None;
    pods.filter(|pod| !pod.addresses.is_empty() && !pod.terminating && opted_in(*pod))
        .map(|pod| PodName { namespace: pod.namespace.to_string(), name: pod.name.to_string() })
        .filter(|name| attached.get(name).is_none_or(|found| found.failure.is_some()))
        .map(|name| name.to_string())
        .collect()
}

struct Found {
    uid: Option<String>,
    failure: Option<String>,
}

/// Pods whose interface is attached, or was to be.
fn attached(world: &World) -> BTreeMap<PodName, Found> {
    let attachments = world.model.attachments().filter(|(_, attachment)| attachment.attach.is_some());
    attachments
        .filter_map(|(key, attachment)| {
            let pod = world.model.pod_of(attachment)?;
            let found = Found { uid: pod.uid.map(str::to_owned), failure: failure(world, key) };
            Some((pod.full_name(), found))
        })
        .collect()
}

fn failure(world: &World, key: &AttachmentKey) -> Option<String> {
    world.failures.get(&format!("container/{key}")).map(|problem| problem.message.clone())
}
