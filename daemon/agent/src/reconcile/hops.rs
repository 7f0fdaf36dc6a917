//! Next hops of routes to other nodes' pods that do not answer: what is sent by them ends in the kernel's neighbour queue, which no
//! hook and no counter sees, while the tunnel goes on where the peer was heard last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use hauberk_core::api::{Problem, Severity};
use tokio::time::Instant;

use super::{Area, Reconciler, Stage};
use crate::apply::NextHop;
use crate::config::HostRouting;

/// So long it has to be silent: a peer that is started anew, or a cable that is put back, is no news.
const PATIENCE: Duration = Duration::from_secs(10);

/// Since when next hops have been silent, by device and address.
#[derive(Debug, Default)]
pub(super) struct Hops(BTreeMap<(u32, IpAddr), Instant>);

impl Hops {
    /// Takes in what is seen at one moment. Returns those that have been silent for long.
    fn take<'a>(&mut self, seen: &'a [NextHop], now: Instant) -> Vec<&'a NextHop> {
        let key = |hop: &NextHop| (hop.index, hop.address);
        // One without an entry has not answered: what was known of it stays.
        let silent: BTreeSet<_> = seen.iter().filter(|hop| hop.answers != Some(true)).map(key).collect();
        self.0.retain(|hop, _| silent.contains(hop));
        for hop in seen.iter().filter(|hop| hop.answers == Some(false)) {
            self.0.entry(key(hop)).or_insert(now);
        }
        let long = |hop: &&NextHop| self.0.get(&key(hop)).is_some_and(|since| now.duration_since(*since) >= PATIENCE);
        seen.iter().filter(long).collect()
    }
}

impl Reconciler {
    /// Tells of next hops that have been silent for long. Those under suspicion are asked for again, so that one that is back is
    /// seen without a packet for it.
    pub(super) async fn look_at_hops(&mut self) {
        let Stage::Running(kernel) = &self.stage else { return };
        let wanted = self.world.read().desired.routes.keys().copied().collect();
        let Ok(seen) = kernel.next_hops(&wanted).await else { return };
        let silent = self.hops.take(&seen, Instant::now());
        // From hook to hook, what is encrypted needs no route; through the stack all of it does.
        let (severity, lost) = match self.config.host_routing {
            HostRouting::Stack => (Severity::Critical, "packets to its pods are lost"),
            HostRouting::Bpf => (Severity::Warning, "packets that go to its pods in the clear are lost"),
        };
        let mut problems: BTreeMap<String, Problem> = BTreeMap::new();
        for hop in silent {
            for node in self.nodes_behind(hop) {
                let object = format!("node/{node}");
                let message = words(&node, hop, self.is_address_of(&node, hop.address), lost);
                problems
                    .entry(object.clone())
                    .and_modify(|problem| problem.message = format!("{}; {message}", problem.message))
                    .or_insert(Problem { severity, object, message });
            }
        }
        for (index, address) in self.hops.0.keys() {
            // It is asked again at the next look in any case.
            let _ = kernel.ask_for_neighbour(*index, *address).await;
        }
        self.tell(Area::Hops, problems);
    }

    fn nodes_behind(&self, hop: &NextHop) -> BTreeSet<String> {
        let world = self.world.read();
        let routes = hop.destinations.iter().filter_map(|destination| world.desired.routes.get(destination));
        let of = |via: IpAddr| world.name_of(&via.into()).unwrap_or_else(|| via.to_string());
        routes.map(|route| of(route.via)).collect()
    }

    fn is_address_of(&self, node: &str, address: IpAddr) -> bool {
        self.world.read().name_of(&address.into()).is_some_and(|name| name == node)
    }
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
        vec![NextHop { index: 2, address, device, destinations: BTreeSet::new(), answers }]
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
