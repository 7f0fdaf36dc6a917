//! What this node publishes about itself on its Node object: its keys and addresses, and what it
//! enforces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_api::{ATTACHMENTS_STORE, Severity};
use hauberk_core::annotations::{ADDRESSES_ANNOTATION, ENFORCED_ANNOTATION, KEYS_ANNOTATION};
use hauberk_core::annotations::{addresses, enforced as acknowledged};
use hauberk_core::events::{NewEvent, reason};
use hauberk_core::objects::NodeObject;
use hauberk_source::SourceError;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Reconciler;
use super::absorb::note;

impl Reconciler {
    /// Starts to publish what the node's object, as last read, does not have.
    pub(super) fn announce(&mut self) {
        self.announcer.begin_round();
        self.announce_rest();
    }

    /// Keys and addresses come first, in a patch of their own. Neither a failed step nor a long
    /// acknowledgement delays it.
    fn announce_rest(&mut self) {
        self.announce_at = None;
        let identity = BTreeMap::from([
            (KEYS_ANNOTATION.to_owned(), self.published.clone()),
            (ADDRESSES_ANNOTATION.to_owned(), addresses::render(&self.published_addresses())),
        ]);
        if self.annotate(identity) && self.acknowledge() && !self.announcer.is_busy() {
            self.succeed("annotations");
        }
    }

    /// A write has ended: starts the next one, or schedules a retry.
    pub(super) fn announced(&mut self, end: Result<(), SourceError>) {
        match end {
            Ok(()) => self.announce_rest(),
            Err(error) => {
                self.announce_at = Some(Instant::now() + self.announcer.pause());
                self.fail(
                    "annotations",
                    format!(
                        "cannot write this node's annotations, so peers do not learn its keys, its addresses or what it \
                         enforces: {error}"
                    ),
                );
            }
        }
    }

    /// Publishes what is enforced now. While the kernel enforces less than what is desired, the
    /// earlier acknowledgement stays. Returns whether the annotation is there.
    fn acknowledge(&mut self) -> bool {
        if !self.enforces {
            return true;
        }
        let enforced = self.agent.read().desired.enforced.as_ref().map(acknowledged::render);
        match enforced {
            Some(enforced) => self.annotate([(ENFORCED_ANNOTATION.to_owned(), enforced)].into()),
            None => true,
        }
    }

    /// If there are too many addresses, those in the node's object and in its pod ranges come
    /// first.
    fn published_addresses(&self) -> BTreeSet<IpAddr> {
        let mut agent = self.agent.write();
        let own = agent.model.node_object(agent.model.node());
        let comes_first = |address: &IpAddr| {
            own.is_some_and(|own| {
                own.addresses.iter().any(|given| given.address == *address)
                    || own.pod_ranges.iter().any(|range| range.contains(address))
            })
        };
        let (published, left_out) = addresses::published(&agent.local.addresses, comes_first);
        if left_out > 0 {
            let event = left_out_event(agent.model.node(), left_out);
            note(&mut agent, &event, Timestamp::now());
        }
        published
    }

    /// Returns whether the annotations are there. If not, they are being written, or will be after
    /// the write under way.
    fn annotate(&mut self, annotations: BTreeMap<String, String>) -> bool {
        let agent = self.agent.read();
        let own = agent.model.node_object(agent.model.node());
        self.announcer.announce(annotations, |name, value| own.is_none_or(|own| annotation(own, name) == Some(value)))
    }

    /// Reports writes that take long, for as long as they do.
    pub(super) fn look_at_writes(&mut self) {
        let late = self.announcer.is_late(Instant::now()).then(|| {
            "the source does not answer while this node's annotations are written, so peers do not learn what is new of its \
             keys, its addresses and what it enforces; look at the source's disk or API server"
                .to_owned()
        });
        // The end of the write clears the problem.
        if let Some(late) = late {
            self.tell_once("annotations", Severity::Critical, late);
        }
        match self.attachments.trouble(std::time::Instant::now()) {
            Some(trouble) => self.tell_once(ATTACHMENTS_STORE, Severity::Warning, trouble),
            None => self.succeed(ATTACHMENTS_STORE),
        }
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
