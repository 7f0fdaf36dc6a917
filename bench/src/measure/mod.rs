//! The measures of a system, one sample at a time.

mod bulk;
mod datagrams;
mod latency;
mod requests;
mod server;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use hauberk_netns::usage::Clock;
use serde::{Deserialize, Serialize};

use crate::system::Topology;

pub use bulk::Direction;

/// One kind of measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Measure {
    /// TCP streams at full speed.
    Bulk {
        /// Number of parallel streams.
        streams: u32,
        /// The sending side.
        direction: Direction,
        /// Length, seconds.
        seconds: u32,
    },
    /// UDP packets as fast as they go without loss.
    Datagrams {
        /// Bytes of payload in each.
        bytes: usize,
        /// Length, seconds.
        seconds: u32,
    },
    /// The one-way latency: half of the round trip.
    Latency {
        /// With a TCP stream at full speed beside it.
        loaded: bool,
        /// Length, seconds.
        seconds: u32,
    },
    /// HTTP requests.
    Requests {
        /// Each request on its own connection.
        fresh: bool,
        /// Length, seconds.
        seconds: u32,
    },
    /// Resident memory.
    Memory,
}

/// The result of one sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The numbers, by their name in the results.
    pub values: BTreeMap<String, f64>,
    /// Percentage of the CPUs' time that the host took away meanwhile.
    pub steal_percent: f64,
}

impl Measure {
    /// The beginning of its numbers' names.
    pub fn name(&self) -> String {
        match self {
            Measure::Bulk { streams, direction, .. } => match direction {
                Direction::Forward => format!("tcp{streams}"),
                Direction::Reverse => format!("tcp{streams}_reverse"),
                Direction::Both => format!("tcp{streams}_both"),
            },
            Measure::Datagrams { bytes, .. } => format!("udp{bytes}"),
            Measure::Latency { loaded: false, .. } => "latency".into(),
            Measure::Latency { loaded: true, .. } => "latency_loaded".into(),
            Measure::Requests { fresh: false, .. } => "http_requests".into(),
            Measure::Requests { fresh: true, .. } => "http_connections".into(),
            Measure::Memory => "rss".into(),
        }
    }

    /// Takes a sample.
    ///
    /// # Errors
    /// A program is missing or failed, or nothing got through.
    pub fn take(&self, topology: &Topology) -> Result<Sample> {
        let name = self.name();
        let clock = Clock::read()?;
        let mut values = BTreeMap::new();
        match self {
            Measure::Bulk { streams, direction, seconds } => {
                let bytes = bulk::run(&topology.client, &topology.server, *streams, *direction, *seconds)?;
                let spent = clock.elapsed()?;
                values.insert(format!("{name}_gbps"), bytes as f64 * 8.0 / 1e9 / f64::from(*seconds));
                values.insert(format!("{name}_cpu_s_per_gb"), spent.busy_seconds / (bytes as f64 / 1e9));
            }
            Measure::Datagrams { bytes, seconds } => {
                let count = datagrams::run(&topology.client, &topology.server, *bytes, *seconds)?;
                values.insert(format!("{name}_mpps"), count.received as f64 / 1e6 / f64::from(*seconds));
                values.insert(format!("{name}_lost"), count.lost as f64);
            }
            Measure::Latency { loaded, seconds } => {
                let latency = latency::run(&topology.client, &topology.server, *loaded, *seconds)?;
                values.insert(format!("{name}_p50_us"), latency.p50);
                values.insert(format!("{name}_p99_us"), latency.p99);
            }
            Measure::Requests { fresh, seconds } => {
                let rate = requests::run(&topology.client, &topology.server, *fresh, *seconds)?;
                values.insert(format!("{name}_per_s"), rate);
            }
            Measure::Memory => {
                if let Some(bytes) = topology.resident()? {
                    values.insert(format!("{name}_mb"), bytes as f64 / 1e6);
                }
            }
        }
        Ok(Sample { values, steal_percent: clock.elapsed()?.steal_percent })
    }
}

/// Fills every cache and sets up sessions and routes, so that no sample pays for them.
///
/// # Errors
/// Nothing gets through.
pub fn warm_up(topology: &Topology) -> Result<()> {
    let first = Measure::Bulk { streams: 1, direction: Direction::Both, seconds: 1 };
    first.take(topology).context("the first bytes")?;
    Ok(())
}
