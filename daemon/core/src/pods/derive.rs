//! The pods' interfaces on this node, as the datapath should have them.

use std::net::IpAddr;

use hauberk_api::MacAddress;

use crate::attachment::{Attachment, VethPair};
use crate::events::{Collector, reason};
use crate::identities::addresses::Places;
use crate::identities::claims::{self, Party};
use crate::local_node::LocalNode;
use crate::model::Model;
use crate::names::AttachmentKey;
use crate::pods::LocalPod;
use crate::reserved;

/// The interface, if its veth exists. A reserved one has addresses, but no device to attach to yet.
pub(crate) fn local_pod(
    model: &Model,
    local: &LocalNode,
    places: &Places,
    key: &AttachmentKey,
    attachment: &Attachment,
) -> Option<LocalPod> {
    let pair = attachment.pair?;
    let (host_mac, pod_mac) = devices(&pair)?;
    let mut protection = claims::protection_of(model, local, attachment);
    let mut addresses: Vec<IpAddr> = Vec::new();
    // A refused address claims nothing, and another pod may have the address it maps to:
    // `::ffff:10.0.1.1`.
    let possible = |address: &IpAddr| reserved::address(*address).is_none();
    for address in attachment.addresses.iter().copied().filter(possible) {
        let party = claims::decide(model, local, places, address.into(), &mut Collector::counting());
        let Party::Pod(claim) = party else { continue };
        protection = protection.max(claim.protection);
        // An address that two interfaces have is entered once, because the map has one entry for
        // it.
        if claim.attachment == Some(key) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Some(LocalPod {
        container: key.container.clone(),
        interface: key.interface.clone(),
        host_interface: attachment.host_interface.clone(),
        host_index: pair.host_index,
        host_mac,
        pod_mac,
        addresses,
        protection,
        adopted: attachment.adopted,
    })
}

/// Adds the events about an interface on this node.
pub(crate) fn tell(
    model: &Model,
    local: &LocalNode,
    key: &AttachmentKey,
    attachment: &Attachment,
    events: &mut Collector,
) {
    claims::tell_attachment(model, local, key, attachment, events);
    let Some(pair) = attachment.pair.filter(|pair| devices(pair).is_none()) else { return };
    events.warn(reason::ATTACHMENT_INVALID, [format!("Attachment/{key}")], || {
        format!(
            "interface {key} cannot be attached: host side index {}, MAC addresses \"{}\" and \"{}\" are not all those of an \
             Ethernet device; the CNI plugin and the agent may be of different versions",
            pair.host_index, pair.host_mac, pair.pod_mac
        )
    });
}

/// The MAC addresses of the host's and the pod's side, if both sides can be devices.
fn devices(pair: &VethPair) -> Option<([u8; 6], [u8; 6])> {
    match (of_device(pair.host_mac), of_device(pair.pod_mac), pair.host_index) {
        (Some(host), Some(pod), 1..) => Some((host, pod)),
        _ => None,
    }
}

/// The bytes, if a device can have the address: not all zero and not multicast.
fn of_device(mac: MacAddress) -> Option<[u8; 6]> {
    let octets = mac.octets();
    (octets != [0; 6] && octets[0] & 1 == 0).then_some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_devices_mac_address_is_one() {
        let mac = |text: &str| text.parse().ok().and_then(of_device);
        assert_eq!(mac("02:00:5e:10:00:fF"), Some([2, 0, 0x5e, 0x10, 0, 0xff]));
        for text in ["", "02:00:5e:10:00", "02:00:5e:10:00:01:02", "2:0:5e:10:0:1", "+2:00:5e:10:00:01"] {
            assert_eq!(mac(text), None, "{text}");
        }
        assert_eq!(mac("00:00:00:00:00:00"), None);
        assert_eq!(mac("01:00:5e:00:00:01"), None, "a group's");
    }
}
