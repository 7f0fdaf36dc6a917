//! hauberk's pure core: it uses no Kubernetes client, async runtime, eBPF, netlink, clock or file.
//!
//! ```text
//! source -> model -> desired -> plan -> apply -> observe
//!           ^^^^^    ^^^^^^^    ^^^^
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`names`] | names of nodes, pods and interfaces |
//! | [`label`] | the label with which namespaces and pods opt in |
//! | [`words`] | identities and prefixes in words |
//! | `reserved` | addresses and ranges that no pod and no node can have |
//! | `lookup` | the longest range that holds an address |
//! | `numbers` | a number for each node |
//! | [`events`] | what the operator should be told |
//! | [`annotations`] | what agents publish on their Node objects |
//! | [`objects`] | what a source reads of the objects |
//! | [`model`] | the cluster as the agent last read it: changes go in, their effect comes out |
//! | [`protection`] | how a pod is protected, and which label or missing object decides it |
//! | [`convergence`] | which nodes enforce which namespace by now |
//! | [`missing`] | nodes that have pods but no Node object |
//! | [`unconnected`] | which of this node's pods have no interface |
//! | [`desired`] | what this node's kernel and tunnel should hold |
//! | [`plan`] | the steps to that state, in an order that never opens anything on the way |
//! | [`explain`] | resolves a name or an address to a party, in words |
#![forbid(unsafe_code)]

pub mod annotations;
pub mod convergence;
pub mod desired;
pub mod events;
pub mod explain;
pub mod label;
mod lookup;
pub mod missing;
pub mod model;
pub mod names;
mod numbers;
pub mod objects;
pub mod plan;
pub mod protection;
mod reserved;
#[cfg(test)]
mod testing;
pub mod unconnected;
pub mod words;
