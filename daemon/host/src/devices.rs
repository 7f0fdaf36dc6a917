//! The role of each network device. Every device is either guarded or shut: a device that is not
//! known to be harmless counts as one that leads to other nodes, whether or not the configuration
//! names it.
//!
//! *Uplinks* are the guarded devices that are known to lead to other nodes and the world. The
//! tunnel's MTU follows theirs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use hauberk_abi::framing::Framing;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteType};
use rtnetlink::RouteMessageBuilder;

use super::link::Header;
use super::{HostError, Link, LinkKind, Netlink, refused};

/// Prefix of every host-side interface's name.
pub const INTERFACE_PREFIX: &str = "hbk";

/// The role of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its packets never leave the node, or the guard on another device sees them: loopback, the
    /// tunnel, bridges, `ifb`.
    Harmless,
    /// A pod's interface, which has programs of its own.
    Pod,
    /// Other nodes may be behind it: it gets the guard.
    Wire(Framing),
    /// Other nodes may be behind it, but no program here can read its packets: no pod's packet may
    /// leave by it.
    Shut,
}

/// What to know of another CNI plugin's network to find the devices by which it reaches other
/// nodes.
#[derive(Clone, Copy, Debug)]
pub struct Chained<'a> {
    /// The ranges of pod addresses in the whole cluster.
    pub cluster_ranges: &'a [IpNet],
    /// The ranges of this node's pods.
    pub own_ranges: &'a [IpNet],
}

impl Link {
    /// The device's role. `pods` has the indices of pods' interfaces; `tunnel` is the name of
    /// hauberk's own device.
    pub fn role(&self, tunnel: &str, pods: &BTreeSet<u32>) -> Role {
        if pods.contains(&self.index) {
            return Role::Pod;
        }
        // A pair that the CNI plugin has just made: it carries nothing until it is attached and
        // brought up.
        if self.kind == LinkKind::Veth && self.name.starts_with(INTERFACE_PREFIX) && !self.up {
            return Role::Pod;
        }
        if self.loopback || self.name == tunnel || matches!(self.kind, LinkKind::Bridge | LinkKind::Ifb) {
            return Role::Harmless;
        }
        match self.header {
            Header::Ethernet => Role::Wire(Framing::Ethernet),
            Header::Ip => Role::Wire(Framing::Ip),
            Header::Other => Role::Shut,
        }
    }
}

impl Netlink {
    /// Which of `links` are uplinks: the configured ones, or else those that have one of the node's
    /// addresses or a default route. Beside another CNI plugin these also are every overlay and
    /// every device with a route to pods elsewhere. The second list has the configured names that
    /// do not exist.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn uplinks(
        &self,
        links: &[Link],
        configured: Option<&[String]>,
        node_addresses: &BTreeSet<IpAddr>,
        tunnel: &str,
        chained: Option<Chained<'_>>,
    ) -> Result<(Vec<Link>, Vec<String>), HostError> {
        if let Some(names) = configured {
            let find = |name: &String| links.iter().find(|link| link.name == *name).cloned();
            let missing = names.iter().filter(|name| find(name).is_none()).cloned().collect();
            return Ok((names.iter().filter_map(find).collect(), missing));
        }
        let routes = self.device_routes().await?;
        let is_default = |route: &&DeviceRoute| route.destination.is_none_or(|range| range.prefix_len() == 0);
        let mut indices: BTreeSet<u32> = routes.iter().filter(is_default).map(|route| route.device).collect();
        let own = self.addresses().await?;
        indices.extend(own.iter().filter(|(_, address)| node_addresses.contains(address)).map(|(index, _)| *index));
        if let Some(chained) = chained {
            let leads_away = |link: &&Link| {
                let mut its = routes.iter().filter(|route| route.device == link.index);
                link.kind == LinkKind::Overlay
                    || (link.kind != LinkKind::Bridge && its.any(|route| chained.leads_away(route)))
            };
            indices.extend(links.iter().filter(leads_away).map(|link| link.index));
        }
        let uplinks = links
            .iter()
            .filter(|link| indices.contains(&link.index) && !link.loopback)
            .filter(|link| link.name != tunnel && !link.name.starts_with(INTERFACE_PREFIX))
            .cloned()
            .collect();
        Ok((uplinks, Vec::new()))
    }

    /// The main table's unicast routes.
    async fn device_routes(&self) -> Result<Vec<DeviceRoute>, HostError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new().build();
            message.header.address_family = family;
            let routes: Vec<_> =
                self.handle.route().get(message).execute().try_collect().await.map_err(refused("list routes"))?;
            for route in routes.iter().filter(|route| {
                // The IPv6 table also has multicast and "unreachable" routes that cover everything.
                route.header.kind == RouteType::Unicast && route.header.table == RouteHeader::RT_TABLE_MAIN
            }) {
                let destination = super::route::destination(route);
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Oif(device) => found.push(DeviceRoute { device: *device, destination }),
                        RouteAttribute::MultiPath(hops) => found
                            .extend(hops.iter().map(|hop| DeviceRoute { device: hop.interface_index, destination })),
                        _ => {}
                    }
                }
            }
        }
        Ok(found)
    }
}

/// A route and its device. Without a destination it is a default route.
struct DeviceRoute {
    device: u32,
    destination: Option<IpNet>,
}

impl Chained<'_> {
    /// Whether the route leads to pods of other nodes.
    fn leads_away(&self, route: &DeviceRoute) -> bool {
        let Some(destination) = route.destination else { return false };
        let covers = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&destination));
        // A route to a single address leads to a pod of this node, by the pod's own pair.
        destination.prefix_len() < destination.max_prefix_len()
            && covers(self.cluster_ranges)
            && !covers(self.own_ranges)
    }
}
