//! Which pods and interfaces claim which address. Kept in step with the objects, so that a change
//! of one object has to look at its own addresses only.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use hauberk_abi::address::Address;

use crate::model::Pod;
use crate::names::AttachmentKey;

/// A pod or interface that claims an address. Interfaces sort before pods.
#[derive(Clone, Debug)]
pub(crate) enum Claimant {
    /// A pod's interface on this node.
    Attachment(Arc<AttachmentKey>),
    /// A pod, by its object.
    Pod(Arc<Pod>),
}

/// Every claim of a pod or an interface to an address.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// `None` sorts before every claimant, so a search for an address starts there; it is never
    /// stored.
    claims: BTreeSet<(Address, Option<Claimant>)>,
}

impl Claims {
    pub(crate) fn insert(&mut self, address: Address, claimant: Claimant) {
        // A replaced pod compares equal to the one before.
        self.claims.replace((address, Some(claimant)));
    }

    pub(crate) fn remove(&mut self, address: Address, claimant: Claimant) {
        self.claims.remove(&(address, Some(claimant)));
    }

    /// The claimants of the address.
    pub(crate) fn of(&self, address: Address) -> impl Iterator<Item = &Claimant> {
        let from = self.claims.range((address, None)..);
        from.take_while(move |(other, _)| *other == address).filter_map(|(_, claimant)| claimant.as_ref())
    }

    /// Every claimed address; an address with several claims appears several times.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.claims.iter().map(|(address, _)| *address)
    }
}

impl Claimant {
    fn name(&self) -> (Option<&AttachmentKey>, &str, &str) {
        match self {
            Claimant::Attachment(key) => (Some(key), "", ""),
            Claimant::Pod(pod) => (None, &pod.namespace, &pod.name),
        }
    }
}

impl PartialEq for Claimant {
    fn eq(&self, other: &Claimant) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Claimant {}

impl PartialOrd for Claimant {
    fn partial_cmp(&self, other: &Claimant) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Claimant {
    fn cmp(&self, other: &Claimant) -> Ordering {
        match (self, other) {
            (Claimant::Attachment(_), Claimant::Pod(_)) => Ordering::Less,
            (Claimant::Pod(_), Claimant::Attachment(_)) => Ordering::Greater,
            _ => self.name().cmp(&other.name()),
        }
    }
}
