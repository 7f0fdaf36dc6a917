//! What others' chains do on the ways of this node's pods.

use std::time::Duration;

use hauberk_abi::identity::Protection;
use hauberk_host::netfilter::firewall::{self, Way, Ways};
use tokio::time::Instant;

use super::{Reconciler, Stage};
use crate::config::HostRouting;
use crate::observe::firewalls::Firewalls;

/// To look at large tables takes long: not more than this part of the time.
const SHARE: u32 = 50;
const SHORTEST: Duration = Duration::from_secs(4);

impl Reconciler {
    /// Judges the chains on the ways through the stack that pods' packets take in this mode.
    pub(super) async fn look_at_firewalls(&mut self) {
        if self.firewalls_due.is_some_and(|due| Instant::now() < due) {
            return;
        }
        let mut wanted = Vec::new();
        if self.config.host_routing == HostRouting::Stack {
            wanted.extend([Way::Out, Way::Opened]);
            let world = self.world.read();
            let mut pods = world.desired.attachments.values();
            if pods.any(|pod| pod.protection != Protection::Enabled) {
                wanted.push(Way::Plain);
            }
        }
        let begun = Instant::now();
        let ways = self.ways(wanted).await;
        // Without an answer what was found stays told.
        if let Ok(findings) = firewall::look(ways.clone()).await
            && let Some(running) = &mut self.world.write().running
        {
            running.firewalls = Firewalls { ways, findings };
        }
        self.firewalls_due = Some(Instant::now() + (begun.elapsed() * SHARE).max(SHORTEST));
    }

    /// What some ways lead by on this node.
    pub(super) async fn ways(&self, ways: Vec<Way>) -> Ways {
        let (Stage::Running(kernel), Some(node)) = (&self.stage, self.own_node()) else { return Ways::default() };
        let all = self.world.read().policy.cluster_ranges.clone();
        Ways {
            ways,
            tunnel: self.config.tunnel.device.clone(),
            port: self.config.tunnel.port,
            pods: kernel.pod_devices().await,
            uplinks: kernel.uplinks().iter().map(|link| firewall::Device::Named(link.name.clone())).collect(),
            own: node.pod_ranges,
            all,
        }
    }

    /// What lets everything through that comes out of the tunnel.
    pub(super) async fn cures_of_losses(&self) -> String {
        let ways = self.ways(vec![Way::Opened, Way::ToNode]).await;
        let findings = firewall::look(ways.clone()).await.unwrap_or_default();
        let cures = findings.iter().map(|finding| ways.cures(finding, finding.outcomes.keys().copied()));
        cures.collect::<Vec<_>>().join("; ")
    }
}
