//! Changes of the records: decided in memory, written to disk, and only then visible to others and
//! answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use hauberk_abi::address::{GATEWAY_V4, GATEWAY_V6};
use hauberk_api::{Attach, Attachment, Reservation, Reserve};
use hauberk_core::names::AttachmentKey;
use ipnet::IpNet;
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;

use super::store::Store;
use super::{AttachmentError, Attachments, Pools, check_names, domain};

/// What only the present [`Keeper`] may use.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) pools: Pools,
}

/// The right to change the records. There is one keeper at a time, in the order of the requests.
/// Its methods write files and belong on a blocking thread ([`Keeper::work`]).
#[derive(Debug)]
pub struct Keeper {
    attachments: Attachments,
    writer: OwnedMutexGuard<Writer>,
}

impl Deref for Keeper {
    type Target = Attachments;

    fn deref(&self) -> &Attachments {
        &self.attachments
    }
}

impl Keeper {
    pub(super) fn new(attachments: Attachments, writer: OwnedMutexGuard<Writer>) -> Keeper {
        Keeper { attachments, writer }
    }

    /// Runs `work` on a blocking thread, to its end even if the caller gives up. The turn lasts
    /// until the returned keeper is dropped.
    ///
    /// # Errors
    /// Those of `work`, and [`AttachmentError::BrokenOff`].
    pub async fn work<T: Send + 'static>(
        mut self,
        work: impl FnOnce(&mut Keeper) -> Result<T, AttachmentError> + Send + 'static,
    ) -> Result<(Keeper, T), AttachmentError> {
        spawn_blocking(move || work(&mut self).map(|done| (self, done))).await?
    }

    pub(super) fn store(&self) -> &Store {
        &self.writer.store
    }

    /// Gives addresses to a pod's interface. A repeated request for the same container and
    /// interface gets the same ones.
    ///
    /// `claimed` says which addresses known pods have, whichever plugin gave them.
    ///
    /// # Errors
    /// [`AttachmentError`]; then nothing is kept.
    pub fn reserve(
        &mut self,
        request: &Reserve,
        claimed: impl Fn(IpAddr) -> bool,
    ) -> Result<Reservation, AttachmentError> {
        check_names(request)?;
        let key = domain::key_of_request(request);
        let reservation = {
            let records = self.attachments.records();
            if let Some(existing) = records.entries.get(&key) {
                return Ok(existing.reservation.clone());
            }
            let settings = &records.settings;
            // Before the Node object has been read there is neither a range nor a limit. That is
            // temporary; a full node is not.
            if !settings.pod_ranges.is_empty() && records.entries.len() >= settings.limit {
                return Err(AttachmentError::TooMany { container: request.container.clone(), limit: settings.limit });
            }
            let addresses = records.allocate(&mut self.writer.pools, &request.container, claimed)?;
            Reservation {
                gateways: addresses.iter().map(|address| gateway(address.addr())).collect(),
                route_mtu: settings.route_mtu,
                device_mtu: settings.device_mtu,
                host_interface: records.host_interface(&key),
                cluster_ranges: settings.cluster_ranges.clone(),
                gso_max_size: settings.gso_max_size,
                addresses,
            }
        };
        let attachment = Attachment {
            request: request.clone(),
            reservation: reservation.clone(),
            attach: None,
            adopted: false,
            recovered: false,
        };
        self.writer.store.save_cursors(self.writer.pools.cursors());
        self.store().save(&attachment)?;
        let mut records = self.attachments.records();
        records.taken.extend(reservation.addresses.iter().map(IpNet::addr));
        records.entries.insert(key, attachment);
        Ok(reservation)
    }

    /// Notes the interface that holds a reservation's addresses, and returns the whole attachment.
    ///
    /// # Errors
    /// [`AttachmentError::Unknown`] without a reservation, [`AttachmentError::Store`].
    pub fn attach(&mut self, container: &str, interface: &str, attach: Attach) -> Result<Attachment, AttachmentError> {
        let Some(known) = self.find(container, interface) else {
            return Err(AttachmentError::Unknown { container: container.into(), interface: interface.into() });
        };
        let attached = Attachment { attach: Some(attach), ..known };
        self.replace(&attached)?;
        Ok(attached)
    }

    /// Removes an attachment and frees its addresses, which are given again only after all other
    /// free ones. Returns the attachment, or none if there was none, which is no error (CNI's DEL
    /// may come twice).
    ///
    /// # Errors
    /// [`AttachmentError::Store`]: it could not be removed from disk, so it is kept.
    pub fn release(&mut self, container: &str, interface: &str) -> Result<Option<Attachment>, AttachmentError> {
        let Some(known) = self.find(container, interface) else { return Ok(None) };
        self.store().remove(&known)?;
        Ok(self.attachments.records().forget(&AttachmentKey::new(container, interface)))
    }

    /// Notes that interfaces of hauberk's do not exist any more (`exists(name, index)`), for
    /// example after a reboot. Their addresses stay reserved until the runtime deletes the
    /// container. Returns those attachments as they are now.
    ///
    /// # Errors
    /// [`AttachmentError::Store`] if that cannot be written.
    pub fn detach_missing(&mut self, exists: impl Fn(&str, u32) -> bool) -> Result<Vec<Attachment>, AttachmentError> {
        let mut detached = Vec::new();
        for entry in self.list() {
            let Some(attach) = entry.attach.as_ref().filter(|_| !entry.adopted) else { continue };
            if exists(&entry.reservation.host_interface, attach.host_index) {
                continue;
            }
            let without = Attachment { attach: None, ..entry };
            self.replace(&without)?;
            detached.push(without);
        }
        Ok(detached)
    }

    /// Tries whether something can be written, and writes what could not be written before if it
    /// does no harm to do so now.
    ///
    /// # Errors
    /// [`AttachmentError::Store`].
    pub fn try_disk(&mut self) -> Result<(), AttachmentError> {
        self.store().try_disk()?;
        self.store().save_cursors(self.writer.pools.cursors());
        Ok(())
    }

    /// Writes an attachment, then makes it visible to others.
    pub(super) fn replace(&mut self, attachment: &Attachment) -> Result<(), AttachmentError> {
        self.store().save(attachment)?;
        let key = domain::key(attachment);
        self.attachments.records().entries.insert(key, attachment.clone());
        Ok(())
    }
}

/// The gateway of a pod's address.
pub(super) fn gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::from(GATEWAY_V4).into() } else { Ipv6Addr::from(GATEWAY_V6).into() }
}
