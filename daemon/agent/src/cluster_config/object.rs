//! The custom resource HauberkConfig (`deploy/chart/hauberk/crds/hauberkconfigs.yaml`), as the agent reads it.

use jiff::Timestamp;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The one object that counts.
pub const NAME: &str = "cluster";

/// `spec`: fields of the configuration file, as they came. What they may be is decided where they are laid over the file.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "hauberk.io", version = "v1alpha1", kind = "HauberkConfig", plural = "hauberkconfigs")]
#[kube(status = "HauberkConfigStatus", schema = "disabled")]
pub struct HauberkConfigSpec {
    /// By name, camelCase.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HauberkConfigStatus {
    /// How many nodes have accepted the present generation.
    pub accepted_nodes: usize,
    /// What each node says of it, by name.
    pub nodes: Vec<NodeAcceptance>,
    /// The same in one word, for `kubectl wait`.
    pub conditions: Vec<Condition>,
}

/// What a node says of the object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAcceptance {
    /// The node's name.
    pub name: String,
    /// Which generation.
    pub generation: i64,
    /// In force there, or refused.
    pub accepted: bool,
    /// Why it was refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A condition, as Kubernetes' API conventions have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The object's generation it was made for.
    pub observed_generation: i64,
    /// When `status` last changed.
    pub last_transition_time: Timestamp,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
}
