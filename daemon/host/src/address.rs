//! The addresses of this node's devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt;
use hauberk_core::annotations::addresses::is_possible;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use super::{HostError, Netlink, refused};

/// Devices that have service addresses, the same on every node: kube-proxy's in IPVS mode and the
/// node-local DNS cache's. Packets to these addresses are translated; none leaves the node with
/// them.
const SERVICES: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

impl Netlink {
    /// Every address by which another machine may know this node: those of all devices, including
    /// anycast addresses on loopback.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn own_addresses(&self) -> Result<BTreeSet<IpAddr>, HostError> {
        let names: BTreeMap<u32, String> =
            self.links().await?.into_iter().map(|link| (link.index, link.name)).collect();
        let request = self.handle.address().get();
        let messages: Vec<_> = request.execute().try_collect().await.map_err(refused("list addresses"))?;
        let is_service = |message: &&AddressMessage| {
            names.get(&message.header.index).is_some_and(|name| SERVICES.contains(&name.as_str()))
        };
        let addresses = messages.iter().filter(|message| !is_service(message)).filter_map(address);
        Ok(addresses.filter(|address| is_possible(*address)).collect())
    }
}

/// On a point-to-point link IFA_ADDRESS is the peer's address and IFA_LOCAL this end's.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let local =
        message.attributes.iter().find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
    local.or_else(|| {
        message.attributes.iter().find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
    })
}
