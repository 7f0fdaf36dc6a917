//! What a pod's annotation says: `encrypted`, `permissive`, or why it is not.

use std::collections::BTreeMap;
use std::time::Instant;

use hauberk_api::Protection;
use hauberk_core::names::{AttachmentKey, PodName};
use hauberk_core::protection;

use crate::state::AgentState;

/// A pod and its uid, which tells it from other pods of its name.
pub type Instance = (PodName, Option<String>);

/// The text of every opted-in pod on this node.
pub fn texts(agent: &AgentState) -> BTreeMap<Instance, String> {
    let own = agent.model.node();
    let attached = attached(agent);
    let pods = agent.model.pods().filter(|pod| pod.node.as_deref() == Some(own) && !pod.host_network && !pod.finished);
    pods.filter_map(|pod| {
        let text = match protection::of_pod(&agent.model, &agent.local, pod).protection {
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
            // The runtime sets up the network before anything else: until then there is nothing to
            // report.
            None if pod.addresses.is_empty() => return None,
            None => "not attached: its interface is not hauberk's; its traffic between nodes is dropped unless it is encrypted elsewhere".to_owned(),
            Some(Found { failure: Some(failure), .. }) => format!("not attached: {failure}"),
            Some(_) => match agent.unconnected.of_pod(&name, Instant::now()) {
                Some(why) => format!("not attached: it {why}"),
                None => text.to_owned(),
            },
        };
        Some(((name, pod.uid.as_deref().map(str::to_owned)), text))
    })
    .collect()
}

/// Opted-in local pods that have addresses but no attached interface, as `namespace/name`. A plain
/// pod may have an interface that hauberk cannot attach (macvlan, SR-IOV), and waits for nothing.
pub fn unattached(agent: &AgentState) -> Vec<String> {
    let own = agent.model.node();
    let attached = attached(agent);
    let pods = agent.model.pods().filter(|pod| pod.node.as_deref() == Some(own) && !pod.host_network && !pod.finished);
    let opted_in = |pod: &_| protection::of_pod(&agent.model, &agent.local, pod).protection > Protection::None;
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

/// Pods whose interface is attached, or should be.
fn attached(agent: &AgentState) -> BTreeMap<PodName, Found> {
    let attachments = agent.model.attachments().filter(|(_, attachment)| attachment.pair.is_some());
    attachments
        .filter_map(|(key, attachment)| {
            let pod = agent.model.pod_of(attachment)?;
            let found = Found { uid: pod.uid.map(str::to_owned), failure: failure(agent, key) };
            Some((pod.full_name(), found))
        })
        .collect()
}

fn failure(agent: &AgentState, key: &AttachmentKey) -> Option<String> {
    agent.failures.get(&format!("container/{key}")).map(|problem| problem.message.clone())
}
