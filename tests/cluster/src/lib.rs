//! A real Kubernetes cluster on one machine. etcd, the API server, the controllers and the
//! scheduler run in one network namespace. Each node has a network and a mount namespace with its
//! own containerd, kubelet and, unless hauberk takes its place, kube-proxy.
//!
//! It is built on [`hauberk_netns`]: the wire between the machines, the capture on it, and the
//! traffic are the same. A pod of the cluster is a [`Party`](hauberk_netns::Party) like any other,
//! so pods here can send all traffic that the other harness can send.
//!
//! | module | is |
//! |---|---|
//! | [`runner`] | which tests share a cluster, time limits, what to print after a failure |
//! | [`session`] | the isolation of a cluster: everything in it ends with one process |
//! | [`control_plane`], [`certificates`] | etcd, API server, controllers, scheduler |
//! | [`cluster`], [`node`] | the whole cluster; a node |
//! | [`machine`], [`cgroup`] | the namespaces and the cgroup that a node is made of |
//! | [`image`], [`images`] | the images that nodes run, without a registry |
//! | [`chart`] | hauberk as users install it |
//! | [`kubectl`] | the cluster as its users see it |
//! | [`daemon`] | a program that runs until it is stopped |

pub mod certificates;
pub mod cgroup;
pub mod chart;
pub mod cluster;
pub mod control_plane;
pub mod daemon;
pub mod image;
pub mod images;
pub mod kubectl;
pub mod machine;
pub mod node;
pub mod runner;
pub mod session;
#[allow(unsafe_code, reason = "see the module")]
mod syscalls;
pub mod tools;

pub use cluster::{Cluster, Setup};
pub use control_plane::{ControlPlane, Options};
pub use kubectl::Kubectl;
pub use node::Node;
pub use runner::{Context, Suite, Test};
