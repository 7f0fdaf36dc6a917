//! Where objects come from: a folder of manifests or an API server, never both.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

/// The folder of manifests unless another one is given.
const DEFAULT_DIRECTORY: &str = "/etc/hauberk/manifests";

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Given", into = "Given")]
pub enum Source {
    /// A folder of Kubernetes manifests.
    Directory(PathBuf),
    /// A Kubernetes API server.
    Kubernetes(Kubernetes),
}

/// A Kubernetes API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kubernetes {
    /// How to reach the API server and authenticate; none to use the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace that hauberk is installed in. Its Lease is there.
    pub namespace: String,
}

/// The form in the file: at most one of the two.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Given {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) directory: Option<PathBuf>,
    /// `kubernetes:` without a value means all defaults. It must not count as absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub(super) kubernetes: Option<Kubernetes>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Kubernetes>, D::Error> {
    Ok(Some(Option::<Kubernetes>::deserialize(deserializer)?.unwrap_or_default()))
}

impl TryFrom<Given> for Source {
    type Error = &'static str;

    fn try_from(given: Given) -> Result<Source, Self::Error> {
        match (given.directory, given.kubernetes) {
            (Some(_), Some(_)) => {
                Err("`source.directory` and `source.kubernetes` exclude each other: remove the one that is not meant")
            }
            (Some(directory), None) => Ok(Source::Directory(directory)),
            (None, Some(kubernetes)) => Ok(Source::Kubernetes(kubernetes)),
            (None, None) => Ok(Source::default()),
        }
    }
}

impl From<Source> for Given {
    fn from(source: Source) -> Given {
        match source {
            Source::Directory(directory) => Given { directory: Some(directory), kubernetes: None },
            Source::Kubernetes(kubernetes) => Given { directory: None, kubernetes: Some(kubernetes) },
        }
    }
}

impl Default for Source {
    fn default() -> Self {
        Source::Directory(DEFAULT_DIRECTORY.into())
    }
}

impl Default for Kubernetes {
    fn default() -> Self {
        Kubernetes { kubeconfig: None, namespace: "hauberk-system".into() }
    }
}
