//! The agent's life: self-check, keys, datapath, then the tasks, until a signal. Nothing is torn
//! down at the end: the programs, maps and devices stay and keep denying.

use std::sync::Arc;

use hauberk_api::{Problem, Severity};
use hauberk_core::events::NewEvent;
use hauberk_core::local_node::{LocalNode, ServicesRoom, Settings};
use hauberk_core::model::{Change, Model};
use hauberk_datapath::tables::services;
use hauberk_datapath::{DatapathError, How, Maps};
use hauberk_keyring::{Store, StoreError};
use hauberk_source::{Source, SourceError};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use self::tasks::Parts;
use crate::api::{self, ApiStartError, Context};
use crate::apply::{Prepared, StartError};
use crate::attachments;
use crate::cluster_config;
use crate::config::{CniInstall, Config};
use crate::lock::{self, LockError};
use crate::observe::MapReader;
use crate::observe::flows::FlowLog;
use crate::observe::leaks;
use crate::observe::status::Facts;
use crate::reconcile::{self, Input, Reconciler};
use crate::selfcheck::{self, SelfCheckError};
use crate::state::{AgentState, SharedState};
use crate::uapi::UapiError;

mod clock;
mod cluster;
mod departed;
mod inputs;
mod records;
mod self_test;
mod tasks;
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
    let mut local = local_node(&config, &keys);
    info!(node = local.name, version = env!("CARGO_PKG_VERSION"), "hauberkd starts");

    let mut prepared = Prepared::load(&config, &local, Model::new(&local.name).own_number()).await?;
    let (attachments, mut lasting, recovered) = records::restore(&config, &local, &prepared).await?;
    let datapath = prepared.datapath_mut();
    local.settings.services_room = Some(services_room(datapath.maps()));
    lasting.extend(datapath.resized().iter().map(|sentence| resized(sentence)));
    let map_reader = MapReader::new(datapath.observe()?);
    let ring = datapath.maps_mut().take_events();
    let pins = datapath.pins().clone();
    let how = datapath.how();
    let tunnel = config.tunnel.device.clone();
    let place = leaks::Place { pins: pins.clone(), clsact: how == How::Clsact, tunnel };
    let facts = Arc::new(Facts {
        started,
        config: config.clone(),
        keys: tunnel::public_keys(keys.keys()),
        attach: how,
        lasting,
        cluster: cluster.as_ref().map(cluster::Connected::facts),
    });

    let (inputs, received) = mpsc::channel(INPUTS);
    let agent = SharedState::new(AgentState::new(local, source.status()));
    let context = Context { agent, map_reader, flows: FlowLog::default(), facts, attachments, inputs, pins };
    note(&context, recovered);
    let addresses = tell_first(&context).await;
    let reconciler = reconciler(&context, &source, prepared, keys);

    let (stop, stopped) = watch::channel(false);
    let parts = Parts { context, source, cluster, reconciler, received, ring, place, addresses, listener };
    let reports = tasks::start(parts, stopped);
    wait_for_signal().await?;
    let _ = stop.send(true);
    if let Some(reports) = reports {
        reports.finish().await;
    }
    info!("hauberkd stops; the datapath stays and goes on denying");
    Ok(())
}

/// This node, before anything of the cluster is known.
fn local_node(config: &Config, keys: &Store) -> LocalNode {
    let chained = config.cni.install == CniInstall::Chained;
    let (services, services_outside) = (config.services.sockets, config.services.outside);
    let settings = Settings { chained, services, services_outside, ..Settings::default() };
    let settings = cluster_config::settings(&settings, config);
    let keys = keys.keys().iter().map(|key| key.public).collect();
    LocalNode { name: config.node.clone().unwrap_or_default(), settings, keys, ..LocalNode::default() }
}

/// A pinned map keeps its size, whatever the configuration says by now.
fn services_room(maps: &Maps) -> ServicesRoom {
    let capacity = |table| maps.capacity(table).map_or(usize::MAX, |capacity| capacity as usize);
    ServicesRoom { frontends: capacity(&services::FRONTENDS), backends: capacity(&services::BACKENDS) }
}

/// Tells the reconciler what must be known before the source tells anything. Returns the addresses
/// that nodes had.
async fn tell_first(context: &Context) -> departed::Restored {
    let held: Vec<Change> = context.attachments.list().iter().map(attachments::domain::change).collect();
    // This node's attachments come first: nothing else says which pods are here.
    let _ = context.inputs.send(Input::Changes(held)).await;
    let config = &context.facts.config;
    let mut addresses = departed::restore(&config.paths.state, config.node.as_deref().unwrap_or_default());
    note(context, addresses.event.take());
    // Addresses that nodes had are closed before the source says that no node has them.
    let _ = context.inputs.send(Input::Changes(std::mem::take(&mut addresses.changes))).await;
    addresses
}

fn reconciler(context: &Context, source: &Arc<dyn Source>, prepared: Prepared, keys: Arc<Store>) -> Reconciler {
    let config = context.facts.config.clone();
    Reconciler::new(reconcile::Parts {
        agent: context.agent.clone(),
        prepared,
        attachments: context.attachments.clone(),
        source: source.clone(),
        published: tunnel::publish(&config, keys.keys()),
        make_tunnel: tunnel::maker(&config, keys, context.inputs.clone()),
        config,
    })
}

/// Says that something of an earlier agent was lost.
fn note(context: &Context, event: Option<NewEvent>) {
    if let Some(event) = event {
        warn!(reason = event.reason, "{}", event.message);
        context.agent.write().events.note(&event, context.facts.started);
    }
}

async fn wait_for_signal() -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => warn!("SIGHUP changes nothing: the configuration is read at the start; restart the agent"),
        }
    }
}

fn resized(sentence: &str) -> Problem {
    let stay = "pinned maps keep their size; `hauberkd uninstall`, then start, to change it";
    warning("maps", format!("{sentence}: {stay}"))
}

fn warning(object: &str, message: String) -> Problem {
    Problem { severity: Severity::Warning, object: object.into(), message }
}
