//! How large the tables are. The agent's configuration has these fields under `limits`.

use serde::{Deserialize, Serialize};

/// Sizes of the kernel's maps. An entry that does not fit is treated as opted-in, and counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Addresses with a known identity.
    pub endpoints: u32,
    /// Ranges with a known identity.
    pub ranges: u32,
    /// Flows that are remembered.
    pub flows: u32,
    /// Pods on this node.
    pub attachments: u32,
    /// Bytes of flow events that may wait for the agent.
    pub events: u32,
    /// Addresses and ports of services; also sets of backends.
    pub frontends: u32,
    /// Backends, counted once for each set they are in.
    pub backends: u32,
    /// Sockets that are told the service's address, and clients that keep their backend.
    pub sockets: u32,
    /// Connections to services that are translated at a device.
    pub connections: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            endpoints: 65536,
            ranges: 16384,
            flows: 65536,
            attachments: 1024,
            events: 1 << 20,
            frontends: 65536,
            backends: 262_144,
            sockets: 65536,
            connections: 262_144,
        }
    }
}
