//! Other userspace WireGuards: a device on each node, configured with `wg` as their documentation
//! says.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use hauberk_netns::netns::feed;
use hauberk_netns::{Node, eventually, programs};

use crate::system::{AbsentPeer, INNER_MTU};

const DEVICE: &str = "wg0";
const PORT: u16 = 51840;

/// A program that makes a WireGuard device.
#[derive(Clone, Copy)]
pub struct Program {
    file: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

/// With its defaults: it uses every CPU, and batches wherever the kernel allows it.
pub const WIREGUARD_GO: Program = Program {
    file: "wireguard-go",
    arguments: &["--foreground", DEVICE],
    environment: &[("LOG_LEVEL", "error"), ("WG_PROCESS_FOREGROUND", "1")],
};

/// With its defaults, except that it keeps its privileges: the user it would change to does not
/// exist in the sandbox.
pub const BORINGTUN_CLI: Program = Program {
    file: "boringtun-cli",
    arguments: &["--foreground", "--disable-drop-privileges", "--verbosity", "error", DEVICE],
    environment: &[],
};

/// Like boringtun-cli, from which it descends.
pub const GOTATUN_CLI: Program = Program {
    file: "gotatun",
    arguments: &["--foreground", "--disable-drop-privileges", "--verbosity", "error", DEVICE],
    environment: &[],
};

/// The process on one node.
pub struct Foreign {
    process: Child,
}

impl Foreign {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

/// Connects all nodes with each other. Each also knows the absent peers.
///
/// # Errors
/// The program is not built, does not make its device, or `wg` cannot configure it.
pub fn connect(nodes: &[Arc<Node>], program: Program, absent: &[AbsentPeer], directory: &Path) -> Result<Vec<Foreign>> {
    let mut running = Vec::new();
    let mut keys = Vec::new();
    for node in nodes {
        running.push(start(node, program, directory)?);
        let private = node.run("wg", &["genkey"])?;
        let mut public = node.command("wg");
        public.arg("pubkey");
        keys.push((feed(public, &private)?.trim().to_owned(), private.trim().to_owned()));
    }
    for (index, node) in nodes.iter().enumerate() {
        let mut text = format!("[Interface]\nListenPort = {PORT}\nPrivateKey = {}\n", keys[index].1);
        let mut peer = |key: &str, ranges: &[String], address: String| {
            text +=
                &format!("[Peer]\nPublicKey = {key}\nAllowedIPs = {}\nEndpoint = {address}:{PORT}\n", ranges.join(","));
        };
        for (other, (public, _)) in nodes.iter().zip(&keys).filter(|(other, _)| other.name != node.name) {
            peer(public, &other.pod_ranges, other.v4.to_string());
        }
        for other in absent {
            peer(&other.key, &other.ranges, other.addresses[0].to_string());
        }
        let file = directory.join(format!("{}.conf", node.name));
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        eventually(format!("{} to take its configuration", program.file), || {
            node.run("wg", &["setconf", DEVICE, &file.to_string_lossy()]).map(Some)
        })?;
        node.netns.ip(&format!("link set {DEVICE} mtu {INNER_MTU} up"))?;
        route(node, nodes, DEVICE)?;
    }
    Ok(running)
}

fn start(node: &Node, program: Program, directory: &Path) -> Result<Foreign> {
    let mut command = node.command(programs::tool(program.file)?);
    command.args(program.arguments).envs(program.environment.iter().copied());
    launch(node, command, program.file, DEVICE, directory)
}

/// Runs a command on a node, with its output in a log in the directory, and waits for the device
/// that it makes.
///
/// # Errors
/// It cannot be run, or does not make that device.
pub fn launch(node: &Node, mut command: Command, name: &str, device: &str, directory: &Path) -> Result<Foreign> {
    let log = directory.join(format!("{name}-{}.log", node.name));
    let log = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    command.stdout(log.try_clone().context("clone log")?).stderr(log);
    let process = command.spawn().with_context(|| format!("start {name} on {}", node.name))?;
    eventually(format!("{name} to make its device on {}", node.name), || Ok(node.netns.interface(device).ok()))?;
    Ok(Foreign { process })
}

/// Routes packets for other nodes' pods into a node's device.
///
/// # Errors
/// The kernel refuses a route.
pub fn route(node: &Node, nodes: &[Arc<Node>], device: &str) -> Result<()> {
    for other in nodes.iter().filter(|other| other.name != node.name) {
        let routes: Vec<String> =
            other.pod_ranges.iter().map(|range| format!("route replace {range} dev {device}")).collect();
        node.netns.ip(&routes.join("\n"))?;
    }
    Ok(())
}
