//! What is read of every object's metadata.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// An object's `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    /// Its name.
    pub(crate) name: Option<String>,
    /// Its namespace.
    pub(crate) namespace: Option<String>,
    /// Its uid.
    pub(crate) uid: Option<String>,
    /// The version of the object.
    pub(crate) resource_version: Option<String>,
    pub(super) deletion_timestamp: Option<IgnoredAny>,
    pub(super) labels: Option<Labels>,
    pub(super) annotations: Option<Annotations>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Labels {
    #[serde(rename = "hauberk.io/encryption")]
    pub(super) encryption: Option<String>,
    /// On a node.
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub(super) zone: Option<String>,
    /// On a service that another program than the node's proxy serves.
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    pub(super) proxy: Option<String>,
    /// On an endpoint slice.
    #[serde(rename = "kubernetes.io/service-name")]
    pub(super) service: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Annotations {
    #[serde(rename = "hauberk.io/keys")]
    pub(super) keys: Option<String>,
    #[serde(rename = "hauberk.io/addresses")]
    pub(super) addresses: Option<String>,
    #[serde(rename = "hauberk.io/enforced")]
    pub(super) enforced: Option<String>,
    #[serde(rename = "hauberk.io/plaintext-seen")]
    pub(super) plaintext_seen: Option<String>,
    /// Marks the mirror of a static pod.
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub(super) mirror: Option<String>,
    /// On a static pod: what the kubelet uses as its uid.
    #[serde(rename = "kubernetes.io/config.hash")]
    pub(super) hash: Option<String>,
}
