//! Next hops of routes to other nodes' pods that do not answer. Packets sent to them end in the
//! kernel's neighbour queue, which no hook and no counter sees, while the tunnel keeps using the
//! address from which it last heard the peer. If that is another address of the node, the routes
//! follow the tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hauberk_api::{Problem, Severity};
use hauberk_backend::{Backend, PeerStats};
use hauberk_core::names::NodeNumber;
use tokio::time::Instant;
use tracing::{info, warn};

use super::handshakes::HANDSHAKE_PAUSE;
use super::{Area, Reconciler, Stage};
use crate::apply::NextHop;
use crate::config::HostRouting;

/// How long a next hop must be silent to be reported: a peer that restarts, or a cable that is
/// replugged, is back sooner.
const PATIENCE: Duration = Duration::from_secs(10);

/// Since when next hops have been silent, by device and address.
#[derive(Debug, Default)]
pub(super) struct Hops(BTreeMap<(u32, IpAddr), Instant>);

impl Hops {
    /// Takes over one observation. Returns the next hops that have been silent for long, each with
    /// the time.
    fn take<'a>(&mut self, seen: &'a [NextHop], now: Instant) -> Vec<(&'a NextHop, Duration)> {
        let key = |hop: &NextHop| (hop.index, hop.address);
        // A next hop without a neighbour entry keeps its earlier state. One that routes have left
        // counts as silent until it answers.
        let is_silent = |hop: &&NextHop| hop.answers != Some(true);
        let silent: BTreeSet<_> = seen.iter().filter(is_silent).map(key).collect();
        self.0.retain(|hop, _| silent.contains(hop));
        for hop in seen.iter().filter(|hop| hop.answers == Some(false) || is_silent(hop) && !hop.left.is_empty()) {
            self.0.entry(key(hop)).or_insert(now);
        }
        let long = |hop: &'a NextHop| {
            let silence = now.duration_since(*self.0.get(&key(hop))?);
            (silence >= PATIENCE || !hop.left.is_empty()).then_some((hop, silence))
        };
        seen.iter().filter_map(long).collect()
    }
}

impl Reconciler {
    /// Reports next hops that have been silent for long, and moves routes away from them if the
    /// tunnel hears the node at another address. Silent hops are asked for again, so that one that
    /// is back is noticed without a packet for it.
    pub(super) async fn look_at_hops(&mut self) {
        let Stage::Running(kernel) = &self.stage else { return };
        let (wanted, left) = {
            let agent = self.agent.read();
            (
                agent.desired.state.tunnels.routes.keys().copied().collect(),
                agent.local.detours.keys().copied().collect(),
            )
        };
        let Ok(seen) = kernel.next_hops(&wanted, &left).await else { return };
        let silent = self.hops.take(&seen, Instant::now());
        // From hook to hook, encrypted packets need no route; through the stack all packets do.
        let (severity, lost) = match self.config.host_routing {
            HostRouting::Stack => (Severity::Critical, "packets to its pods are lost"),
            HostRouting::Bpf => (Severity::Warning, "packets that go to its pods in the clear are lost"),
        };
        let mut problems: BTreeMap<String, Problem> = BTreeMap::new();
        let mut tell = |node: &str, severity: Severity, message: String| {
            let object = format!("node/{node}");
            let new = Problem { severity, object: object.clone(), message };
            problems
                .entry(object)
                .and_modify(|problem| {
                    problem.severity = problem.severity.min(severity);
                    problem.message = format!("{}; {}", problem.message, new.message);
                })
                .or_insert(new);
        };
        for (hop, _) in &silent {
            let led_by = self.led_by(hop);
            let left = hop.left.difference(&led_by).copied().collect();
            for node in self.nodes_of(led_by) {
                tell(&node, severity, words(&node, hop, self.is_address_of(&node, hop.address), lost));
            }
            for node in self.nodes_of(left) {
                let message = format!(
                    "its address behind {} does not answer on {}: until it does, routes to its pods lead by another \
                     one of its addresses, as the tunnel does",
                    hop.address, hop.device
                );
                tell(&node, Severity::Warning, message);
            }
        }
        for (index, address) in self.hops.0.keys() {
            // A failure is ignored: the next look asks again.
            let _ = kernel.ask_for_neighbour(*index, *address).await;
        }
        let silences = silent
            .iter()
            .flat_map(|(hop, silence)| self.led_by(hop).into_iter().chain(hop.left.clone()).map(|to| (to, *silence)))
            .collect();
        self.tell(Area::Hops, problems);
        self.follow_tunnels(&silences);
    }

    /// Moves routes from silent addresses to another address of the node if the tunnel has heard
    /// the node there, and moves them back when the first address answers again. `silences` has the
    /// time for which each address has been silent.
    fn follow_tunnels(&mut self, silences: &BTreeMap<IpAddr, Duration>) {
        let before = self.agent.read().local.detours.clone();
        if silences.is_empty() && before.is_empty() {
            return;
        }
        let Stage::Running(kernel) = &self.stage else { return };
        let backend = kernel.backend();
        let Ok(stats) = backend.stats() else { return };
        let mut detours = BTreeMap::new();
        for (address, silence) in silences {
            let Some(number) = self.number_of(*address) else { continue };
            let peer = stats.peers.iter().find(|peer| peer.number == number);
            let heard = peer.and_then(|peer| Some(peer.endpoint?.ip()).filter(|heard| !silences.contains_key(heard)));
            match (heard, before.contains_key(address)) {
                (Some(heard), is_left) if is_left || peer.is_some_and(|peer| was_heard_within(peer, *silence)) => {
                    detours.insert(*address, heard);
                }
                _ => self.look_for(&*backend, number),
            }
        }
        if detours != before {
            info!(?detours, "routes follow the tunnel, past addresses at which nobody answers");
            self.agent.write().local.detours = detours;
            self.stale = true;
        }
    }

    /// Makes the tunnel find out where the peer is, also at its other addresses, even if there is
    /// nothing to send.
    fn look_for(&mut self, backend: &dyn Backend, number: NodeNumber) {
        let now = Instant::now();
        if self.handshakes.get(&number).is_some_and(|at| now.duration_since(*at) < HANDSHAKE_PAUSE) {
            return;
        }
        self.handshakes.insert(number, now);
        if let Err(error) = backend.start_handshake(number, true) {
            warn!(%error, peer = number.0, "cannot start a handshake");
        }
    }

    /// The node addresses of the routes by this hop.
    fn led_by(&self, hop: &NextHop) -> BTreeSet<IpAddr> {
        let agent = self.agent.read();
        let routes =
            hop.destinations.iter().filter_map(|destination| agent.desired.state.tunnels.routes.get(destination));
        routes.map(|route| route.via).collect()
    }

    fn nodes_of(&self, addresses: BTreeSet<IpAddr>) -> BTreeSet<String> {
        let agent = self.agent.read();
        addresses.into_iter().map(|to| agent.name_of(&to.into()).unwrap_or_else(|| to.to_string())).collect()
    }

    fn number_of(&self, address: IpAddr) -> Option<NodeNumber> {
        let agent = self.agent.read();
        agent.name_of(&address.into()).and_then(|name| agent.model.node_number(&name))
    }

    fn is_address_of(&self, node: &str, address: IpAddr) -> bool {
        self.agent.read().name_of(&address.into()).is_some_and(|name| name == node)
    }
}

/// Whether the peer completed a handshake within this time.
fn was_heard_within(peer: &PeerStats, time: Duration) -> bool {
    let since = peer.latest_handshake.and_then(|at| SystemTime::now().duration_since(at).ok());
    since.is_some_and(|since| since < time)
}

fn words(node: &str, hop: &NextHop, is_own: bool, lost: &str) -> String {
    let NextHop { address, device, .. } = hop;
    if is_own {
        format!(
            "the node's address {address} does not answer on {device}: {lost}; is the node there, and is \
             {address} right in the Node object of {node}?"
        )
    } else {
        format!("the router {address} on the way to the node does not answer on {device}: {lost}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(answers: Option<bool>) -> Vec<NextHop> {
        let (address, device) = ("192.168.7.77".parse().unwrap(), "eth0".to_owned());
        vec![NextHop { index: 2, address, device, destinations: BTreeSet::new(), left: BTreeSet::new(), answers }]
    }

    #[test]
    fn an_address_that_routes_left_has_to_answer_before_they_come_back() {
        let (mut hops, begin) = (Hops::default(), Instant::now());
        let left = |answers| {
            let mut seen = hop(answers);
            seen[0].left.insert("192.168.7.2".parse().unwrap());
            seen
        };
        assert_eq!(hops.take(&left(None), begin).len(), 1, "nobody has asked yet");
        assert_eq!(hops.take(&left(Some(false)), begin).len(), 1);
        assert!(hops.take(&left(Some(true)), begin).is_empty());
    }

    #[test]
    fn silence_is_told_when_it_lasts_and_ends_with_an_answer() {
        let (mut hops, begin) = (Hops::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(hops.take(&hop(Some(false)), at(0)).is_empty());
        assert!(hops.take(&hop(Some(false)), at(9)).is_empty());
        assert_eq!(hops.take(&hop(Some(false)), at(10)).len(), 1);
        assert_eq!(hops.take(&hop(None), at(15)).len(), 1, "no entry is no answer");
        assert!(hops.take(&hop(Some(true)), at(20)).is_empty());
        assert!(hops.take(&hop(Some(false)), at(25)).is_empty(), "it begins anew");
    }

    #[test]
    fn who_is_idle_or_behind_no_route_any_more_is_not_suspected() {
        let (mut hops, begin) = (Hops::default(), Instant::now());
        let later = begin + PATIENCE * 3;
        hops.take(&hop(None), begin);
        assert!(hops.take(&hop(None), later).is_empty());
        hops.take(&hop(Some(false)), begin);
        hops.take(&[], begin);
        assert!(hops.take(&hop(Some(false)), later).is_empty());
        assert!(words("n1", &hop(None)[0], true, "lost").contains("192.168.7.77 does not answer on eth0"));
        assert!(words("n1", &hop(None)[0], false, "lost").starts_with("the router"));
    }
}
