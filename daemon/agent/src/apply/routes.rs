//! Reads hauberk's routes back: some disappear with an address or a link, and another program may
//! flush them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_core::names::AttachmentKey;
use hauberk_core::tunnels::Route;
use hauberk_host::Hop;
use ipnet::IpNet;

use super::{ApplyError, Kernel};

/// What the routing table lacks or has wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Routes to other nodes' pods.
    pub routes: Vec<IpNet>,
    /// Pods of this node that lack one of their routes.
    pub pods: Vec<AttachmentKey>,
}

impl Kernel {
    /// Compares the routing table with `wanted` and with this node's pods. With `ways`, next hops
    /// are compared too: the next hop to a node changes with its route or its device.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn lost_routes(&self, wanted: &BTreeMap<IpNet, Route>, ways: bool) -> Result<Lost, ApplyError> {
        let held = self.netlink.own_routes().await?;
        let own: BTreeSet<IpAddr> = self.netlink.addresses().await?.into_iter().map(|(_, address)| address).collect();
        // A route cannot have a source that no device has.
        let is_right_source = |destination, held| {
            let wanted = self.source_for(destination).filter(|source| own.contains(source));
            wanted.is_none() || wanted == held
        };
        let mut lost = Lost::default();
        let mut ways_to: BTreeMap<IpAddr, Option<Hop>> = BTreeMap::new();
        for route in wanted.values() {
            let way = match held.get(&route.destination) {
                None => {
                    lost.routes.push(route.destination);
                    continue;
                }
                Some(way) => way,
            };
            let is_same_source = is_right_source(route.destination.addr(), way.1);
            let is_same_way = if ways {
                let to = match ways_to.entry(route.via) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(unknown) => *unknown.insert(self.netlink.way_to(route.via).await.ok()),
                };
                to.is_none_or(|to| to == way.0)
            } else {
                true
            };
            if !is_same_source || !is_same_way {
                lost.routes.push(route.destination);
            }
        }
        for (index, pod) in self.pods.iter().filter(|(_, pod)| !pod.adopted) {
            let is_right = |address: &IpAddr| {
                let way = held.get(&IpNet::from(*address)).filter(|(hop, _)| hop.device == *index);
                way.is_some_and(|(_, source)| is_right_source(*address, *source))
            };
            if !pod.addresses.iter().all(is_right) {
                lost.pods.push(pod.key());
            }
        }
        Ok(lost)
    }
}
