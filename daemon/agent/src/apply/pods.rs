//! Pods' interfaces on this node: their programs, map entries, routes and neighbours.

use std::collections::{BTreeMap, BTreeSet};

use hauberk_abi::framing::Framing;
use hauberk_abi::identity::Protection;
use hauberk_abi::layout::{self, Hook};
use hauberk_core::pods::LocalPod;
use hauberk_core::pods::{PodStep, Pods};
use hauberk_fault as fault;
use hauberk_host::INTERFACE_PREFIX;
use ipnet::IpNet;

use super::devices::make_room;
use super::{ApplyError, Kernel};

impl Kernel {
    /// Reads which interfaces the maps have that no pod on record has, and shuts those that may be
    /// a living pod's.
    pub(super) async fn read_pods(&mut self, known: &BTreeSet<u32>) -> Result<Pods, ApplyError> {
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
        Ok(leftovers.into_values().map(|pod| (pod.key(), pod)).collect())
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

    /// Carries out one step.
    pub(super) async fn apply_pod(&mut self, step: &PodStep) -> Result<(), ApplyError> {
        match step {
            PodStep::Put(pod) => self.attach(pod).await,
            PodStep::Remove(pod) => self.detach(pod).await,
        }
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
        make_room(&self.datapath, &self.netlink, pod.host_index).await?;
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
