//! A Kubernetes API server as the source.
//!
//! | module | does |
//! |---|---|
//! | [`follow`] | one kind of object: everything there is, then every change, through outages |
//! | `identity` | whether the same cluster still answers |
//! | `state` | which kinds are read and which cannot be at the moment, for the status |
//!
//! [`Kubernetes`] runs a follower for each kind ([`crate::kinds`]) and merges what they tell. What
//! was told stays in force while the server is away, and when another cluster answers in its place:
//! absence is not deletion.

mod follow;
mod identity;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hauberk_api::SourceStatus;
use hauberk_core::model::Change;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::follow::{Follower, Update};
use self::identity::Identity;
use self::state::State;
use super::{Batch, Source, SourceError};
use crate::kinds::{self, Followed, Visitor};

/// Batches that may wait for the reconciler before the agent stops reading from the API server.
const WAITING: usize = 4;
/// How long a caller waits for an annotation to be written: a server that does not answer must not
/// hold up anything else.
const WRITE: Duration = Duration::from_secs(3);

/// The source.
pub struct Kubernetes {
    client: Client,
    node: String,
    services: bool,
    state: Arc<State>,
}

impl Kubernetes {
    /// The API server at `location`, as seen by the agent on `node`. Nothing is read yet.
    /// `services`: whether services and their endpoints will be read too.
    pub fn new(client: Client, location: String, node: String, services: bool) -> Kubernetes {
        Kubernetes { client, node, services, state: Arc::new(State::new(location, services)) }
    }
}

/// Starts a follower for each kind.
struct Followers<'a> {
    source: &'a Kubernetes,
    identity: Arc<Identity>,
    updates: mpsc::Sender<Update>,
    /// The followers end when this set is dropped.
    tasks: JoinSet<()>,
}

impl Visitor for Followers<'_> {
    fn visit<K: Followed>(&mut self) {
        let Kubernetes { client, state, .. } = self.source;
        let follower =
            Follower::<K>::new(client.clone(), Arc::clone(state), Arc::clone(&self.identity), self.updates.clone());
        self.tasks.spawn(follower.run());
    }
}

impl Source for Kubernetes {
    fn run(
        self: Arc<Self>,
        batches: mpsc::Sender<Batch>,
        mut stop: watch::Receiver<bool>,
    ) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let (updates, mut received) = mpsc::channel(WAITING);
            let identity = Arc::new(Identity::default());
            let mut followers = Followers { source: &self, identity, updates, tasks: JoinSet::new() };
            kinds::each_followed(self.services, &mut followers);
            // From here on only the followers can send.
            let Followers { tasks: _tasks, updates, .. } = followers;
            drop(updates);
            loop {
                let update = tokio::select! {
                    _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
                    update = received.recv() => update,
                };
                let batch = match update {
                    None => return Ok(()),
                    Some(Update::Batch(batch)) => batch,
                    Some(Update::Listed(kind)) if self.state.listed(kind) => {
                        Batch { changes: vec![Change::Synced], events: Vec::new() }
                    }
                    Some(Update::Listed(_)) => continue,
                };
                if batches.send(batch).await.is_err() {
                    return Ok(());
                }
            }
        })
    }

    fn status(&self) -> SourceStatus {
        self.state.status()
    }

    fn annotate(
        self: Arc<Self>,
        annotations: BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
            let nodes = Api::<Node>::all(self.client.clone());
            let parameters = PatchParams { field_manager: Some("hauberk".into()), ..PatchParams::default() };
            let failed = |reason: String| SourceError::Server {
                node: self.node.clone(),
                location: self.state.location().to_owned(),
                reason,
            };
            match tokio::time::timeout(WRITE, nodes.patch_metadata(&self.node, &parameters, &patch)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                    Err(SourceError::NoNode { node: self.node.clone(), location: self.state.location().to_owned() })
                }
                Ok(Err(kube::Error::Api(status))) => Err(failed(status.message)),
                Ok(Err(error)) => Err(failed(error.to_string())),
                Err(_) => Err(failed(format!("it has not answered for {WRITE:?}"))),
            }
        })
    }
}
