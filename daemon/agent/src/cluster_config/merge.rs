//! Merges HauberkConfig over the file's configuration, and knows which of its fields take effect
//! without a restart.

use hauberk_core::local_node::Settings;
use serde_json::{Map, Value};

use crate::config::{Config, ConfigError};

/// Every field that the object may have.
pub(super) const FIELDS: [&str; 28] = [
    "clusterRanges",
    "nodeRanges",
    "hostRouting",
    "worldIngress",
    "allowPodOptOut",
    "defaults.encryption",
    "services.sockets",
    "services.outside",
    "tunnel.backend",
    "tunnel.port",
    "tunnel.mtu",
    "tunnel.threads",
    "tunnel.handshakesPerSecond",
    "tunnel.spinMicroseconds",
    "tunnel.copyDscp",
    "tunnel.cipher",
    "uplinks",
    "limits.endpoints",
    "limits.ranges",
    "limits.flows",
    "limits.attachments",
    "limits.events",
    "limits.frontends",
    "limits.backends",
    "limits.sockets",
    "limits.connections",
    "log.level",
    "log.format",
];

/// The fields that the running agent takes over; a change of any other needs a restart.
const LIVE: [&str; 4] = ["clusterRanges", "nodeRanges", "allowPodOptOut", "defaults.encryption"];

/// The file's configuration, overridden by the object.
///
/// # Errors
/// One sentence for each unknown field and for each impossible value.
pub fn merge(file: &Config, spec: &Map<String, Value>) -> Result<Config, Vec<String>> {
    let mut problems = Vec::new();
    let mut merged = match serde_json::to_value(file) {
        Ok(merged) => merged,
        Err(error) => return Err(vec![format!("the file's configuration cannot be laid under it: {error}")]),
    };
    for (path, value) in leaves(spec) {
        if FIELDS.contains(&path.as_str()) {
            put(&mut merged, &path, value.clone());
        } else {
            problems.push(format!(
                "`spec.{path}` is no field this agent (version {}) knows; if it is newer than the agent, upgrade the agents first",
                env!("CARGO_PKG_VERSION")
            ));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let config: Config = serde_path_to_error::deserialize(merged)
        .map_err(|error| vec![format!("`spec.{}`: {}", error.path(), error.inner())])?;
    match config.validate_effective() {
        Ok(()) => Ok(config),
        Err(ConfigError::Invalid(problems)) => Err(problems),
        Err(other) => Err(vec![other.to_string()]),
    }
}

/// Fields that differ and need a restart, by name.
pub fn needs_start(running: &Config, wanted: &Config) -> Vec<&'static str> {
    let (Ok(running), Ok(wanted)) = (serde_json::to_value(running), serde_json::to_value(wanted)) else {
        return Vec::new();
    };
    let differs = |path: &&&str| get(&running, path) != get(&wanted, path);
    FIELDS.iter().filter(|path| !LIVE.contains(path)).filter(differs).copied().collect()
}

/// What this configuration says about the cluster. What needs a restart stays as it is.
pub fn settings(running: &Settings, config: &Config) -> Settings {
    Settings {
        cluster_ranges: config.cluster_ranges.clone(),
        node_ranges: config.node_ranges.clone(),
        allow_pod_opt_out: config.allow_pod_opt_out,
        default_protection: config.defaults.encryption.into(),
        ..running.clone()
    }
}

/// The values with their paths, two levels deep like the object. A null counts as absent.
fn leaves(spec: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut leaves = Vec::new();
    for (name, value) in spec {
        match value {
            Value::Null => {}
            Value::Object(inner) => {
                let given = inner.iter().filter(|(_, value)| !value.is_null());
                leaves.extend(given.map(|(field, value)| (format!("{name}.{field}"), value)));
            }
            _ => leaves.push((name.clone(), value)),
        }
    }
    leaves
}

fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, name| value.get(name))
}

fn put(value: &mut Value, path: &str, new: Value) {
    match path.split_once('.') {
        Some((name, rest)) => put(&mut value[name], rest, new),
        None => value[path] = new,
    }
}
