//! The agent's life: self-check, keys, datapath, then the tasks, until a signal. Nothing is torn
//! down at the end: the programs, maps and devices stay and keep denying.

use std::sync::Arc;

use hauberk_api::{Problem, Severity};
use hauberk_core::local_node::{LocalNode, Settings};
use hauberk_core::model::{Change, Model};
use hauberk_datapath::{DatapathError, How};
use hauberk_keyring::{Store, StoreError};
use hauberk_source::SourceError;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::api::{self, ApiStartError, Context};
use crate::apply::{Prepared, StartError};
use crate::attachments;
use crate::attachments::adoption::Adoption;
use crate::cluster_config;
use crate::config::{self, Config};
use crate::install::Installer;
use crate::lock::{self, LockError};
use crate::observe::flows::{self, FlowLog};
use crate::observe::status::Facts;
use crate::observe::{MapReader, contests, leaks, missing, plaintext, unconnected};
use crate::reconcile::{Input, Parts, Reconciler};
use crate::selfcheck::{self, SelfCheckError};
use crate::state::{AgentState, SharedState};
use crate::uapi::{self, UapiError};

mod clock;
mod cluster;
mod departed;
mod inputs;
mod records;
mod self_test;
mod tunnel;
mod wireguard_view;

pub use cluster::ClusterError;

/// Inputs that may wait for the reconciler.
const INPUTS: usize = 64;

/// The agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The node lacks something.
    #[error(transparent)]
    SelfCheck(#[from] SelfCheckError),
    /// The BPF file system.
    #[error("{0}")]
    BpfFileSystem(String),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] StoreError),
    /// Another agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The datapath.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The maps.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The attachments' folder.
    #[error(transparent)]
    Attachments(#[from] attachments::StoreError),
    /// Pods' interfaces without a record.
    #[error("cannot put pods' interfaces on record again: {0}")]
    Recover(#[from] attachments::AttachmentError),
    /// The API.
    #[error(transparent)]
    Api(#[from] ApiStartError),
    /// The WireGuard interface.
    #[error(transparent)]
    Uapi(#[from] UapiError),
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A signal handler could not be installed.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`]; what was attached stays.
pub async fn run(config: Config) -> Result<(), RunError> {
    let started = Timestamp::now();
    selfcheck::mount_bpf_file_system(&config.paths.pins).map_err(RunError::BpfFileSystem)?;
    selfcheck::require(&selfcheck::run(&config))?;
    // The agent that answers on the socket owns this node; a second agent must not touch anything.
    let listener = api::bind(&config.paths.socket).await?;
    // The state directory's first use: if a kubelet made it, its mode can only be restricted while
    // it is empty.
    let keys = Arc::new(Store::open(&config.paths.state)?);
    let _lock = lock::take(&config.paths.state)?;
    clock::restore(&config.paths.state);
    let (config, source, cluster) = cluster::connect(config).await?;
    let config = Arc::new(config);
    let node = config.node.clone().unwrap_or_default();
    let public = tunnel::public_keys(keys.keys());
    let chained = config.cni.install == config::CniInstall::Chained;
    let settings = cluster_config::settings(&Settings { chained, ..Settings::default() }, &config);
    let own_keys = public.iter().map(|key| key.bytes).collect();
    let local = LocalNode { name: node.clone(), settings, keys: own_keys, ..LocalNode::default() };
    info!(node, version = env!("CARGO_PKG_VERSION"), "hauberkd starts");

    let number = Model::new(&node).own_number();
    let mut prepared = Prepared::load(&config, &local, number).await?;
    let (attachments, mut lasting, recovered) = records::restore(&config, &local, &prepared).await?;
    lasting.extend(prepared.datapath_mut().resized().iter().map(|sentence| {
        warning(
            "maps",
            format!("{sentence}: pinned maps keep their size; `hauberkd uninstall`, then start, to change it"),
        )
    }));
    let map_reader = MapReader::new(prepared.datapath_mut().observe()?);
    let ring = prepared.datapath_mut().maps_mut().take_events();
    let pins = prepared.datapath_mut().pins().clone();
    let place = leaks::Place {
        pins: pins.clone(),
        clsact: prepared.datapath_mut().how() == How::Clsact,
        tunnel: config.tunnel.device.clone(),
    };
    let facts = Arc::new(Facts {
        started,
        config: config.clone(),
        keys: public,
        attach: prepared.datapath_mut().how().as_str(),
        lasting,
        cluster: cluster.as_ref().map(cluster::Connected::facts),
    });

    let agent = SharedState::new(AgentState::new(local, source.status()));
    if let Some(event) = recovered {
        warn!(reason = event.reason, "{}", event.message);
        agent.write().events.note(&event, started);
    }
    let (inputs, received) = mpsc::channel(INPUTS);
    let held: Vec<Change> = attachments.list().into_iter().map(Change::Attachment).collect();
    // This node's attachments come first: nothing else says which pods are here.
    let _ = inputs.send(Input::Changes(held)).await;
    let mut addresses = departed::restore(&config.paths.state, &node);
    if let Some(event) = addresses.event.take() {
        warn!(reason = event.reason, "{}", event.message);
        agent.write().events.note(&event, started);
    }
    // Addresses that nodes had are closed before the source says that no node has them.
    let _ = inputs.send(Input::Changes(std::mem::take(&mut addresses.changes))).await;

    tokio::spawn(attachments.clone().try_disk());

    let results = chained.then(|| config.cni.results_directory.clone());
    let (adoption, adopted) = Adoption::new(attachments.clone(), inputs.clone(), agent.clone(), results);

    let reconciler = Reconciler::new(Parts {
        config: config.clone(),
        agent: agent.clone(),
        prepared,
        attachments: attachments.clone(),
        source: source.clone(),
        make_tunnel: tunnel::maker(&config, keys.clone(), inputs.clone()),
        published: tunnel::publish(&config, keys.keys()),
    });
    let context = Context {
        agent: agent.clone(),
        map_reader: map_reader.clone(),
        flows: FlowLog::default(),
        facts,
        attachments,
        inputs: inputs.clone(),
        pins,
    };
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(reconciler.run(received));
    let cni_in_place = watch::Sender::new(config.cni.install == config::CniInstall::None);
    tokio::spawn(Installer::new(&config, agent.clone(), adopted, cni_in_place.clone()).run());
    let reports = cluster.map(|cluster| {
        cluster.spawn(&config, &agent, source.clone(), inputs.clone(), cni_in_place.subscribe(), stopped.clone())
    });
    let beside = source.clone();
    tokio::spawn(reporting("the search for pods that another plugin connected", adoption.run()));
    tokio::spawn(inputs::tell_reconciler(source, inputs.clone(), stopped));
    if let Some(ring) = ring {
        tokio::spawn(reporting(
            "flow events",
            flows::run(ring, context.flows.clone(), agent.clone(), map_reader.clone()),
        ));
    }
    tokio::spawn(plaintext::watch(agent.clone(), map_reader.clone(), beside));
    tokio::spawn(missing::watch(agent.clone()));
    tokio::spawn(unconnected::watch(agent.clone()));
    tokio::spawn(contests::watch(agent.clone(), map_reader.clone()));
    tokio::spawn(self_test::prove(agent.clone(), map_reader, context.pins.clone()));
    tokio::spawn(reporting("the leak detector", leaks::watch(place, agent.clone())));
    tokio::spawn(inputs::watch_devices(inputs.clone()));
    tokio::spawn(clock::keep(config.paths.state.clone()));
    tokio::spawn(departed::run(context.agent.clone(), inputs.clone(), config.paths.state.clone(), addresses));
    tokio::spawn(reporting("the API", api::serve(listener, config.paths.socket.clone(), context.clone())));
    if let Some(address) = config.metrics {
        tokio::spawn(reporting("metrics", api::serve_metrics(address, context)));
    }
    match uapi::bind(&config.paths.uapi) {
        Ok(listener) => {
            let view = Arc::new(wireguard_view::View { agent, port: config.tunnel.port });
            tokio::spawn(uapi::serve(listener, view));
        }
        // `wg show` is a convenience, not protection: the agent continues without it.
        Err(error) => warn!(%error, "`wg show` will not work"),
    }
    wait_for_signal().await?;
    let _ = stop.send(true);
    if let Some(reports) = reports {
        reports.finish().await;
    }
    info!("hauberkd stops; the datapath stays and goes on denying");
    Ok(())
}

/// Logs why a task ended that should run forever.
async fn reporting<E: std::fmt::Display>(what: &'static str, task: impl Future<Output = Result<(), E>>) {
    if let Err(error) = task.await {
        error!(%error, "{what} stopped");
    }
}

async fn wait_for_signal() -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn warning(object: &str, message: String) -> Problem {
    Problem { severity: Severity::Warning, object: object.into(), message }
}
