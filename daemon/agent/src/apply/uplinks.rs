//! Uplinks come and go; a guard must be on each before anything uses it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hauberk_abi::layout::{Hook, Settings};
use ipnet::IpNet;

use super::startup::tunnel_mtu;
use super::{ApplyError, Kernel, Node, StartError};
use crate::config::{CniInstall, Config};
use crate::datapath::{Datapath, Framing};
use crate::fault;
use crate::host::{Beside, Chained, Link, Ruleset};

impl Kernel {
    /// Guards uplinks that are new, forgets those that are gone, and follows a smaller MTU. What is no uplink any more but
    /// still there keeps its guard. Returns whether anything changed.
    ///
    /// # Errors
    /// [`StartError`]; guards that are there stay.
    pub async fn refresh_uplinks(
        &mut self,
        config: &Config,
        cluster_ranges: &[IpNet],
        node: &Node,
    ) -> Result<bool, StartError> {
        let addresses = node.addresses.iter().copied().collect();
        let chained = chained(config, cluster_ranges, node);
        let found = self.netlink.uplinks(&config.uplinks, &addresses, &config.tunnel.device, chained);
        let found = found.await.map_err(ApplyError::from)?;
        let links = self.netlink.links().await.map_err(ApplyError::from)?;
        let exists = |uplink: &Link| links.iter().any(|link| link.index == uplink.index && link.name == uplink.name);
        let is_known =
            |uplink: &Link| self.uplinks.iter().any(|known| known.index == uplink.index && known.name == uplink.name);
        let new: Vec<Link> = found.iter().filter(|uplink| !is_known(uplink)).cloned().collect();
        let gone: Vec<Link> = self.uplinks.iter().filter(|uplink| !exists(uplink)).cloned().collect();
        for uplink in &new {
            guard(&mut self.datapath, uplink)?;
        }
        let present: BTreeSet<&str> = links.iter().map(|link| link.name.as_str()).collect();
        for uplink in gone.iter().filter(|uplink| !present.contains(uplink.name.as_str())) {
            for hook in [Hook::ToWire, Hook::FromWire] {
                fault::point("forget an uplink's program");
                self.datapath.detach(hook, &uplink.name).map_err(ApplyError::from)?;
            }
        }
        let mut uplinks: Vec<Link> =
            self.uplinks.iter().filter(|uplink| !gone.iter().any(|gone| gone.index == uplink.index)).cloned().collect();
        uplinks.extend(new.iter().cloned());
        for uplink in &mut uplinks {
            if let Some(link) = links.iter().find(|link| link.index == uplink.index) {
                *uplink = link.clone();
            }
        }
        self.uplinks = uplinks;
        fault::point("write the uplinks");
        write_uplinks(&mut self.datapath, &self.uplinks)?;
        let smaller = self.follow_mtu(config).await?;
        let names = self.uplinks.iter().map(|uplink| uplink.name.clone()).collect();
        let beside = beside(config, &self.uplinks, self.settings.tunnel_mtu);
        let ruleset = Ruleset { uplinks: names, chained: beside, ..self.ruleset.clone() };
        if ruleset != self.ruleset {
            fault::point("change the netfilter rules");
            self.netfilter.apply(&ruleset).await.map_err(ApplyError::from)?;
            self.ruleset = ruleset;
        }
        Ok(smaller || !new.is_empty() || !gone.is_empty())
    }

    /// Addresses inside the cluster's ranges that are this host's: of another plugin's bridge or overlay.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn host_addresses(&self, cluster_ranges: &[IpNet]) -> Result<BTreeSet<IpAddr>, ApplyError> {
        let addresses = self.netlink.addresses().await?.into_iter().map(|(_, address)| address);
        Ok(addresses.filter(|address| cluster_ranges.iter().any(|range| range.contains(address))).collect())
    }

    /// Packets that fitted would be lost on an uplink that became smaller. One that became larger is used at the next start.
    async fn follow_mtu(&mut self, config: &Config) -> Result<bool, StartError> {
        let mtu = tunnel_mtu(config, &self.uplinks)?;
        if mtu >= self.settings.tunnel_mtu {
            return Ok(false);
        }
        fault::point("set the tunnel's MTU");
        self.netlink.set_mtu(self.settings.tunnel, mtu).await.map_err(ApplyError::from)?;
        self.configure(Settings { tunnel_mtu: mtu, ..self.settings })?;
        Ok(true)
    }
}

/// Where another plugin's network is to be looked for, if there is one.
pub(super) fn chained<'a>(config: &Config, cluster_ranges: &'a [IpNet], node: &'a Node) -> Option<Chained<'a>> {
    let is_chained = config.cni.install == CniInstall::Chained;
    is_chained.then_some(Chained { cluster_ranges, own_ranges: &node.pod_ranges })
}

/// What netfilter has to know of another plugin's network, if there is one.
pub(super) fn beside(config: &Config, uplinks: &[Link], tunnel_mtu: u32) -> Option<Beside> {
    let is_chained = config.cni.install == CniInstall::Chained;
    is_chained.then(|| Beside { guarded: uplinks.iter().map(|uplink| uplink.index).collect(), tunnel_mtu })
}

/// Only what is guarded may be used without the stack.
pub(super) fn write_uplinks(datapath: &mut Datapath, uplinks: &[Link]) -> Result<(), ApplyError> {
    Ok(datapath.maps_mut().set_uplinks(&uplinks.iter().map(|uplink| uplink.index).collect())?)
}

/// What leaves is guarded before what arrives: a leak is worse than a loss.
pub(super) fn guard(datapath: &mut Datapath, uplink: &Link) -> Result<(), ApplyError> {
    for hook in [Hook::ToWire, Hook::FromWire] {
        fault::point("attach a program to an uplink");
        datapath.attach(hook, &uplink.name, Framing::Ethernet)?;
    }
    Ok(())
}
