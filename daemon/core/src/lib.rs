//! hauberk's pure core: it uses no Kubernetes client, async runtime, eBPF, netlink, clock or file.
//!
//! ```text
//! source -> model -> desired -> plan -> apply -> observe
//!           ^^^^^    ^^^^^^^    ^^^^
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | the cluster as the agent last read it: changes go in, their effect comes out |
//! | [`protection`] | how a pod is protected, and which label or missing object decides it |
//! | [`desired`] | what this node's kernel and tunnel should hold |
//! | [`plan`] | the steps to that state, in an order that never opens anything on the way |
//! | [`convergence`] | which nodes enforce which namespace by now |
//! | [`missing`] | nodes that have pods but no Node object |
//! | [`unconnected`] | which of this node's pods have no interface |
//! | [`explain`] | resolves a name or an address to a party, in words |
//! | [`addresses`] | the annotation in which an agent publishes its devices' addresses |
//! | [`events`] | what the operator should be told |
#![forbid(unsafe_code)]

pub mod addresses;
pub mod convergence;
pub mod desired;
pub mod events;
pub mod explain;
mod lookup;
pub mod missing;
pub mod model;
mod numbers;

pub mod plaintext;
pub mod plan;
pub mod protection;
mod reserved;
#[cfg(test)]
mod testing;
pub mod unconnected;
