//! A Kubernetes API server as the source.
//!
//! | module | does |
//! |---|---|
//! | [`follow`] | one kind of object: everything there is, then every change, through outages |
//! | [`kind`] | how the kinds differ |
//! | `identity` | whether the same cluster still answers |
//! | `state` | which kinds are read and which cannot be at the moment, for the status |
//!
//! [`Kubernetes`] runs a follower for each kind and merges what they tell. What was told stays in
//! force while the server is away, and when another cluster answers in its place: absence is not
//! deletion.

mod follow;
mod identity;
mod kind;
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

use self::follow::{Follower, Told};
use self::identity::Identity;
use self::kind::Kind;
use self::state::State;
use super::{Batch, Source, SourceError, objects};

/// Batches that may wait for the reconciler before the agent stops reading from the API server.
const WAITING: usize = 4;
/// How long a caller waits for an annotation to be written: a server that does not answer must not
/// hold up anything else.
const WRITE: Duration = Duration::from_secs(3);

/// The source.
pub struct Kubernetes {
    client: Client,
    node: String,
    state: Arc<State>,
}

impl Kubernetes {
    /// The API server at `location`, as seen by the agent on `node`. Nothing is read yet.
    pub fn new(client: Client, location: String, node: String) -> Kubernetes {
        Kubernetes { client, node, state: Arc::new(State::new(location)) }
    }

    fn follow<K: Kind>(&self, tasks: &mut JoinSet<()>, told: &mpsc::Sender<Told>, identity: &Arc<Identity>) {
        let follower =
            Follower::<K>::new(self.client.clone(), Arc::clone(&self.state), Arc::clone(identity), told.clone());
        tasks.spawn(follower.run());
    }
}

impl Source for Kubernetes {
    fn run(
        self: Arc<Self>,
        batches: mpsc::Sender<Batch>,
        mut stop: watch::Receiver<bool>,
    ) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let (told, mut received) = mpsc::channel(WAITING);
            let identity = Arc::new(Identity::default());
            // The followers end when this set is dropped.
            let mut followers = JoinSet::new();
            self.follow::<objects::Node>(&mut followers, &told, &identity);
            self.follow::<objects::Namespace>(&mut followers, &told, &identity);
            self.follow::<objects::Pod>(&mut followers, &told, &identity);
            drop(told);
            loop {
                let told = tokio::select! {
                    _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
                    told = received.recv() => told,
                };
                let batch = match told {
                    None => return Ok(()),
                    Some(Told::Batch(batch)) => batch,
                    Some(Told::Listed(kind)) if self.state.listed(kind) => {
                        Batch { changes: vec![Change::Synced], events: Vec::new() }
                    }
                    Some(Told::Listed(_)) => continue,
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
