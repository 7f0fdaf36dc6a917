//! The agent's configuration: one YAML file, parsed once into one type, before anything else
//! happens.
//!
//! [`parse`] reads text and [`Config::load`] a file. Both check names ([`names`]) and meaning
//! ([`validate`]), and list every problem, not only the first. Nothing in it is secret: `hauberkd
//! --check-config` prints it all.

mod automatic;
mod cni;
mod names;
mod services;
mod source;
mod validate;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use automatic::Automatic;
pub use cni::{Cni, CniInstall};
use hauberk_core::protection::Protection;
pub use hauberk_datapath::{AttachMode, Limits};
pub use services::Services;
pub use source::{Kubernetes, Source};

/// The configuration's path unless the command line gives another.
pub const DEFAULT_PATH: &str = "/etc/hauberk/hauberkd.yaml";

/// In bytes. A larger file is not a configuration.
const MAX_BYTES: usize = 1 << 20;

/// The configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error(
        "cannot read the configuration {path}: {source}; create it (clusterRanges is the one required field) or name another with --config"
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML, or a value of the wrong type.
    #[error("the configuration is not valid YAML of the expected fields: {0}")]
    Syntax(#[from] serde_yaml_ng::Error),
    /// More text than any configuration has.
    #[error("the configuration has {0} bytes, more than the {MAX_BYTES} that are read; is this the right file?")]
    TooLarge(usize),
    /// Valid YAML with impossible values. One sentence for each problem.
    #[error("the configuration cannot be used:{}", bullets(.0))]
    Invalid(Vec<String>),
    /// The node's name is not configured, and the kernel does not give one.
    #[error("this node's name is unknown: cannot read the host name: {0}; set `node` or give --node")]
    HostName(std::io::Error),
}

fn bullets(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  - {problem}")).collect()
}

/// The whole configuration. Every field but `clusterRanges` is optional.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// This node's name, as in its Node object; by default the host name.
    pub node: Option<String>,
    /// Where objects come from.
    pub source: Source,
    /// The ranges of pod addresses in the whole cluster. An address in them that belongs to no
    /// known pod is treated as an opted-in pod's.
    pub cluster_ranges: Vec<IpNet>,
    /// The ranges of node addresses. An address in them that belongs to no known node does not
    /// count as "the world".
    pub node_ranges: Vec<IpNet>,
    /// How packets cross this node.
    pub host_routing: HostRouting,
    /// Whether packets from outside the cluster may go directly to an opted-in pod's address.
    pub world_ingress: WorldIngress,
    /// Whether a pod's label may weaken its namespace's.
    pub allow_pod_opt_out: bool,
    /// What applies where there is no label.
    pub defaults: Defaults,
    /// Services.
    pub services: Services,
    /// The tunnel to other nodes.
    pub tunnel: Tunnel,
    /// Devices that lead to other nodes.
    pub uplinks: Automatic<Vec<String>>,
    /// How programs are attached to devices.
    pub attach: AttachMode,
    /// How far left hauberk's four bits of `skb->mark` are shifted: 0..=28.
    pub mark_shift: u32,
    /// What is installed of the CNI plugin.
    pub cni: Cni,
    /// Files, sockets and pins.
    pub paths: Paths,
    /// TCP address that serves `/metrics`, `/healthz` and `/readyz`; none to serve them on the unix
    /// socket only.
    pub metrics: Option<SocketAddr>,
    /// Sizes of the kernel's maps, in entries (`events`: bytes).
    pub limits: Limits,
    /// What is logged, and how.
    pub log: Log,
}

/// What applies where there is no label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Defaults {
    /// For pods without the label `hauberk.io/encryption` in namespaces without it.
    pub encryption: Encryption,
}

/// The values of the label `hauberk.io/encryption`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Not opted in.
    #[default]
    Disabled,
    /// Encrypted when the peer can.
    Permissive,
    /// Encrypted or dropped.
    Enabled,
}

impl From<Encryption> for Protection {
    fn from(encryption: Encryption) -> Protection {
        match encryption {
            Encryption::Disabled => Protection::None,
            Encryption::Permissive => Protection::Permissive,
            Encryption::Enabled => Protection::Enabled,
        }
    }
}

/// How packets cross this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostRouting {
    /// From hook to hook, past netfilter.
    Bpf,
    /// Through the host's IP stack, where other programs' netfilter rules may translate addresses.
    Stack,
}

/// How packets from outside the cluster reach opted-in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorldIngress {
    /// Only through address translation on a node.
    Translated,
    /// Also directly to the pod's address.
    Direct,
}

/// The tunnel to other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tunnel {
    /// The encrypting backend.
    pub backend: hauberk_backend::Choice,
    /// The tunnel device's name.
    pub device: String,
    /// UDP port, the same for both families.
    pub port: u16,
    /// Largest packet inside the tunnel, bytes of IP; `auto` computes it from the uplinks.
    pub mtu: Automatic<u32>,
    /// Threads that carry encrypted packets; peers are spread over them. `auto` takes as many as
    /// the agent may use CPUs, but at most [`MOST_AUTOMATIC_THREADS`].
    pub threads: Automatic<u32>,
    /// Handshakes answered per second before senders must prove their address.
    pub handshakes_per_second: u32,
    /// How long the tunnel polls for the next packet before it sleeps, while polling pays off;
    /// microseconds, zero for never.
    pub spin_microseconds: u32,
    /// Whether the outer packet takes over the inner packet's DSCP, for networks that prioritise by
    /// it. An observer of the wire can then see the class of the inner packet. Congestion marks are
    /// carried over in both cases (RFC 6040).
    pub copy_dscp: bool,
    /// The implementation that seals and opens packets.
    pub cipher: hauberk_backend::Cipher,
}

/// The most threads that `auto` takes. Beyond that, memory and the pods' own need for CPUs weigh
/// more.
pub const MOST_AUTOMATIC_THREADS: usize = 8;

impl Tunnel {
    /// The number of threads that carry encrypted packets.
    pub fn threads(&self) -> usize {
        match self.threads {
            // This respects cgroup quotas and CPU sets.
            Automatic::Auto => std::thread::available_parallelism().map_or(1, usize::from).min(MOST_AUTOMATIC_THREADS),
            Automatic::Value(threads) => threads as usize,
        }
    }
}

/// Files, sockets and pins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Paths {
    /// Folder for the key and the attachments.
    pub state: PathBuf,
    /// Unix socket of the agent's API.
    pub socket: PathBuf,
    /// Unix socket for `wg show`.
    pub uapi: PathBuf,
    /// Folder on a BPF file system for maps and links.
    pub pins: PathBuf,
    /// The cgroup whose processes' connections to services are led to a backend; by default the
    /// root of the cgroup2 file system.
    pub cgroup: Option<PathBuf>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// Text for people or JSON for machines.
    pub format: LogFormat,
}

/// The least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something needs attention.
    Warn,
    /// State changes.
    Info,
    /// Decisions.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As in a filter directive.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// Text for people or JSON for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Reads a configuration.
///
/// # Errors
/// [`ConfigError::Syntax`] if it is not YAML or has a value of the wrong type,
/// [`ConfigError::Invalid`] with one sentence for each unknown field or impossible value.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    if text.len() > MAX_BYTES {
        return Err(ConfigError::TooLarge(text.len()));
    }
    let unknown = names::unknown_fields(text)?;
    if !unknown.is_empty() {
        return Err(ConfigError::Invalid(unknown));
    }
    // An empty document is null, which no struct deserializes from. As the default it lacks the
    // required field, and the error says so.
    let config: Config = serde_yaml_ng::from_str::<Option<Config>>(text)?.unwrap_or_default();
    config.validate()?;
    Ok(config)
}

impl Config {
    /// Reads the configuration file at `path`.
    ///
    /// # Errors
    /// Those of [`parse`], and [`ConfigError::Read`].
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        parse(&text)
    }

    /// Determines this node's name: the command line's if there is one, else the file's, else the
    /// host name in lower case, as the kubelet registers it.
    ///
    /// # Errors
    /// [`ConfigError::HostName`], and [`ConfigError::Invalid`] if no Node object can have the name.
    pub fn resolve_node(&mut self, from_command_line: Option<&str>) -> Result<String, ConfigError> {
        let name = match (from_command_line, &self.node) {
            (Some(name), _) => name.to_owned(),
            (None, Some(name)) => name.clone(),
            (None, None) => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map_err(ConfigError::HostName)?
                .trim()
                .to_lowercase(),
        };
        if let Some(problem) = validate::node_name(&name) {
            return Err(ConfigError::Invalid(vec![problem]));
        }
        self.node = Some(name.clone());
        Ok(name)
    }

    /// The effective configuration, defaults included, as YAML.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        Ok(serde_yaml_ng::to_string(self)?)
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            node: None,
            source: Source::default(),
            cluster_ranges: Vec::new(),
            node_ranges: Vec::new(),
            host_routing: HostRouting::Bpf,
            world_ingress: WorldIngress::Translated,
            allow_pod_opt_out: false,
            defaults: Defaults::default(),
            services: Services::default(),
            tunnel: Tunnel::default(),
            uplinks: Automatic::Auto,
            attach: AttachMode::Auto,
            mark_shift: 20,
            cni: Cni::default(),
            paths: Paths::default(),
            metrics: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9551)),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Tunnel {
            backend: hauberk_backend::Choice::Auto,
            device: "hauberk0".into(),
            port: 51840,
            mtu: Automatic::Auto,
            threads: Automatic::Auto,
            handshakes_per_second: 100,
            spin_microseconds: 100,
            copy_dscp: false,
            cipher: hauberk_backend::Cipher::Auto,
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Paths {
            state: "/var/lib/hauberk".into(),
            socket: "/run/hauberk/agent.sock".into(),
            uapi: "/var/run/wireguard/hauberk0.sock".into(),
            pins: "/sys/fs/bpf/hauberk".into(),
            cgroup: None,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: LogLevel::Info, format: LogFormat::Text }
    }
}

#[cfg(test)]
mod tests;
