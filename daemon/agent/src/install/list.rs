//! The network configuration list (CNI spec 1.1, section 1) as hauberk writes it. Pure but for reading the folder.
//!
//! Chained, it has the other list's name: runtimes keep results, and `host-local` keeps addresses, by network name, so that pods
//! that were there before are still found and taken down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// The plugin's name in a list.
const PLUGIN: &str = "hauberk-cni";
/// Names that runtimes read (libcni's `ConfFiles`).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// No configuration is larger, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// There is no list to write.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The folder could not be read.
    #[error("cannot read the CNI configurations in {folder}: {source}; is the host's folder mounted there?")]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Chained, but to nobody.
    #[error(
        "no other CNI plugin has a usable configuration in {folder}, so there is none to chain hauberk-cni to{}; install one, or set cni.install to primary",
        unusable(.problems)
    )]
    NobodyElse {
        /// Where it was looked for.
        folder: PathBuf,
        /// Files that were found and are not usable, each with why.
        problems: Vec<String>,
    },
    /// The runtime would not read the file that hauberk writes.
    #[error(
        "the container runtime reads {other} before {own}, so pods would not be protected by hauberk-cni; set cni.configurationName to a name that comes before it, or remove that file"
    )]
    NotFirst {
        /// The file that comes first.
        other: String,
        /// The configured name.
        own: String,
    },
}

fn unusable(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!(" ({})", problems.join("; ")) }
}

/// The list of a node whose pods hauberk connects.
pub(super) fn primary(socket: &Path) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "hauberk",
        "plugins": [{"type": PLUGIN, "socket": socket}],
    });
    text(&list)
}

/// The first of the others' lists, with hauberk-cni at its end.
///
/// # Errors
/// [`ListError`].
pub(super) fn chained(folder: &Path, own: &str, socket: &Path) -> Result<String, ListError> {
    refuse_earlier(folder, own)?;
    let mut problems = Vec::new();
    for name in others(folder, own)? {
        match read(&folder.join(&name)) {
            Ok(list) => return Ok(text(&with_plugin(list, socket))),
            Err(problem) => problems.push(format!("{name}: {problem}")),
        }
    }
    Err(ListError::NobodyElse { folder: folder.to_owned(), problems })
}

/// Refuses a folder in which a usable file of others comes before ours.
///
/// # Errors
/// [`ListError::NotFirst`], [`ListError::Folder`].
pub(super) fn refuse_earlier(folder: &Path, own: &str) -> Result<(), ListError> {
    let earlier =
        others(folder, own)?.into_iter().find(|other| other.as_str() < own && read(&folder.join(other)).is_ok());
    match earlier {
        Some(other) => Err(ListError::NotFirst { other, own: own.to_owned() }),
        None => Ok(()),
    }
}

/// Whether an agent wrote this: somebody else's list may name our plugin as well, but not first or last in a file of this form.
pub(super) fn is_ours(text: &[u8]) -> bool {
    let Ok(list) = serde_json::from_slice::<Value>(text) else { return false };
    list["plugins"].as_array().and_then(|plugins| plugins.last()).is_some_and(|last| last["type"] == PLUGIN)
}

/// Names of the others' configurations, in the runtime's order.
fn others(folder: &Path, own: &str) -> Result<Vec<String>, ListError> {
    let failed = |source| ListError::Folder { folder: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        if name != own && extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A configuration as a list, or why the runtime would not take it.
fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err("not a file of a configuration's size".to_owned());
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_slice(&text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(mut object) = value else { return Err("not an object".to_owned()) };
    let name = object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err("it has no name".to_owned());
    }
    if object.contains_key("plugins") {
        let plugins = object.get("plugins").and_then(Value::as_array).cloned().unwrap_or_default();
        let all_typed = plugins.iter().all(|plugin| plugin["type"].as_str().is_some_and(|kind| !kind.is_empty()));
        return match plugins.iter().any(|plugin| plugin["type"] != PLUGIN) && all_typed {
            true => Ok(object),
            false => Err("it has no plugins of others".to_owned()),
        };
    }
    match object.get("type").and_then(Value::as_str) {
        Some("") | None => Err("it has neither a type nor plugins".to_owned()),
        Some(PLUGIN) => Err("it has no plugins of others".to_owned()),
        // A single configuration is a list of one (libcni's `ConfListFromConf`).
        Some(_) => {
            let version = object.get("cniVersion").cloned().unwrap_or_else(|| Value::from("0.2.0"));
            object.remove("cniVersion");
            let mut list = Map::new();
            list.insert("cniVersion".to_owned(), version);
            list.insert("name".to_owned(), Value::from(name));
            list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(object)]));
            Ok(list)
        }
    }
}

fn with_plugin(mut list: Map<String, Value>, socket: &Path) -> Value {
    let mut plugins = match list.remove("plugins") {
        Some(Value::Array(plugins)) => plugins,
        _ => Vec::new(),
    };
    plugins.retain(|plugin| plugin["type"] != PLUGIN);
    plugins.push(json!({"type": PLUGIN, "socket": socket, "chained": true}));
    list.insert("plugins".to_owned(), Value::Array(plugins));
    Value::Object(list)
}

fn text(list: &Value) -> String {
    // A value read from JSON, or made of strings, always serializes.
    let mut text = serde_json::to_string_pretty(list).unwrap_or_default();
    text.push('\n');
    text
}
