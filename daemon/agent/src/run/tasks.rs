//! The agent's tasks, which run until the process ends. A new task is one line, in the group that
//! it belongs to.

use std::sync::Arc;

use hauberk_datapath::Events;
use hauberk_source::Source;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing::{error, warn};

use super::cluster::{Connected, Reporting};
use super::{clock, departed, inputs, self_test, wireguard_view};
use crate::api::{self, Context};
use crate::attachments::adoption::Adoption;
use crate::config::CniInstall;
use crate::health_checks;
use crate::install::Installer;
use crate::observe::{connections, contests, flows, leaks, missing, plaintext, unconnected};
use crate::reconcile::{Input, Reconciler};
use crate::uapi;

/// What the tasks are made of.
pub(super) struct Parts {
    /// What most of them share.
    pub context: Context,
    /// Tells the objects.
    pub source: Arc<dyn Source>,
    /// The cluster behind the source, if there is one.
    pub cluster: Option<Connected>,
    /// Ready to run.
    pub reconciler: Reconciler,
    /// Its input.
    pub received: mpsc::Receiver<Input>,
    /// The datapath's flow events.
    pub ring: Option<Events>,
    /// Where leaks are looked for.
    pub place: leaks::Place,
    /// Addresses that nodes had.
    pub addresses: departed::Restored,
    /// The API's socket.
    pub listener: UnixListener,
}

/// Starts all tasks. Returns the one that must have a moment to end after `stopped`.
pub(super) fn start(parts: Parts, stopped: watch::Receiver<bool>) -> Option<Reporting> {
    let Parts { context, source, cluster, reconciler, received, ring, place, addresses, listener } = parts;
    tokio::spawn(context.attachments.clone().try_disk());
    tokio::spawn(reconciler.run(received));
    let reports = connect(&context, &source, cluster, stopped);
    observe(&context, source, ring, place);
    keep_up(&context, addresses);
    answer(context, listener);
    reports
}

/// The CNI plugin, pods of other plugins, the cluster, the source of objects.
fn connect(
    context: &Context,
    source: &Arc<dyn Source>,
    cluster: Option<Connected>,
    stopped: watch::Receiver<bool>,
) -> Option<Reporting> {
    let Context { agent, facts, attachments, inputs, .. } = context;
    let cni = &facts.config.cni;
    let results = (cni.install == CniInstall::Chained).then(|| cni.results_directory.clone());
    let (adoption, adopted) = Adoption::new(attachments.clone(), inputs.clone(), agent.clone(), results);
    let in_place = watch::Sender::new(cni.install == CniInstall::None);
    tokio::spawn(Installer::new(&facts.config, agent.clone(), adopted, in_place.clone()).run());
    let reports = cluster.map(|cluster| {
        let (source, in_place) = (source.clone(), in_place.subscribe());
        cluster.spawn(&facts.config, agent, source, inputs.clone(), in_place, stopped.clone())
    });
    tokio::spawn(reporting("the search for pods that another plugin connected", adoption.run()));
    tokio::spawn(inputs::tell_reconciler(source.clone(), inputs.clone(), stopped));
    reports
}

/// What only looks, and says in the status what it saw.
fn observe(context: &Context, source: Arc<dyn Source>, ring: Option<Events>, place: leaks::Place) {
    let Context { agent, map_reader, flows, pins, .. } = context;
    if let Some(ring) = ring {
        let events = flows::run(ring, flows.clone(), agent.clone(), map_reader.clone());
        tokio::spawn(reporting("flow events", events));
    }
    tokio::spawn(connections::forget(agent.clone(), map_reader.clone()));
    tokio::spawn(plaintext::watch(agent.clone(), map_reader.clone(), source));
    tokio::spawn(missing::watch(agent.clone()));
    tokio::spawn(unconnected::watch(agent.clone()));
    tokio::spawn(contests::watch(agent.clone(), map_reader.clone()));
    tokio::spawn(self_test::prove(agent.clone(), map_reader.clone(), pins.clone()));
    tokio::spawn(reporting("the leak detector", leaks::watch(place, agent.clone())));
}

/// What the machine tells, and what is kept over restarts.
fn keep_up(context: &Context, addresses: departed::Restored) {
    let Context { agent, facts, inputs, .. } = context;
    let state = &facts.config.paths.state;
    tokio::spawn(inputs::watch_devices(inputs.clone()));
    tokio::spawn(clock::keep(state.clone()));
    tokio::spawn(departed::run(agent.clone(), inputs.clone(), state.clone(), addresses));
}

/// Answers to the CLI and the CNI plugin, to Prometheus, to load balancers, to `wg show`.
fn answer(context: Context, listener: UnixListener) {
    let (agent, config) = (context.agent.clone(), context.facts.config.clone());
    tokio::spawn(reporting("the API", api::serve(listener, config.paths.socket.clone(), context.clone())));
    if let Some(address) = config.metrics {
        tokio::spawn(reporting("metrics", api::serve_metrics(address, context)));
    }
    if config.services.outside {
        tokio::spawn(health_checks::run(agent.clone()));
    }
    match uapi::bind(&config.paths.uapi) {
        Ok(listener) => {
            let view = Arc::new(wireguard_view::View { agent, port: config.tunnel.port });
            tokio::spawn(uapi::serve(listener, view));
        }
        // `wg show` is a convenience, not protection: the agent continues without it.
        Err(error) => warn!(%error, "`wg show` will not work"),
    }
}

/// Logs why a task ended that should run forever.
async fn reporting<E: std::fmt::Display>(what: &'static str, task: impl Future<Output = Result<(), E>>) {
    if let Err(error) = task.await {
        error!(%error, "{what} stopped");
    }
}
