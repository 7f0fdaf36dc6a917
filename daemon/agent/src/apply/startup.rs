//! From nothing, or from what an earlier agent left, to a [`Kernel`] that steps can be applied to.
//! Deny first: the cluster's ranges are closed before any program is attached, and programs are
//! attached before the tunnel starts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hauberk_abi::address::Prefix;
use hauberk_abi::framing::Framing;
use hauberk_abi::identity::{Identity, Kind, Protection};
use hauberk_abi::layout::{Hook, Settings, flag};
use hauberk_backend::{Backend, StartConfig};
use hauberk_core::local_node::LocalNode;
use hauberk_core::names::NodeNumber;
use hauberk_datapath::{Datapath, Limits};
use hauberk_fault as fault;
use hauberk_host::{Header, INTERFACE_PREFIX, Link, LinkKind, Netfilter, Netlink, Ruleset, sysctl};
use ipnet::IpNet;
use tracing::warn;

use super::devices::{Devices, make_room, no_uplink};
use super::{ApplyError, Kernel, Places};
use crate::config::{Automatic, CniInstall, Config, HostRouting, WorldIngress};

/// A flow whose last packet is older than this starts anew, milliseconds.
const FLOW_IDLE_MS: u32 = 60_000;
/// The smallest tunnel MTU for IPv6 inside (RFC 8200 section 5).
const MIN_MTU: u32 = 1_280;

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// No device leads to other nodes.
    #[error("{0}")]
    NoUplink(String),
    /// The uplinks are too small to carry a tunnel.
    #[error(
        "uplink {uplink} has an MTU of {mtu} bytes: the tunnel would be left with {left}, less than the {MIN_MTU} that IPv6 needs; raise it, or set tunnel.mtu"
    )]
    TooSmall {
        /// The uplink.
        uplink: String,
        /// Its MTU.
        mtu: u32,
        /// What would be left for the tunnel.
        left: u32,
    },
}

impl StartError {
    /// Whether it is of no use to try again.
    pub fn is_fatal(&self) -> bool {
        matches!(self, StartError::Apply(error) if error.is_fatal())
    }
}

/// The programs are loaded and run where an earlier agent attached them; there is no tunnel yet.
pub struct Prepared {
    datapath: Datapath,
    netlink: Netlink,
    settings: Settings,
    devices: Devices,
}

/// A pod's interface as the programs' maps have it.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its host side.
    pub link: Link,
    /// MAC address of the host side.
    pub host_mac: [u8; 6],
    /// MAC address inside the pod.
    pub pod_mac: [u8; 6],
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What this node's own object says.
pub struct Node {
    /// Its addresses, internal ones first.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges.
    pub pod_ranges: Vec<IpNet>,
}

impl Prepared {
    /// Loads the programs, closes the cluster's ranges and takes over an earlier agent's links,
    /// each in one atomic step.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn load(config: &Config, local: &LocalNode, number: NodeNumber) -> Result<Prepared, StartError> {
        fault::point("load the programs");
        let mut datapath =
            Datapath::load(&config.paths.pins, &limits(config), config.attach).map_err(ApplyError::from)?;
        let netlink = Netlink::connect().map_err(ApplyError::from)?;
        for range in &local.settings.cluster_ranges {
            fault::point("close a cluster range");
            let unknown = Identity::new(Kind::UnknownPod, Protection::Enabled, 0);
            datapath
                .maps_mut()
                .put_range(Prefix::new(range.network(), range.prefix_len()), unknown)
                .map_err(ApplyError::from)?;
        }
        let earlier = datapath.maps().settings().map_err(ApplyError::from)?;
        let tunnel = netlink.link(&config.tunnel.device).await.map_err(ApplyError::from)?.map_or(0, |link| link.index);
        let is_complete = earlier.node == number.0 && earlier.flags & flag::SYNCED != 0 && !datapath.begins_empty();
        let settings = Settings {
            node: number.0,
            tunnel,
            tunnel_mtu: earlier.tunnel_mtu,
            flags: flags(config)
                | if is_complete { flag::SYNCED } else { 0 }
                // Connections that an earlier agent's configuration allowed go on.
                | if datapath.maps().has_connections().map_err(ApplyError::from)? { flag::TRANSLATES } else { 0 },
            mark_shift: config.mark_shift,
            flow_idle_ms: FLOW_IDLE_MS,
            tunnel_port: config.tunnel.port.into(),
            reserved: 0,
        };
        fault::point("write the settings");
        datapath.configure(&settings).map_err(ApplyError::from)?;
        let mut prepared = Prepared { datapath, netlink, settings, devices: Devices::default() };
        if prepared.take_over().await? {
            // Devices that an earlier agent guarded may have been renamed, and there may be new
            // ones.
            prepared.guard_devices(&config.tunnel.device).await?;
        }
        if let Err(error) = prepared.datapath.pins().forget_other_maps() {
            warn!(%error, "maps that an agent of another version has left stay in the kernel");
        }
        Ok(prepared)
    }

    /// The datapath, to take the event ring from it.
    pub fn datapath_mut(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// Interfaces that exist now, as (name, index).
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn interfaces(&self) -> Result<Vec<(String, u32)>, StartError> {
        let links = self.netlink.links().await.map_err(ApplyError::from)?;
        Ok(links.into_iter().map(|link| (link.name, link.index)).collect())
    }

    /// Pods' interfaces that are in the programs' maps and exist.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn held(&self) -> Result<Vec<Held>, StartError> {
        let mut held: BTreeMap<u32, Held> = BTreeMap::new();
        let links = self.netlink.links().await.map_err(ApplyError::from)?;
        for (address, attachment) in self.datapath.maps().attachments().map_err(ApplyError::from)? {
            let Some(link) = links.iter().find(|link| link.index == attachment.interface) else { continue };
            let [pod_mac, host_mac] = attachment.macs;
            let new = || Held { link: link.clone(), host_mac, pod_mac, addresses: BTreeSet::new() };
            held.entry(link.index).or_insert_with(new).addresses.insert(address.into());
        }
        Ok(held.into_values().collect())
    }

    /// Largest packet inside an earlier agent's tunnel, bytes of IP; 0 if there was none.
    pub fn earlier_tunnel_mtu(&self) -> u32 {
        self.settings.tunnel_mtu
    }

    /// Returns whether an earlier agent had attached anything.
    async fn take_over(&mut self) -> Result<bool, StartError> {
        let attached = self.datapath.pins().attached().map_err(ApplyError::from)?;
        for attachment in &attached {
            let link = self.netlink.link(&attachment.interface).await.map_err(ApplyError::from)?;
            // What is attached to a renamed device stays until that device is guarded again.
            let Some(link) = link else { continue };
            let framing = if link.header == Header::Ip { Framing::Ip } else { Framing::Ethernet };
            if let Err(error) = make_room(&self.datapath, &self.netlink, link.index).await {
                // The device is shut when the devices are guarded.
                warn!(%error, device = link.name, "an earlier agent's program has lost its place");
                continue;
            }
            fault::point("take over a link");
            if let Err(error) = self.datapath.attach_and_look(attachment.hook, &attachment.interface, framing) {
                // A device is shut when the devices are guarded, and a pod's interface is tried
                // again with the pod.
                warn!(%error, device = link.name, "an earlier agent's program cannot be taken over");
            }
        }
        Ok(!attached.is_empty())
    }

    async fn guard_devices(&mut self, tunnel: &str) -> Result<Vec<Link>, StartError> {
        let (links, _) = self.devices.guard_all(&mut self.datapath, &self.netlink, tunnel).await?;
        for attachment in self.datapath.pins().attached().map_err(ApplyError::from)? {
            if !links.iter().any(|link| link.name == attachment.interface) {
                fault::point("forget a link");
                self.datapath.detach(attachment.hook, &attachment.interface).map_err(ApplyError::from)?;
            }
        }
        Ok(links)
    }

    /// Guards every device, starts the tunnel, installs the netfilter rules.
    ///
    /// # Errors
    /// [`StartError`]; what was attached until then stays, and `self` can be tried again.
    pub async fn start(
        mut self,
        config: &Config,
        local: &LocalNode,
        node: &Node,
        tunnel: impl FnOnce(u32) -> StartConfig,
    ) -> Result<Kernel, (Box<Prepared>, StartError)> {
        match self.try_start(config, local, node, tunnel).await {
            Ok((backend, netfilter, ruleset)) => Ok(Kernel {
                datapath: self.datapath,
                netlink: self.netlink,
                netfilter,
                ruleset,
                backend,
                settings: self.settings,
                devices: self.devices,
                pods: BTreeMap::new(),
                gone: BTreeSet::new(),
                sources: node.addresses.clone(),
                places: Places::default(),
            }),
            Err(error) => Err((Box::new(self), error)),
        }
    }

    async fn try_start(
        &mut self,
        config: &Config,
        local: &LocalNode,
        node: &Node,
        tunnel: impl FnOnce(u32) -> StartConfig,
    ) -> Result<(Arc<dyn Backend>, Netfilter, Ruleset), StartError> {
        let device = &config.tunnel.device;
        let links = self.guard_devices(device).await?;
        self.devices.find_uplinks(&self.netlink, config, &local.settings.cluster_ranges, node, &links).await?;
        let mtu = tunnel_mtu(config, &self.devices.uplinks);
        let ruleset = Ruleset {
            mark_shift: config.mark_shift,
            tunnel: device.clone(),
            // Another plugin that routes to the pods also decides about their masquerading.
            local: if local.settings.chained { BTreeSet::new() } else { node.pod_ranges.iter().copied().collect() },
            untranslated: local.settings.cluster_ranges.iter().chain(&local.settings.node_ranges).copied().collect(),
            guarded: local.settings.cluster_ranges.iter().copied().collect(),
            ..Ruleset::default()
        };
        // The rules are installed even if the first uplink appears later.
        let mut ruleset = self.devices.rules(config, *mtu.as_ref().unwrap_or(&MIN_MTU), &ruleset);
        fault::point("install the netfilter rules");
        let mut netfilter = Netfilter::install(&ruleset).await.map_err(ApplyError::from)?;
        let mtu = mtu?;
        if self.devices.uplinks.is_empty() {
            let addresses = node.addresses.iter().copied().collect();
            return Err(StartError::NoUplink(no_uplink(&addresses).message));
        }
        fault::point("prepare the host");
        let names: Vec<String> = self.devices.uplinks.iter().map(|uplink| uplink.name.clone()).collect();
        sysctl::prepare_host(&names).map_err(ApplyError::from)?;

        fault::point("start the tunnel");
        let backend = config.tunnel.backend.mechanism().start(tunnel(mtu)).map_err(ApplyError::from)?;
        let link = self.netlink.link(device).await.map_err(ApplyError::from)?;
        let Some(link) = link else {
            let source = std::io::Error::other("the tunnel was started but its device is not there");
            let action = format!("look up device {device}");
            return Err(ApplyError::from(hauberk_host::HostError::Netlink { action, source }).into());
        };
        fault::point("attach a program to the tunnel");
        self.datapath.attach_and_look(Hook::FromTunnel, device, Framing::Ip).map_err(ApplyError::from)?;
        sysctl::prepare_tunnel(device).map_err(ApplyError::from)?;
        // Without an address on the device, the loose reverse-path filter refuses everything from
        // it (fib_validate_source).
        self.netlink.put_gateways(link.index, true, false).await.map_err(ApplyError::from)?;
        self.netlink.set_mtu(link.index, mtu).await.map_err(ApplyError::from)?;
        self.netlink.set_up(link.index).await.map_err(ApplyError::from)?;
        if ruleset.passable.insert(link.index) {
            fault::point("let packets leave by the tunnel");
            netfilter.open(link.index).await.map_err(ApplyError::from)?;
        }
        self.settings.tunnel = link.index;
        self.settings.tunnel_mtu = mtu;
        fault::point("write the settings");
        self.datapath.configure(&self.settings).map_err(ApplyError::from)?;
        // The tunnel's index is now one by which pods' packets may leave.
        self.devices.guard_all(&mut self.datapath, &self.netlink, device).await?;
        Ok((Arc::from(backend), netfilter, ruleset))
    }
}

/// The configured sizes. Memory for sockets is set aside at once, so there is none without need.
fn limits(config: &Config) -> Limits {
    let limits = config.limits.clone();
    if config.services.sockets { limits } else { Limits { sockets: 1, ..limits } }
}

fn flags(config: &Config) -> u32 {
    let mut flags = 0;
    if config.host_routing == HostRouting::Stack {
        flags |= flag::STACK;
    }
    if config.world_ingress == WorldIngress::Direct {
        flags |= flag::WORLD_DIRECT;
    }
    if config.cni.install == CniInstall::Chained {
        flags |= flag::CHAINED;
    }
    if config.services.outside {
        flags |= flag::TRANSLATES;
    }
    flags
}

pub(super) fn tunnel_mtu(config: &Config, uplinks: &[Link]) -> Result<u32, StartError> {
    if let Automatic::Value(mtu) = config.tunnel.mtu {
        return Ok(mtu);
    }
    // An overlay's packets travel inside the other uplinks' packets; the tunnel's packets never
    // travel inside an overlay's.
    let smallest = uplinks.iter().filter(|uplink| uplink.kind != LinkKind::Overlay).min_by_key(|uplink| uplink.mtu);
    let Some(uplink) = smallest else { return Ok(MIN_MTU) };
    let left = uplink.mtu.saturating_sub(config.tunnel.backend.mechanism().overhead());
    // WireGuard pads to 16 bytes: an MTU that is a multiple of 16 plus 12 wastes nothing, but any
    // works.
    if left < MIN_MTU {
        return Err(StartError::TooSmall { uplink: uplink.name.clone(), mtu: uplink.mtu, left });
    }
    Ok(left)
}

/// Removes everything that any agent with this configuration ever made on this host, and only that.
///
/// # Errors
/// [`ApplyError`] for the first thing that could not be removed.
pub async fn uninstall(config: &Config) -> Result<(), ApplyError> {
    let netlink = Netlink::connect()?;
    let pods: Vec<Link> =
        netlink.links().await?.into_iter().filter(|link| link.name.starts_with(INTERFACE_PREFIX)).collect();
    let disciplines = hauberk_datapath::remove(Path::new(&config.paths.pins))?;
    for interface in disciplines {
        if let Some(link) = netlink.link(&interface).await? {
            netlink.remove_clsact(link.index).await?;
        }
    }
    for link in pods {
        netlink.remove_link(link.index).await?;
    }
    netlink.remove_own_routes().await?;
    if let Some(link) = netlink.link(&config.tunnel.device).await? {
        netlink.remove_link(link.index).await?;
    }
    Netfilter::remove().await?;
    Ok(())
}
