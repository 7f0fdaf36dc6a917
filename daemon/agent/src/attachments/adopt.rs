//! Interfaces that another CNI plugin made: kept on record beside hauberk's own, with addresses
//! that the other plugin gave.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hauberk_api::{Adopt, Attachment, Reservation};
use hauberk_core::names::AttachmentKey;
use hauberk_host::INTERFACE_PREFIX;
use ipnet::IpNet;

use super::{AttachmentError, Attachments, Keeper, MAX_INTERFACE, Records, check_names, domain};

/// No plugin gives an interface more addresses.
const MAX_ADDRESSES: usize = 64;

impl Keeper {
    /// Keeps an interface that another plugin made. Returns it, and the adopted ones on record with
    /// its index or one of its addresses: those interfaces are gone, because the other plugin gives
    /// nothing twice.
    ///
    /// # Errors
    /// [`AttachmentError`]; then nothing is kept or removed.
    pub fn adopt(&mut self, adopt: &Adopt) -> Result<(Attachment, Vec<Attachment>), AttachmentError> {
        check(adopt)?;
        let key = domain::key_of_request(&adopt.request);
        let attachment = attachment(adopt);
        let superseded: Vec<AttachmentKey> = {
            let records = self.records();
            let known = records.entries.get(&key);
            if known.is_some_and(|known| !known.adopted) {
                return Err(refused(
                    adopt,
                    "hauberk-cni made an interface of that name for it already; is it in the list twice?",
                ));
            }
            if known == Some(&attachment) {
                return Ok((attachment, Vec::new()));
            }
            let superseded: Vec<AttachmentKey> = records.superseded_by(adopt).filter(|other| *other != key).collect();
            let limit = records.settings.limit;
            if known.is_none() && limit > 0 && records.entries.len() - superseded.len() >= limit {
                return Err(AttachmentError::TooMany { container: key.container, limit });
            }
            superseded
        };
        let mut gone = Vec::new();
        for other in superseded {
            gone.extend(self.release(&other.container, &other.interface)?);
        }
        self.replace(&attachment)?;
        self.records().released.remove(&key);
        Ok((attachment, gone))
    }
}

impl Attachments {
    /// Adopted interfaces that do not exist any more (`exists(name, index)`), to be released.
    pub fn vanished(&self, exists: impl Fn(&str, u32) -> bool) -> Vec<AttachmentKey> {
        let gone = |entry: &&Attachment| {
            let index = entry.attach.as_ref().map_or(0, |attach| attach.host_index);
            entry.adopted && !exists(&entry.reservation.host_interface, index)
        };
        self.records().entries.values().filter(gone).map(domain::key).collect()
    }

    /// Whether the interface is on record, or was released by the runtime, which is about to remove
    /// it.
    pub fn is_known(&self, key: &AttachmentKey) -> bool {
        let records = self.records();
        records.entries.contains_key(key) || records.released.contains(key)
    }

    /// Forgets released interfaces except these, which the runtime still has in its cache.
    pub fn forget_released(&self, still_told: &BTreeSet<AttachmentKey>) {
        self.records().released.retain(|key| still_told.contains(key));
    }
}

impl Records {
    fn superseded_by(&self, adopt: &Adopt) -> impl Iterator<Item = AttachmentKey> {
        self.entries.values().filter(|entry| entry.adopted).filter_map(|entry| {
            let same_index = entry.attach.as_ref().is_some_and(|attach| attach.host_index == adopt.attach.host_index);
            let shares = entry.reservation.addresses.iter().any(|address| adopt.addresses.contains(&address.addr()));
            (same_index || shares).then(|| domain::key(entry))
        })
    }
}

fn attachment(adopt: &Adopt) -> Attachment {
    let reservation = Reservation {
        addresses: adopt.addresses.iter().copied().map(IpNet::from).collect(),
        gateways: Vec::new(),
        route_mtu: 0,
        device_mtu: 0,
        host_interface: adopt.host_interface.clone(),
        cluster_ranges: Vec::new(),
        gso_max_size: 0,
    };
    Attachment {
        request: adopt.request.clone(),
        reservation,
        attach: Some(adopt.attach.clone()),
        adopted: true,
        recovered: false,
    }
}

fn check(adopt: &Adopt) -> Result<(), AttachmentError> {
    check_names(&adopt.request)?;
    let name = &adopt.host_interface;
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if !plain || !(1..=MAX_INTERFACE).contains(&name.len()) || name == "." || name == ".." {
        let expected = "1 to 15 visible characters without '/'";
        return Err(AttachmentError::Name { what: "host interface", name: name.clone(), expected });
    }
    if name.starts_with(INTERFACE_PREFIX) {
        return Err(refused(adopt, "its host side has a name that only hauberk-cni gives; is it in the list twice?"));
    }
    if adopt.attach.host_index == 0 {
        return Err(refused(adopt, "its host side has no interface index"));
    }
    let usable = |address: &IpAddr| !address.is_unspecified() && !address.is_loopback() && !address.is_multicast();
    if adopt.addresses.is_empty() || adopt.addresses.len() > MAX_ADDRESSES || !adopt.addresses.iter().all(usable) {
        return Err(refused(adopt, "the other plugin gave it no addresses that a pod can have; see its result"));
    }
    Ok(())
}

fn refused(adopt: &Adopt, problem: &str) -> AttachmentError {
    AttachmentError::NotAdoptable { container: adopt.request.container.clone(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use hauberk_api::{Attach, Reserve};

    use super::*;
    use crate::attachments::Settings;

    fn open(folder: &tempfile::TempDir) -> Keeper {
        let settings = Settings { pod_ranges: vec!["10.244.1.0/29".parse().unwrap()], limit: 3, ..Settings::default() };
        let (attachments, problems) = Attachments::open(folder.path().join("attachments"), settings).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        attachments.keeper().now_or_never().unwrap()
    }

    fn adopt(container: &str, index: u32, address: &str) -> Adopt {
        Adopt {
            request: Reserve { container: container.into(), interface: "eth0".into(), pod: None, netns: "/x".into() },
            addresses: vec![address.parse().unwrap()],
            host_interface: format!("veth{index}"),
            attach: Attach {
                host_index: index,
                host_mac: [2, 0, 0, 0, 0, 1].into(),
                pod_mac: [2, 0, 0, 0, 0, 2].into(),
            },
        }
    }

    #[test]
    fn an_adopted_interface_survives_a_restart_and_takes_no_address_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let mut attachments = open(&folder);
        attachments.adopt(&adopt("a", 7, "10.244.1.2")).unwrap();
        let mut again = open(&folder);
        assert!(again.find("a", "eth0").unwrap().adopted);
        let other = Reserve { container: "b".into(), interface: "eth0".into(), pod: None, netns: "/x".into() };
        let given = again.reserve(&other, |_| false).unwrap().addresses;
        assert_eq!(given, ["10.244.1.2/32".parse().unwrap()], "whose addresses they are is told by `claimed` alone");
        assert!(again.release("a", "eth0").unwrap().unwrap().adopted);
        assert_ne!(again.reserve(&Reserve { container: "c".into(), ..other }, |_| false).unwrap().addresses, given);
    }

    #[test]
    fn what_has_its_index_or_its_address_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut attachments = open(&folder);
        let mut gone = |adopt: &Adopt| -> Vec<String> {
            attachments.adopt(adopt).unwrap().1.into_iter().map(|gone| gone.request.container).collect()
        };
        assert!(gone(&adopt("a", 7, "10.244.1.2")).is_empty());
        assert!(gone(&adopt("a", 7, "10.244.1.2")).is_empty());
        assert!(gone(&adopt("b", 8, "10.244.1.3")).is_empty());
        assert_eq!(gone(&adopt("c", 7, "10.244.1.4")), ["a"]);
        assert_eq!(gone(&adopt("d", 9, "10.244.1.3")), ["b"]);
        assert_eq!(attachments.list().len(), 2);
    }

    #[test]
    fn one_whose_interface_vanished_is_told_and_one_that_was_released_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut attachments = open(&folder);
        attachments.adopt(&adopt("a", 7, "10.244.1.2")).unwrap();
        let key = AttachmentKey::new("a", "eth0");
        assert!(attachments.vanished(|name, index| (name, index) == ("veth7", 7)).is_empty());
        assert_eq!(attachments.vanished(|_, index| index == 8), std::slice::from_ref(&key));
        attachments.release("a", "eth0").unwrap();
        assert!(attachments.is_known(&key));
        attachments.forget_released(&BTreeSet::from([key.clone()]));
        assert!(attachments.is_known(&key));
        attachments.forget_released(&BTreeSet::new());
        assert!(!attachments.is_known(&key));
    }

    #[test]
    fn senseless_ones_are_refused_and_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut attachments = open(&folder);
        let broken: [fn(&mut Adopt); 7] = [
            |a| a.addresses.clear(),
            |a| a.addresses.push("127.0.0.1".parse().unwrap()),
            |a| a.addresses = vec!["10.0.0.1".parse().unwrap(); 65],
            |a| a.host_interface = "../../x".into(),
            |a| a.host_interface = "hbk0123".into(),
            |a| a.attach.host_index = 0,
            |a| a.request.container = "../x".into(),
        ];
        for breaking in broken {
            let mut one = adopt("a", 7, "10.244.1.2");
            breaking(&mut one);
            assert!(attachments.adopt(&one).is_err(), "{one:?}");
        }
        assert_eq!(attachments.list().len(), 0);
        for (container, index) in [("a", 1), ("b", 2), ("c", 3)] {
            attachments.adopt(&adopt(container, index, &format!("10.244.2.{index}"))).unwrap();
        }
        assert!(matches!(attachments.adopt(&adopt("d", 4, "10.244.2.4")), Err(AttachmentError::TooMany { .. })));
    }
}
