//! The latency of a small packet, measured by sockperf: half of the round trip.

use anyhow::{Context as _, Result};
use hauberk_netns::Party;
use hauberk_netns::netns::feed;

use super::bulk::Background;
use super::server::{Server, Transport};

const PORT: u16 = 11111;
/// Packets per second beside a bulk stream: few enough that they do not queue behind each other.
const RATE: u32 = 1000;

/// Microseconds, one way.
pub struct Latency {
    /// Half of the packets took less.
    pub p50: f64,
    /// One in a hundred took more.
    pub p99: f64,
}

/// Sends small packets for some seconds, one at a time.
pub fn run(client: &Party, server: &Party, loaded: bool, seconds: u32) -> Result<Latency> {
    let _server = Server::start(
        server,
        Transport::Udp,
        PORT,
        "sockperf",
        &["server", "-i", &server.v4.to_string(), "-p", &PORT.to_string()],
    )?;
    let _load = if loaded { Some(Background::start(client, server)?) } else { None };
    let (address, port, time, rate) = (server.v4.to_string(), PORT.to_string(), seconds.to_string(), RATE.to_string());
    let mut command = client.netns.command("sockperf");
    if loaded {
        // At fixed moments, so that a late packet does not delay the measurement of another.
        command.args(["under-load", "--reply-every", "1", "--mps", &rate]);
    } else {
        command.arg("ping-pong");
    }
    command.args(["-i", &address, "-p", &port, "-t", &time, "-m", "64"]);
    let said = feed(command, "")?;
    let percentile = |which: &str| -> Result<f64> {
        let label = format!("percentile {which}");
        let line =
            said.lines().find(|line| line.contains(&label)).with_context(|| format!("sockperf said:\n{said}"))?;
        let number = line.rsplit('=').next().unwrap_or_default().trim();
        number.parse().with_context(|| format!("sockperf said: {line}"))
    };
    Ok(Latency { p50: percentile("50.000")?, p99: percentile("99.000")? })
}
