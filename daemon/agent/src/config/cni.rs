//! What the agent installs of the CNI plugin on its node.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the agent installs of the CNI plugin on its node. The paths are the host's, as the agent
/// sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cni {
    /// Whether to install it, and in which role.
    pub install: CniInstall,
    /// Folder the runtime starts plugins from.
    pub binary_directory: PathBuf,
    /// Folder the runtime reads network configurations from.
    pub configuration_directory: PathBuf,
    /// The file that the agent writes there. The runtime takes the first one by name.
    pub configuration_name: String,
    /// libcni's cache of results. In chained mode the agent finds the addresses of existing pods
    /// there.
    pub results_directory: PathBuf,
}

/// Whether the agent installs the CNI plugin, and in which role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CniInstall {
    /// Not installed by the agent.
    None,
    /// As the pods' network.
    Primary,
    /// After another plugin, which makes the pods' network.
    Chained,
}

impl Default for Cni {
    fn default() -> Self {
        Cni {
            install: CniInstall::None,
            binary_directory: "/opt/cni/bin".into(),
            configuration_directory: "/etc/cni/net.d".into(),
            configuration_name: "05-hauberk.conflist".into(),
            results_directory: "/var/lib/cni/results".into(),
        }
    }
}
