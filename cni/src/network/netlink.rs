//! rtnetlink in one network namespace. Every error names the object and the namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{Stream, TryStreamExt};
use hauberk_api::MacAddress;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::error::CniError;
use crate::network::namespace::Namespace;
use crate::plan::PodRoute;

/// A network namespace's links, addresses, routes and neighbours.
pub(crate) struct Network {
    handle: rtnetlink::Handle,
    place: String,
}

/// A link's present state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mac: Option<MacAddress>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) veth: bool,
    pub(crate) alias: String,
    pub(crate) name: String,
    /// The index of a veth's other end, which may be in another namespace.
    pub(crate) peer: Option<u32>,
}

/// A veth pair to create.
pub(crate) struct Pair<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) host_mac: MacAddress,
    pub(crate) pod_name: &'a str,
    pub(crate) pod_mac: MacAddress,
    pub(crate) mtu: u32,
}

impl Network {
    /// Netlink in the node's namespace.
    pub(crate) fn of_node() -> Result<Network, CniError> {
        Network::new(rtnetlink::new_connection(), "the node's network namespace".to_string())
    }

    /// Netlink in a pod's namespace: a netlink socket stays in the namespace in which it was
    /// created.
    pub(crate) fn of_pod(namespace: &Namespace) -> Result<Network, CniError> {
        let runtime = tokio::runtime::Handle::current();
        let connection = namespace.inside(|| {
            let _entered = runtime.enter();
            rtnetlink::new_connection()
        });
        Network::new(connection, namespace.to_string())
    }

    fn new<C, M>(opened: io::Result<(C, rtnetlink::Handle, M)>, place: String) -> Result<Network, CniError>
    where
        C: Future<Output = ()> + Send + 'static,
    {
        match opened {
            Ok((connection, handle, _)) => {
                tokio::spawn(connection);
                Ok(Network { handle, place })
            }
            Err(source) => Err(CniError::Kernel { action: "open a netlink socket".to_string(), place, source }),
        }
    }

    /// Creates a veth pair: one end here, one in the pod's namespace under its final name, both
    /// down.
    pub(crate) async fn add_pair(&self, pair: &Pair<'_>, pod: &Namespace) -> Result<(), CniError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.pod_name)
            .address(pair.pod_mac.octets().to_vec())
            .mtu(pair.mtu)
            .setns_by_fd(pod.descriptor())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new(pair.host_name, pair.pod_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(pair.host_mac.octets().to_vec())
            .mtu(pair.mtu)
            .build();
        match self.handle.link().add(message).execute().await {
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Err(CniError::InterfaceExists {
                interface: format!("{} or {}", pair.host_name, pair.pod_name),
                place: format!("{} or {pod}", self.place),
            }),
            added => {
                self.told(added, || format!("make the veth pair {} and {} (in {pod})", pair.host_name, pair.pod_name))
            }
        }
    }

    /// The link of that name, if there is one.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, CniError> {
        match first(self.handle.link().get().match_name(name).execute()).await {
            Ok(message) => Ok(message.map(link)),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => self.told(Err(error), || format!("look up the interface {name}")),
        }
    }

    /// The link of that index, if there is one.
    pub(crate) async fn link_at(&self, index: u32) -> Result<Option<Link>, CniError> {
        match first(self.handle.link().get().match_index(index).execute()).await {
            Ok(message) => Ok(message.map(link)),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => self.told(Err(error), || format!("look up interface {index}")),
        }
    }

    /// Limits the MTU, in bytes, of the main table's routes that go over a link and have a gateway.
    /// Routes to the link itself keep its MTU. Returns how many were changed.
    pub(crate) async fn limit_route_mtu(&self, index: u32, mtu: u32) -> Result<usize, CniError> {
        let mut changed = 0;
        for all in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
            let messages = self.handle.route().get(all).execute().try_collect::<Vec<_>>().await;
            let messages = self.told(messages, || "list the routes".to_string())?;
            for message in messages {
                let Some(seen) = route(index, &message).filter(|route| route.gateway.is_some()) else { continue };
                if seen.mtu.is_some_and(|now| now <= mtu) {
                    continue;
                }
                let limited = self.handle.route().add(limited(message, mtu)).replace().execute().await;
                self.told(limited, || format!("limit the route to {} to {mtu} bytes", seen.destination))?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// The link of that name, which must exist.
    pub(crate) async fn existing_link(&self, name: &str) -> Result<Link, CniError> {
        self.link(name).await?.ok_or_else(|| CniError::Kernel {
            action: format!("find the interface {name}"),
            place: self.place.clone(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Marks a link with its owner.
    pub(crate) async fn set_alias(&self, index: u32, alias: &str) -> Result<(), CniError> {
        self.set(index, LinkMessageBuilder::<LinkUnspec>::new().alias(alias), || format!("set the alias {alias}")).await
    }

    /// Limits the size of GSO packets built for a link, in both families.
    pub(crate) async fn set_gso_max_size(&self, index: u32, bytes: u32) -> Result<(), CniError> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new()
            .append_extra_attribute(LinkAttribute::GsoMaxSize(bytes))
            // Kernels before 6.3 do not know this attribute, and use the other one for both
            // families.
            .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(bytes));
        self.set(index, builder, || format!("limit GSO packets to {bytes} bytes")).await
    }

    /// Sets a link up.
    pub(crate) async fn set_up(&self, index: u32) -> Result<(), CniError> {
        self.set(index, LinkMessageBuilder::<LinkUnspec>::new().up(), || "set it up".to_string()).await
    }

    async fn set(
        &self,
        index: u32,
        builder: LinkMessageBuilder<LinkUnspec>,
        action: impl Fn() -> String,
    ) -> Result<(), CniError> {
        let set = self.handle.link().set(builder.index(index).build()).execute().await;
        self.told(set, || format!("change interface {index}: {}", action()))
    }

    /// Removes a link, and with it the other end of its pair. No error if it is gone already.
    pub(crate) async fn remove_link(&self, index: u32) -> Result<(), CniError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(()),
            removed => self.told(removed, || format!("remove interface {index}")),
        }
    }

    /// Adds an address to a link. The address is unique, so IPv6 needs no duplicate address
    /// detection (`nodad`).
    pub(crate) async fn add_address(&self, index: u32, address: &IpNet) -> Result<(), CniError> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        self.told(request.execute().await, || format!("add the address {address} to interface {index}"))
    }

    /// The addresses of a link.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, CniError> {
        let messages = self.handle.address().get().set_link_index_filter(index).execute().try_collect::<Vec<_>>().await;
        let messages = self.told(messages, || format!("list the addresses of interface {index}"))?;
        let address = |attributes: &[AddressAttribute]| {
            attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        };
        let net = |address: Option<IpAddr>, length: u8| IpNet::new(address?, length).ok();
        Ok(messages.iter().filter_map(|m| net(address(&m.attributes), m.header.prefix_len)).collect())
    }

    /// Adds a route over a link.
    pub(crate) async fn add_route(&self, index: u32, route: &PodRoute) -> Result<(), CniError> {
        let added = self.handle.route().add(route_message(index, route)).execute().await;
        self.told(added, || format!("add the route to {}", route.destination))
    }

    /// The main table's routes over a link.
    pub(crate) async fn routes(&self, index: u32) -> Result<Vec<PodRoute>, CniError> {
        let mut routes = Vec::new();
        for all in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
            let messages = self.handle.route().get(all).execute().try_collect::<Vec<_>>().await;
            let messages = self.told(messages, || "list the routes".to_string())?;
            routes.extend(messages.iter().filter_map(|message| route(index, message)));
        }
        Ok(routes)
    }

    /// Adds a permanent neighbour entry to a link.
    pub(crate) async fn add_neighbour(&self, index: u32, address: IpAddr, mac: MacAddress) -> Result<(), CniError> {
        let request = self.handle.neighbours().add(index, address).state(NeighbourState::Permanent);
        let added = request.link_layer_address(&mac.octets()).replace().execute().await;
        self.told(added, || format!("add the neighbour {address} to interface {index}"))
    }

    /// A link's permanent neighbours.
    pub(crate) async fn permanent_neighbours(&self, index: u32) -> Result<Vec<(IpAddr, MacAddress)>, CniError> {
        let messages = self.handle.neighbours().get().execute().try_collect::<Vec<_>>().await;
        let messages = self.told(messages, || "list the neighbours".to_string())?;
        let permanent = messages
            .iter()
            .filter(|message| message.header.ifindex == index && message.header.state == NeighbourState::Permanent);
        Ok(permanent.filter_map(|message| neighbour(&message.attributes)).collect())
    }

    fn told<T>(&self, result: Result<T, rtnetlink::Error>, action: impl Fn() -> String) -> Result<T, CniError> {
        result.map_err(|error| CniError::Kernel {
            action: action(),
            place: self.place.clone(),
            source: match error {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other.to_string()),
            },
        })
    }
}

/// Reads the whole answer, so that nothing of it is left for the next request.
async fn first<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Option<T>, rtnetlink::Error> {
    Ok(stream.try_collect::<Vec<T>>().await?.into_iter().next())
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link =
        Link { index: message.header.index, up: message.header.flags.contains(LinkFlags::Up), ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => link.mac = mac_address(&bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::LinkInfo(infos) => link.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => {}
        }
    }
    link
}

/// None if it is not one of Ethernet's.
fn mac_address(bytes: &[u8]) -> Option<MacAddress> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddress::from)
}

fn route_message(index: u32, route: &PodRoute) -> RouteMessage {
    let (address, length) = (route.destination.addr(), route.destination.prefix_len());
    let mut message = match address {
        IpAddr::V4(address) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, length);
            // The kernel accepts a gateway outside every address' prefix only with the onlink flag,
            // and a route without a gateway only with link scope.
            let builder = if route.gateway.is_some() { builder.onlink() } else { builder.scope(RouteScope::Link) };
            builder.output_interface(index).build()
        }
        IpAddr::V6(address) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, length);
            builder.output_interface(index).build()
        }
    };
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    }
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}

/// The same route with this MTU, without attributes that the kernel reports but does not accept.
fn limited(mut message: RouteMessage, mtu: u32) -> RouteMessage {
    let mut metrics = Vec::new();
    message.attributes.retain_mut(|attribute| match attribute {
        RouteAttribute::Metrics(held) => {
            metrics = std::mem::take(held);
            false
        }
        RouteAttribute::CacheInfo(_) => false,
        _ => true,
    });
    metrics.retain(|metric| !matches!(metric, RouteMetric::Mtu(_)));
    metrics.push(RouteMetric::Mtu(mtu));
    message.attributes.push(RouteAttribute::Metrics(metrics));
    // The kernel reports flags such as "the link is up" but does not accept them; only onlink must
    // be set again.
    message.header.flags &= RouteFlags::Onlink;
    message
}

/// None if the route is not in the main table over this link, or is of a kind that the plugin never
/// makes.
fn route(index: u32, message: &RouteMessage) -> Option<PodRoute> {
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut destination, mut gateway, mut mtu, mut over) = (unspecified, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            RouteAttribute::Oif(interface) => over = Some(*interface),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    let ours = message.header.table == RouteHeader::RT_TABLE_MAIN && over == Some(index);
    ours.then_some(PodRoute { destination, gateway, mtu })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn neighbour(attributes: &[NeighbourAttribute]) -> Option<(IpAddr, MacAddress)> {
    let (mut address, mut mac) = (None, None);
    for attribute in attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_address(bytes),
            _ => {}
        }
    }
    Some((address?, mac?))
}
