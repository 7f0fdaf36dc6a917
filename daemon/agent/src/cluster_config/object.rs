//! The custom resource HauberkConfig (`deploy/chart/hauberk/crds/hauberkconfigs.yaml`), as the
//! agent reads it.

use jiff::Timestamp;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The name of the only object that is read.
pub const NAME: &str = "cluster";

/// `spec`: fields of the configuration file, not validated here. They are validated when they are
/// merged over the file.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "hauberk.io", version = "v1alpha1", kind = "HauberkConfig", plural = "hauberkconfigs")]
#[kube(status = "HauberkConfigStatus", schema = "disabled")]
pub struct HauberkConfigSpec {
    /// By name, in camelCase.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HauberkConfigStatus {
    /// The number of nodes that have accepted the present generation.
    pub accepted_nodes: usize,
    /// Each node's answer, by name.
    pub nodes: Vec<NodeAcceptance>,
    /// The same as a condition, for `kubectl wait`.
    pub conditions: Vec<Condition>,
}

/// A node's answer to the object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAcceptance {
    /// The node's name.
    pub name: String,
    /// The generation.
    pub generation: i64,
    /// Whether it is in force there, or refused.
    pub accepted: bool,
    /// The reason, if it is refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A condition, by Kubernetes' API conventions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The object's generation that the condition is about.
    pub observed_generation: i64,
    /// When `status` last changed.
    pub last_transition_time: Timestamp,
    /// The reason, in CamelCase.
    pub reason: String,
    /// The message.
    pub message: String,
}
