//! A node as the model keeps it: its object, and what it last published in a form that could be
//! read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_keyring::published::{self, Published};

use crate::annotations::enforced::Acknowledged;
use crate::annotations::{addresses, enforced};
use crate::events::NewEvent;
use crate::model::Model;
use crate::model::messages::{addresses_invalid, enforced_invalid, keys_invalid, number_taken};
use crate::objects::NodeObject;

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

impl Model {
    pub(super) fn put_node(&mut self, object: NodeObject, events: &mut Vec<NewEvent>) -> bool {
        let before = self.nodes.remove(&object.name);
        if let Some(node) = before.as_ref().filter(|node| node.object == object) {
            let name = node.object.name.clone();
            self.nodes.extend(before.map(|node| (name, node)));
            return false;
        }
        if let Some(other) = self.numbers.assign(&object.name) {
            events.push(number_taken(&object.name, &other));
        }
        // The desired state does not depend on what a node acknowledges or has seen.
        self.touched.node_set |= before.is_none();
        self.touched.nodes |= before.as_ref().is_some_and(|before| {
            let others = |node: &NodeObject| NodeObject { enforced: None, plaintext_seen: None, ..node.clone() };
            others(&before.object) != others(&object)
        });
        let had = before.as_ref().map(Node::addresses).unwrap_or_default();
        let (was_held, had_devices) = before.map(|node| (node.held, node.devices)).unwrap_or_default();
        let held = self.hold_keys(&object, was_held, events);
        let devices = devices(&object, had_devices, events);
        let enforced = match object.enforced.as_deref().map(enforced::parse) {
            None => Acknowledged::default(),
            Some(Ok(enforced)) => enforced,
            Some(Err(error)) => {
                events.push(enforced_invalid(&object, &error));
                Acknowledged::default()
            }
        };
        let node = Node { object, held, devices, enforced };
        self.note_addresses(&node.object.name, &had, &node.addresses());
        self.nodes.insert(node.object.name.clone(), node);
        true
    }

    /// This node's own addresses come from its devices, so they are left out.
    pub(super) fn note_addresses(&mut self, name: &str, before: &BTreeSet<IpAddr>, now: &BTreeSet<IpAddr>) {
        if name != self.node {
            self.touched.nodes |= self.departed.note(name, before, now);
        }
    }

    /// A broken annotation leaves the last good keys in force: a typing error must not cut a node
    /// off. A removed annotation removes the keys.
    fn hold_keys(&mut self, object: &NodeObject, before: Option<Held>, events: &mut Vec<NewEvent>) -> Option<Held> {
        let text = object.keys.as_deref()?;
        match published::parse(text) {
            Err(error) => {
                events.push(keys_invalid(object, &error, before.is_some()));
                before
            }
            Ok(published) => {
                if self.synced {
                    self.arrivals += 1;
                }
                let known = before.map(|held| held.arrival).unwrap_or_default();
                let arrival = published
                    .keys
                    .iter()
                    .map(|key| (key.bytes, known.get(&key.bytes).copied().unwrap_or(self.arrivals)))
                    .collect();
                Some(Held { published, arrival })
            }
        }
    }
}

/// A broken annotation leaves the last good addresses in force, as it does the keys. A removed one
/// removes them.
fn devices(object: &NodeObject, before: BTreeSet<IpAddr>, events: &mut Vec<NewEvent>) -> BTreeSet<IpAddr> {
    match object.published_addresses.as_deref().map(addresses::parse) {
        None => BTreeSet::new(),
        Some(Ok(devices)) => devices,
        Some(Err(error)) => {
            events.push(addresses_invalid(object, &error, !before.is_empty()));
            before
        }
    }
}
