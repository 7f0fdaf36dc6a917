//! Follows HauberkConfig while the agent runs. Some fields take effect at once, the others need a
//! restart of the agent.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hauberk_api::{ConfigurationOrigin, ConfigurationStatus};
use hauberk_source::Source;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    ABSENT, Acceptance, CONFIG_ANNOTATION, Copy, HauberkConfig, KEPT, NAME, Offer, in_force, judge, needs_start,
    node_can, refusal,
};
use crate::config::Config;
use crate::reconcile::Input;
use crate::state::SharedState;

/// How often the annotation is written again, in case the Node object was created anew.
const REFRESH: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(5);
/// A restart interrupts a node's tunnel for a moment, so the nodes take turns. This many restarts
/// per second.
const STARTS_PER_SECOND: u64 = 10;

/// What [`follow`] needs.
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// The file's configuration.
    pub file: Config,
    /// The configuration in force.
    pub running: Config,
    /// The configuration's state, for the status.
    pub status: watch::Sender<ConfigurationStatus>,
    /// The reconciler.
    pub inputs: mpsc::Sender<Input>,
    /// The shared state.
    pub agent: SharedState,
    /// Writes the annotation.
    pub source: Arc<dyn Source>,
}

/// What to do about an object.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// It is not used.
    Refuse(Vec<String>),
    /// It is in force, or can be at once.
    TakeOver(Box<Config>),
    /// These fields need a restart.
    Start(Vec<&'static str>),
}

pub(super) fn decide(
    file: &Config,
    running: &Config,
    offer: &Offer,
    check: impl Fn(&Config) -> Result<(), String>,
) -> Verdict {
    match judge(file, &offer.spec, check) {
        Err(problems) => Verdict::Refuse(problems),
        Ok(wanted) => match needs_start(running, &wanted) {
            fields if fields.is_empty() => Verdict::TakeOver(Box::new(wanted)),
            fields => Verdict::Start(fields),
        },
    }
}

/// Follows the object until the receiver is gone.
pub async fn follow(mut parts: Parts) {
    let api: Api<HauberkConfig> = Api::all(parts.client.clone());
    let mut objects = std::pin::pin!(watch_object(api, NAME).default_backoff());
    let mut publish_at = Instant::now();
    let mut told = false;
    loop {
        tokio::select! {
            object = objects.next() => match object {
                Some(Ok(object)) => {
                    told = false;
                    if parts.take(object.map(Offer::from)).await {
                        publish_at = Instant::now();
                    }
                }
                Some(Err(error)) => if !std::mem::replace(&mut told, true) {
                    warn!(%error, "cannot watch HauberkConfig {NAME}; what is in force stays, and it is tried again");
                },
                None => return,
            },
            () = tokio::time::sleep_until(publish_at) => {
                publish_at = Instant::now() + if parts.publish().await { REFRESH } else { RETRY };
            }
        }
    }
}

impl Parts {
    /// Acts on the object, or on its absence. Returns whether there is something new to publish.
    async fn take(&mut self, offer: Option<Offer>) -> bool {
        let Some(offer) = offer else { return self.tell_absence() };
        match decide(&self.file, &self.running, &offer, node_can) {
            Verdict::Refuse(problems) => {
                let message = refusal(offer.generation, &problems);
                let refused = Some(offer.generation);
                self.tell(|status| ConfigurationStatus { refused, message: Some(message), ..status.clone() })
            }
            Verdict::TakeOver(wanted) => {
                // The change takes effect before the disk has the copy.
                if *wanted != self.running {
                    if self.inputs.send(Input::Configuration(wanted.clone())).await.is_err() {
                        return false;
                    }
                    self.running = *wanted;
                }
                self.keep(&offer).await;
                self.tell(|_| in_force(ConfigurationOrigin::Object, offer.generation))
            }
            Verdict::Start(fields) => {
                if !self.keep(&offer).await {
                    let message = format!(
                        "generation {} changes {}, which needs a new start, and cannot be kept for it",
                        offer.generation,
                        fields.join(", ")
                    );
                    let refused = Some(offer.generation);
                    return self.tell(|status| ConfigurationStatus {
                        refused,
                        message: Some(message),
                        ..status.clone()
                    });
                }
                let pause = self.turn();
                info!(
                    generation = offer.generation,
                    fields = fields.join(", "),
                    ?pause,
                    "HauberkConfig changed what only a new start takes over: hauberkd starts anew; the datapath stays"
                );
                tokio::time::sleep(pause).await;
                let error = crate::restart::restart();
                error!(%error, "cannot start anew; restart the agent for the new configuration to take effect");
                let message = format!(
                    "generation {} waits for a restart of the agent, which could not restart itself: {error}",
                    offer.generation
                );
                let refused = Some(offer.generation);
                self.tell(|status| ConfigurationStatus { refused, message: Some(message), ..status.clone() })
            }
        }
    }

    fn tell_absence(&self) -> bool {
        self.tell(|status| match status.generation {
            None => ConfigurationStatus { refused: None, message: None, ..status.clone() },
            Some(_) => ConfigurationStatus {
                origin: ConfigurationOrigin::Copy.into(),
                refused: None,
                message: Some(format!("{ABSENT}; {KEPT}")),
                ..status.clone()
            },
        })
    }

    /// Keeps the object for the next start. Returns whether that succeeded.
    async fn keep(&self, offer: &Offer) -> bool {
        let state = self.file.paths.state.clone();
        let copy = Copy::new(offer.uid.clone(), offer.generation, offer.spec.clone());
        let kept = tokio::task::spawn_blocking(move || {
            if matches!(Copy::read(&state), Ok(Some(kept)) if kept == copy) {
                return true;
            }
            copy.write(&state).inspect_err(|error| warn!("{error}")).is_ok()
        });
        kept.await.unwrap_or(false)
    }

    /// How long this node waits before it restarts.
    fn turn(&self) -> Duration {
        let agent = self.agent.read();
        turn(agent.model.node(), agent.model.nodes().count() as u64)
    }

    /// Returns whether the status changed.
    fn tell(&self, change: impl FnOnce(&ConfigurationStatus) -> ConfigurationStatus) -> bool {
        self.status.send_if_modified(|status| {
            let new = change(status);
            let news = new != *status;
            if news {
                match &new.message {
                    Some(message) => warn!("{message}"),
                    None => info!(generation = new.generation, "HauberkConfig {NAME} is in force"),
                }
                *status = new;
            }
            news
        })
    }

    /// Writes this node's annotation. Returns whether that succeeded.
    async fn publish(&self) -> bool {
        let acceptance = Acceptance::of(&self.status.borrow()).map(|acceptance| acceptance.render());
        let annotations = BTreeMap::from([(CONFIG_ANNOTATION.to_owned(), acceptance)]);
        match Arc::clone(&self.source).annotate(annotations).await {
            Ok(()) => true,
            Err(error) => {
                warn!(%error, "cannot publish whether HauberkConfig is accepted here");
                false
            }
        }
    }
}

/// Spreads `nodes` nodes over as much time as [`STARTS_PER_SECOND`] needs, each at a place derived
/// from its name.
pub(super) fn turn(node: &str, nodes: u64) -> Duration {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    let span = nodes.saturating_sub(1) * 1_000 / STARTS_PER_SECOND;
    Duration::from_millis(hasher.finish() % (span + 1))
}
