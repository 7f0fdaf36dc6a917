//! The problems that exist at the moment. Every object with problems has their number; the text is
//! made only for the few that are reported.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hauberk_abi::address::Address;

use crate::events::{Collector, Counts, NewEvent};
use crate::identities::addresses::Places;
use crate::identities::claims;
use crate::local_node::LocalNode;
use crate::model::Model;
use crate::names::{AttachmentKey, ServiceName};
use crate::pods::derive;
use crate::services;

/// What a problem comes from, in the order in which problems are reported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    Address(Address),
    Attachment(Arc<AttachmentKey>),
    Namespace(Arc<str>),
    /// By namespace and name.
    Pod(Arc<str>, Box<str>),
    Service(ServiceName),
}

/// What the problems are between.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) model: &'a Model,
    pub(super) local: &'a LocalNode,
    pub(super) places: &'a Places,
    pub(super) services: &'a services::Claims,
}

/// The problems that exist.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Problems between nodes.
    nodes: Collector,
    others: BTreeMap<Cause, Counts>,
    news: bool,
}

impl Standing {
    /// Replaces the problems between nodes.
    pub(super) fn set_nodes(&mut self, nodes: Collector) {
        self.nodes = nodes;
        self.news = true;
    }

    /// Counts the problems that come from this cause.
    pub(super) fn look(&mut self, known: Known<'_>, cause: Cause) {
        let mut told = Collector::counting();
        tell(known, &cause, &mut told);
        self.note(cause, told);
    }

    /// Records the counts of a cause.
    pub(super) fn note(&mut self, cause: Cause, told: Collector) {
        let counts = told.counts();
        if counts.is_empty() {
            self.news |= self.others.remove(&cause).is_some();
        } else {
            self.others.insert(cause, counts);
            self.news = true;
        }
    }

    /// All problems as events, if any of them may have changed since the last call.
    pub(super) fn told(&mut self, known: Known<'_>) -> Option<BTreeSet<NewEvent>> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        let mut events = self.nodes.clone();
        for (cause, counts) in &self.others {
            if !events.add_counts(counts) {
                tell(known, cause, &mut events);
            }
        }
        Some(events.finish())
    }
}

fn tell(known: Known<'_>, cause: &Cause, events: &mut Collector) {
    let Known { model, local, places, services } = known;
    match cause {
        Cause::Address(address) => {
            claims::decide(model, local, places, *address, events);
        }
        Cause::Attachment(key) => {
            if let Some(attachment) = model.attachments.get(key) {
                derive::tell(model, local, key, attachment, events);
            }
        }
        Cause::Namespace(namespace) => claims::tell_namespace(model, namespace, events),
        Cause::Pod(namespace, name) => {
            if let Some(pod) = model.pods.find(namespace, name) {
                claims::tell_pod(model, local, pod, events);
            }
        }
        Cause::Service(name) => services.tell(model, name, events),
    }
}
