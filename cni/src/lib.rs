//! hauberk's CNI plugin: what the container runtime runs to give a pod its network (CNI spec 1.1; 0.4.0 and 1.0.0 are
//! answered in their own form).
//!
//! The runtime says what it wants in the environment and on stdin, both of which are parsed here as untrusted input; the
//! answer is JSON on stdout. The plugin owns the veth pair and what is configured inside the pod. Addresses, the datapath and
//! the node's routes are the agent's: the plugin asks it for a reservation first and has it attach its programs before the
//! pod can send.
#![forbid(unsafe_code)]

pub mod arguments;
pub mod commands;
pub mod config;
pub mod environment;
pub mod error;
pub mod name;
pub mod result;
pub mod version;

mod agent;
mod network;
mod plan;

use std::io::Read;

use environment::Request;
use error::CniError;
use version::Version;

/// What goes to stdout, and whether it is an answer or an error.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// JSON, or nothing.
    pub stdout: String,
    /// False: the process must exit with a status other than 0.
    pub success: bool,
}

/// One run of the plugin: `variable` looks up the environment, `stdin` holds the network configuration.
pub fn run(variable: impl Fn(&str) -> Option<String>, stdin: impl Read) -> Outcome {
    let mut version = Version::LATEST;
    match answer(variable, stdin, &mut version) {
        Ok(stdout) => Outcome { stdout, success: true },
        Err(error) => Outcome { stdout: error.to_json(version), success: false },
    }
}

/// Sets `version` as soon as the caller's is known, so that errors after that are told in it.
fn answer(
    variable: impl Fn(&str) -> Option<String>,
    stdin: impl Read,
    version: &mut Version,
) -> Result<String, CniError> {
    let request = Request::from_environment(variable)?;
    let input = config::read(stdin)?;
    if matches!(request, Request::Version) {
        return Ok(version::answer(&input));
    }
    *version = config::version(&input)?;
    let config = config::parse(&input)?;
    commands::run(&request, &config)
}
