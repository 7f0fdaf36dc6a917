//! Carries out the plan, step by step: the one place that writes to maps, tunnel, routes and
//! netfilter. Each subject's steps have a file of their own.

mod check;
mod devices;
mod hops;
mod identities;
#[cfg(test)]
mod memory;
mod names;
mod pods;
mod routes;
mod services;
mod sink;
mod startup;
mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hauberk_abi::layout::Settings;
use hauberk_backend::{Backend, BackendError};
use hauberk_core::pods::LocalPod;
use hauberk_core::state::State;
use hauberk_datapath::{Datapath, DatapathError};
use hauberk_fault as fault;
use hauberk_host::{HostError, INTERFACE_PREFIX, Link, Netfilter, Netlink, Ruleset};
use ipnet::IpNet;

pub use check::{Finding, Found, Places};
pub use devices::{Devices, Guarded};
pub use hops::NextHop;
pub use names::Kept;
pub use services::{cgroup, prove_sockets};
pub(crate) use sink::carry_out;
pub use startup::{Held, Node, Prepared, StartError, uninstall};

/// A step could not be carried out; what it would have changed is as before.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Programs or maps.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Links, routes, netfilter.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The tunnel.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The pod's interface went away before it could be attached.
    #[error(
        "pod interface {name} (index {index}) of container {container} does not exist: did the pod end while it was attached?"
    )]
    NoInterface {
        /// Host side's name.
        name: String,
        /// Its index, as the CNI plugin reported it.
        index: u32,
        /// Container id.
        container: String,
    },
}

impl ApplyError {
    /// Whether it is of no use to try again.
    pub fn is_fatal(&self) -> bool {
        matches!(self, ApplyError::Backend(error) if error.is_fatal())
    }
}

/// The kernel's side of this node: everything a step can change.
pub struct Kernel {
    datapath: Datapath,
    netlink: Netlink,
    netfilter: Netfilter,
    ruleset: Ruleset,
    backend: Arc<dyn Backend>,
    settings: Settings,
    devices: Devices,
    /// Pods' interfaces that are attached, by index.
    pods: BTreeMap<u32, LocalPod>,
    /// Pods' interfaces that disappeared before the runtime called DEL.
    gone: BTreeSet<u32>,
    /// The node's own addresses: senders of packets to local pods.
    sources: Vec<IpAddr>,
    /// Which programs' places were taken back recently.
    places: Places,
}

impl Kernel {
    /// The datapath, for observers.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// The tunnel.
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend)
    }

    /// How well this kernel can keep packet sockets from sending as pods.
    pub fn packet_socket_guard(&self) -> hauberk_host::netfilter::PacketSocketGuard {
        self.netfilter.packet_socket_guard()
    }

    /// Whether this kernel can keep bridges from sending pods' packets out of unguarded ports.
    pub fn guards_bridges(&self) -> bool {
        self.netfilter.guards_bridges()
    }

    /// The devices that lead to other nodes and the world.
    pub fn uplinks(&self) -> &[Link] {
        &self.devices.uplinks
    }

    /// The devices by which pods' packets enter the stack.
    pub async fn pod_devices(&self) -> BTreeSet<hauberk_host::netfilter::firewall::Device> {
        use hauberk_host::netfilter::firewall::Device;
        if self.ruleset.chained.is_none() {
            return [Device::Prefix(INTERFACE_PREFIX.to_owned())].into();
        }
        let links = self.netlink.links().await.unwrap_or_default();
        let find = |index: u32| links.iter().find(|link| link.index == index);
        // For a port of a bridge that is the bridge.
        let interfaces = self.pods.keys().filter_map(|index| find(*index));
        let devices = interfaces.map(|link| link.controller.and_then(find).unwrap_or(link));
        devices.map(|link| Device::Named(link.name.clone())).collect()
    }

    /// Largest packet inside the tunnel, bytes.
    pub fn tunnel_mtu(&self) -> u32 {
        self.settings.tunnel_mtu
    }

    /// Reads what the kernel holds. `known` tells attachments from leftovers: interfaces that the
    /// agent has on record are attached again, with this agent's programs; the others are to be
    /// removed from the maps. An interface that hauberk-cni made and that still exists is no
    /// leftover, because it may be a living pod's: it is shut.
    ///
    /// # Errors
    /// [`ApplyError`] if anything cannot be read, or if such an interface cannot be shut.
    pub async fn read(&mut self, known: &BTreeSet<u32>) -> Result<State, ApplyError> {
        let pods = self.read_pods(known).await?;
        let services = self.read_services()?;
        Ok(State { identities: self.read_identities()?, pods, tunnels: self.read_tunnels()?, services })
    }

    /// Whether the netfilter rules are still as installed, and what they have counted.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn look_at_netfilter(&self) -> Result<hauberk_host::netfilter::Look, ApplyError> {
        Ok(self.netfilter.look().await?)
    }

    /// Installs the netfilter rules again.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn restore_netfilter(&mut self) -> Result<(), ApplyError> {
        fault::point("restore the netfilter rules");
        Ok(self.netfilter.restore().await?)
    }

    /// Takes over the node's own addresses and pod ranges from its object. `pods` are the addresses
    /// of this node's pods: one with an address from an earlier range is masqueraded like the
    /// others. netfilter has all of it after the next [`Kernel::follow_rules`].
    pub fn follow_node(&mut self, node: &Node, pods: impl IntoIterator<Item = IpAddr>) {
        self.sources.clone_from(&node.addresses);
        let ranges = &node.pod_ranges;
        let outside = pods.into_iter().filter(|pod| !ranges.iter().any(|range| range.contains(pod)));
        // Another plugin that routes to the pods also decides about their masquerading.
        self.ruleset.local = match self.ruleset.chained {
            Some(_) => BTreeSet::new(),
            None => ranges.iter().copied().chain(outside.map(IpNet::from)).collect(),
        };
    }
}
