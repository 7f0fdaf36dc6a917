//! Every device is guarded or shut. Devices come and go, and each must have a guard before it is
//! used. netfilter does not let pods' packets leave by a device without one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::framing::Framing;
use hauberk_abi::layout::{Hook, Settings};
use hauberk_api::{Problem, Severity};
use hauberk_datapath::{Datapath, query};
use hauberk_fault as fault;
use hauberk_host::{Beside, Chained, INTERFACE_PREFIX, Link, LinkKind, Netlink, Role, Ruleset, sysctl};
use ipnet::IpNet;
use tracing::{info, warn};

use super::startup::tunnel_mtu;
use super::{ApplyError, Kernel, Node};
use crate::config::{CniInstall, Config};

/// Egress is guarded before ingress: a leak is worse than a loss.
pub(super) const WIRE: [Hook; 2] = [Hook::ToWire, Hook::FromWire];

/// A device with the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// Its name.
    pub name: String,
    /// What its packets begin with.
    pub framing: Framing,
    /// Whether it is up.
    pub up: bool,
}

/// What is known of this host's devices.
#[derive(Debug, Default)]
pub struct Devices {
    /// The guarded devices, by index.
    pub guarded: BTreeMap<u32, Guarded>,
    /// The devices that lead to other nodes and the world, as far as is known.
    pub uplinks: Vec<Link>,
    /// Indices of other devices by which pods' packets may leave: harmless ones and pods'
    /// interfaces.
    harmless: BTreeSet<u32>,
    /// Interfaces on which other programs insist on running before this hook's, by index. They
    /// count as interfaces without a guard.
    pub(super) contested: BTreeSet<(u32, Hook)>,
    /// All of them, by index.
    present: BTreeSet<u32>,
    /// Bridges, by index.
    bridges: BTreeMap<u32, String>,
    /// Interfaces that are up and have the name of a pod's interface, by index.
    made_by_us: BTreeMap<u32, String>,
    /// Problems by what they concern: a device that is shut, an uplink that is missing.
    pub problems: BTreeMap<String, Problem>,
}

impl Devices {
    /// Puts the guard on every device that has none, and forgets devices that are gone. Each device
    /// that cannot be guarded is a problem of its own. Returns all devices, and whether the set of
    /// guarded ones changed.
    ///
    /// # Errors
    /// [`ApplyError`] if devices cannot be listed.
    pub(super) async fn guard_all(
        &mut self,
        datapath: &mut Datapath,
        netlink: &Netlink,
        tunnel: &str,
    ) -> Result<(Vec<Link>, bool), ApplyError> {
        let links = netlink.links().await?;
        let pods: BTreeSet<u32> = datapath.maps().interfaces()?.into_iter().map(|(index, _)| index).collect();
        self.problems.clear();
        self.harmless.clear();
        self.present = links.iter().map(|link| link.index).collect();
        self.follow_bridges(&links);
        let is_ours = |link: &&Link| link.kind == LinkKind::Veth && link.up && link.name.starts_with(INTERFACE_PREFIX);
        self.made_by_us = links.iter().filter(is_ours).map(|link| (link.index, link.name.clone())).collect();
        let renamed = self.renamed(&links);
        if !renamed.is_empty() {
            fault::point("rename a device's programs");
            if let Err(error) = datapath.rename(&renamed) {
                warn!(%error, ?renamed, "the guards of devices that have other names now are recorded under the old ones");
            }
        }
        let before: BTreeMap<u32, (String, Framing)> =
            self.guarded.iter().map(|(index, guarded)| (*index, (guarded.name.clone(), guarded.framing))).collect();
        for (old, new) in &renamed {
            self.guarded.values_mut().filter(|guarded| guarded.name == *old).for_each(|g| g.name.clone_from(new));
        }
        let gone: Vec<Guarded> = self
            .guarded
            .iter()
            .filter(|(index, _)| !links.iter().any(|link| link.index == **index))
            .map(|(_, guarded)| guarded.clone())
            .collect();
        self.guarded.retain(|index, _| links.iter().any(|link| link.index == *index));
        for link in &links {
            let role = link.role(tunnel, &pods);
            if let (Some(program), Role::Wire(_) | Role::Pod) = (link.xdp, role) {
                let message = format!(
                    "has an XDP program of others (id {program}): hauberk sees no packet that it redirects to another device; \
                     `ip link set {} xdp off` removes it",
                    link.name
                );
                self.note(Severity::Warning, &link.name, message);
            }
            match role {
                Role::Wire(framing) => self.guard(datapath, netlink, link, framing).await,
                Role::Shut => {
                    let message =
                        "hauberk has no guard for this kind of device: packets with pods' addresses do not leave by it";
                    self.note(Severity::Warning, &link.name, message.into());
                }
                Role::Harmless | Role::Pod => {
                    self.harmless.insert(link.index);
                }
            }
        }
        for gone in gone.iter().filter(|gone| !links.iter().any(|link| link.name == gone.name)) {
            for hook in WIRE {
                fault::point("forget a device's program");
                if let Err(error) = datapath.detach(hook, &gone.name) {
                    warn!(%error, device = gone.name, "cannot forget a device that is gone");
                }
            }
        }
        let ethernet = |(index, guarded): (&u32, &Guarded)| (guarded.framing == Framing::Ethernet).then_some(*index);
        fault::point("write the uplinks");
        datapath.maps_mut().set_uplinks(&self.guarded.iter().filter_map(ethernet).collect())?;
        let after = self.guarded.iter().map(|(index, guarded)| (*index, (guarded.name.clone(), guarded.framing)));
        Ok((links, before != after.collect()))
    }

    /// Guarded devices that have been renamed: old and new name.
    fn renamed(&self, links: &[Link]) -> Vec<(String, String)> {
        let other_name = |link: &Link| {
            let known = self.guarded.get(&link.index).filter(|known| known.name != link.name)?;
            Some((known.name.clone(), link.name.clone()))
        };
        links.iter().filter_map(other_name).collect()
    }

    async fn guard(&mut self, datapath: &mut Datapath, netlink: &Netlink, link: &Link, framing: Framing) {
        if let Some(known) = self.guarded.get_mut(&link.index)
            && known.framing == framing
        {
            known.up = link.up;
            return;
        }
        let room = make_room(datapath, netlink, link.index).await;
        match room.and_then(|()| guard(datapath, &link.name, framing)) {
            Ok(()) => {
                let guarded = Guarded { name: link.name.clone(), framing, up: link.up };
                info!(device = link.name, index = link.index, ?framing, "guarded");
                self.guarded.insert(link.index, guarded);
            }
            Err(error) => {
                self.guarded.remove(&link.index);
                // A device that disappeared meanwhile needs no guard.
                let there = netlink.link(&link.name).await;
                if there.is_ok_and(|there| there.is_some_and(|there| there.index == link.index)) {
                    let message =
                        format!("cannot be guarded, and packets with pods' addresses do not leave by it: {error}");
                    self.note(Severity::Critical, &link.name, message);
                }
            }
        }
    }

    /// Updates which devices are uplinks. If none is found, the earlier ones stay.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub(super) async fn find_uplinks(
        &mut self,
        netlink: &Netlink,
        config: &Config,
        cluster_ranges: &[IpNet],
        node: &Node,
        links: &[Link],
    ) -> Result<bool, ApplyError> {
        let addresses: BTreeSet<IpAddr> = node.addresses.iter().copied().collect();
        let chained = chained(config, cluster_ranges, node);
        let key = |link: &Link| (link.index, link.name.clone(), link.mtu);
        let configured = config.uplinks.given().map(Vec::as_slice);
        let (found, missing) = netlink.uplinks(links, configured, &addresses, &config.tunnel.device, chained).await?;
        for name in missing {
            let present = links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ");
            let message = format!(
                "is named in `uplinks` and does not exist; this node has {present}; correct `uplinks` or write auto"
            );
            let object = format!("uplink/{name}");
            self.problems.insert(object.clone(), Problem { severity: Severity::Critical, object, message });
        }
        let known: Vec<(u32, String, u32)> = self.uplinks.iter().map(key).collect();
        let follow = |link: &Link| links.iter().find(|present| present.index == link.index).cloned();
        let mut uplinks: Vec<Link> = self.uplinks.iter().filter_map(follow).collect();
        // An earlier uplink stays one: its address or route may come back.
        uplinks.extend(found.iter().filter(|link| !known.iter().any(|(index, ..)| *index == link.index)).cloned());
        if configured.is_some() {
            uplinks = found.clone();
        }
        for link in &uplinks {
            let is_new = !known.iter().any(|(index, ..)| *index == link.index);
            if !link.up && !self.problems.contains_key(&subject(&link.name)) {
                self.note(
                    Severity::Warning,
                    &link.name,
                    "is an uplink and down: no other node is reached by it".into(),
                );
            }
            if is_new {
                info!(device = link.name, mtu = link.mtu, "an uplink");
            }
        }
        if found.is_empty() {
            self.problems.insert("uplinks".into(), no_uplink(&addresses));
        }
        self.uplinks = uplinks;
        Ok(self.uplinks.iter().map(key).collect::<Vec<_>>() != known)
    }

    /// Network cards that were added later accept router advertisements if the others do.
    pub(super) fn follow_advertisements(&mut self, links: &[Link]) -> Result<(), ApplyError> {
        let others: Vec<String> = self.uplinks.iter().map(|link| link.name.clone()).collect();
        let is_card = |link: &&Link| match link.kind {
            LinkKind::Physical => self.guarded.contains_key(&link.index),
            _ => others.contains(&link.name),
        };
        for link in links.iter().filter(is_card) {
            fault::point("accept router advertisements");
            sysctl::accept_advertisements_as(&others, &link.name)?;
        }
        Ok(())
    }

    fn note(&mut self, severity: Severity, name: &str, message: String) {
        let object = subject(name);
        self.problems.insert(object.clone(), Problem { severity, object, message });
    }

    /// A problem for each interface of hauberk-cni's whose index is not `known`.
    pub fn unknown_pods(&self, known: &BTreeSet<u32>) -> impl Iterator<Item = (String, Problem)> {
        self.made_by_us.iter().filter(|(index, _)| !known.contains(index)).map(|(_, name)| {
            let object = format!("pod interface/{name}");
            let message = "is no pod's that this agent knows, and shut: nothing is on record of it, as when paths.state was lost \
                           or changed; delete the pod (`ip -d link show` names its container), and its owner makes \
                           another"
                .to_owned();
            (object.clone(), Problem { severity: Severity::Warning, object, message })
        })
    }

    /// The indices of all devices that this node has, as last seen.
    pub fn present(&self) -> &BTreeSet<u32> {
        &self.present
    }

    /// The names of the guarded devices.
    pub(super) fn names(&self) -> Vec<String> {
        self.guarded.values().map(|guarded| guarded.name.clone()).collect()
    }

    /// The devices by which pods' packets may leave, without bridges: a bridge's ports are guarded
    /// or shut instead.
    fn passable(&self) -> BTreeSet<u32> {
        let all = self.guarded.keys().chain(&self.harmless).copied();
        let is_contested = |index: &u32| self.contested.iter().any(|(contested, _)| contested == index);
        all.filter(|index| !self.bridges.contains_key(index) && !is_contested(index)).collect()
    }

    fn follow_bridges(&mut self, links: &[Link]) {
        let bridges = links.iter().filter(|link| link.kind == LinkKind::Bridge);
        self.bridges = bridges.map(|link| (link.index, link.name.clone())).collect();
    }

    /// Adds what the devices determine to the rules.
    pub(super) fn rules(&self, config: &Config, tunnel_mtu: u32, rules: &Ruleset) -> Ruleset {
        let is_chained = config.cni.install == CniInstall::Chained;
        Ruleset {
            uplinks: self.names(),
            outward: self.uplinks.iter().map(|link| link.name.clone()).collect(),
            passable: self.passable(),
            bridges: self.bridges.clone(),
            chained: is_chained.then_some(Beside { tunnel_mtu }),
            ..rules.clone()
        }
    }
}

impl Kernel {
    /// Guards new devices, forgets those that are gone, and follows an MTU that became smaller.
    /// Returns whether anything changed. A problem with one device goes to [`Devices::problems`]
    /// and does not stop the rest.
    ///
    /// # Errors
    /// [`ApplyError`]; existing guards stay.
    pub async fn refresh_devices(
        &mut self,
        config: &Config,
        cluster_ranges: &[IpNet],
        node: &Node,
    ) -> Result<bool, ApplyError> {
        self.sources.clone_from(&node.addresses);
        let (links, mut changed) =
            self.devices.guard_all(&mut self.datapath, &self.netlink, &config.tunnel.device).await?;
        changed |= self.devices.find_uplinks(&self.netlink, config, cluster_ranges, node, &links).await?;
        self.devices.follow_advertisements(&links)?;
        changed |= self.follow_mtu(config).await?;
        self.follow_rules(config).await?;
        Ok(changed)
    }

    /// Tells netfilter by which devices pods' packets may leave.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn follow_rules(&mut self, config: &Config) -> Result<(), ApplyError> {
        let ruleset = self.devices.rules(config, self.settings.tunnel_mtu, &self.ruleset);
        // Applied also if nothing changed: a device may have been replaced by another one of its
        // name.
        if ruleset != self.ruleset {
            fault::point("change the netfilter rules");
        }
        self.netfilter.apply(&ruleset).await?;
        self.ruleset = ruleset;
        Ok(())
    }

    /// Lets packets leave by the pods' interfaces that exist now, and by a bridge that came with
    /// them.
    pub(super) async fn open_pod_interfaces(&mut self) -> Result<(), ApplyError> {
        let links = self.netlink.links().await?;
        self.devices.follow_bridges(&links);
        let (passable, bridges) = (self.devices.passable(), self.devices.bridges.clone());
        let ruleset = Ruleset { passable, bridges, ..self.ruleset.clone() };
        fault::point("open a pod's interface");
        self.netfilter.apply(&ruleset).await?;
        self.ruleset = ruleset;
        Ok(())
    }

    /// What is known of this host's devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// A pod's interface has its own programs now, so a guard that it may have had is detached.
    pub(super) fn becomes_pods(&mut self, index: u32, name: &str) -> Result<(), ApplyError> {
        self.devices.harmless.insert(index);
        self.devices.guarded.remove(&index);
        for hook in WIRE {
            fault::point("detach the guard from a pod's interface");
            self.datapath.give_up(hook, name)?;
        }
        Ok(())
    }

    /// An interface that is not a pod's any more gets the guard before its own programs are
    /// detached.
    pub(super) fn becomes_device(&mut self, link: &Link) -> Result<(), ApplyError> {
        if let Role::Wire(framing) = link.role("", &BTreeSet::new()) {
            guard(&mut self.datapath, &link.name, framing)?;
            self.devices.guarded.insert(link.index, Guarded { name: link.name.clone(), framing, up: link.up });
        }
        Ok(())
    }

    /// Every address of this host.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn host_addresses(&self) -> Result<BTreeSet<IpAddr>, ApplyError> {
        Ok(self.netlink.own_addresses().await?)
    }

    /// Packets that used to fit would be lost on an uplink whose MTU became smaller. A larger MTU
    /// takes effect at the next start.
    async fn follow_mtu(&mut self, config: &Config) -> Result<bool, ApplyError> {
        // Without an uplink there is nothing to follow: it may come back, and a larger MTU would
        // not be followed then.
        if self.devices.uplinks.is_empty() {
            return Ok(false);
        }
        let mtu = match tunnel_mtu(config, &self.devices.uplinks) {
            Ok(mtu) => mtu,
            Err(error) => {
                let (severity, object) = (Severity::Critical, "uplinks".to_owned());
                let problem = Problem { severity, object: object.clone(), message: error.to_string() };
                self.devices.problems.insert(object, problem);
                return Ok(false);
            }
        };
        if mtu >= self.settings.tunnel_mtu {
            return Ok(false);
        }
        fault::point("set the tunnel's MTU");
        self.netlink.set_mtu(self.settings.tunnel, mtu).await?;
        self.configure(Settings { tunnel_mtu: mtu, ..self.settings })?;
        Ok(true)
    }
}

/// The name of a device in problems.
pub(super) fn subject(name: &str) -> String {
    format!("device/{name}")
}

pub(super) fn no_uplink(addresses: &BTreeSet<IpAddr>) -> Problem {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let addresses = if addresses.is_empty() { "none are known".into() } else { addresses.join(", ") };
    let message = format!(
        "no uplink: no device has one of the node's addresses ({addresses}) and there is no default route; name the devices in `uplinks`"
    );
    Problem { severity: Severity::Critical, object: "uplinks".into(), message }
}

/// Where to look for another plugin's network, if there is one.
pub(super) fn chained<'a>(config: &Config, cluster_ranges: &'a [IpNet], node: &'a Node) -> Option<Chained<'a>> {
    let is_chained = config.cni.install == CniInstall::Chained;
    is_chained.then_some(Chained { cluster_ranges, own_ranges: &node.pod_ranges })
}

/// With clsact: takes away an `ingress` queueing discipline that is in its place. Call it before a
/// program is attached to the interface.
pub(super) async fn make_room(datapath: &Datapath, netlink: &Netlink, index: u32) -> Result<(), ApplyError> {
    if datapath.is_clsact() {
        netlink.make_room_for_clsact(index, query::is_own).await?;
    }
    Ok(())
}

pub(super) fn guard(datapath: &mut Datapath, name: &str, framing: Framing) -> Result<(), ApplyError> {
    for hook in WIRE {
        fault::point("attach a program to a device");
        datapath.attach_and_look(hook, name, framing)?;
    }
    Ok(())
}
