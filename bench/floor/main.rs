//! The I/O floor: hauberk's tunnel with a protocol that does not encrypt.
//!
//! It measures the cost of packets on their way through device, segments, batches and sockets, as
//! if sealing cost nothing. A tunnel on this engine can be faster only by what its eBPF programs
//! save on the way from pod to device; here the kernel routes that way. `hauberk-bench` runs it on
//! each node of a separate lane.
//!
//! It is a separate program and not a feature of the tunnel. Features are unified over a workspace,
//! so a null cipher behind a feature would be one build away from the agent. Here the engine's
//! sources are compiled once more, privately, without [`wireguard`] and with [`floor`] in its
//! place. Nothing depends on this program, and nothing installs it.
//!
//! [`wireguard`]: ../../daemon/tunnel/src/wireguard/mod.rs
//! [`floor`]: floor.rs
#![deny(unsafe_code)] // except io::syscalls

mod floor;

/// The engine, file by file as in the product. Its files refer to `crate::...`, hence the names
/// below.
#[path = "../../daemon/tunnel/src"]
#[allow(dead_code)] // parts that only the agent and the real protocol use
mod tunnel {
    pub(crate) mod backlog;
    pub(crate) mod config;
    pub(crate) mod crew;
    pub(crate) mod engine;
    pub(crate) mod error;
    pub(crate) mod io;
    pub(crate) mod offload;
    pub(crate) mod protocol;
    pub(crate) mod spin;
    pub(crate) mod stats;
    pub(crate) mod strangers;
}
use tunnel::{backlog, config, crew, engine, error, io, offload, protocol, spin, stats, strangers};

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use crate::config::DeviceConfig;
use crate::crew::Crew;
use crate::engine::Engine;
use crate::floor::Floor;
use crate::io::queues::Queues;
use crate::io::tun::Device;
use crate::io::udp::Sockets;
use crate::stats::Counters;

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

/// Starts the engine as the tunnel does (`tunnel.rs` beside it), and runs it until this process is
/// killed.
fn carry(arguments: &Arguments) -> Result<()> {
    let counters = Arc::new(Counters::default());
    let device = Device::open(&DeviceConfig { name: arguments.device.clone(), mtu: arguments.mtu, persist: false })?;
    let sockets = Sockets::bind(arguments.port, None)?;
    let floor = Floor::new(arguments.peer, arguments.mtu as usize, counters.clone());
    // Each peer belongs to one engine, and there is one peer.
    let crew = Crew::new(1).context("make an eventfd")?.pop().context("a crew of one")?;
    device.attach()?;
    let engine =
        Engine::new(Queues::new(vec![device]), sockets, floor, crew, counters, Duration::from_micros(arguments.spin))?;
    engine.run().with_context(|| format!("read from device {}: was it removed?", arguments.device))
}
