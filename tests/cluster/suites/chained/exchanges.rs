//! Exchanges between all pods, and what was on the wire.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::Cluster;
use hauberk_netns::capture::Frame;
use hauberk_netns::traffic::{Exchange, Outcome, Protocol, exchange_all};
use hauberk_netns::{Family, Marker, Party, analysis};

use super::overlay;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

/// Exchanges that were all answered.
pub struct Exchanges<'a> {
    done: Vec<(Exchange<'a>, Outcome)>,
    seen: BTreeMap<Marker, Arc<Frame>>,
}

impl<'a> Exchanges<'a> {
    /// Every pod sends a request to every pod on another node, over every protocol and family.
    pub fn among(cluster: &Cluster, pods: &[&'a Party]) -> Result<Exchanges<'a>> {
        let start = cluster.capture.sync()?;
        let mut exchanges = Vec::new();
        for from in pods {
            for to in pods.iter().filter(|to| node_of(to) != node_of(from)) {
                for family in Family::ALL {
                    exchanges.extend(PROTOCOLS.map(|protocol| Exchange::new(protocol, family, from, to)));
                }
            }
        }
        ensure!(!exchanges.is_empty(), "no two pods on different nodes");
        let outcomes = exchange_all(&exchanges)?;
        let done: Vec<(Exchange<'a>, Outcome)> = exchanges.into_iter().zip(outcomes).collect();
        let failed = done.iter().filter(|(_, outcome)| !outcome.answered);
        let failed: Vec<String> = failed.map(|(exchange, outcome)| format!("{exchange}: {}", outcome.said)).collect();
        ensure!(failed.is_empty(), "{} of {} were not answered:\n{}", failed.len(), done.len(), failed.join("\n"));
        Ok(Exchanges { done, seen: analysis::markers(&cluster.capture.since(start)?) })
    }

    /// Fails unless all payload was on the wire in the form in which the other plugins send it.
    pub fn assert_in_the_clear(&self) -> Result<()> {
        self.done.iter().try_for_each(|(exchange, outcome)| self.assert_own_way(exchange, outcome))
    }

    /// Fails unless packets from and to pods of `namespace` were sealed, and all other packets took
    /// their plugins' way.
    pub fn assert_sealed_for(&self, namespace: &str) -> Result<()> {
        for (exchange, outcome) in &self.done {
            if [exchange.client, exchange.server].iter().all(|end| namespace_of(end) != namespace) {
                self.assert_own_way(exchange, outcome)?;
                continue;
            }
            let leaked = [outcome.request, outcome.reply].iter().any(|marker| self.seen.contains_key(marker));
            ensure!(!leaked, "{exchange}: its payload is in the clear");
        }
        Ok(())
    }

    /// Fails unless the payload was in the VXLAN if one of the pods is behind it, and outside
    /// otherwise.
    fn assert_own_way(&self, exchange: &Exchange<'_>, outcome: &Outcome) -> Result<()> {
        let overlaid = [exchange.client, exchange.server].iter().any(|end| node_of(end) == overlay::NODE);
        for marker in [outcome.request, outcome.reply] {
            let frame =
                self.seen.get(&marker).with_context(|| format!("{exchange}: its payload is not on the wire"))?;
            let ports = analysis::dissect(&frame.bytes).1.and_then(|packet| packet.ports);
            let in_vxlan = ports.is_some_and(|(_, destination)| destination == overlay::PORT);
            ensure!(in_vxlan == overlaid, "{exchange}: not by the other plugin's way, but between the ports {ports:?}");
        }
        Ok(())
    }
}

/// The node of a pod, from its name, which is `namespace/what-node` here.
fn node_of(pod: &Party) -> &str {
    pod.name.rsplit('-').next().unwrap_or_default()
}

fn namespace_of(pod: &Party) -> &str {
    pod.name.split('/').next().unwrap_or_default()
}
