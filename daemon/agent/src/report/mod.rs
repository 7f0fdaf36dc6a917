//! Reports to the cluster what this agent knows: Events on the objects concerned,
//! `hauberk.io/status` on namespaces and pods, which nodes have accepted HauberkConfig, and that
//! this node may have pods.
//!
//! Nothing here protects anything: failed writes are retried, and the datapath does not wait for
//! them. Every agent writes about its own node and pods; what only one should write, the holder of
//! the Lease ([`lease`]) writes.

mod acceptance;
mod events;
mod lease;
mod namespaces;
mod pods;
mod taint;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hauberk_core::convergence::convergence;
use jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, trace, warn};

use crate::report::events::{Events, Writer};
use crate::report::lease::{Election, Move};
use crate::report::pods::Instance;
use crate::report::write::{Cluster, WriteError};
use crate::state::SharedState;

/// Between two passes.
const LOOK: Duration = Duration::from_secs(2);
/// Between looks at namespaces by an agent that does not write about them and only answers `hauberk
/// status`.
const LOOK_AT_NAMESPACES: Duration = Duration::from_secs(30);
/// How often written annotations are read back: another program may have changed one, or an object
/// was created anew.
const READ_BACK: Duration = Duration::from_secs(600);
/// Between looks at which nodes have accepted HauberkConfig: while some have not, and once all
/// have.
const LOOK_AT_ACCEPTANCE: Duration = Duration::from_secs(10);
const ALL_ACCEPTED: Duration = Duration::from_secs(120);
/// The most objects written to in one pass.
const AT_ONCE: usize = 20;
/// Pause after a failure of the API server; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a [`Reporter`] needs.
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// The namespace hauberk is installed in.
    pub namespace: String,
    /// The shared state.
    pub agent: SharedState,
    /// Whether the runtime finds hauberk's CNI plugin; true if the agent does not install it.
    pub cni_in_place: watch::Receiver<bool>,
    /// Whether pods that another plugin attached are adopted. If so, the taint stays while an
    /// opted-in one is left out.
    pub adopts: bool,
    /// Since when namespaces have been enforced everywhere, for `hauberk status`.
    pub since: watch::Sender<BTreeMap<String, Timestamp>>,
}

/// See the module.
pub struct Reporter {
    cluster: Cluster,
    node: String,
    agent: SharedState,
    cni_in_place: watch::Receiver<bool>,
    adopts: bool,
    since: watch::Sender<BTreeMap<String, Timestamp>>,
    born: Instant,
    election: Election,
    look_at_lease: Option<Instant>,
    events: Events,
    /// What namespaces' annotations say, as far as this agent knows; none before it has read them.
    namespaces: Option<BTreeMap<String, String>>,
    namespaces_read: Instant,
    namespaces_looked: Option<Instant>,
    /// What the annotations of this node's pods say.
    pods: Option<BTreeMap<Instance, String>>,
    pods_read: Instant,
    look_at_acceptance: Instant,
    tainted: bool,
}

impl Reporter {
    /// Ready to run.
    pub fn new(parts: Parts) -> Reporter {
        let node = parts.agent.read().model.node().to_owned();
        let now = Instant::now();
        Reporter {
            cluster: Cluster::new(parts.client, parts.namespace),
            election: Election::new(&node),
            node,
            agent: parts.agent,
            cni_in_place: parts.cni_in_place,
            adopts: parts.adopts,
            since: parts.since,
            born: now,
            look_at_lease: None,
            events: Events::default(),
            namespaces: None,
            namespaces_read: now,
            namespaces_looked: None,
            pods: None,
            pods_read: now,
            look_at_acceptance: now,
            tainted: true,
        }
    }

    /// Runs until `stop` is true, and then releases the Lease.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let wait = match self.pass().await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    LOOK
                }
                Err(error) => {
                    // The source reports for how long the API server has been away; one warning is
                    // enough here.
                    if pause == FIRST_PAUSE {
                        warn!("{error}")
                    } else {
                        debug!("{error}")
                    }
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        if self.holds() {
            self.give_back().await;
        }
    }

    async fn pass(&mut self) -> Result<(), WriteError> {
        // Before everything has been read, nothing is certain.
        if !self.agent.read().source.synced {
            return Ok(());
        }
        self.untaint().await?;
        self.take_turn().await?;
        self.tell_pods().await?;
        self.tell_namespaces().await?;
        self.tell_events().await?;
        self.tell_acceptance().await
    }

    fn uptime(&self) -> Duration {
        self.born.elapsed()
    }

    fn holds(&self) -> bool {
        self.election.holds(self.uptime())
    }

    async fn take_turn(&mut self) -> Result<(), WriteError> {
        if self.look_at_lease.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let held = self.holds();
        let lease = self.cluster.lease().await?;
        let uptime = self.uptime();
        let written = match self.election.next(lease.as_ref(), Timestamp::now(), uptime) {
            Move::Wait => false,
            Move::Create(lease) => self.cluster.create_lease(&lease).await?,
            Move::Replace(lease) => self.cluster.replace_lease(&lease).await?,
        };
        if written {
            self.election.written(uptime);
        }
        if written && !held {
            info!("this agent now writes what only one should (Lease {})", lease::NAME);
            // Another agent wrote until now.
            self.namespaces = None;
            self.look_at_acceptance = Instant::now();
        }
        let nodes = self.agent.read().model.nodes().count();
        self.look_at_lease = Some(Instant::now() + if written { lease::RENEW } else { lease::look_again(nodes) });
        Ok(())
    }

    async fn give_back(&mut self) {
        let Ok(Some(lease)) = self.cluster.lease().await else { return };
        if let Some(lease) = self.election.release(&lease)
            && let Err(error) = self.cluster.replace_lease(&lease).await
        {
            debug!(%error, "the Lease expires by itself");
        }
    }

    async fn untaint(&mut self) -> Result<(), WriteError> {
        if !self.tainted || !*self.cni_in_place.borrow() {
            return Ok(());
        }
        let waits = {
            let agent = self.agent.read();
            let left_out = if self.adopts { pods::unattached(&agent) } else { Vec::new() };
            if !left_out.is_empty() {
                trace!(?left_out, "the start-up taint waits for pods to be adopted");
            }
            !agent.is_ready() || !left_out.is_empty()
        };
        if !waits && self.cluster.untaint(&self.node).await? {
            self.tainted = false;
            info!("this node takes pods: it has no taint {} (any more)", taint::KEY);
        }
        Ok(())
    }

    async fn tell_pods(&mut self) -> Result<(), WriteError> {
        if self.pods.is_none() || self.pods_read.elapsed() > READ_BACK {
            let read = self.cluster.pod_texts(&self.node).await?;
            // The model may have another uid for the pod (static pods), and the model's counts.
            let agent = self.agent.read();
            let texts = read.into_iter().map(|(name, text)| {
                let uid = agent.model.pod(&name).and_then(|pod| pod.uid.as_deref()).map(str::to_owned);
                ((name, uid), text)
            });
            self.pods = Some(texts.collect());
            self.pods_read = Instant::now();
        }
        let Some(written) = &mut self.pods else { return Ok(()) };
        let wanted = {
            let agent = self.agent.read();
            // For a pod that is gone there is no annotation to remove, and the next pod of its name
            // must keep its own.
            written
                .retain(|(name, uid), _| agent.model.pod(name).is_some_and(|pod| pod.uid.as_deref() == uid.as_deref()));
            pods::texts(&agent)
        };
        for (instance, text) in changes(written, &wanted) {
            self.cluster.tell_pod(&instance.0, text.as_deref()).await?;
            note(written, instance, text);
        }
        Ok(())
    }

    async fn tell_namespaces(&mut self) -> Result<(), WriteError> {
        let holds = self.holds();
        if !holds && self.namespaces_looked.is_some_and(|at| at.elapsed() < LOOK_AT_NAMESPACES) {
            return Ok(());
        }
        self.namespaces_looked = Some(Instant::now());
        if self.namespaces.is_none() || holds && self.namespaces_read.elapsed() > READ_BACK {
            self.namespaces = Some(self.cluster.namespace_texts().await?);
            self.namespaces_read = Instant::now();
        }
        let Some(written) = &mut self.namespaces else { return Ok(()) };
        let now = Timestamp::now();
        let wanted: BTreeMap<String, String> = {
            let agent = self.agent.read();
            let known = |name: &String, _: &mut String| agent.model.namespace(name).is_some();
            // A namespace that was created anew has no annotation.
            written.retain(known);
            convergence(&agent.model, &agent.local)
                .into_iter()
                .filter(|status| agent.model.namespace(&status.name).is_some())
                .map(|status| {
                    let text = namespaces::text(&status, written.get(&status.name).map(String::as_str), now);
                    (status.name, text)
                })
                .collect()
        };
        let since = wanted.iter().filter_map(|(name, text)| Some((name.clone(), namespaces::since(text)?))).collect();
        self.since.send_if_modified(|known| {
            let news = *known != since;
            *known = since;
            news
        });
        if !holds {
            *written = wanted;
            return Ok(());
        }
        for (name, text) in changes(written, &wanted) {
            self.cluster.tell_namespace(&name, text.as_deref()).await?;
            note(written, name, text);
        }
        Ok(())
    }

    async fn tell_events(&mut self) -> Result<(), WriteError> {
        let (uptime, holder) = (self.uptime(), self.holds());
        let due = {
            let agent = self.agent.read();
            let standing: BTreeSet<String> = agent.desired.events.iter().map(|event| event.message.clone()).collect();
            let writer = Writer { model: &agent.model, holder };
            self.events.due(&agent.events.list(), &standing, &writer, Timestamp::now(), uptime)
        };
        for writing in due {
            self.cluster.tell_event(&writing).await?;
            self.events.written(&writing, uptime);
        }
        Ok(())
    }

    async fn tell_acceptance(&mut self) -> Result<(), WriteError> {
        if !self.holds() || Instant::now() < self.look_at_acceptance {
            return Ok(());
        }
        self.look_at_acceptance = Instant::now() + LOOK_AT_ACCEPTANCE;
        let Some(object) = self.cluster.cluster_config().await? else { return Ok(()) };
        let agents: BTreeSet<String> = {
            let agent = self.agent.read();
            agent.model.nodes().filter(|node| node.keys.is_some()).map(|node| node.name.clone()).collect()
        };
        let mut nodes = self.cluster.acceptances().await?;
        nodes.retain(|name, acceptance| acceptance.is_some() || agents.contains(name));
        let generation = object.metadata.generation.unwrap_or_default();
        let before = object.status.unwrap_or_default();
        let status = acceptance::status(generation, &nodes, &before, Timestamp::now());
        if status.accepted_nodes == nodes.len() {
            self.look_at_acceptance = Instant::now() + ALL_ACCEPTED;
        }
        if status != before {
            self.cluster.tell_acceptance(&status).await?;
        }
        Ok(())
    }
}

/// What to write so that `written` becomes `wanted`, limited to one pass.
fn changes<K: Clone + Ord>(written: &BTreeMap<K, String>, wanted: &BTreeMap<K, String>) -> Vec<(K, Option<String>)> {
    let new = wanted.iter().filter(|(key, text)| written.get(key) != Some(text));
    let new = new.map(|(key, text)| (key.clone(), Some(text.clone())));
    let gone = written.keys().filter(|key| !wanted.contains_key(key)).map(|key| (key.clone(), None));
    new.chain(gone).take(AT_ONCE).collect()
}

fn note<K: Ord>(written: &mut BTreeMap<K, String>, key: K, text: Option<String>) {
    match text {
        Some(text) => written.insert(key, text),
        None => written.remove(&key),
    };
}
