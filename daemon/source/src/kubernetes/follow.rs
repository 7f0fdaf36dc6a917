//! Follows the objects of one kind: first everything there is, then every change, through restarts
//! and outages of the API server.
//!
//! This works on single requests, because a ready-made watcher hides what the agent must know at
//! every moment: since when the server is silent, that a connection is up again although nothing
//! has changed, and whether the same cluster answers.
//!
//! Where the server supports it, a list is streamed (KEP-3157), so that neither side holds the
//! whole list. After the list a watch continues, with bookmarks, so that a watch that ends is
//! resumed where it was and not from the start. Objects are pruned while they are read
//! ([`crate::kinds`]). Only their names are kept here, to find out which objects are gone
//! when a new list is needed.
//!
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hauberk_core::events::NewEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{Request, Status};
use kube::runtime::watcher::DefaultBackoff;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::identity::Identity;
use super::state::State;
use crate::kinds::{Followed, Metadata};
use crate::{Batch, reason};

/// The server is asked to end a watch after this time plus a random part of up to as much again, so
/// that the agents do not all reconnect at once.
const WATCH: Duration = Duration::from_secs(290);
/// A server that sends nothing for this long, not even a bookmark (one a minute), may be gone
/// without closing the connection.
const SILENCE: Duration = Duration::from_secs(150);
/// An answer that takes longer is given up.
const ANSWER: Duration = Duration::from_secs(30);
/// Objects in one page of a list.
const PAGE: u32 = 250;
/// Changes told at once.
const CHUNK: usize = 100;
/// The annotation of the bookmark that ends a streamed list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// What a follower tells.
#[derive(Debug)]
pub(super) enum Update {
    /// Changes and events.
    Batch(Batch),
    /// Every object of that kind has been told.
    Listed(&'static str),
}

/// Why objects cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A request failed.
    #[error("cannot {what}: {}", said(.source))]
    Request {
        /// What the request was for.
        what: String,
        /// How it failed.
        source: Box<kube::Error>,
    },
    /// No answer came in time.
    #[error("cannot {what}: no answer within {ANSWER:?}")]
    NoAnswer {
        /// What the request was for.
        what: String,
    },
    /// The server ended a watch and said why.
    #[error("the watch on {kind} objects was ended: {}", .status.message)]
    Ended {
        /// The kind of the objects.
        kind: &'static str,
        /// The server's words.
        status: Box<Status>,
    },
    /// The server answers with the objects of another cluster.
    #[error(
        "it answers for another cluster: the namespace kube-system has the uid {now}, and had {before}; was etcd emptied? If \
         this is meant to be the cluster now, restart the agents: kubectl -n hauberk-system rollout restart daemonset/hauberk"
    )]
    OtherCluster {
        /// Its uid when the agent started.
        before: String,
        /// Its uid now.
        now: String,
    },
}

impl Failure {
    /// For a request that does `what`.
    pub(super) fn request(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Failure {
        |source| Failure::Request { what: what.into(), source: Box::new(source) }
    }

    fn status(&self) -> Option<&Status> {
        match self {
            Failure::Ended { status, .. } => Some(status),
            Failure::Request { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the server understood the request and refuses it. Old servers do not know streamed
    /// lists, some have them switched off, and with an old etcd a server begins one and gives it
    /// up.
    fn is_refusal(&self) -> bool {
        self.status().is_some_and(|status| !matches!(status.code, 401 | 403 | 429 | 503))
    }

    /// Whether the version to continue from does not exist (any more, or yet).
    fn needs_list(&self) -> bool {
        let too_large = |status: &Status| {
            let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
            causes.iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
        };
        self.status().is_some_and(|status| status.code == 410 || too_large(status))
    }
}

/// How a watch ended without a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// At the time that was asked for.
    Due,
    /// Earlier; the server may have restarted.
    Early,
    /// The receiver is gone.
    Unheard,
}

/// An object's name among those of its kind: `namespace/name`, or `name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name(Box<str>);

impl Name {
    /// None for an object without a name.
    fn of(metadata: Option<&Metadata>) -> Option<Name> {
        let metadata = metadata?;
        let name = metadata.name.as_deref()?;
        Some(Name(match &metadata.namespace {
            Some(namespace) => format!("{namespace}/{name}").into(),
            None => name.into(),
        }))
    }

    /// For messages.
    fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace, or nothing, and the name.
    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or(("", &self.0))
    }
}

/// Follows the objects of kind `K`.
pub(super) struct Follower<K> {
    client: Client,
    state: Arc<State>,
    identity: Arc<Identity>,
    updates: mpsc::Sender<Update>,
    request: Request,
    /// Every object that was told, with the number of the list that had it last.
    names: HashMap<Name, u32>,
    list: u32,
    /// The version to continue from; without one, a list comes first.
    version: Option<String>,
    streams_lists: bool,
    kind: PhantomData<fn() -> K>,
}

#[derive(Deserialize)]
struct List<K> {
    metadata: ListMeta,
    items: Vec<K>,
}

impl<K: Followed> Follower<K> {
    /// A follower that has not read anything yet.
    pub(super) fn new(
        client: Client,
        state: Arc<State>,
        identity: Arc<Identity>,
        updates: mpsc::Sender<Update>,
    ) -> Follower<K> {
        Follower {
            client,
            state,
            identity,
            updates,
            request: Request::new(K::PATH),
            names: HashMap::new(),
            list: 0,
            version: None,
            streams_lists: true,
            kind: PhantomData,
        }
    }

    /// Runs until the receiver is gone.
    pub(super) async fn run(mut self) {
        let mut pauses = DefaultBackoff::default();
        let mut doubtful = true;
        while !self.updates.is_closed() {
            let result = self.follow(doubtful).await;
            doubtful = !matches!(result, Ok(End::Due));
            match result {
                Ok(End::Due) => continue,
                Ok(End::Early) => debug!(kind = K::NAME, "the API server has ended the watch early"),
                Ok(End::Unheard) => return,
                Err(failure) if failure.needs_list() => {
                    info!(kind = K::NAME, %failure, "read anew from the API server");
                    self.version = None;
                }
                Err(failure) => {
                    debug!(kind = K::NAME, %failure, "not followed");
                    let event = self.state.failed(K::NAME, &failure);
                    self.tell(Batch { changes: Vec::new(), events: event.into_iter().collect() }).await;
                }
            }
            tokio::time::sleep(pauses.next().unwrap_or(SILENCE)).await;
        }
    }

    /// One watch, after a list if one is needed. `doubtful`: another server may answer now.
    async fn follow(&mut self, doubtful: bool) -> Result<End, Failure> {
        if doubtful {
            answered("tell the cluster apart", self.identity.check(&self.client)).await?;
            if self.is_behind().await? {
                info!(kind = K::NAME, "the API server has gone back in time: everything is read anew");
                self.version = None;
            }
        }
        if self.version.is_none() && !self.streams_lists {
            self.list().await?;
        }
        let result = self.watch().await;
        if let Err(failure) = &result
            && self.version.is_none()
            && self.streams_lists
            && failure.is_refusal()
        {
            debug!(kind = K::NAME, %failure, "the API server does not stream lists: they are read page by page");
            self.streams_lists = false;
            // Lists are read in pages at once, without a pause.
            return Ok(End::Due);
        }
        result
    }

    /// Whether the server knows less than it already told, as after the restore of a backup: a
    /// watch would stay silent until the server has caught up. Versions are numbers that grow
    /// (KEP-5504).
    async fn is_behind(&self) -> Result<bool, Failure> {
        let Some(told) = self.version.as_deref().and_then(number) else { return Ok(false) };
        let parameters = ListParams { limit: Some(1), ..ListParams::default() };
        let now = self.page(&parameters).await?.metadata.resource_version;
        Ok(now.as_deref().and_then(number).is_some_and(|now| now < told))
    }

    /// Reads every object, page by page.
    async fn list(&mut self) -> Result<(), Failure> {
        self.list += 1;
        let mut parameters =
            ListParams { limit: Some(PAGE), field_selector: K::FIELDS.map(str::to_owned), ..ListParams::default() };
        loop {
            let page = self.page(&parameters).await?;
            self.connected().await;
            let mut batch = Batch::default();
            for object in page.items {
                self.put(object, &mut batch);
            }
            self.tell(batch).await;
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => {
                    self.version = page.metadata.resource_version;
                    self.end_list().await;
                    return Ok(());
                }
            }
        }
    }

    async fn page(&self, parameters: &ListParams) -> Result<List<K>, Failure> {
        let what = format!("list {} objects", K::NAME);
        let request =
            if K::METADATA_ONLY { self.request.list_metadata(parameters) } else { self.request.list(parameters) };
        let request = request.map_err(|error| Failure::request(&what)(kube::Error::BuildRequest(error)))?;
        let answer = async { self.client.request(request).await.map_err(Failure::request(&what)) };
        answered(&what, answer).await
    }

    /// Continues from the known version, or streams a list first.
    async fn watch(&mut self) -> Result<End, Failure> {
        let what = format!("watch {} objects", K::NAME);
        let due = WATCH + jitter(WATCH);
        let parameters = WatchParams {
            timeout: Some(due.as_secs() as u32),
            field_selector: K::FIELDS.map(str::to_owned),
            send_initial_events: self.version.is_none(),
            ..WatchParams::default()
        };
        let version = self.version.clone().unwrap_or_default();
        let request = if K::METADATA_ONLY {
            self.request.watch_metadata(&parameters, &version)
        } else {
            self.request.watch(&parameters, &version)
        };
        let request = request.map_err(|error| Failure::request(&what)(kube::Error::BuildRequest(error)))?;
        let started = Instant::now();
        let client = self.client.clone();
        let answer = async { client.request_events::<K>(request).await.map_err(Failure::request(&what)) };
        let events = answered(&what, answer).await?;
        self.list += u32::from(parameters.send_initial_events);
        self.connected().await;
        let mut chunks = std::pin::pin!(events.ready_chunks(CHUNK));
        loop {
            let Ok(Some(chunk)) = timeout(SILENCE, chunks.next()).await else {
                let is_due = started.elapsed() + Duration::from_secs(2) >= due;
                return Ok(if is_due { End::Due } else { End::Early });
            };
            let mut batch = Batch::default();
            let mut result = Ok(());
            let mut list_ended = false;
            for event in chunk {
                match event.map_err(Failure::request(&what)) {
                    Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => self.put(object, &mut batch),
                    Ok(WatchEvent::Deleted(object)) => self.remove(object, &mut batch),
                    Ok(WatchEvent::Bookmark(bookmark)) => {
                        list_ended |= bookmark.metadata.annotations.contains_key(LIST_ENDS);
                        self.went_to(Some(bookmark.metadata.resource_version), list_ended);
                    }
                    Ok(WatchEvent::Error(status)) => result = Err(Failure::Ended { kind: K::NAME, status }),
                    Err(failure) => result = Err(failure),
                }
            }
            if !self.tell(batch).await || list_ended && !self.end_list().await {
                return Ok(End::Unheard);
            }
            result?;
        }
    }

    /// While a list is streamed, there is no version to continue from yet.
    fn went_to(&mut self, version: Option<String>, list_ended: bool) {
        if self.version.is_some() || list_ended {
            self.version = version.or(self.version.take());
        }
    }

    fn put(&mut self, object: K, batch: &mut Batch) {
        let Some(name) = Name::of(object.metadata()) else { return };
        self.went_to(object.metadata().and_then(|metadata| metadata.resource_version.clone()), false);
        let title = || format!("{}/{}", K::NAME, name.as_str());
        let (namespace, plain) = name.parts();
        match object.change(namespace, plain, "") {
            Ok(change) => {
                self.state.accepted(title);
                batch.changes.extend(change);
            }
            Err(cause) => {
                self.state.rejected(title());
                batch.events.push(NewEvent {
                    warning: true,
                    reason: reason::OBJECT_REJECTED,
                    objects: vec![title()],
                    message: format!("{} is refused: {cause}; its last good version, if any, stays in force", title()),
                });
            }
        }
        self.names.insert(name, self.list);
    }

    fn remove(&mut self, object: K, batch: &mut Batch) {
        let Some(name) = Name::of(object.metadata()) else { return };
        self.went_to(object.metadata().and_then(|metadata| metadata.resource_version.clone()), false);
        self.forget(&name, batch);
    }

    fn forget(&mut self, name: &Name, batch: &mut Batch) {
        self.state.accepted(|| format!("{}/{}", K::NAME, name.as_str()));
        self.names.remove(name);
        let (namespace, plain) = name.parts();
        batch.changes.extend(K::gone(namespace, plain));
    }

    /// Objects that the list which has just ended did not have are gone.
    async fn end_list(&mut self) -> bool {
        let gone: Vec<Name> =
            self.names.iter().filter(|(_, seen)| **seen != self.list).map(|(name, _)| name.clone()).collect();
        let mut batch = Batch::default();
        for name in gone {
            self.forget(&name, &mut batch);
        }
        debug!(kind = K::NAME, objects = self.names.len(), gone = batch.changes.len(), "every object is read");
        self.tell(batch).await && self.updates.send(Update::Listed(K::NAME)).await.is_ok()
    }

    async fn connected(&mut self) {
        let event = self.state.connected(K::NAME);
        self.tell(Batch { changes: Vec::new(), events: event.into_iter().collect() }).await;
    }

    /// Returns whether the receiver is still there.
    async fn tell(&self, batch: Batch) -> bool {
        batch.is_empty() || self.updates.send(Update::Batch(batch)).await.is_ok()
    }
}

/// An answer that comes in time.
async fn answered<T>(what: &str, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            warn!(what, "the API server does not answer");
            Err(Failure::NoAnswer { what: what.to_owned() })
        }
    }
}

fn number(version: &str) -> Option<u128> {
    version.parse().ok()
}

/// A random time below `span`, another one at each call.
fn jitter(span: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    Duration::from_millis(random % span.as_millis() as u64)
}

/// What went wrong, down to the root cause: kube's own text leaves out, for instance, that the
/// connection was refused.
fn said(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} (HTTP {})", status.message, status.code);
    }
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let text = cause.to_string();
        if !said.ends_with(&text) {
            said = format!("{said}: {text}");
        }
        source = cause.source();
    }
    said
}
