//! The I/O floor: hauberk's own engine without a cipher (`bench/floor`), connected like the other
//! WireGuards.
//!
//! It is no competitor but the machine's own limit: what a tunnel on this engine could reach if
//! sealing cost nothing.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use hauberk_netns::{Node, Pod};

use crate::foreign::{self, Foreign};
use crate::system::INNER_MTU;

const PROGRAM: &str = "hauberk-floor";
const DEVICE: &str = "floor0";
const PORT: u16 = 51840;

/// Connects two nodes with each other.
///
/// # Errors
/// The program is not built or does not make its device, or there are not exactly two nodes: it
/// supports one peer.
pub fn connect(nodes: &[Arc<Node>], directory: &Path) -> Result<Vec<Foreign>> {
    let [first, second] = nodes else { bail!("{PROGRAM} connects two nodes, not {}", nodes.len()) };
    let mut running = Vec::new();
    for (node, peer) in [(first, second), (second, first)] {
        // From the same build as this program. Otherwise figures of different engines would be
        // compared.
        let file = std::env::current_exe().context("own path")?.with_file_name("examples").join(PROGRAM);
        let mut command = node.command(&file);
        command.args(["--device", DEVICE, "--mtu", &INNER_MTU.to_string(), "--port", &PORT.to_string()]);
        command.args(["--peer", &format!("{}:{PORT}", peer.v4)]);
        let started = foreign::launch(node, command, PROGRAM, DEVICE, directory);
        running.push(started.with_context(|| {
            format!("run {}: build it with cargo build --release -p hauberk-bench --example {PROGRAM}", file.display())
        })?);
        foreign::route(node, nodes, DEVICE)?;
    }
    Ok(running)
}

/// Limits a pod's super-packets to the size of one send, as hauberk's CNI plugin does.
///
/// # Errors
/// The kernel refuses the limit.
pub fn limit(pod: &Pod) -> Result<()> {
    pod.netns.ip(&format!("link set eth0 gso_max_size {}", hauberk_wireguard::gso_max_size(INNER_MTU)))
}
