//! The agent's configuration: one YAML file, parsed once into one type, before anything else happens.
//!
//! [`parse`] reads text and [`Config::load`] a file; both check names ([`names`]) and meaning ([`validate`]) and list
//! everything that is wrong, not only the first. Nothing in it is secret: `hauberkd --check-config` prints it whole.

mod automatic;
mod cni;
mod names;
mod source;
mod validate;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use automatic::Automatic;
pub use cni::{Cni, CniInstall};
use hauberk_core::protection::Protection;
pub use source::{Kubernetes, Source};

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/hauberk/hauberkd.yaml";

/// A larger file is not a configuration, bytes.
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
    /// More text than a configuration ever has.
    #[error("the configuration has {0} bytes, more than the {MAX_BYTES} that are read; is this the right file?")]
    TooLarge(usize),
    /// Valid YAML that says something impossible. One sentence each.
    #[error("the configuration cannot be used:{}", bullets(.0))]
    Invalid(Vec<String>),
    /// The node's name is neither configured nor to be had from the kernel.
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
    /// This node's name, as its Node object has it; the host name if none is given.
    pub node: Option<String>,
    /// Where objects come from.
    pub source: Source,
    /// Ranges that pods' addresses come from, in the whole cluster: an address in here that no pod is known to have is
    /// treated as an opted-in pod's.
    pub cluster_ranges: Vec<IpNet>,
    /// Ranges that nodes' addresses come from: an address in here that no node is known to have is not "the world".
    pub node_ranges: Vec<IpNet>,
    /// How packets cross this node.
    pub host_routing: HostRouting,
    /// Whether packets from outside the cluster may come straight to an opted-in pod's address.
    pub world_ingress: WorldIngress,
    /// Whether a pod's label may weaken its namespace's.
    pub allow_pod_opt_out: bool,
    /// What holds where no label says anything.
    pub defaults: Defaults,
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
    /// TCP address that serves `/metrics`, `/healthz` and `/readyz`; none: the unix socket alone does.
    pub metrics: Option<SocketAddr>,
    /// Sizes of the kernel's maps, in entries (`events`: bytes).
    pub limits: Limits,
    /// What is logged, and how.
    pub log: Log,
}

/// What holds where no label says anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Defaults {
    /// For pods without the label `hauberk.io/encryption` in namespaces without it.
    pub encryption: Encryption,
}

/// The values that the label `hauberk.io/encryption` has.
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
    /// Through the host's IP stack, where somebody else's netfilter may translate addresses.
    Stack,
}

/// How packets from outside the cluster reach opted-in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorldIngress {
    /// Only through address translation on a node.
    Translated,
    /// Straight to the pod's address as well.
    Direct,
}

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links (kernel 6.6).
    Tcx,
    /// Filters on a clsact queueing discipline.
    Clsact,
}

/// The tunnel to other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tunnel {
    /// Who encrypts.
    pub backend: Backend,
    /// The tunnel device's name.
    pub device: String,
    /// UDP port, the same for both families.
    pub port: u16,
    /// Largest packet inside the tunnel, bytes of IP; computed from the uplinks if automatic.
    pub mtu: Automatic<u32>,
    /// Threads that carry encrypted packets, peers spread over them; as many as the agent may use CPUs, but at most
    /// [`MOST_AUTOMATIC_THREADS`], if automatic.
    pub threads: Automatic<u32>,
    /// Handshakes answered per second before senders must prove their address.
    pub handshakes_per_second: u32,
    /// For how long after a packet the tunnel looks for the next one before it sleeps, while that pays; microseconds, zero for never.
    pub spin_microseconds: u32,
    /// Whether the outer packet has the inner one's DSCP, for networks that give some traffic precedence; whoever sees the wire
    /// then sees the class of what is inside. Congestion marks are carried over either way (RFC 6040).
    pub copy_dscp: bool,
    /// Whose code seals and opens packets.
    pub cipher: Cipher,
}

/// Most threads that are not asked for: beyond, memory and the pods' own need of CPUs weigh more.
pub const MOST_AUTOMATIC_THREADS: usize = 8;

impl Tunnel {
    /// How many threads carry encrypted packets.
    pub fn threads(&self) -> usize {
        match self.threads {
            // Knows of cgroups' quotas and of CPU sets.
            Automatic::Auto => std::thread::available_parallelism().map_or(1, usize::from).min(MOST_AUTOMATIC_THREADS),
            Automatic::Value(threads) => threads as usize,
        }
    }
}

/// Whose code seals and opens packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cipher {
    /// The fastest that this CPU can run.
    Auto,
    /// The ring library's, whatever the CPU can.
    Ring,
}

/// Who encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The best this node has.
    Auto,
    /// The agent itself.
    Userspace,
}

/// Files, sockets and pins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Paths {
    /// Folder for the key and the attachments.
    pub state: PathBuf,
    /// Unix socket of the agent's API.
    pub socket: PathBuf,
    /// Unix socket that `wg show` asks.
    pub uapi: PathBuf,
    /// Folder on a BPF file system for maps and links.
    pub pins: PathBuf,
}

/// Sizes of the kernel's maps. What does not fit is treated as opted-in and counted.
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
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// For people or for machines.
    pub format: LogFormat,
}

/// The least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something asks for attention.
    Warn,
    /// State changes.
    Info,
    /// Decisions.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As a filter directive has it.
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

/// For people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads a configuration.
///
/// # Errors
/// [`ConfigError::Syntax`] for what is not YAML or of the wrong type, [`ConfigError::Invalid`] with one sentence for each
/// unknown field or impossible value.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    if text.len() > MAX_BYTES {
        return Err(ConfigError::TooLarge(text.len()));
    }
    let unknown = names::unknown_fields(text)?;
    if !unknown.is_empty() {
        return Err(ConfigError::Invalid(unknown));
    }
    // An empty document is null, which no struct deserializes from; it then lacks the required field, and is told so.
    let config: Config = serde_yaml_ng::from_str::<Option<Config>>(text)?.unwrap_or_default();
    config.validate()?;
    Ok(config)
}

impl Config {
    /// Reads the configuration file at `path`.
    ///
    /// # Errors
    /// As [`parse`], and [`ConfigError::Read`].
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        parse(&text)
    }

    /// Settles this node's name: the command line's if there is one, else the file's, else the host name, in lower case
    /// as the kubelet registers it.
    ///
    /// # Errors
    /// [`ConfigError::HostName`], and [`ConfigError::Invalid`] if the name is none a Node object can have.
    pub fn settle_node(&mut self, from_command_line: Option<&str>) -> Result<String, ConfigError> {
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
            backend: Backend::Auto,
            device: "hauberk0".into(),
            port: 51840,
            mtu: Automatic::Auto,
            threads: Automatic::Auto,
            handshakes_per_second: 100,
            spin_microseconds: 100,
            copy_dscp: false,
            cipher: Cipher::Auto,
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
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { endpoints: 65536, ranges: 16384, flows: 65536, attachments: 1024, events: 1 << 20 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: LogLevel::Info, format: LogFormat::Text }
    }
}

#[cfg(test)]
mod tests;
