//! hauberk's per-node agent.
//!
//! ```text
//! source -> model -> desired -> plan -> apply -> observe
//! ```
//! | module | stage |
//! |---|---|
//! | [`hauberk_source`] | objects, from a folder of manifests or an API server |
//! | [`reconcile`] | model to desired to plan, by `hauberk-core`; the loop |
//! | [`apply`] | carries out steps: [`hauberk_datapath`], [`hauberk_backend`], [`hauberk_host`] |
//! | [`observe`] | status, flows, drops, metrics, self-test |
//! | [`health_checks`] | answers to load balancers |
//! | [`api`], [`uapi`] | answers to the CLI, the CNI plugin and `wg show` |
//! | [`attachments`] | pods' interfaces and addresses on this node |
//! | [`install`] | the CNI plugin and its configuration, where the runtime looks for them |
//! | [`report`] | reports to the cluster |
//! | [`config`], [`cluster_config`], [`selfcheck`] | before anything else |

pub mod api;
pub mod apply;
pub mod attachments;
pub mod cluster_config;
pub mod config;
pub mod health_checks;
pub mod install;
pub mod lock;
pub mod observe;
pub mod reconcile;
pub mod report;
mod restart;
pub mod run;
pub mod selfcheck;
pub mod state;
#[allow(unsafe_code, reason = "see the module")]
mod syscalls;
#[cfg(test)]
mod testing;
pub mod uapi;
