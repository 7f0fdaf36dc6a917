//! Routes to pods: to this node's pods by their interface, to other nodes' pods by the node.
//!
//! Every route carries [`ROUTE_PROTOCOL`] and [`ROUTE_PRIORITY`]. The priority makes it distinct
//! from another program's route to the same destination: replacing hauberk's never touches the
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteVia,
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::{HostError, Netlink, is_errno, refused};

/// `rtm_protocol` of every route that hauberk makes (rtnetlink(7)): a number that
/// `/etc/iproute2/rt_protos` does not assign.
pub const ROUTE_PROTOCOL: u8 = 0x48;
/// Metric of every route that hauberk makes.
const ROUTE_PRIORITY: u32 = 0x48;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination.
    pub destination: IpNet,
    /// The device or node it leads by.
    pub via: Via,
    /// The source address of packets that the host itself sends; must be an address of the host.
    pub source: Option<IpAddr>,
    /// Route MTU, bytes of IP; none for the device's MTU.
    pub mtu: Option<u32>,
}

/// What a route leads by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// The destination is on this device's link.
    Device(u32),
    /// Packets take the same way as packets to this address of another node.
    Node(IpAddr),
}

/// The device and next hop of a route. Without a next hop, the destination is on the device's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The device's index.
    pub device: u32,
    /// The next hop; its family may differ from the destination's.
    pub gateway: Option<IpAddr>,
}

impl Netlink {
    /// Adds a route, or replaces hauberk's route to the same destination. A source that the host
    /// does not have (yet) is left out. A next hop that no route of the host leads to is taken to
    /// be on the device's link, as in the route to the node.
    ///
    /// # Errors
    /// [`HostError::Netlink`], also if there is no route to the node it leads by.
    pub async fn put_route(&self, route: &Route) -> Result<(), HostError> {
        let hop = match route.via {
            Via::Device(device) => Hop { device, gateway: None },
            Via::Node(node) => self.way_to(node).await?,
        };
        let sources = if route.source.is_some() { vec![route.source, None] } else { vec![None] };
        let mut first = None;
        for source in sources {
            for on_link in [false, true] {
                if on_link && hop.gateway.is_none() {
                    continue;
                }
                match self.try_route(route, source, hop, on_link).await {
                    Ok(()) => return Ok(()),
                    Err(error) => first = first.or(Some(error)),
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    async fn try_route(&self, route: &Route, source: Option<IpAddr>, hop: Hop, on_link: bool) -> Result<(), HostError> {
        let destination = route.destination.trunc();
        let scope = if hop.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        let mut builder = builder(&destination).output_interface(hop.device).scope(scope);
        let message = builder.get_mut();
        if let Some(gateway) = hop.gateway {
            message.attributes.push(match (gateway, destination.addr()) {
                // RFC 8950: an IPv4 route by a router with an IPv6 address.
                (IpAddr::V6(v6), IpAddr::V4(_)) => RouteAttribute::Via(RouteVia::Inet6(v6)),
                _ => RouteAttribute::Gateway(to_attribute(gateway)),
            });
        }
        if on_link {
            message.header.flags |= RouteFlags::Onlink;
        }
        if let Some(source) = source {
            message.attributes.push(RouteAttribute::PrefSource(to_attribute(source)));
        }
        if let Some(mtu) = route.mtu {
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        let request = self.handle.route().add(builder.build()).replace();
        request.execute().await.map_err(refused(format!("route {destination}")))
    }

    /// Removes hauberk's route to a destination, if there is one.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn remove_route(&self, destination: &IpNet) -> Result<(), HostError> {
        let destination = destination.trunc();
        let message = builder(&destination).scope(RouteScope::NoWhere).build();
        match self.handle.route().del(message).execute().await {
            Err(error) if !is_errno(&error, Errno::ESRCH) && !is_errno(&error, Errno::ENODEV) => {
                Err(refused(format!("remove the route to {destination}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Every route of hauberk's: its hop and its source.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn own_routes(&self) -> Result<BTreeMap<IpNet, (Hop, Option<IpAddr>)>, HostError> {
        let mut found = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new().build();
            message.header.address_family = family;
            let mut routes = std::pin::pin!(self.handle.route().get(message).execute());
            while let Some(route) = routes.try_next().await.map_err(refused("list routes"))? {
                if route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
                    && let (Some(destination), Some(hop)) = (destination(&route), hop(&route))
                {
                    found.insert(destination, (hop, source(&route)));
                }
            }
        }
        Ok(found)
    }

    /// Removes every route of hauberk's.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn remove_own_routes(&self) -> Result<(), HostError> {
        for destination in self.own_routes().await?.into_keys().collect::<BTreeSet<_>>() {
            self.remove_route(&destination).await?;
        }
        Ok(())
    }

    /// The device and next hop of packets to `node`: the node itself if it is on a link, else the
    /// router on the way.
    ///
    /// # Errors
    /// [`HostError::Netlink`], also if there is no route.
    pub async fn way_to(&self, node: IpAddr) -> Result<Hop, HostError> {
        let action = format!("find a way to node address {node}");
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(node, if node.is_ipv4() { 32 } else { 128 })
            .map_err(|error| HostError::Netlink { action: action.clone(), source: std::io::Error::other(error) })?
            .build();
        let mut answers = std::pin::pin!(self.handle.route().get(message).execute());
        let answer = answers.try_next().await.map_err(refused(action.clone()))?;
        match answer.as_ref().and_then(hop) {
            Some(Hop { device, gateway }) => Ok(Hop { device, gateway: Some(gateway.unwrap_or(node)) }),
            None => Err(HostError::Netlink { action, source: Errno::ENETUNREACH.into() }),
        }
    }
}

fn hop(route: &RouteMessage) -> Option<Hop> {
    let (mut device, mut gateway) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => {
                gateway = Some(IpAddr::V4(*v4));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
                gateway = Some(IpAddr::V6(*v6));
            }
            _ => {}
        }
    }
    Some(Hop { device: device?, gateway })
}

fn source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

fn builder(destination: &IpNet) -> RouteMessageBuilder<IpAddr> {
    let mut builder =
        RouteMessageBuilder::<IpAddr>::new().protocol(RouteProtocol::Other(ROUTE_PROTOCOL)).priority(ROUTE_PRIORITY);
    // Set by hand: the builder's own method can fail, for prefix lengths that an `IpNet` cannot
    // have.
    let message = builder.get_mut();
    message.header.address_family =
        if destination.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = destination.prefix_len();
    message.attributes.push(RouteAttribute::Destination(to_attribute(destination.addr())));
    builder
}

fn to_attribute(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

pub(super) fn destination(route: &RouteMessage) -> Option<IpNet> {
    route.attributes.iter().find_map(|attribute| {
        let address: IpAddr = match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => (*v6).into(),
            _ => return None,
        };
        IpNet::new(address, route.header.destination_prefix_length).ok()
    })
}
