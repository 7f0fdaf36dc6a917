//! hauberk's pure core: it uses no Kubernetes client, async runtime, eBPF, netlink, clock or file.
//!
//! ```text
//! source -> model -> desired -> plan -> apply -> observe
//!           ^^^^^    ^^^^^^^    ^^^^
//! ```
//!
//! Each module uses only those above it in this table:
//!
//! | module | holds |
//! |---|---|
//! | [`names`] | names of nodes, pods, services and interfaces |
//! | [`attachment`] | a pod's interface on this node, as the CNI plugin made it |
//! | [`label`] | the label with which namespaces and pods opt in |
//! | [`words`] | identities and prefixes in words |
//! | `reserved` | addresses and ranges that no pod and no node can have |
//! | `lookup` | the longest range that holds an address |
//! | `numbers` | a number for each node |
//! | [`events`] | what the operator should be told |
//! | [`local_node`] | this node: its configuration, and what it reads from its kernel |
//! | [`annotations`] | what agents publish on their Node objects |
//! | [`objects`] | what a source reads of the objects |
//! | [`model`] | the cluster as the agent last read it: changes go in, their effect comes out |
//! | [`protection`] | how a pod is protected, and which label or missing object decides it |
//! | [`convergence`] | which nodes enforce which namespace by now |
//! | [`missing`] | nodes that have pods but no Node object |
//! | [`unconnected`] | which of this node's pods have no interface |
//! | `scope`, `order` | which entries a plan compares, and the two halves of its steps |
//! | [`identities`] | a subject: who has an address, and how it is protected |
//! | [`pods`] | a subject: pods' interfaces on this node |
//! | [`tunnels`] | a subject: the tunnel's peers, and the routes into it |
//! | [`services`] | a subject: where services are reached, and their backends |
//! | [`state`] | the subjects together: what the kernel and the tunnel hold |
//! | [`desired`] | what this node's kernel and tunnel should hold |
//! | [`plan`] | the steps to that state, in an order that never opens anything on the way |
//! | [`explain`] | resolves a name or an address to a party, in words |
#![forbid(unsafe_code)]

pub mod annotations;
pub mod attachment;
pub mod convergence;
pub mod desired;
pub mod events;
pub mod explain;
pub mod identities;
pub mod label;
pub mod local_node;
mod lookup;
pub mod missing;
pub mod model;
pub mod names;
mod numbers;
pub mod objects;
mod order;
pub mod plan;
pub mod pods;
pub mod protection;
mod reserved;
mod scope;
pub mod services;
pub mod state;
#[cfg(test)]
mod testing;
pub mod tunnels;
pub mod unconnected;
pub mod words;
