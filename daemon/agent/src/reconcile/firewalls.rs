//! What other programs' chains do on the paths of this node's pods.

use std::time::Duration;

use hauberk_abi::identity::Protection;
use hauberk_host::netfilter::firewall::{self, Way, Ways};
use tokio::time::Instant;

use super::{Reconciler, Stage};
use crate::config::HostRouting;
use crate::observe::firewalls::Firewalls;

/// Reading large tables takes long: it may use at most one part in this many of the time.
const SHARE: u32 = 50;
const SHORTEST: Duration = Duration::from_secs(4);

impl Reconciler {
    /// Judges the chains on the paths through the stack that pods' packets take in this mode.
    pub(super) async fn look_at_firewalls(&mut self) {
        if self.firewalls_due.is_some_and(|due| Instant::now() < due) {
            return;
        }
        let mut wanted = Vec::new();
        if self.config.host_routing == HostRouting::Stack {
            wanted.extend([Way::Out, Way::Opened]);
            let agent = self.agent.read();
            let mut pods = agent.desired.state.pods.values();
            if pods.any(|pod| pod.protection != Protection::Enabled) {
                wanted.push(Way::Plain);
            }
        }
        let begun = Instant::now();
        let ways = self.ways(wanted).await;
        // If there is no answer, the earlier findings stay.
        if let Ok(findings) = firewall::look(ways.clone()).await
            && let Some(running) = &mut self.agent.write().running
        {
            running.firewalls = Firewalls { ways, findings };
        }
        self.firewalls_due = Some(Instant::now() + (begun.elapsed() * SHARE).max(SHORTEST));
    }

    /// The devices, ports and ranges of these paths on this node.
    pub(super) async fn ways(&self, ways: Vec<Way>) -> Ways {
        let (Stage::Running(kernel), Some(node)) = (&self.stage, self.own_node()) else { return Ways::default() };
        let all = self.agent.read().local.settings.cluster_ranges.clone();
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

    /// The commands that let through everything that comes out of the tunnel.
    pub(super) async fn cures_of_losses(&self) -> String {
        let ways = self.ways(vec![Way::Opened, Way::ToNode]).await;
        let findings = firewall::look(ways.clone()).await.unwrap_or_default();
        let cures = findings.iter().map(|finding| ways.cures(finding, finding.outcomes.keys().copied()));
        cures.collect::<Vec<_>>().join("; ")
    }
}
