//! A node as the model keeps it: its object, and what it last published in a form that could be
//! read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_keyring::published::Published;
use ipnet::IpNet;

use crate::addresses;
use crate::convergence::Acknowledged;
use crate::events::NewEvent;
use crate::model::messages::addresses_invalid;

/// A node, as its object says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeObject {
    /// `metadata.name`.
    pub name: String,
    /// `status.addresses`, in their order.
    pub addresses: Vec<NodeAddress>,
    /// `spec.podCIDRs`.
    pub pod_ranges: Vec<IpNet>,
    /// Annotation `hauberk.io/keys`.
    pub keys: Option<String>,
    /// Annotation `hauberk.io/addresses`.
    pub published_addresses: Option<String>,
    /// Annotation `hauberk.io/enforced`.
    pub enforced: Option<String>,
    /// Annotation `hauberk.io/plaintext-seen`.
    pub plaintext_seen: Option<String>,
    /// Where the object was read: a file path, or empty.
    pub origin: String,
}

/// One of a node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether its type is `InternalIP`.
    pub internal: bool,
}

/// A node's object and what the model remembers about the node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) object: NodeObject,
    /// The last readable keys that it published.
    pub(crate) held: Option<Held>,
    /// The last readable addresses of its devices that it published.
    pub(crate) devices: BTreeSet<IpAddr>,
    /// What it acknowledges.
    pub(crate) enforced: Acknowledged,
}

impl Node {
    /// The addresses from its object and of its devices.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.object.addresses.iter().map(|given| given.address).chain(self.devices.iter().copied()).collect()
    }
}

/// A node's keys and when each came.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) published: Published,
    /// When the node first published the key. 0 before the model has synced, because the order of
    /// arrival is not known then; after that, one number per change.
    pub(crate) arrival: BTreeMap<[u8; 32], u64>,
}

/// A broken annotation leaves the last good addresses in force, as it does the keys. A removed one
/// removes them.
pub(super) fn devices(object: &NodeObject, before: BTreeSet<IpAddr>, events: &mut Vec<NewEvent>) -> BTreeSet<IpAddr> {
    match object.published_addresses.as_deref().map(addresses::parse) {
        None => BTreeSet::new(),
        Some(Ok(devices)) => devices,
        Some(Err(error)) => {
            events.push(addresses_invalid(object, &error, !before.is_empty()));
            before
        }
    }
}
