//! Network devices: which lead to other nodes, and what a pod's host side needs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{Stream, StreamExt, TryStreamExt};
use hauberk_abi::address::{GATEWAY_V4, GATEWAY_V6};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::tc::TcHandle;
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, MulticastGroup, RouteMessageBuilder};

use super::{HostError, Netlink, is_errno, refused};
use crate::attachments::INTERFACE_PREFIX;
use crate::config::Automatic;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Largest packet, bytes of IP.
    pub mtu: u32,
    /// MAC address, where it is Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is the loopback device.
    pub loopback: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
                _ => {}
            }
        }
        link
    }
}

impl Netlink {
    /// Every device.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn links(&self) -> Result<Vec<Link>, HostError> {
        self.handle
            .link()
            .get()
            .execute()
            .map_ok(Link::from)
            .try_collect()
            .await
            .map_err(refused("list network devices"))
    }

    /// The device of this name, if there is one.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn link(&self, name: &str) -> Result<Option<Link>, HostError> {
        let request = self.handle.link().get().match_name(name);
        match request.execute().map_ok(Link::from).try_next().await {
            Ok(link) => Ok(link),
            Err(error) if is_errno(&error, Errno::ENODEV) => Ok(None),
            Err(error) => Err(refused(format!("look up device {name}"))(error)),
        }
    }

    /// The devices that lead to other nodes: those configured, or those that have one of the node's addresses or a default
    /// route.
    ///
    /// # Errors
    /// [`HostError::NoSuchUplink`], [`HostError::NoUplink`], [`HostError::Netlink`].
    pub async fn uplinks(
        &self,
        configured: &Automatic<Vec<String>>,
        node_addresses: &BTreeSet<IpAddr>,
        tunnel: &str,
    ) -> Result<Vec<Link>, HostError> {
        let links = self.links().await?;
        if let Automatic::Value(names) = configured {
            let find = |name: &String| {
                links.iter().find(|link| link.name == *name).cloned().ok_or_else(|| HostError::NoSuchUplink {
                    name: name.clone(),
                    present: links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", "),
                })
            };
            return names.iter().map(find).collect();
        }
        let mut indices = self.default_route_devices().await?;
        let own = self.addresses().await?;
        indices.extend(own.iter().filter(|(_, address)| node_addresses.contains(address)).map(|(index, _)| *index));
        let uplinks: Vec<Link> = links
            .into_iter()
            .filter(|link| indices.contains(&link.index) && !link.loopback)
            .filter(|link| link.name != tunnel && !link.name.starts_with(INTERFACE_PREFIX))
            .collect();
        if uplinks.is_empty() {
            let addresses: Vec<String> = node_addresses.iter().map(IpAddr::to_string).collect();
            let addresses = if addresses.is_empty() { "none are known".into() } else { addresses.join(", ") };
            return Err(HostError::NoUplink { addresses });
        }
        Ok(uplinks)
    }

    /// Every address of this host, with its device's index.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, HostError> {
        let request = self.handle.address().get();
        let messages: Vec<_> = request.execute().try_collect().await.map_err(refused("list addresses"))?;
        let address = |attributes: &[AddressAttribute]| {
            // On a point-to-point link IFA_ADDRESS is the other end's.
            let local =
                attributes.iter().find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
            local.or_else(|| {
                attributes.iter().find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
            })
        };
        Ok(messages.iter().filter_map(|m| Some((m.header.index, address(&m.attributes)?))).collect())
    }

    /// Tells of every change of a device or an address from now on; what exactly changed is to be looked at.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if there are no sockets left.
    pub fn watch() -> Result<impl Stream<Item = ()> + Send + Unpin, HostError> {
        let groups =
            [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv4Route];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|source| HostError::Netlink { action: "watch devices".into(), source })?;
        tokio::spawn(connection);
        Ok(messages.map(|_| ()))
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn set_up(&self, index: u32) -> Result<(), HostError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(refused(format!("bring device {index} up")))
    }

    /// Sets a device's MTU, bytes of IP.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), HostError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(refused(format!("set device {index}'s MTU to {mtu}")))
    }

    /// Removes a device, if it is there.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn remove_link(&self, index: u32) -> Result<(), HostError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_errno(&error, Errno::ENODEV) => Err(refused(format!("remove device {index}"))(error)),
            _ => Ok(()),
        }
    }

    /// Removes a device's clsact queueing discipline, unless it is not there or somebody has filters on it.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn remove_clsact(&self, index: u32) -> Result<(), HostError> {
        let index = index as i32;
        for ingress in [true, false] {
            let mut filters = self.handle.traffic_filter(index);
            let request = if ingress { filters.get().ingress() } else { filters.get().egress() };
            let filters: Vec<_> =
                request.execute().try_collect().await.map_err(refused(format!("list filters of device {index}")))?;
            if !filters.is_empty() {
                return Ok(());
            }
        }
        let mut request = self.handle.qdisc().del(index);
        request.message_mut().header.parent = TcHandle::CLSACT;
        match request.execute().await {
            Err(error) if !is_errno(&error, Errno::ENOENT) && !is_errno(&error, Errno::EINVAL) => {
                Err(refused(format!("remove the clsact queueing discipline of device {index}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Gives the host side of a pod's interface the gateway addresses of the wanted families: 169.254.1.1/32 and fe80::1/64.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn put_gateways(&self, index: u32, ipv4: bool, ipv6: bool) -> Result<(), HostError> {
        let gateways =
            [(ipv4, IpAddr::V4(Ipv4Addr::from(GATEWAY_V4)), 32), (ipv6, IpAddr::V6(Ipv6Addr::from(GATEWAY_V6)), 64)];
        for (_, address, length) in gateways.into_iter().filter(|(wanted, ..)| *wanted) {
            let mut request = self.handle.address().add(index, address, length).replace();
            let header = &mut request.message_mut().header;
            header.scope = AddressScope::Link;
            // Every pod's link has this address: there is no duplicate to detect, and no second to wait for it.
            header.flags |= AddressHeaderFlags::Nodad | AddressHeaderFlags::Permanent;
            request.execute().await.map_err(refused(format!("give device {index} the gateway address {address}")))?;
        }
        Ok(())
    }

    /// Makes a neighbour's MAC address known for good: neither asked for nor forgotten nor learnt.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn put_neighbour(&self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<(), HostError> {
        // The kernel takes an entry without a state for "permanent" only when it is said: the request's default is.
        let request = self.handle.neighbours().add(index, address).link_layer_address(&mac).replace();
        request.execute().await.map_err(refused(format!("add the neighbour {address} on device {index}")))
    }

    async fn default_route_devices(&self) -> Result<BTreeSet<u32>, HostError> {
        let mut devices = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new().build();
            message.header.address_family = family;
            let routes: Vec<_> =
                self.handle.route().get(message).execute().try_collect().await.map_err(refused("list routes"))?;
            for route in routes.iter().filter(|route| {
                // The IPv6 table has an all-covering multicast and "unreachable" route besides the real ones.
                route.header.destination_prefix_length == 0
                    && route.header.kind == netlink_packet_route::route::RouteType::Unicast
                    && route.header.table == netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN
            }) {
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Oif(index) => {
                            devices.insert(*index);
                        }
                        RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
                        _ => {}
                    }
                }
            }
        }
        Ok(devices)
    }
}
