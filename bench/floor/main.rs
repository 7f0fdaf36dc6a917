//! The I/O floor: hauberk's tunnel with a protocol that does not encrypt.
//!
//! It measures the cost of packets on their way through device, segments, batches and sockets, as
//! if sealing cost nothing. A tunnel on this engine can be faster only by what its eBPF programs
//! save on the way from pod to device; here the kernel routes that way. `hauberk-bench` runs it on
//! each node of a separate lane.
//!
//! It is a separate program and not a feature of the tunnel. Features are unified over a workspace,
//! so a null cipher behind a feature would be one build away from the agent. Here the engine gets
//! [`floor`] where the tunnel has WireGuard. Nothing depends on this program, and nothing installs
//! it.
//!
//! [`floor`]: floor.rs
#![deny(unsafe_code)]

mod floor;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use hauberk_engine::{Counters, DeviceConfig, Engine};
use tracing_subscriber::filter::LevelFilter;

use crate::floor::Floor;

/// Carries packets between a device and one other node as hauberk does, WITHOUT any encryption: to
/// measure what that costs, and nothing else. Needs root.
#[derive(Parser)]
#[command(name = "hauberk-floor", version)]
struct Arguments {
    /// TUN device to make.
    #[arg(long)]
    device: String,
    /// Largest packet on the device, bytes.
    #[arg(long)]
    mtu: u32,
    /// UDP port to listen on.
    #[arg(long)]
    port: u16,
    /// Where the other node listens.
    #[arg(long, value_name = "ADDRESS:PORT")]
    peer: SocketAddr,
    /// For how long after a packet the engine looks for the next one before it sleeps; the default
    /// is the agent's.
    #[arg(long, default_value_t = 100, value_name = "MICROSECONDS")]
    spin: u64,
}

fn main() -> ExitCode {
    // The engine warns if the kernel handles fewer packets in bulk than it should. Then this is no
    // floor.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    match carry(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hauberk-floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts one engine, and runs it until this process is killed.
fn carry(arguments: &Arguments) -> Result<()> {
    let counters = Arc::new(Counters::default());
    let device = DeviceConfig { name: arguments.device.clone(), mtu: arguments.mtu, persist: false };
    let floor = Floor::new(arguments.peer, arguments.mtu as usize, counters.clone());
    // Each peer belongs to one engine, and there is one peer.
    let engine = Engine::alone(&device, arguments.port, Duration::from_micros(arguments.spin), floor, counters)?;
    engine.run().with_context(|| format!("read from device {}: was it removed?", arguments.device))
}
