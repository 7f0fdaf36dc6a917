//! What is measured: the systems, and a topology of two nodes with a pod each and one of the
//! systems in between.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hauberk_netns::{Cluster, Pod, Setup, manifests, runner, usage};
use serde_json::json;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::foreign::{self, Foreign};
use crate::null_cipher;

/// Largest packet in a tunnel on a wire of 1,500 bytes; WireGuard's default.
pub const INNER_MTU: u32 = 1420;

/// A system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Routing from pod to pod, and nothing else.
    Plaintext,
    /// hauberk, the namespace encrypted.
    Hauberk,
    /// hauberk, the namespace not encrypted.
    HauberkPlain,
    /// wireguard-go on each node.
    WireguardGo,
    /// boringtun-cli on each node.
    BoringtunCli,
    /// gotatun-cli on each node.
    GotatunCli,
    /// hauberk's I/O engine on each node, with a cipher that does nothing: the machine's own limit.
    NullCipher,
}

impl System {
    /// The systems of the tunnel's benchmark.
    pub const TUNNELS: [System; 6] = [
        System::Plaintext,
        System::Hauberk,
        System::WireguardGo,
        System::BoringtunCli,
        System::GotatunCli,
        System::NullCipher,
    ];

    /// Whether this is not a competitor but the limit of what a tunnel can reach on this machine.
    /// It supports one peer.
    pub fn is_floor(self) -> bool {
        self == System::NullCipher
    }

    /// The name in the results.
    pub fn as_str(self) -> &'static str {
        match self {
            System::Plaintext => "plaintext",
            System::Hauberk => "hauberk-userspace",
            System::HauberkPlain => "hauberk-plain",
            System::WireguardGo => "wireguard-go",
            System::BoringtunCli => "boringtun-cli",
            System::GotatunCli => "gotatun-cli",
            System::NullCipher => "null-cipher",
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for System {
    type Err = String;

    fn from_str(text: &str) -> Result<System, String> {
        let all = [&System::TUNNELS[..], &[System::HauberkPlain]].concat();
        all.iter().copied().find(|system| system.as_str() == text).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|system| system.as_str()).collect();
            format!("there is no system `{text}`; there are {}", names.join(", "))
        })
    }
}

/// Two pods on two nodes, connected by a system.
pub struct Topology {
    /// The client, on the first node.
    pub client: Pod,
    /// The server, on the second node.
    pub server: Pod,
    cluster: Cluster,
    foreign: Vec<Foreign>,
}

impl Topology {
    /// Moves this process into a sandbox and builds everything. Each node knows `peers` other
    /// nodes, of which one exists.
    ///
    /// # Errors
    /// A step failed; the message says where to look.
    pub fn build(system: System, peers: usize, directory: &Path) -> Result<Topology> {
        let context = runner::sandboxed(directory)?;
        let hauberk = matches!(system, System::Hauberk | System::HauberkPlain);
        let config = json!({"log": {"level": "info"}});
        let cluster = Cluster::build(&context, Setup { hauberk, capture: false, config, ..Setup::default() })?;
        cluster.namespace("bench", (system == System::Hauberk).then_some("enabled"))?;
        let (client, server) = (cluster.pod("bench", "client", 0)?, cluster.pod("bench", "server", 1)?);
        let mut topology = Topology { client, server, cluster, foreign: Vec::new() };
        if hauberk {
            topology.introduce_absent(peers)?;
            topology.cluster.wait_known(&[&topology.client, &topology.server])?;
        }
        let program = match system {
            System::Plaintext | System::Hauberk | System::HauberkPlain | System::NullCipher => None,
            System::WireguardGo => Some(foreign::WIREGUARD_GO),
            System::BoringtunCli => Some(foreign::BORINGTUN_CLI),
            System::GotatunCli => Some(foreign::GOTATUN_CLI),
        };
        if let Some(program) = program {
            for pod in [&topology.client, &topology.server] {
                narrow(pod)?;
            }
            topology.foreign = foreign::connect(&topology.cluster.nodes, program, &absent_peers(peers)?, directory)?;
        }
        if system.is_floor() {
            ensure!(peers == 1, "{system} knows one peer, not {peers}");
            for pod in [&topology.client, &topology.server] {
                narrow(pod)?;
                null_cipher::limit(pod)?;
            }
            topology.foreign = null_cipher::connect(&topology.cluster.nodes, directory)?;
        }
        for pod in [&topology.client, &topology.server] {
            prepare(pod)?;
        }
        Ok(topology)
    }

    /// Resident memory of the system's process on the first node, bytes; none if it has no process.
    pub fn resident(&self) -> Result<Option<u64>> {
        let process = match self.foreign.first() {
            Some(foreign) => Some(foreign.id()),
            None => self.cluster.nodes[0].agent.id(),
        };
        process.map(|process| Ok(usage::memory(process, "VmRSS")? * 1024)).transpose()
    }

    /// Gives the agents nodes that have published a key but do not exist.
    fn introduce_absent(&self, peers: usize) -> Result<()> {
        let absent = absent_peers(peers)?;
        for (number, peer) in absent.iter().enumerate() {
            let name = format!("absent{number}");
            let mut node = manifests::node(&name, &peer.addresses, &peer.ranges);
            node["metadata"]["annotations"] = json!({manifests::KEYS: manifests::keys(&peer.key)});
            self.cluster.manifests.put("node", &name, &node)?;
        }
        for node in &self.cluster.nodes {
            hauberk_netns::eventually(format!("{} to have {peers} peers", node.name), || {
                let known = node.agent.status()?.peers.iter().filter(|peer| !peer.keys.is_empty()).count();
                if known < peers {
                    bail!("{known}");
                }
                Ok(Some(()))
            })?;
        }
        Ok(())
    }
}

/// A node that the others know but that does not exist.
pub struct AbsentPeer {
    /// Its addresses on the wire.
    pub addresses: [IpAddr; 2],
    /// Its public key, in base64.
    pub key: String,
    /// Its pod ranges.
    pub ranges: [String; 2],
}

/// All peers of a node except the one that exists.
fn absent_peers(peers: usize) -> Result<Vec<AbsentPeer>> {
    (1..peers)
        .map(|number| {
            // Any secrets work as long as all are different. Some bits of the first byte are
            // ignored (RFC 7748, 5).
            let mut secret = [0x5a; 32];
            secret[8..16].copy_from_slice(&(number as u64).to_le_bytes());
            let public = PublicKey::from(&StaticSecret::from(secret));
            let v4 = format!("172.18.{}.{}", 16 + number / 200, 1 + number % 200);
            let v6 = format!("fd00:18::{:x}", 0x1000 + number);
            Ok(AbsentPeer {
                addresses: [v4.parse().context(v4)?, v6.parse().context(v6)?],
                key: STANDARD.encode(public.as_bytes()),
                ranges: [
                    format!("10.244.{}.{}/27", 16 + number / 8, number % 8 * 32),
                    format!("fd00:10:244:{:x}::/64", 0x1000 + number),
                ],
            })
        })
        .collect()
}

/// Limits a pod that the harness connected to packets that fit the tunnel. hauberk does that itself
/// for its own pods.
fn narrow(pod: &Pod) -> Result<()> {
    pod.netns.ip(&format!("link set eth0 mtu {INNER_MTU}"))
}

/// Prepares a pod for thousands of connections per second over a long time.
fn prepare(pod: &Pod) -> Result<()> {
    pod.netns.sysctl("net.ipv4.ip_local_port_range", "10000 65535")?;
    pod.netns.sysctl("net.ipv4.tcp_tw_reuse", "1")
}
