//! Network devices, and the setup of the host side of a pod's interface. [`super::devices`] decides
//! which devices are guarded.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{Stream, StreamExt, TryStreamExt};
use hauberk_abi::address::{GATEWAY_V4, GATEWAY_V6};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, MulticastGroup};

use super::{HostError, Netlink, is_errno, refused};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// The text stored with it (`ip link set alias`).
    pub alias: String,
    /// Largest packet, bytes of IP.
    pub mtu: u32,
    /// MAC address, if it is an Ethernet device.
    pub mac: Option<[u8; 6]>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// What its packets begin with.
    pub header: Header,
    /// What kind of virtual device it is.
    pub kind: LinkKind,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Id of the XDP program on it, if there is one.
    pub xdp: Option<u32>,
    /// For a veth: the other end's index, and the id of the network namespace which that end is in.
    pub peer: Option<(u32, i32)>,
}

/// What a device's packets begin with (the kernel's `ARPHRD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    Ip,
    /// Something that no program here can read.
    Other,
}

/// The kinds of devices that hauberk treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// One end of a pair.
    Veth,
    /// A bridge.
    Bridge,
    /// Returns every packet to the device that it was taken from (`ifb`), to queue what arrives.
    Ifb,
    /// Puts Ethernet frames into UDP or GRE packets. Other nodes are behind it, but an uplink
    /// carries it.
    Overlay,
    /// Another virtual device.
    Virtual,
    /// The machine's own hardware, as far as the kernel says.
    Physical,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            alias: String::new(),
            mtu: 0,
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            header: header(message.header.link_layer_type),
            kind: LinkKind::Physical,
            controller: None,
            xdp: None,
            peer: None,
        };
        let (mut lower, mut namespace) = (None, None);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
                LinkAttribute::Link(index) => lower = Some(index),
                LinkAttribute::Controller(index) => link.controller = Some(index).filter(|index| *index != 0),
                LinkAttribute::Xdp(attributes) => {
                    link.xdp = attributes.iter().find_map(|one| match one {
                        LinkXdp::ProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::DrvProgId(id) => Some(*id),
                        _ => None,
                    });
                }
                LinkAttribute::LinkNetNsId(id) => namespace = Some(id),
                LinkAttribute::LinkInfo(infos) => link.kind = kind(&infos),
                _ => {}
            }
        }
        if link.kind == LinkKind::Veth {
            link.peer = lower.zip(namespace);
        }
        link
    }
}

fn kind(infos: &[LinkInfo]) -> LinkKind {
    let kind = infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
    match kind {
        Some(InfoKind::Veth) => LinkKind::Veth,
        Some(InfoKind::Bridge) => LinkKind::Bridge,
        Some(InfoKind::Ifb) => LinkKind::Ifb,
        Some(InfoKind::Vxlan | InfoKind::Geneve | InfoKind::GreTap | InfoKind::GreTap6) => LinkKind::Overlay,
        Some(_) => LinkKind::Virtual,
        None => LinkKind::Physical,
    }
}

fn header(layer: LinkLayerType) -> Header {
    match layer {
        // The loopback device has Ethernet headers too.
        LinkLayerType::Ether | LinkLayerType::Loopback => Header::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Ppp
        | LinkLayerType::Slip
        | LinkLayerType::Cslip
        | LinkLayerType::Rawip
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre => Header::Ip,
        _ => Header::Other,
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

    /// Every address of this host, with its device's index.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, HostError> {
        let request = self.handle.address().get();
        let messages: Vec<_> = request.execute().try_collect().await.map_err(refused("list addresses"))?;
        let address = |attributes: &[AddressAttribute]| {
            // On a point-to-point link IFA_ADDRESS is the peer's address.
            let local =
                attributes.iter().find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
            local.or_else(|| {
                attributes.iter().find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
            })
        };
        Ok(messages.iter().filter_map(|m| Some((m.header.index, address(&m.attributes)?))).collect())
    }

    /// Reports every change of a device, address or route from now on, without saying what changed.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if there are no sockets left.
    pub fn watch() -> Result<impl Stream<Item = ()> + Send + Unpin, HostError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
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

    /// Takes a device down.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn set_down(&self, index: u32) -> Result<(), HostError> {
        let message = LinkUnspec::new_with_index(index).down().build();
        self.handle.link().set(message).execute().await.map_err(refused(format!("take device {index} down")))
    }

    /// Renames a device. Before Linux 6.2 it must be down.
    ///
    /// # Errors
    /// [`HostError::Netlink`], for example when another device has the name.
    pub async fn set_name(&self, index: u32, name: &str) -> Result<(), HostError> {
        let message = LinkUnspec::new_with_index(index).name(name.to_owned()).build();
        self.handle.link().set(message).execute().await.map_err(refused(format!("rename device {index} to {name}")))
    }

    /// Sets a device's MTU, bytes of IP.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), HostError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(refused(format!("set device {index}'s MTU to {mtu}")))
    }

    /// Sets the device's MAC address.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), HostError> {
        let message = LinkUnspec::new_with_index(index).address(mac.to_vec()).build();
        self.handle.link().set(message).execute().await.map_err(refused(format!("set device {index}'s MAC address")))
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

    /// Gives the host side of a pod's interface the gateway addresses of the wanted families:
    /// 169.254.1.1/32 and fe80::1/64.
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
            // Every pod's link has this address, and has it once: duplicate detection would find
            // nothing and cost a second.
            header.flags |= AddressHeaderFlags::Nodad | AddressHeaderFlags::Permanent;
            request.execute().await.map_err(refused(format!("give device {index} the gateway address {address}")))?;
        }
        Ok(())
    }

    /// Makes a neighbour's MAC address permanent: the kernel neither asks for it, nor forgets it,
    /// nor learns another.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn put_neighbour(&self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<(), HostError> {
        // The kernel makes an entry permanent only when told to; permanent is the default of this
        // request.
        let request = self.handle.neighbours().add(index, address).link_layer_address(&mac).replace();
        request.execute().await.map_err(refused(format!("add the neighbour {address} on device {index}")))
    }

    /// The neighbours that the kernel knows, by device and address, and whether they answer.
    /// Neighbours that no packet has asked for are not in it.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn neighbours(&self) -> Result<BTreeMap<(u32, IpAddr), bool>, HostError> {
        let mut found = BTreeMap::new();
        let mut entries = std::pin::pin!(self.handle.neighbours().get().execute());
        while let Some(entry) = entries.try_next().await.map_err(refused("list neighbours"))? {
            let address = entry.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                _ => None,
            });
            let answers = match entry.header.state {
                NeighbourState::None => continue,
                state => !matches!(state, NeighbourState::Failed | NeighbourState::Incomplete),
            };
            if let Some(address) = address {
                found.insert((entry.header.ifindex, address), answers);
            }
        }
        Ok(found)
    }

    /// Makes the kernel resolve a neighbour's MAC address, as if there were a packet for it
    /// (`NTF_USE`).
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn ask_for_neighbour(&self, index: u32, address: IpAddr) -> Result<(), HostError> {
        let request = self.handle.neighbours().add(index, address).state(NeighbourState::None);
        let request = request.flags(NeighbourFlags::Use).replace();
        request.execute().await.map_err(refused(format!("ask for the neighbour {address} on device {index}")))
    }

    /// The other end of a pod's pair, seen from this end: this needs no access to the pod's
    /// namespace. None if it is gone.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub async fn peer(&self, link: &Link) -> Result<Option<Link>, HostError> {
        let Some((index, namespace)) = link.peer else { return Ok(None) };
        // Asks for one device: in a list of all, the first answer would be another device's.
        let mut request = self.handle.link().get().match_index(index);
        request.message_mut().attributes.push(LinkAttribute::IfNetnsId(namespace));
        match request.execute().map_ok(Link::from).try_next().await {
            Ok(peer) => Ok(peer.filter(|peer| peer.index == index)),
            Err(error) if is_errno(&error, Errno::ENODEV) || is_errno(&error, Errno::EINVAL) => Ok(None),
            Err(error) => Err(refused(format!("look up the other end of {}", link.name))(error)),
        }
    }
}
