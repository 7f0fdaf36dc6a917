//! The pods' interfaces on this node, as the datapath is to have them.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::api::Attachment;
use crate::desired::claims::Parties;
use crate::desired::{LocalPod, Policy};
use crate::events::{Collector, reason};
use crate::model::{AttachmentKey, Model, PodName};
use crate::protection;

/// Every interface whose veth exists. One that is only reserved has addresses, but nothing to attach to yet.
pub(super) fn local_pods(
    model: &Model,
    policy: &Policy,
    parties: &Parties<'_>,
    events: &mut Collector,
) -> BTreeMap<AttachmentKey, LocalPod> {
    let mut pods = BTreeMap::new();
    for (key, attachment) in model.attachments() {
        let Some(attach) = &attachment.attach else { continue };
        let (Some(host_mac), Some(pod_mac), 1..) = (mac(&attach.host_mac), mac(&attach.pod_mac), attach.host_index)
        else {
            events.warn(reason::ATTACHMENT_INVALID, [format!("Attachment/{key}")], || {
                format!(
                    "interface {key} cannot be attached: host side index {}, MAC addresses {:?} and {:?} are not all \
                     those of an Ethernet device; the CNI plugin and the agent may be of different versions",
                    attach.host_index, attach.host_mac, attach.pod_mac
                )
            });
            continue;
        };
        let mut protection = ruling(model, policy, attachment);
        let mut addresses = Vec::new();
        for address in attachment.reservation.addresses.iter().map(IpNet::addr) {
            let Some(claim) = parties.pod(address) else { continue };
            protection = protection.max(claim.protection);
            // An address that two interfaces have is entered once: the map has one entry.
            if claim.attachment == Some(key) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let pod = LocalPod {
            container: key.container.clone(),
            interface: key.interface.clone(),
            host_interface: attachment.reservation.host_interface.clone(),
            host_index: attach.host_index,
            host_mac,
            pod_mac,
            addresses,
            protection,
        };
        pods.insert(key.clone(), pod);
    }
    pods
}

fn ruling(model: &Model, policy: &Policy, attachment: &Attachment) -> protection::Protection {
    let pod = attachment.request.pod.as_ref().map(|pod| (PodName::from(pod), pod.uid.as_deref()));
    protection::of_attached(model, policy, pod.as_ref().map(|(name, uid)| (name, *uid))).protection
}

/// A device's MAC address, `aa:bb:cc:dd:ee:ff`: not all zero and not a group's.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let usable = parts.next().is_none() && bytes != [0; 6] && bytes[0] & 1 == 0;
    usable.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::mac;

    #[test]
    fn only_a_devices_mac_address_is_one() {
        assert_eq!(mac("02:00:5e:10:00:fF"), Some([2, 0, 0x5e, 0x10, 0, 0xff]));
        for text in ["", "02:00:5e:10:00", "02:00:5e:10:00:01:02", "2:0:5e:10:0:1", "+2:00:5e:10:00:01"] {
            assert_eq!(mac(text), None, "{text}");
        }
        assert_eq!(mac("00:00:00:00:00:00"), None);
        assert_eq!(mac("01:00:5e:00:00:01"), None, "a group's");
    }
}
