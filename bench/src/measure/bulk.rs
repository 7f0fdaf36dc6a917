//! TCP throughput, by iperf3.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::Party;
use hauberk_netns::netns::feed;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::server::{Server, Transport};

const PORT: u16 = 5201;
/// The largest block that iperf3 writes at once. The kernel cuts a block into super-packets; the
/// rest of a block is one or two small packets, depending on the segment size. Its usual 128 KiB
/// make three packets with segments of 1,448 bytes and four with 1,368, a difference of a tenth in
/// everything measured.
const BLOCK: &str = "1M";

/// The sending side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// The client.
    Forward,
    /// The server.
    Reverse,
    /// Both at the same time.
    Both,
}

/// Sends for some seconds and returns the bytes that arrived, in both directions together.
pub fn run(client: &Party, server: &Party, streams: u32, direction: Direction, seconds: u32) -> Result<u64> {
    let _server = start(server)?;
    let mut command = sender(client, server, seconds);
    command.args(["--json", "--parallel", &streams.to_string()]);
    match direction {
        Direction::Forward => {}
        Direction::Reverse => drop(command.arg("--reverse")),
        Direction::Both => drop(command.arg("--bidir")),
    }
    let report: Value = serde_json::from_str(&feed(command, "")?).context("iperf3's report")?;
    let received = ["sum_received", "sum_received_bidir_reverse"];
    let bytes = received.iter().filter_map(|sum| report["end"][sum]["bytes"].as_u64()).sum();
    ensure!(bytes > 0, "iperf3 received nothing: {}", report["error"]);
    Ok(bytes)
}

/// A sender that runs beside another measure until it is stopped.
pub struct Background {
    client: std::process::Child,
    _server: Server,
}

impl Background {
    /// Starts the sender.
    ///
    /// # Errors
    /// iperf3 does not run.
    pub fn start(client: &Party, server: &Party) -> Result<Background> {
        let running = start(server)?;
        let mut command = sender(client, server, 0);
        let client = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("run iperf3")?;
        Ok(Background { client, _server: running })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.client.kill().ok();
        self.client.wait().ok();
    }
}

/// A client that sends for some seconds, or, with 0, until it is stopped.
fn sender(client: &Party, server: &Party, seconds: u32) -> Command {
    let mut command = client.netns.command("iperf3");
    command.args(["--client", &server.v4.to_string(), "--port", &PORT.to_string(), "--time", &seconds.to_string()]);
    command.args(["--length", BLOCK]);
    command
}

fn start(party: &Party) -> Result<Server> {
    Server::start(
        party,
        Transport::Tcp,
        PORT,
        "iperf3",
        &["--server", "--bind", &party.v4.to_string(), "--port", &PORT.to_string()],
    )
}
