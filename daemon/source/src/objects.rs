//! What hauberk reads from Kubernetes objects, and what it means: the same for a server and for a
//! file.
//!
//! The types have only the fields that matter: the reader skips an object's other fields, so they
//! never take memory. Every field may be missing, as in the API's own types.

use std::net::IpAddr;

use hauberk_core::objects::{NamespaceObject, NodeAddress, NodeObject, PodObject};
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A v1 Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Node {
    /// `metadata`.
    pub metadata: Option<Metadata>,
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

/// A v1 Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Namespace {
    /// `metadata`.
    pub metadata: Option<Metadata>,
}

/// A v1 Pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    /// `metadata`.
    pub metadata: Option<Metadata>,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

/// An object's `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Its name.
    pub name: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its uid.
    pub uid: Option<String>,
    /// The version of the object.
    pub resource_version: Option<String>,
    deletion_timestamp: Option<IgnoredAny>,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Labels {
    #[serde(rename = "hauberk.io/encryption")]
    encryption: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "hauberk.io/keys")]
    keys: Option<String>,
    #[serde(rename = "hauberk.io/addresses")]
    addresses: Option<String>,
    #[serde(rename = "hauberk.io/enforced")]
    enforced: Option<String>,
    #[serde(rename = "hauberk.io/plaintext-seen")]
    plaintext_seen: Option<String>,
    /// Marks the mirror of a static pod.
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
    /// On a static pod: what the kubelet uses as its uid.
    #[serde(rename = "kubernetes.io/config.hash")]
    hash: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeStatus {
    addresses: Option<Vec<GivenAddress>>,
}

#[derive(Clone, Debug, Deserialize)]
struct GivenAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

/// What the model keeps of a Node.
///
/// # Errors
/// Which field cannot be used, and why.
pub fn node(node: Node, name: &str, origin: &str) -> Result<NodeObject, String> {
    let spec = node.spec.unwrap_or_default();
    let ranges = match (spec.pod_cidrs, spec.pod_cidr) {
        (Some(ranges), _) if !ranges.is_empty() => ranges,
        (_, single) => single.into_iter().filter(|range| !range.is_empty()).collect(),
    };
    let pod_ranges = ranges
        .iter()
        .map(|range| {
            range.parse::<IpNet>().map_err(|_| format!("`spec.podCIDRs` has {range:?}, which is no range of addresses"))
        })
        .collect::<Result<_, _>>()?;
    let mut addresses = Vec::new();
    for given in node.status.and_then(|status| status.addresses).unwrap_or_default() {
        let internal = given.kind == "InternalIP";
        if internal || given.kind == "ExternalIP" {
            let address = given.address.parse().map_err(|_| {
                format!("`status.addresses` has {:?} as {}, which is no address", given.address, given.kind)
            })?;
            addresses.push(NodeAddress { address, internal });
        }
    }
    let annotations = node.metadata.and_then(|metadata| metadata.annotations).unwrap_or_default();
    Ok(NodeObject {
        addresses,
        pod_ranges,
        keys: annotations.keys,
        published_addresses: annotations.addresses,
        enforced: annotations.enforced,
        plaintext_seen: annotations.plaintext_seen,
        name: name.to_owned(),
        origin: origin.to_owned(),
    })
}

/// What the model keeps of a Namespace.
pub fn namespace(namespace: Namespace, name: &str, origin: &str) -> NamespaceObject {
    let labels = namespace.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
    NamespaceObject { encryption: labels.encryption, name: name.to_owned(), origin: origin.to_owned() }
}

/// What the model keeps of a Pod.
///
/// # Errors
/// Which field cannot be used, and why.
pub fn pod(pod: Pod, namespace: &str, name: &str, origin: &str) -> Result<PodObject, String> {
    let metadata = pod.metadata.unwrap_or_default();
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let given: Vec<String> = match status.pod_ips {
        Some(all) if !all.is_empty() => all.into_iter().filter_map(|pod_ip| pod_ip.ip).collect(),
        _ => status.pod_ip.into_iter().collect(),
    };
    let addresses = given
        .iter()
        .filter(|address| !address.is_empty())
        .map(|address| {
            address.parse::<IpAddr>().map_err(|_| format!("`status.podIPs` has {address:?}, which is no address"))
        })
        .collect::<Result<_, _>>()?;
    let annotations = metadata.annotations.unwrap_or_default();
    Ok(PodObject {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        encryption: metadata.labels.unwrap_or_default().encryption,
        uid: annotations.mirror.and(annotations.hash).or(metadata.uid),
        node: spec.node_name.filter(|name| !name.is_empty()),
        host_network: spec.host_network.unwrap_or(false),
        addresses,
        finished: status.phase.is_some_and(|phase| phase == "Succeeded" || phase == "Failed"),
        terminating: metadata.deletion_timestamp.is_some(),
        origin: origin.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use hauberk_core::annotations::{ADDRESSES_ANNOTATION, ENFORCED_ANNOTATION, KEYS_ANNOTATION, PLAINTEXT_ANNOTATION};
    use hauberk_core::label::ENCRYPTION_LABEL;
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_annotations_have_the_names_that_are_written() {
        let annotations = json!({KEYS_ANNOTATION: "K", ADDRESSES_ANNOTATION: "A", ENFORCED_ANNOTATION: "E", PLAINTEXT_ANNOTATION: "P", "other": "x"});
        let given: Node = serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap();
        let object = node(given, "n", "").unwrap();
        assert_eq!((object.keys.as_deref(), object.enforced.as_deref()), (Some("K"), Some("E")));
        assert_eq!(object.published_addresses.as_deref(), Some("A"));
        assert_eq!(object.plaintext_seen.as_deref(), Some("P"));
        let given: Namespace =
            serde_json::from_value(json!({"metadata": {"labels": {ENCRYPTION_LABEL: "enabled", "a": "b"}}})).unwrap();
        assert_eq!(namespace(given, "n", "").encryption.as_deref(), Some("enabled"));
    }

    #[test]
    fn a_mirror_pod_has_the_uid_its_kubelet_gave_the_runtime() {
        let uid = |annotations: serde_json::Value| {
            let given = json!({"metadata": {"uid": "of-the-mirror", "annotations": annotations}});
            pod(serde_json::from_value(given).unwrap(), "ns", "p", "").unwrap().uid
        };
        let mirror = json!({"kubernetes.io/config.mirror": "h", "kubernetes.io/config.hash": "of-the-file"});
        assert_eq!(uid(mirror).as_deref(), Some("of-the-file"));
        assert_eq!(uid(json!({"kubernetes.io/config.hash": "claimed"})).as_deref(), Some("of-the-mirror"));
        assert_eq!(uid(json!(null)).as_deref(), Some("of-the-mirror"));
    }

    #[test]
    fn what_is_missing_or_null_is_as_if_it_were_not_there() {
        for given in
            [json!({}), json!({"metadata": null, "spec": null, "status": null}), json!({"status": {"podIPs": [{}]}})]
        {
            let object = pod(serde_json::from_value(given).unwrap(), "ns", "p", "").unwrap();
            assert_eq!(object, PodObject { namespace: "ns".into(), name: "p".into(), ..PodObject::default() });
        }
    }
}
