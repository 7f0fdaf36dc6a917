//! The datapath's start, as soon as this node's own object is known, and what follows from that
//! object.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hauberk_abi::framing::Framing;
use hauberk_core::local_node::Settings;
use hauberk_core::state::Scope;
use hauberk_host::netfilter::Counters;
use ipnet::IpNet;
use tracing::{info, warn};

use crate::apply::{Kernel, Node};
use crate::attachments;
use crate::observe::firewalls::Firewalls;
use crate::state::{Device, Running};

use super::failures::Area;
use super::{Reconciler, Stage, watch};

impl Reconciler {
    /// From prepared to running, as soon as the node's own object is known.
    pub(super) async fn start_datapath(&mut self) -> bool {
        if matches!(self.stage, Stage::Running(_)) {
            return true;
        }
        let Some(node) = self.own_node() else {
            // Nothing to retry: the source will tell the object.
            return true;
        };
        let Stage::Prepared(prepared) = std::mem::replace(&mut self.stage, Stage::Changing) else { return false };
        let local = self.agent.read().local.clone();
        let started = prepared.start(&self.config, &local, &node, |mtu| (self.make_tunnel)(mtu)).await;
        let mut kernel = match started {
            Ok(kernel) => kernel,
            Err((prepared, error)) => {
                self.stage = Stage::Prepared(prepared);
                self.is_futile = error.is_fatal();
                return self.fail("datapath", format!("cannot start the datapath: {error}"));
            }
        };
        match kernel.read(&self.known_interfaces).await {
            Ok(actual) => {
                self.actual = actual;
                self.pending = Scope::everything();
            }
            Err(error) => warn!(%error, "cannot read the kernel's state back; everything is written anew"),
        }
        info!(uplinks = ?uplinks(&kernel), mtu = kernel.tunnel_mtu(), "datapath attached");
        {
            let mut agent = self.agent.write();
            agent.interfaces = Some(kernel.devices().present().clone());
            agent.local.route_mtu = Some(kernel.tunnel_mtu());
            agent.running = Some(Running {
                backend: kernel.backend(),
                uplinks: uplinks(&kernel),
                devices: devices(&kernel),
                mtu: kernel.tunnel_mtu(),
                packet_socket_guard: kernel.packet_socket_guard(),
                guards_bridges: kernel.guards_bridges(),
                netfilter: Counters::default(),
                losses: None,
                firewalls: Firewalls::default(),
            });
        }
        let problems = watch::device_problems(&kernel, &self.agent, &self.actual);
        self.stage = Stage::Running(Box::new(kernel));
        self.succeed("datapath");
        self.tell(Area::Devices, problems);
        self.take_host_addresses().await
    }

    /// This node, as its own object says.
    pub(super) fn own_node(&self) -> Option<Node> {
        let agent = self.agent.read();
        let object = agent.model.node_object(agent.model.node())?;
        let mut addresses = object.addresses.clone();
        addresses.sort_by_key(|address| !address.internal);
        Some(Node { addresses: addresses.iter().map(|a| a.address).collect(), pod_ranges: object.pod_ranges.clone() })
    }

    /// Updates the settings of new pods from the node's object.
    pub(super) fn take_settings(&mut self) {
        let Stage::Running(kernel) = &self.stage else { return };
        // A change of nodes or of the local node marks everything as pending.
        if !std::mem::take(&mut self.settings_due) && !self.pending.is_everything() {
            return;
        }
        let Some(node) = self.own_node() else { return };
        let agent = self.agent.read();
        let settings = attachments::Settings {
            pod_ranges: node.pod_ranges,
            excluded: {
                let nodes = agent.model.nodes().flat_map(|node| node.addresses.iter().map(|a| a.address));
                nodes.chain(agent.local.addresses.iter().copied()).collect()
            },
            cluster_ranges: tunnelled_ranges(&agent.local.settings),
            route_mtu: kernel.tunnel_mtu(),
            device_mtu: kernel.uplinks().iter().map(|uplink| uplink.mtu).min().unwrap_or(1_500),
            gso_max_size: self.config.tunnel.backend.mechanism().gso_max_size(kernel.tunnel_mtu()),
            limit: self.config.limits.attachments as usize,
        };
        drop(agent);
        self.attachments.set_settings(settings);
    }
}

/// The uplinks that are up.
pub(super) fn uplinks(kernel: &Kernel) -> Vec<String> {
    kernel.uplinks().iter().filter(|uplink| uplink.up).map(|uplink| uplink.name.clone()).collect()
}

/// The guarded devices that the self-test can check.
pub(super) fn devices(kernel: &Kernel) -> Vec<Device> {
    let up = kernel.devices().guarded.iter().filter(|(_, guarded)| guarded.up);
    up.map(|(index, guarded)| Device {
        name: guarded.name.clone(),
        index: *index,
        ethernet: guarded.framing == Framing::Ethernet,
    })
    .collect()
}

/// The destinations to which pods' packets may have to go through the tunnel: other pods and nodes.
/// Unless `nodeRanges` says where nodes are, any address may be a node's.
pub(crate) fn tunnelled_ranges(settings: &Settings) -> Vec<IpNet> {
    if settings.node_ranges.is_empty() {
        let [v4, v6]: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        return [v4, v6].into_iter().filter_map(|address| IpNet::new(address, 0).ok()).collect();
    }
    settings.cluster_ranges.iter().chain(&settings.node_ranges).copied().collect()
}
