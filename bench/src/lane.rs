//! A lane: the process of one system. Its topology is up for the whole run, and it measures when it
//! is told to.
//!
//! The outer process writes one measure per line and reads one answer per line, both in JSON.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use hauberk_netns::programs;

use crate::measure::{Measure, Sample};
use crate::system::{System, Topology};

/// A system, and the number of peers that each of its nodes knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane {
    /// The system.
    pub system: System,
    /// Number of other nodes that each node knows. Only one of them exists.
    pub peers: usize,
}

impl Lane {
    /// The system with only the peer that exists.
    pub fn of(system: System) -> Lane {
        Lane { system, peers: 1 }
    }

    fn directory(self) -> Result<PathBuf> {
        Ok(programs::target_directory()?.join("bench/lanes").join(self.to_string()))
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.system, self.peers)
    }
}

impl FromStr for Lane {
    type Err = String;

    fn from_str(text: &str) -> Result<Lane, String> {
        let (system, peers) = text.split_once('@').ok_or("a lane is SYSTEM@PEERS")?;
        Ok(Lane { system: system.parse()?, peers: peers.parse().map_err(|error| format!("{peers}: {error}"))? })
    }
}

/// The outer process's handle to a lane's process, which ends when this value is dropped.
pub struct Running {
    lane: Lane,
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Running {
    /// Starts a lane.
    ///
    /// # Errors
    /// It does not start; the message has its report.
    pub fn start(lane: Lane) -> Result<Running> {
        let directory = lane.directory()?;
        if directory.exists() {
            std::fs::remove_dir_all(&directory).with_context(|| format!("clear {}", directory.display()))?;
        }
        let mut command = Command::new(std::env::current_exe().context("own path")?);
        command.arg("inside").arg(lane.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("start a lane")?;
        let orders = process.stdin.take().context("standard input of a lane")?;
        let answers = BufReader::new(process.stdout.take().context("standard output of a lane")?);
        let mut running = Running { lane, process, orders, answers };
        running.answer::<()>()?;
        Ok(running)
    }

    /// Takes one sample.
    ///
    /// # Errors
    /// It could not be taken; the message has the lane's report.
    pub fn measure(&mut self, measure: &Measure) -> Result<Sample> {
        let order = serde_json::to_string(measure).context("write an order")?;
        writeln!(self.orders, "{order}").with_context(|| format!("lane {} has ended", self.lane))?;
        self.answer().with_context(|| format!("{} on {}", measure.name(), self.lane))
    }

    fn answer<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("read from a lane")?;
        if line.is_empty() {
            bail!("lane {} has ended; logs: {}", self.lane, self.lane.directory()?.display());
        }
        let answer: Result<T, String> = serde_json::from_str(&line).with_context(|| format!("a lane said {line}"))?;
        answer.map_err(anyhow::Error::msg)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Everything in its sandbox ends with it.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The lane's process: builds the topology, then measures until the outer process closes its input.
///
/// # Errors
/// The topology cannot be built, or the outer process has ended.
pub fn serve(lane: Lane) -> Result<()> {
    let directory = lane.directory()?;
    let topology = Topology::build(lane.system, lane.peers, &directory);
    let topology = topology.and_then(|topology| crate::measure::warm_up(&topology).map(|()| topology));
    answer(
        &topology.as_ref().map(|_| ()).map_err(|error| format!("{lane}: {error:#}; logs: {}", directory.display())),
    )?;
    let Ok(topology) = topology else { return Ok(()) };
    for line in std::io::stdin().lines() {
        let line = line.context("read an order")?;
        let measure: Measure = serde_json::from_str(&line).with_context(|| format!("order {line}"))?;
        answer(&measure.take(&topology).map_err(|error| format!("{error:#}")))?;
    }
    Ok(())
}

fn answer<T: serde::Serialize>(result: &Result<T, String>) -> Result<()> {
    println!("{}", serde_json::to_string(result).context("write an answer")?);
    Ok(())
}
