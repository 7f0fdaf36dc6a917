//! This node's pods. Verdicts follow from them: each change begins a new generation.

use aya::maps::{HashMap, MapData};
use hauberk_abi::address::Address;
use hauberk_abi::layout::{Attachment, Interface, map};

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&ATTACHMENTS, &INTERFACES];

/// [`Attachment`] by [`Address`]: the interface to which a pod's packets go. A pod may have an
/// address of each family.
pub static ATTACHMENTS: Table =
    Table::sized(map::ATTACHMENTS, "this node's pods, by address", "limits.attachments", |limits| {
        limits.attachments.saturating_mul(2)
    })
    .governing();

/// [`Interface`] by index of the interface: the pod behind it.
pub static INTERFACES: Table =
    Table::sized(map::INTERFACES, "this node's pods, by interface", "limits.attachments", |limits| limits.attachments)
        .governing();

pub(super) struct Handles {
    attachments: HashMap<MapData, Address, Attachment>,
    interfaces: HashMap<MapData, u32, Interface>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { attachments: opener.open(&ATTACHMENTS)?, interfaces: opener.open(&INTERFACES)? })
    }
}

impl Maps {
    /// Stores the interface of a local pod's address.
    pub fn put_attachment(&mut self, address: Address, attachment: Attachment) -> Result<(), DatapathError> {
        let written = self.pods.attachments.insert(address, attachment, 0).map_err(ATTACHMENTS.failed());
        self.changed(written)
    }

    /// Removes it, unless another interface has the address by now.
    pub fn remove_attachment(&mut self, address: Address, interface: u32) -> Result<(), DatapathError> {
        if matches!(self.pods.attachments.get(&address, 0), Ok(attachment) if attachment.interface != interface) {
            return Ok(());
        }
        let removed = ATTACHMENTS.absent_is_fine(self.pods.attachments.remove(&address));
        self.changed(removed)
    }

    /// Every local pod's address.
    pub fn attachments(&self) -> Result<Vec<(Address, Attachment)>, DatapathError> {
        self.pods.attachments.iter().collect::<Result<_, _>>().map_err(ATTACHMENTS.failed())
    }

    /// Stores the protection of the pod behind an interface.
    pub fn put_interface(&mut self, index: u32, interface: Interface) -> Result<(), DatapathError> {
        let written = self.pods.interfaces.insert(index, interface, 0).map_err(INTERFACES.failed());
        self.changed(written)
    }

    /// Removes an interface.
    pub fn remove_interface(&mut self, index: u32) -> Result<(), DatapathError> {
        let removed = INTERFACES.absent_is_fine(self.pods.interfaces.remove(&index));
        self.changed(removed)
    }

    /// Every local pod's interface.
    pub fn interfaces(&self) -> Result<Vec<(u32, Interface)>, DatapathError> {
        self.pods.interfaces.iter().collect::<Result<_, _>>().map_err(INTERFACES.failed())
    }
}
