//! The network configuration list (CNI spec 1.1, section 1) that hauberk writes. Pure, except that
//! it reads the folder.
//!
//! A chained list has the other list's name: runtimes keep results, and `host-local` keeps
//! addresses, by network name. So pods from before are still found and taken down.
//!
//! Multus delegates to a list that it chooses, which is hauberk's once that is the first in the
//! folder. A delegating list is therefore never wrapped: the two would wrap each other, and both
//! files would grow.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::versions;

/// The plugin's name in a list.
const PLUGIN: &str = "hauberk-cni";
/// Plugins that run other lists: Multus, and the part of it that talks to its daemon.
const DELEGATING: [&str; 2] = ["multus", "multus-shim"];
/// File extensions that runtimes read (libcni's `ConfFiles`).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// In bytes. No configuration is larger.
const MAX_BYTES: u64 = 1 << 20;
/// Which of the other list's permissions hauberk's file may have: never more than the owner's
/// write.
const MODES: u32 = 0o644;

/// There is no list to write, or the runtime would not use it.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The folder could not be read.
    #[error("cannot read the CNI configurations in {folder}: {source}; is the host's folder mounted there?")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Chained, but there is no other plugin.
    #[error(
        "no other CNI plugin has a usable configuration in {folder}, so there is none to chain hauberk-cni to{}; install one, or set cni.install to primary",
        unusable(.problems)
    )]
    NobodyElse {
        /// The folder that was searched.
        folder: PathBuf,
        /// Files that were found and are not usable, each with the reason.
        problems: Vec<String>,
    },
    /// The other plugin's list has a version that hauberk-cni does not speak.
    #[error("hauberk-cni cannot be chained to {file}: {problem}")]
    Version {
        /// The list's file.
        file: String,
        /// What is wrong, and what to do.
        problem: String,
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
    /// The runtime reads a delegating plugin's file, which does not lead to hauberk's.
    #[error(
        "the container runtime reads {other} before {own}, and that delegates to another network, so pods would not be protected by hauberk-cni; let Multus make its configuration anew (restart it) or set its clusterNetwork to the path of {own}"
    )]
    Detour {
        /// The file that comes first.
        other: String,
        /// The configured name.
        own: String,
    },
}

fn unusable(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!(" ({})", problems.join("; ")) }
}

/// The wanted file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) text: String,
    /// The file's permissions.
    pub(super) mode: u32,
    /// The network's name.
    pub(super) name: String,
}

/// A configuration that the runtime would accept.
enum Found {
    /// Of one or several plugins that connect pods.
    Other { list: Map<String, Value>, mode: u32 },
    /// Of a plugin that runs other lists. The list shows which ones.
    Delegating(Map<String, Value>),
    /// Written by an agent, under any name.
    Ours,
}

/// The list of a node whose pods hauberk connects.
pub(super) fn primary(socket: &Path) -> Wanted {
    let name = "hauberk".to_owned();
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": name,
        "plugins": [{"type": PLUGIN, "socket": socket}],
    });
    Wanted { text: text(&list), mode: MODES, name }
}

/// The first of the other plugins' lists, with hauberk-cni appended.
///
/// # Errors
/// [`ListError`].
pub(super) fn chained(folder: &Path, own: &str, socket: &Path) -> Result<Wanted, ListError> {
    let mut problems = Vec::new();
    for file in others(folder, own)? {
        match read(&folder.join(&file)) {
            Ok(Found::Other { mut list, mode }) => {
                versions::raise(&mut list).map_err(|problem| ListError::Version { file, problem })?;
                let name = list.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                return Ok(Wanted { text: text(&with_plugin(list, socket)), mode, name });
            }
            Ok(Found::Delegating(_)) => {
                problems.push(format!("{file}: it delegates to other lists, as Multus does, and is not wrapped"));
            }
            Ok(Found::Ours) => problems.push(format!("{file}: it is a copy of a list that hauberk wrote")),
            Err(problem) => problems.push(format!("{file}: {problem}")),
        }
    }
    Err(ListError::NobodyElse { folder: folder.to_owned(), problems })
}

/// Refuses a folder in which another plugin's usable file comes before hauberk's.
///
/// # Errors
/// [`ListError::NotFirst`], [`ListError::Folder`].
pub(super) fn refuse_earlier(folder: &Path, own: &str) -> Result<(), ListError> {
    match earlier(folder, own)? {
        Some((other, Found::Other { .. } | Found::Ours)) => Err(ListError::NotFirst { other, own: own.to_owned() }),
        _ => Ok(()),
    }
}

/// Refuses a delegating plugin's file that comes before hauberk's, which exists by now, and does
/// not lead to it.
///
/// # Errors
/// [`ListError::Detour`], [`ListError::Folder`].
pub(super) fn refuse_detour(folder: &Path, own: &str, network: &str) -> Result<(), ListError> {
    match earlier(folder, own)? {
        Some((other, Found::Delegating(list))) if !leads_to(&list, own, network) => {
            Err(ListError::Detour { other, own: own.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Whether an agent wrote this. Another program's list may name hauberk's plugin too, but not in
/// this form.
pub(super) fn is_ours(text: &[u8]) -> bool {
    serde_json::from_slice::<Value>(text).is_ok_and(|list| has_our_form(&list["plugins"]))
}

fn has_our_form(plugins: &Value) -> bool {
    let Some([before @ .., last]) = plugins.as_array().map(Vec::as_slice) else { return false };
    last["type"] == PLUGIN && (before.is_empty() || last["chained"] == true)
}

/// The usable file that the runtime takes instead of hauberk's, if there is one.
fn earlier(folder: &Path, own: &str) -> Result<Option<(String, Found)>, ListError> {
    let names = others(folder, own)?.into_iter().take_while(|name| name.as_str() < own);
    Ok(names.into_iter().find_map(|name| read(&folder.join(&name)).ok().map(|found| (name, found))))
}

/// Names of the other configurations, in the runtime's order.
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

/// A configuration, or why the runtime would not accept it.
fn read(path: &Path) -> Result<Found, String> {
    let failed = |error: io::Error| error.to_string();
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err("not a file".to_owned());
    }
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & MODES;
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err("not of a configuration's size".to_owned());
    }
    let value: Value = serde_json::from_slice(&text).map_err(|error| format!("not JSON: {error}"))?;
    let list = as_list(value)?;
    let plugins = list.get("plugins").unwrap_or(&Value::Null);
    Ok(if plugins.as_array().is_some_and(|plugins| plugins.iter().any(delegates)) {
        Found::Delegating(list)
    } else if has_our_form(plugins) {
        Found::Ours
    } else {
        Found::Other { list, mode }
    })
}

fn as_list(value: Value) -> Result<Map<String, Value>, String> {
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
        // A single configuration counts as a list of one (libcni's `ConfListFromConf`).
        Some(_) => {
            let mut list = Map::new();
            for field in ["cniVersion", "cniVersions"] {
                if let Some(version) = object.remove(field) {
                    list.insert(field.to_owned(), version);
                }
            }
            list.insert("name".to_owned(), Value::from(name));
            list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(object)]));
            Ok(list)
        }
    }
}

/// Whether a plugin runs other lists, or already contains hauberk-cni.
fn delegates(plugin: &Value) -> bool {
    let is_known = plugin["type"].as_str().is_some_and(|kind| DELEGATING.contains(&kind));
    let inside = || plugin.as_object().is_some_and(|fields| fields.values().any(has_plugin));
    is_known || plugin["delegates"].is_array() || inside()
}

/// Whether this runs hauberk-cni anywhere inside.
fn has_plugin(value: &Value) -> bool {
    match value {
        Value::Object(fields) => value["type"] == PLUGIN || fields.values().any(has_plugin),
        Value::Array(items) => items.iter().any(has_plugin),
        _ => false,
    }
}

/// Whether a delegating list leads to hauberk's: it contains it, or names its file or its network.
fn leads_to(list: &Map<String, Value>, own: &str, network: &str) -> bool {
    let plugins = list.get("plugins").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    plugins.iter().any(|plugin| {
        let named = plugin["clusterNetwork"].as_str().unwrap_or_default();
        has_plugin(plugin) || named == network || Path::new(named).file_name().is_some_and(|file| file == own)
    })
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
