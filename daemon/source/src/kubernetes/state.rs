//! The source's state: which kinds have been read, which cannot be at the moment and why, and which
//! objects are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hauberk_api::{SourceKind, SourceStatus};
use hauberk_core::events::NewEvent;
use jiff::Timestamp;

use super::follow::Failure;
use crate::kinds::{self, Followed, Visitor};
use crate::reason;

/// Shared by the followers, which write it, and the readers of the status.
#[derive(Debug)]
pub(super) struct State {
    location: String,
    /// The kinds that must have been read once before the source has synced.
    awaited: BTreeSet<&'static str>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    listed: BTreeSet<&'static str>,
    outages: BTreeMap<&'static str, Outage>,
    rejected: BTreeSet<String>,
}

/// The names of the kinds that are awaited.
#[derive(Default)]
struct Awaited(BTreeSet<&'static str>);

impl Visitor for Awaited {
    fn visit<K: Followed>(&mut self) {
        if K::AWAITED {
            self.0.insert(K::NAME);
        }
    }
}

#[derive(Debug)]
struct Outage {
    since: Timestamp,
    why: String,
}

impl State {
    pub(super) fn new(location: String, services: bool) -> State {
        let mut awaited = Awaited::default();
        kinds::each_followed(services, &mut awaited);
        State { location, awaited: awaited.0, inner: Mutex::default() }
    }

    /// The API server's address.
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    pub(super) fn status(&self) -> SourceStatus {
        let inner = self.inner();
        let first = inner.outages.values().min_by_key(|outage| outage.since);
        SourceStatus {
            kind: SourceKind::Kubernetes.into(),
            location: self.location.clone(),
            synced: self.awaited.is_subset(&inner.listed),
            unavailable_since: first.map(|outage| outage.since),
            unavailable_because: first.map(|outage| outage.why.clone()),
            rejected: inner.rejected.len(),
        }
    }

    /// Every object of that kind has been told. Returns whether now, for the first time, all kinds
    /// that are awaited have been.
    pub(super) fn listed(&self, kind: &'static str) -> bool {
        let mut inner = self.inner();
        inner.listed.insert(kind) && self.awaited.contains(kind) && self.awaited.is_subset(&inner.listed)
    }

    /// Objects of that kind cannot be read. Returns an event at the start of an outage, and when
    /// another cluster answers.
    pub(super) fn failed(&self, kind: &'static str, failure: &Failure) -> Option<NewEvent> {
        let why = failure.to_string();
        let mut inner = self.inner();
        let news = inner.outages.values().all(|outage| outage.why != why);
        let since = inner.outages.get(kind).map_or_else(Timestamp::now, |outage| outage.since);
        let first = inner.outages.is_empty();
        inner.outages.insert(kind, Outage { since, why: why.clone() });
        let told = first || news && matches!(failure, Failure::OtherCluster { .. });
        told.then(|| NewEvent {
            warning: true,
            reason: reason::SOURCE_UNAVAILABLE,
            objects: vec![format!("Server/{}", self.location)],
            message: format!(
                "the API server {} cannot be followed: {why}; what was known stays in force, changes are not seen",
                self.location
            ),
        })
    }

    /// Objects of that kind are being read. Returns an event if with that all kinds are again.
    pub(super) fn connected(&self, kind: &'static str) -> Option<NewEvent> {
        let mut inner = self.inner();
        let over = inner.outages.remove(kind).is_some() && inner.outages.is_empty();
        over.then(|| NewEvent {
            warning: false,
            reason: reason::SOURCE_AVAILABLE,
            objects: vec![format!("Server/{}", self.location)],
            message: format!("the API server {} is followed again", self.location),
        })
    }

    /// An object, `kind/name`, is refused.
    pub(super) fn rejected(&self, object: String) {
        self.inner().rejected.insert(object);
    }

    /// An object is not refused (any more). The name is built only if some object is refused,
    /// because every object of every list passes here.
    pub(super) fn accepted(&self, object: impl FnOnce() -> String) {
        let mut inner = self.inner();
        if !inner.rejected.is_empty() {
            inner.rejected.remove(&object());
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
