//! Services.

use serde::{Deserialize, Serialize};

/// What hauberk does for services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Services {
    /// Whether connections that processes of this node make to services are led to a backend where
    /// they are made. Everything else is left to kube-proxy.
    pub sockets: bool,
    /// Whether packets of clients outside the cluster that arrive for a service at this node are
    /// led to a backend where they arrive. Needs `sockets`.
    pub outside: bool,
}
