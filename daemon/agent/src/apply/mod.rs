//! Carries out the plan, step by step: the one place that writes to maps, tunnel, routes and
//! netfilter.

mod check;
mod devices;
mod names;
mod routes;
mod startup;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hauberk_abi::framing::Framing;
use hauberk_abi::identity::Protection;
use hauberk_abi::layout::{self, Hook, Settings, flag};
use hauberk_core::desired::LocalPod;
use hauberk_core::model::{AttachmentKey, NodeNumber};
use hauberk_core::plan::{Actual, Step};
use hauberk_fault as fault;
use hauberk_host::{HostError, INTERFACE_PREFIX, Link, Netfilter, Netlink, Ruleset};
use ipnet::IpNet;

use crate::backend::{Backend, BackendError, PeerStep};
use crate::datapath::{Datapath, DatapathError};

pub use check::{Finding, Found, Places};
pub use devices::{Devices, Guarded};
pub use names::Kept;
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

/// The neighbour that routes to other nodes' pods lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The device's index.
    pub index: u32,
    /// The neighbour's address on that device's link.
    pub address: IpAddr,
    /// The device's name.
    pub device: String,
    /// The pod ranges and addresses behind it.
    pub destinations: BTreeSet<IpNet>,
    /// Node addresses behind it that routes have left for other addresses of the same nodes.
    pub left: BTreeSet<IpAddr>,
    /// Whether it answers requests for its MAC address; none if there was no request.
    pub answers: Option<bool>,
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

    /// The next hops of hauberk's routes to the `wanted` destinations, and on the way to the
    /// addresses that routes have `left`, each with its state in the kernel's neighbour table.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn next_hops(
        &self,
        wanted: &BTreeSet<IpNet>,
        left: &BTreeSet<IpAddr>,
    ) -> Result<Vec<NextHop>, ApplyError> {
        let mut hops: BTreeMap<(u32, IpAddr), (BTreeSet<IpNet>, BTreeSet<IpAddr>)> = BTreeMap::new();
        for (destination, (hop, _)) in self.netlink.own_routes().await? {
            if let (Some(gateway), true) = (hop.gateway, wanted.contains(&destination)) {
                hops.entry((hop.device, gateway)).or_default().0.insert(destination);
            }
        }
        for address in left {
            // Without a route nothing answers there: no device has the number 0.
            let way = self.netlink.way_to(*address).await.ok();
            let key = way.and_then(|hop| Some((hop.device, hop.gateway?))).unwrap_or((0, *address));
            hops.entry(key).or_default().1.insert(*address);
        }
        // The neighbour table may be large, so it is not read without need.
        if hops.is_empty() {
            return Ok(Vec::new());
        }
        let (answers, links) = (self.netlink.neighbours().await?, self.netlink.links().await?);
        let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        Ok(hops
            .into_iter()
            .map(|((index, address), (destinations, left))| NextHop {
                index,
                address,
                device: name(index).unwrap_or_else(|| "any device".into()),
                destinations,
                left,
                answers: answers.get(&(index, address)).copied(),
            })
            .collect())
    }

    /// Makes the kernel resolve a neighbour's MAC address, as if there were a packet for it.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn ask_for_neighbour(&self, index: u32, address: IpAddr) -> Result<(), ApplyError> {
        fault::point("ask for a neighbour");
        Ok(self.netlink.ask_for_neighbour(index, address).await?)
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
    pub async fn read(&mut self, known: &BTreeSet<u32>) -> Result<Actual, ApplyError> {
        let links: BTreeMap<u32, String> =
            self.netlink.links().await?.into_iter().map(|link| (link.index, link.name)).collect();
        let is_ours = |index: u32| links.get(&index).is_some_and(|name| name.starts_with(INTERFACE_PREFIX));
        self.shut_unknown(|index| !known.contains(&index) && is_ours(index))?;
        let is_kept = |index: u32| known.contains(&index) || is_ours(index);
        let maps = self.datapath.maps();
        let mut leftovers: BTreeMap<u32, LocalPod> = BTreeMap::new();
        for (index, interface) in maps.interfaces()? {
            if !is_kept(index) {
                leftovers.insert(index, leftover(index, links.get(&index), interface.protection));
            }
        }
        for (address, attachment) in maps.attachments()? {
            let index = attachment.interface;
            if !is_kept(index) {
                leftovers
                    .entry(index)
                    .or_insert_with(|| leftover(index, links.get(&index), 0))
                    .addresses
                    .push(address.into());
            }
        }
        let attachments = leftovers
            .into_values()
            .map(|pod| (AttachmentKey { container: pod.container.clone(), interface: pod.interface.clone() }, pod))
            .collect();
        Ok(Actual {
            endpoints: maps.endpoints()?.into_iter().collect(),
            ranges: maps.ranges()?.into_iter().collect(),
            attachments,
            peers: self.backend.read()?.into_iter().map(|peer| (peer.number, peer)).collect(),
            peer_entries: maps.peers()?.into_iter().map(|(number, peer)| (NodeNumber(number), peer)).collect(),
            // Routes are always put again, because their next hops are not read back.
            routes: BTreeMap::new(),
            synced: maps.settings()?.flags & flag::SYNCED != 0,
            untranslated: BTreeSet::new(),
        })
    }

    /// Takes all addresses from unknown interfaces: what they send is dropped, and nothing is sent
    /// to them.
    fn shut_unknown(&mut self, is_unknown: impl Fn(u32) -> bool) -> Result<(), ApplyError> {
        let maps = self.datapath.maps_mut();
        let attachments = maps.attachments()?.into_iter().map(|(address, held)| (Some(address), held.interface));
        let interfaces = maps.interfaces()?.into_iter().map(|(index, _)| (None, index));
        for (address, index) in attachments.chain(interfaces).filter(|(_, index)| is_unknown(*index)) {
            let shut = layout::Interface { protection: Protection::Enabled as u8, reserved: [0; 7] };
            fault::point("shut an interface that nobody knows");
            maps.put_interface(index, shut)?;
            if let Some(address) = address {
                maps.remove_attachment(address, index)?;
            }
        }
        Ok(())
    }

    /// Removes an earlier agent's routes that are not wanted any more. Call it once the plan is
    /// empty and everything is synced.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn remove_foreign_routes(&self, wanted: &BTreeSet<IpNet>) -> Result<(), ApplyError> {
        for destination in self.netlink.own_routes().await?.into_keys().filter(|held| !wanted.contains(held)) {
            fault::point("remove a route");
            self.netlink.remove_route(&destination).await?;
        }
        Ok(())
    }

    /// Carries out one step.
    ///
    /// # Errors
    /// [`ApplyError`]; the step can be repeated.
    pub async fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
        fault::point("a step");
        let maps = self.datapath.maps_mut();
        match step {
            Step::PutEndpoint(address, identity) => maps.put_endpoint(*address, *identity)?,
            Step::RemoveEndpoint(address) => maps.remove_endpoint(*address)?,
            Step::PutRange(range, identity) => maps.put_range(*range, *identity)?,
            Step::RemoveRange(range) => maps.remove_range(*range)?,
            Step::PutPeerEntry(number, peer) => maps.put_peer(number.0, *peer)?,
            Step::RemovePeerEntry(number) => maps.remove_peer(number.0)?,
            Step::PutPeer(peer) => self.backend.apply(&[PeerStep::Put(peer)])?,
            Step::RemovePeer(number) => self.backend.apply(&[PeerStep::Remove(*number)])?,
            Step::PutAttachment(pod) => self.attach(pod).await?,
            Step::RemoveAttachment(pod) => self.detach(pod).await?,
            Step::PutRoute(route) => {
                let source = self.source_for(route.destination.addr());
                let route = hauberk_host::Route {
                    destination: route.destination,
                    via: hauberk_host::Via::Node(route.via),
                    source,
                    mtu: route.mtu,
                };
                self.netlink.put_route(&route).await?;
            }
            Step::RemoveRoute(route) => self.netlink.remove_route(&route.destination).await?,
            Step::SetSynced(synced) => {
                let flags =
                    if *synced { self.settings.flags | flag::SYNCED } else { self.settings.flags & !flag::SYNCED };
                self.configure(Settings { flags, ..self.settings })?;
            }
            Step::SetUntranslated(destinations) => self.set_untranslated(destinations).await?,
        }
        Ok(())
    }

    /// Carries out peer steps of the tunnel as one change, so that a key or prefix that moves
    /// between two peers always belongs to one of them.
    ///
    /// # Errors
    /// [`ApplyError::Backend`]; then none of them has been carried out.
    pub fn apply_peers(&self, steps: &[Step]) -> Result<(), ApplyError> {
        fault::point("peer steps");
        let peers: Vec<PeerStep<'_>> = steps.iter().filter_map(peer_step).collect();
        Ok(self.backend.apply(&peers)?)
    }

    /// Also tells the guard against packet sockets which addresses to look for: all of these except
    /// the nodes' own.
    async fn set_untranslated(&mut self, destinations: &BTreeSet<IpNet>) -> Result<(), ApplyError> {
        let maps = self.datapath.maps();
        let mut guarded = BTreeSet::new();
        for destination in destinations {
            let node = destination.prefix_len() == destination.max_prefix_len()
                && maps.endpoint(destination.addr().into())?.is_some_and(|identity| identity.is_node());
            if !node {
                guarded.insert(*destination);
            }
        }
        let ruleset = Ruleset { untranslated: destinations.clone(), guarded, ..self.ruleset.clone() };
        self.netfilter.apply(&ruleset).await?;
        self.ruleset = ruleset;
        Ok(())
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

    fn configure(&mut self, settings: Settings) -> Result<(), ApplyError> {
        fault::point("write the settings");
        self.datapath.configure(&settings)?;
        self.settings = settings;
        Ok(())
    }

    /// Attaches the programs first: they drop everything until the map entries are there, and the
    /// pod cannot send past them.
    async fn attach(&mut self, pod: &LocalPod) -> Result<(), ApplyError> {
        match self.netlink.link(&pod.host_interface).await? {
            Some(link) if link.index == pod.host_index => {}
            // The interface disappeared before the runtime called DEL, which it still will. There
            // is nothing left to guard.
            _ if self.pods.contains_key(&pod.host_index) || self.gone.contains(&pod.host_index) => {
                self.pods.remove(&pod.host_index);
                self.gone.insert(pod.host_index);
                return self.forget_entries(pod);
            }
            _ => {
                return Err(ApplyError::NoInterface {
                    name: pod.host_interface.clone(),
                    index: pod.host_index,
                    container: pod.container.clone(),
                });
            }
        }
        // A pod that another plugin connected may send already: it must not count as a stranger on
        // its own interface.
        if pod.adopted {
            self.enter(pod)?;
        }
        if self.datapath.is_clsact() {
            self.netlink.make_room_for_clsact(pod.host_index).await?;
        }
        for hook in [Hook::FromPod, Hook::ToPod] {
            fault::point("attach a program to a pod interface");
            self.datapath.attach_and_look(hook, &pod.host_interface, Framing::Ethernet)?;
        }
        if !pod.adopted {
            self.enter(pod)?;
        }
        self.becomes_pods(pod.host_index, &pod.host_interface)?;
        self.pods.insert(pod.host_index, pod.clone());
        if pod.adopted {
            return self.open_pod_interfaces().await;
        }
        let has = |v4: bool| pod.addresses.iter().any(|address| address.is_ipv4() == v4);
        fault::point("prepare a pod interface");
        hauberk_host::sysctl::prepare_pod_interface(&pod.host_interface, has(false))?;
        self.netlink.put_gateways(pod.host_index, has(true), has(false)).await?;
        // Routes and neighbours need the device up. The pod's own side is still down, so the pod
        // cannot send yet.
        self.netlink.set_up(pod.host_index).await?;
        for address in &pod.addresses {
            fault::point("put a pod's neighbour entry");
            self.netlink.put_neighbour(pod.host_index, *address, pod.pod_mac).await?;
            fault::point("put a pod's route");
            let route = hauberk_host::Route {
                destination: IpNet::from(*address),
                via: hauberk_host::Via::Device(pod.host_index),
                source: self.source_for(*address),
                mtu: None,
            };
            self.netlink.put_route(&route).await?;
        }
        Ok(())
    }

    /// Writes the pod's interface and addresses to the maps.
    fn enter(&mut self, pod: &LocalPod) -> Result<(), ApplyError> {
        let maps = self.datapath.maps_mut();
        fault::point("put an interface entry");
        maps.put_interface(pod.host_index, layout::Interface { protection: pod.protection as u8, reserved: [0; 7] })?;
        let attachment = layout::Attachment { interface: pod.host_index, macs: [pod.pod_mac, pod.host_mac] };
        for address in &pod.addresses {
            fault::point("put an attachment entry");
            maps.put_attachment((*address).into(), attachment)?;
        }
        Ok(())
    }

    /// Removes the map entries first, so that nothing reaches or leaves the interface while the
    /// rest is taken down.
    async fn detach(&mut self, pod: &LocalPod) -> Result<(), ApplyError> {
        self.forget_entries(pod)?;
        self.pods.remove(&pod.host_index);
        self.gone.remove(&pod.host_index);
        let mut stays = false;
        if let Some(link) = self.netlink.link(&pod.host_interface).await? {
            if link.index != pod.host_index {
                // Another pod has the name now; its programs stay.
                return Ok(());
            }
            if !pod.adopted && pod.host_interface.starts_with(INTERFACE_PREFIX) {
                fault::point("remove a pod interface");
                self.netlink.remove_link(link.index).await?;
            } else {
                // A former pod interface may lead anywhere next: at every moment it has either its
                // own programs or the guard.
                match self.becomes_device(&link) {
                    Ok(()) => stays = true,
                    // The other plugin removes it meanwhile.
                    Err(_) if self.netlink.link(&pod.host_interface).await?.is_none() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for hook in [Hook::FromPod, Hook::ToPod] {
            fault::point("detach a program from a pod interface");
            if stays {
                self.datapath.give_up(hook, &pod.host_interface)?;
            } else {
                self.datapath.detach(hook, &pod.host_interface)?;
            }
        }
        Ok(())
    }

    fn forget_entries(&mut self, pod: &LocalPod) -> Result<(), ApplyError> {
        let maps = self.datapath.maps_mut();
        for address in &pod.addresses {
            fault::point("remove an attachment entry");
            maps.remove_attachment((*address).into(), pod.host_index)?;
        }
        fault::point("remove an interface entry");
        Ok(maps.remove_interface(pod.host_index)?)
    }

    fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        self.sources.iter().find(|source| source.is_ipv4() == destination.is_ipv4()).copied()
    }
}

/// A step in the tunnel's terms, if it concerns the tunnel.
pub fn peer_step(step: &Step) -> Option<PeerStep<'_>> {
    match step {
        Step::PutPeer(peer) => Some(PeerStep::Put(peer)),
        Step::RemovePeer(number) => Some(PeerStep::Remove(*number)),
        _ => None,
    }
}

fn leftover(index: u32, name: Option<&String>, protection: u8) -> LocalPod {
    LocalPod {
        container: format!("leftover-{index}"),
        interface: "unknown".into(),
        host_interface: name.cloned().unwrap_or_else(|| format!("gone-{index}")),
        host_index: index,
        host_mac: [0; 6],
        pod_mac: [0; 6],
        addresses: Vec::new(),
        protection: match protection {
            0 => Protection::None,
            1 => Protection::Permissive,
            _ => Protection::Enabled,
        },
        // An existing interface that hauberk-cni made is never a leftover.
        adopted: true,
    }
}
