//! hauberk's pure core: no Kubernetes client, no async runtime, no eBPF, no netlink, no clock, no files.
//!
//! ```text
//! source -> model -> desired -> plan -> apply -> observe
//!           ^^^^^    ^^^^^^^    ^^^^
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | the cluster as last heard of: changes go in, what they did comes out |
//! | [`protection`] | how a pod is protected, and which label or missing object says so |
//! | [`desired`] | what this node's kernel and tunnel should hold |
//! | [`plan`] | the steps from what they hold to that, in an order that opens nothing on the way |
//! | [`convergence`] | which nodes enforce which namespace by now |
//! | [`missing`] | which nodes pods are on that have no object |
//! | [`explain`] | who an address or a name is, for a reader |
//! | [`addresses`] | which addresses a node's devices have, as its agent publishes them |
//! | [`events`] | what the operator should hear of |
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
