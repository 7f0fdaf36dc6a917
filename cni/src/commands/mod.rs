//! The commands, one file each. Each is a sequence of steps on the agent and on the two namespaces.

mod add;
mod check;
mod collect;
mod delete;
mod status;

use crate::config::NetworkConfig;
use crate::environment::Request;
use crate::error::CniError;
use crate::version::{self, Version};

/// What marks the pod's end of a pair as ours; the host side's name follows. DEL removes nothing without it: ADD may have
/// failed because another plugin's interface was there.
const ALIAS_PREFIX: &str = "hauberk:";

/// Runs a command; the text for stdout, which may be empty.
pub fn run(request: &Request, config: &NetworkConfig) -> Result<String, CniError> {
    if matches!(request, Request::Status | Request::Gc) && config.version < Version::V1_1 {
        return Err(CniError::Version { asked: config.version.as_str().to_string() });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| {
        CniError::Kernel { action: "start".to_string(), place: "the plugin's process".to_string(), source }
    })?;
    let nothing = |()| String::new();
    runtime.block_on(async {
        match request {
            Request::Add(pod) => add::add(config, pod).await.map(|result| result.to_json()),
            Request::Del { container, interface, netns } => {
                delete::delete(config, container, interface, netns.as_deref()).await.map(nothing)
            }
            Request::Check(pod) => check::check(config, pod).await.map(nothing),
            Request::Status => status::status(config).await.map(nothing),
            Request::Gc => collect::collect(config).await.map(nothing),
            Request::Version => Ok(version::answer(&[])),
        }
    })
}
