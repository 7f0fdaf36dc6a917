//! Nodes and pods as network namespaces on one machine, the real programs running in them, and
//! every frame that crossed the wire between them.
//!
//! A test asks the [`runner`] for a sandbox (its own process, with its own mount and network
//! namespace), builds a [`Cluster`] in it, sends [`traffic`] and asks the [`capture`] what was on
//! the wire. Payloads are the evidence: each exchange carries a unique [`Marker`], so "delivered"
//! and "seen in the clear" need no guesses.
//!
//! | module | is |
//! |---|---|
//! | [`runner`] | one process per test; what both harnesses do with a test, and after it fails |
//! | [`cluster`], [`node`], [`pod`], [`wire`] | the machines and the cables |
//! | `cgroup` | a cgroup per node |
//! | [`agent`], [`plugin`], [`manifests`] | hauberk's programs and their input |
//! | [`chain`] | other CNI plugins, with hauberk's behind them |
//! | [`nat`] | third-party netfilter rules on the nodes |
//! | [`endpoints`] | the addresses that the kernel knows, bypassing the agent's caches |
//! | [`traffic`] | clients and servers of every protocol |
//! | [`log`] | the end of what a program has written |
//! | [`usage`] | memory and CPU time, of a process and of the machine |
//! | [`capture`], [`analysis`] | what crossed the wire, judged without the product's parser |

pub mod agent;
pub mod analysis;
pub mod capture;
mod cgroup;
pub mod chain;
pub mod cluster;
pub mod endpoints;
pub mod inject;
pub mod intruder;
pub mod log;
pub mod manifests;
pub mod marker;
pub mod nat;
pub mod netns;
pub mod node;
pub mod party;
pub mod plugin;
pub mod pod;
pub mod programs;
pub mod random;
pub mod runner;
pub mod sandbox;
#[allow(unsafe_code, reason = "see the module")]
mod syscalls;
pub mod traffic;
pub mod usage;
pub mod wait;
pub mod wire;

pub use cluster::{Cluster, HostRouting, Setup};
pub use marker::Marker;
pub use netns::Netns;
pub use node::Node;
pub use party::{Family, Party};
pub use pod::Pod;
pub use random::Random;
pub use runner::Context;
pub use wait::eventually;

/// A test of the netns suites.
pub type Test = runner::Test<Context>;
