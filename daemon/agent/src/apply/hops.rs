//! The neighbours that routes to other nodes' pods lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_fault as fault;
use ipnet::IpNet;

use super::{ApplyError, Kernel};

/// The neighbour that routes to other nodes' pods lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The device's index.
    pub index: u32,
    /// The neighbour's address on that device's link.
    pub address: IpAddr,
    /// The device's name.
    pub device: String,
    /// The pod ranges and addresses behind it.
    pub destinations: BTreeSet<IpNet>,
    /// Node addresses behind it that routes have left for other addresses of the same nodes.
    pub left: BTreeSet<IpAddr>,
    /// Whether it answers requests for its MAC address; none if there was no request.
    pub answers: Option<bool>,
}

impl Kernel {
    /// The next hops of hauberk's routes to the `wanted` destinations, and on the way to the
    /// addresses that routes have `left`, each with its state in the kernel's neighbour table.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn next_hops(
        &self,
        wanted: &BTreeSet<IpNet>,
        left: &BTreeSet<IpAddr>,
    ) -> Result<Vec<NextHop>, ApplyError> {
        let mut hops: BTreeMap<(u32, IpAddr), (BTreeSet<IpNet>, BTreeSet<IpAddr>)> = BTreeMap::new();
        for (destination, (hop, _)) in self.netlink.own_routes().await? {
            if let (Some(gateway), true) = (hop.gateway, wanted.contains(&destination)) {
                hops.entry((hop.device, gateway)).or_default().0.insert(destination);
            }
        }
        for address in left {
            // Without a route nothing answers there: no device has the number 0.
            let way = self.netlink.way_to(*address).await.ok();
            let key = way.and_then(|hop| Some((hop.device, hop.gateway?))).unwrap_or((0, *address));
            hops.entry(key).or_default().1.insert(*address);
        }
        // The neighbour table may be large, so it is not read without need.
        if hops.is_empty() {
            return Ok(Vec::new());
        }
        let (answers, links) = (self.netlink.neighbours().await?, self.netlink.links().await?);
        let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        Ok(hops
            .into_iter()
            .map(|((index, address), (destinations, left))| NextHop {
                index,
                address,
                device: name(index).unwrap_or_else(|| "any device".into()),
                destinations,
                left,
                answers: answers.get(&(index, address)).copied(),
            })
            .collect())
    }

    /// Makes the kernel resolve a neighbour's MAC address, as if there were a packet for it.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn ask_for_neighbour(&self, index: u32, address: IpAddr) -> Result<(), ApplyError> {
        fault::point("ask for a neighbour");
        Ok(self.netlink.ask_for_neighbour(index, address).await?)
    }
}
