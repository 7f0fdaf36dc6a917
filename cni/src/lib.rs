//! hauberk's CNI plugin: the container runtime runs it to give a pod its network (CNI spec 1.1;
//! older versions, from 0.3.1 on, are answered in their own form).
//!
//! The request is in the environment and on stdin, and both are parsed here as untrusted input; the
//! answer is JSON on stdout. The plugin owns the veth pair and the configuration inside the pod.
//! The agent owns addresses, the datapath and the node's routes. The plugin first asks the agent
//! for a reservation, and lets it attach its programs before the pod can send.
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

/// The text for stdout, and whether it is an answer or an error.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// JSON, or nothing.
    pub stdout: String,
    /// If false, the process must exit with a status other than 0.
    pub success: bool,
}

/// Runs the plugin once: `variable` looks up the environment, `stdin` has the network
/// configuration.
pub fn run(variable: impl Fn(&str) -> Option<String>, stdin: impl Read) -> Outcome {
    let mut version = Version::LATEST;
    match answer(variable, stdin, &mut version) {
        Ok(stdout) => Outcome { stdout, success: true },
        Err(error) => Outcome { stdout: error.to_json(version), success: false },
    }
}

/// Sets `version` as soon as the caller's version is known, so that later errors are reported in
/// it.
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
