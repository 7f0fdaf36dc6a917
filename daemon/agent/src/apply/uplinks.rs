//! Uplinks come and go; a guard must be on each before anything uses it.

use std::collections::BTreeSet;

use hauberk_abi::layout::{Hook, Settings};

use super::startup::tunnel_mtu;
use super::{ApplyError, Kernel, Node, StartError};
use crate::config::Config;
use crate::datapath::Datapath;
use crate::fault;
use crate::host::{Link, Ruleset};

impl Kernel {
    /// Guards uplinks that are new, forgets those that are gone, and follows a smaller MTU. What is no uplink any more but
    /// still there keeps its guard. Returns whether anything changed.
    ///
    /// # Errors
    /// [`StartError`]; guards that are there stay.
    pub async fn refresh_uplinks(&mut self, config: &Config, node: &Node) -> Result<bool, StartError> {
        let addresses = node.addresses.iter().copied().collect();
        let found =
            self.netlink.uplinks(&config.uplinks, &addresses, &config.tunnel.device).await.map_err(ApplyError::from)?;
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
        if !new.is_empty() || !gone.is_empty() {
            let names = uplinks.iter().map(|uplink| uplink.name.clone()).collect();
            let ruleset = Ruleset { uplinks: names, ..self.ruleset.clone() };
            fault::point("change the netfilter rules");
            self.netfilter.apply(&ruleset).await.map_err(ApplyError::from)?;
            self.ruleset = ruleset;
        }
        self.uplinks = uplinks;
        let smaller = self.follow_mtu(config).await?;
        Ok(smaller || !new.is_empty() || !gone.is_empty())
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

/// What leaves is guarded before what arrives: a leak is worse than a loss.
pub(super) fn guard(datapath: &mut Datapath, uplink: &Link) -> Result<(), ApplyError> {
    for hook in [Hook::ToWire, Hook::FromWire] {
        fault::point("attach a program to an uplink");
        datapath.attach(hook, &uplink.name)?;
    }
    Ok(())
}
