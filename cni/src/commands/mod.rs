//! The commands, one file each. Each is a sequence of steps on the agent and on the two namespaces.

mod add;
mod adopt;
mod check;
mod collect;
mod delete;
mod status;

use std::time::Duration;

use hauberk_api::FailedAdd;

use crate::agent::Agent;
use crate::config::NetworkConfig;
use crate::environment::{PodInterface, Request};
use crate::error::CniError;
use crate::version::{self, Version};

/// Marks the pod's end of a pair as this plugin's; the host side's name follows. DEL removes
/// nothing without this mark, because ADD may have failed on another plugin's interface.
const ALIAS_PREFIX: &str = "hauberk:";

/// How long undoing may wait for the agent. It can be short, because a DEL follows anyway.
const UNDO_LIMIT: Duration = Duration::from_secs(3);

/// How long the agent may take to hear of a failure, which changes nothing about it.
const TELL_LIMIT: Duration = Duration::from_millis(500);

/// Has the agent know why a pod has no interface: what is answered here reads the runtime alone. An
/// agent that is not there, or is older than this, does not hear it.
async fn tell(config: &NetworkConfig, pod: &PodInterface, error: &CniError) {
    if matches!(error, CniError::TryAgain(_)) {
        return;
    }
    let failed = FailedAdd { request: pod.reserve(), message: error.to_string() };
    let _ = Agent::within(config, TELL_LIMIT).call(async |client| client.tell_failed(&failed).await).await;
}

/// Runs a command. Returns the text for stdout, which may be empty.
pub fn run(request: &Request, config: &NetworkConfig) -> Result<String, CniError> {
    let (command, came_with) = match request {
        Request::Status => ("STATUS", Version::V1_1),
        Request::Gc => ("GC", Version::V1_1),
        Request::Check(_) => ("CHECK", Version::V0_4),
        Request::Add(_) | Request::Del { .. } | Request::Version => ("", Version::V0_3_1),
    };
    if config.version < came_with {
        return Err(CniError::Command { command, since: came_with.as_str(), asked: config.version.as_str() });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| {
        CniError::Kernel { action: "start".to_string(), place: "the plugin's process".to_string(), source }
    })?;
    let nothing = |()| String::new();
    runtime.block_on(async {
        match request {
            Request::Add(pod) => {
                let added = if config.chained {
                    adopt::add(config, pod).await
                } else {
                    add::add(config, pod).await.map(|result| result.to_json())
                };
                if let Err(error) = &added {
                    tell(config, pod, error).await;
                }
                added
            }
            Request::Del { container, interface, netns } => {
                delete::delete(config, container, interface, netns.as_deref()).await.map(nothing)
            }
            Request::Check(pod) if config.chained => adopt::check(config, pod).await.map(nothing),
            Request::Check(pod) => check::check(config, pod).await.map(nothing),
            Request::Status => status::status(config).await.map(nothing),
            Request::Gc => collect::collect(config).await.map(nothing),
            Request::Version => Ok(version::answer(&[])),
        }
    })
}
