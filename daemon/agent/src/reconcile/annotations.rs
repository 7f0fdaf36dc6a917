//! What this node says of itself on its Node object: who it is, and what it enforces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hauberk_core::events::{NewEvent, reason};
use hauberk_core::model::{ADDRESSES_ANNOTATION, ENFORCED_ANNOTATION, KEYS_ANNOTATION, NodeObject};
use hauberk_core::{addresses, convergence};
use jiff::Timestamp;

use super::{Reconciler, note};

impl Reconciler {
    /// Keys and addresses, in a patch of their own: neither a failed step nor a long acknowledgement holds them back. Returns
    /// whether they are there.
    pub(super) async fn publish_identity(&mut self) -> bool {
        let annotations = BTreeMap::from([
            (KEYS_ANNOTATION.to_owned(), self.published.clone()),
            (ADDRESSES_ANNOTATION.to_owned(), addresses::render(&self.published_addresses())),
        ]);
        self.annotate(annotations).await
    }

    /// What is enforced now; while it `enforces` less than that, what was acknowledged before stays. Returns whether it is there.
    pub(super) async fn acknowledge(&mut self, enforces: bool) -> bool {
        if !enforces {
            return true;
        }
        let enforced = self.world.read().desired.enforced.as_ref().map(convergence::render);
        match enforced {
            Some(enforced) => self.annotate([(ENFORCED_ANNOTATION.to_owned(), enforced)].into()).await,
            None => true,
        }
    }

    /// Those that the node's object names and those in its pod range come first, if there are too many.
    fn published_addresses(&self) -> BTreeSet<IpAddr> {
        let mut world = self.world.write();
        let own = world.model.node_object(world.model.node());
        let comes_first = |address: &IpAddr| {
            own.is_some_and(|own| {
                own.addresses.iter().any(|given| given.address == *address)
                    || own.pod_ranges.iter().any(|range| range.contains(address))
            })
        };
        let (published, left_out) = addresses::published(&world.policy.host_addresses, comes_first);
        if left_out > 0 {
            let event = left_out_event(world.model.node(), left_out);
            note(&mut world, &event, Timestamp::now());
        }
        published
    }

    async fn annotate(&mut self, annotations: BTreeMap<String, String>) -> bool {
        let is_written = annotations.iter().all(|(name, value)| self.written.get(name) == Some(value));
        if is_written && self.holds(&annotations) {
            self.succeed("annotations");
            return true;
        }
        let values = annotations.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect();
        match Arc::clone(&self.source).annotate(values).await {
            Ok(()) => {
                self.written.extend(annotations);
                self.succeed("annotations");
                true
            }
            Err(error) => self.fail(
                "annotations",
                format!(
                    "cannot write this node's annotations, so peers do not learn its keys, its addresses or what it enforces: \
                     {error}"
                ),
            ),
        }
    }

    /// Whether the node's object, as last read, still carries these annotations.
    fn holds(&self, annotations: &BTreeMap<String, String>) -> bool {
        let world = self.world.read();
        let Some(node) = world.model.node_object(world.model.node()) else { return true };
        annotations.iter().all(|(name, value)| annotation(node, name) == Some(value))
    }
}

fn annotation<'a>(node: &'a NodeObject, name: &str) -> Option<&'a String> {
    match name {
        KEYS_ANNOTATION => node.keys.as_ref(),
        ADDRESSES_ANNOTATION => node.published_addresses.as_ref(),
        ENFORCED_ANNOTATION => node.enforced.as_ref(),
        _ => None,
    }
}

fn left_out_event(node: &str, left_out: usize) -> NewEvent {
    NewEvent {
        warning: true,
        reason: reason::ADDRESSES_LEFT_OUT,
        objects: vec![format!("Node/{node}")],
        message: format!(
            "Node {node}: its devices have {left_out} addresses more than the {} that are published: other nodes do not know \
             them for its own, and drop what comes from them to protected pods; take addresses that are not used off its devices",
            addresses::MAX_COUNT
        ),
    }
}
