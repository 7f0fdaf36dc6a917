//! hauberk beside its alternatives: one machine, one topology, one run.
//!
//! ```text
//!  pod ── node ── wire ── node ── pod
//! ```
//!
//! Each machine is a network namespace. Each system has its own row of machines, a "lane".
//!
//! The outer process (here) starts a lane for every system and then goes in rounds: it takes each
//! measure on each system in turn, so that other load on this machine affects all of them alike.
//! Lanes that are not being measured are idle.
#![forbid(unsafe_code)]

mod cipher;
mod congestion;
mod foreign;
mod lane;
mod measure;
mod null_cipher;
mod plot;
mod report;
mod results;
mod rounds;
mod system;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::lane::Lane;
use crate::system::System;

/// Measures hauberk beside other systems on this machine. Needs root.
#[derive(Parser)]
#[command(name = "hauberk-bench", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Encrypted pod traffic: hauberk's userspace tunnel beside other userspace WireGuards, beside
    /// no encryption, and beside the machine's own limit: the cipher alone, and hauberk's I/O with
    /// a cipher that does nothing (null-cipher).
    Tunnel(Options),
    /// Traffic of a namespace that is not encrypted, with and without hauberk on the nodes.
    Classify(Options),
    /// A lane's own process.
    #[command(hide = true)]
    Inside {
        /// SYSTEM@PEERS.
        lane: Lane,
    },
}

/// How much, and of what.
#[derive(Args, Clone)]
pub struct Options {
    /// Rounds; each measures everything once on every system.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each sample, seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// A sample during which the host took more than this share of the CPUs away is thrown away,
    /// and taken again later.
    #[arg(long, default_value_t = 6.0, value_name = "PERCENT")]
    steal_limit: f64,
    /// Only these systems.
    #[arg(long, value_delimiter = ',')]
    systems: Option<Vec<System>>,
    /// Only measures whose name begins with one of these.
    #[arg(long, value_delimiter = ',')]
    measures: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().what {
        What::Tunnel(options) => tunnel(&options),
        What::Classify(options) => classify(&options),
        What::Inside { lane } => lane::serve(lane),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hauberk-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tunnel(options: &Options) -> Result<()> {
    let mut results = rounds::run("tunnel", &rounds::tunnel(options), options)?;
    report::tunnel(&mut results)
}

fn classify(options: &Options) -> Result<()> {
    let mut results = rounds::run("classify", &rounds::classify(options), options)?;
    report::classify(&mut results)
}
