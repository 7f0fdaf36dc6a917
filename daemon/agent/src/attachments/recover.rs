//! Recovers the records of pods' interfaces that still exist in the kernel. Without this, an agent
//! that lost `paths.state` would know nothing of the running pods.
//!
//! The programs' maps have the addresses and MAC addresses. hauberk-cni stored the container with
//! the host side of each pair (its alias), so that the runtime's DEL finds it. The pod's name is in
//! neither: it is the pod that has the addresses.

use hauberk_api::{Attach, Attachment, Reservation, Reserve};
use hauberk_host::INTERFACE_PREFIX;
use ipnet::IpNet;

use super::keeper::gateway;
use super::{AttachmentError, Keeper, Records, Settings, check_names, domain};
use crate::apply::Held;

/// The prefix of hauberk-cni's alias; `container/interface` follows.
const ALIAS_PREFIX: &str = "hauberk:";

impl Keeper {
    /// Keeps every interface of `held` that hauberk-cni made, that has no record, and whose
    /// container is known. `given` has the settings that pods got last, as far as they are known:
    /// the pods' actual values are not read back. Returns the new records.
    ///
    /// # Errors
    /// [`AttachmentError::Store`]; the interfaces before it are on record.
    pub fn recover(&mut self, held: &[Held], given: &Settings) -> Result<Vec<Attachment>, AttachmentError> {
        let mut recovered = Vec::new();
        for held in held {
            let Some(attachment) = attachment(held, given) else { continue };
            if self.records().contradicts(&attachment) {
                continue;
            }
            self.replace(&attachment)?;
            self.records().taken.extend(held.addresses.iter().copied());
            recovered.push(attachment);
        }
        Ok(recovered)
    }
}

impl Records {
    /// Whether the container, the interface or an address is on record already.
    fn contradicts(&self, new: &Attachment) -> bool {
        let index = |attachment: &Attachment| attachment.attach.as_ref().map(|attach| attach.host_index);
        let key = domain::key(new);
        let name = &new.reservation.host_interface;
        let has = |entry: &Attachment| entry.reservation.host_interface == *name || index(entry) == index(new);
        self.entries.contains_key(&key)
            || self.entries.values().any(has)
            || new.reservation.addresses.iter().any(|address| self.taken.contains(&address.addr()))
    }
}

fn attachment(held: &Held, given: &Settings) -> Option<Attachment> {
    let link = &held.link;
    let (container, interface) = link.alias.strip_prefix(ALIAS_PREFIX)?.split_once('/')?;
    let request = Reserve { container: container.into(), interface: interface.into(), pod: None, netns: String::new() };
    if !link.name.starts_with(INTERFACE_PREFIX) || held.addresses.is_empty() || check_names(&request).is_err() {
        return None;
    }
    let reservation = Reservation {
        addresses: held.addresses.iter().copied().map(IpNet::from).collect(),
        gateways: held.addresses.iter().copied().map(gateway).collect(),
        route_mtu: given.route_mtu,
        device_mtu: link.mtu,
        host_interface: link.name.clone(),
        cluster_ranges: given.cluster_ranges.clone(),
        gso_max_size: given.gso_max_size,
    };
    let attach = Attach { host_index: link.index, host_mac: held.host_mac.into(), pod_mac: held.pod_mac.into() };
    Some(Attachment { request, reservation, attach: Some(attach), adopted: false, recovered: true })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use hauberk_host::{Header, Link, LinkKind};

    use super::*;
    use crate::attachments::tests::{open, request, settings};

    /// What the kernel has of a pod with this reservation.
    fn held(container: &str, index: u32, reservation: &Reservation) -> Held {
        let link = Link {
            index,
            name: reservation.host_interface.clone(),
            alias: format!("hauberk:{container}/eth0"),
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 1]),
            up: true,
            loopback: false,
            header: Header::Ethernet,
            kind: LinkKind::Veth,
            controller: None,
            xdp: None,
            peer: Some((2, 0)),
        };
        let addresses = reservation.addresses.iter().map(IpNet::addr).collect();
        Held { link, host_mac: [2, 0, 0, 0, 0, 1], pod_mac: [2, 0, 0, 0, 0, 2], addresses }
    }

    #[test]
    fn an_interface_on_no_record_is_what_it_was() {
        let lost = tempfile::tempdir().unwrap();
        let mut before = open(&lost);
        let given = before.reserve(&request("a"), |_| false).unwrap();
        let held = held("a", 7, &given);
        let attach = Attach { host_index: 7, host_mac: [2, 0, 0, 0, 0, 1].into(), pod_mac: [2, 0, 0, 0, 0, 2].into() };
        let expected = Attachment { recovered: true, ..before.attach("a", "eth0", attach).unwrap() };

        let folder = tempfile::tempdir().unwrap();
        let mut after = open(&folder);
        let recovered = after.recover(std::slice::from_ref(&held), &settings()).unwrap();
        let netns = expected.request.netns.clone();
        let request_of = |found: &Attachment| Reserve { netns: netns.clone(), ..found.request.clone() };
        assert_eq!(recovered.len(), 1);
        assert_eq!(Attachment { request: request_of(&recovered[0]), ..recovered[0].clone() }, expected);
        assert!(after.recover(std::slice::from_ref(&held), &settings()).unwrap().is_empty(), "once");
        // All works as if the record was never lost: ADD again, another pod's ADD, the next start,
        // DEL.
        assert_eq!(after.reserve(&request("a"), |_| false).unwrap(), given);
        let other = after.reserve(&request("b"), |_| false).unwrap();
        assert!(given.addresses.iter().all(|address| !other.addresses.contains(address)), "{other:?}");
        let mut again = open(&folder);
        assert!(again.recover(&[held], &settings()).unwrap().is_empty());
        assert_eq!(again.find("a", "eth0").as_ref(), recovered.first());
        assert!(again.release("a", "eth0").unwrap().is_some());
        assert!(!again.list().iter().any(|left| left.reservation.addresses == given.addresses));
    }

    #[test]
    fn what_cannot_be_told_or_contradicts_the_records_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = open(&folder);
        let known = keeper.reserve(&request("known"), |_| false).unwrap();
        let other: [IpAddr; 1] = ["10.244.1.6".parse().unwrap()];
        let whole = Held { addresses: other.into(), ..held("x", 9, &known) };
        let whole = Held { link: Link { name: "hbk0".into(), ..whole.link.clone() }, ..whole };
        let changed: [fn(&mut Held); 8] = [
            |held| held.link.alias.clear(),
            |held| held.link.alias = "hauberk:x".into(),
            |held| held.link.alias = "hauberk:../x/eth0".into(),
            |held| held.link.alias = "hauberk:known/eth0".into(),
            |held| held.link.alias = "a note of somebody".into(),
            |held| held.link.name = "veth0".into(),
            |held| held.addresses.clear(),
            |held| held.addresses = ["10.244.1.2".parse().unwrap()].into(),
        ];
        for change in changed {
            let mut held = whole.clone();
            change(&mut held);
            assert!(keeper.recover(&[held.clone()], &settings()).unwrap().is_empty(), "{held:?}");
        }
        let same_name = Held { link: Link { name: known.host_interface, ..whole.link.clone() }, ..whole.clone() };
        assert!(keeper.recover(&[same_name], &settings()).unwrap().is_empty());
        assert_eq!(keeper.list().len(), 1);
        assert_eq!(keeper.recover(&[whole], &settings()).unwrap().len(), 1);
    }
}
