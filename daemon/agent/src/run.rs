//! The agent's life: self-check, keys, datapath, then the tasks, until a signal. Nothing is torn
//! down at the end: the programs, maps and devices stay and keep denying.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use hauberk_api::{Attachment, Problem, Severity};
use hauberk_backend::{LocalKey, StartConfig};
use hauberk_core::events::{NewEvent, reason};
use hauberk_core::local_node::{LocalNode, Settings};
use hauberk_core::model::{Change, Model};
use hauberk_core::names::AttachmentKey;
use hauberk_datapath::{DatapathError, How, Pins};
use hauberk_host::Netlink;
use hauberk_keyring::{NodeKey, PublicKey, Published, Store, StoreError};
use hauberk_source::{Batch, Source, SourceError};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::api::{self, ApiStartError, Context};
use crate::apply::{Prepared, StartError};
use crate::attachments::adoption::Adoption;
use crate::attachments::{self, Attachments};
use crate::cluster_config;
use crate::config::{self, Config};
use crate::install::Installer;
use crate::lock::{self, LockError};
use crate::observe::flows::{self, FlowLog};
use crate::observe::status::Facts;
use crate::observe::{MapReader, contests, leaks, missing, plaintext, self_test, unconnected};
use crate::reconcile::{Input, Parts, Reconciler, tunnelled_ranges};
use crate::selfcheck::{self, SelfCheckError};
use crate::state::{AgentState, SharedState};
use crate::uapi::{self, UapiError};

mod clock;
mod cluster;
mod departed;
mod wireguard_view;

pub use cluster::ClusterError;

/// Inputs that may wait for the reconciler.
const INPUTS: usize = 64;
/// How long a burst of device changes is gathered.
const SETTLE: Duration = Duration::from_millis(50);
/// Between self-tests after one that passed, and after one that failed.
const SELF_TEST: Duration = Duration::from_secs(60);
const FAILED_SELF_TEST: Duration = Duration::from_secs(2);
/// How often to look whether something new needs a self-test.
const LOOK_FOR_SELF_TEST: Duration = Duration::from_millis(250);

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
    let public = public_keys(keys.keys());
    let chained = config.cni.install == config::CniInstall::Chained;
    let settings = cluster_config::settings(&Settings { chained, ..Settings::default() }, &config);
    let own_keys = public.iter().map(|key| key.bytes).collect();
    let local = LocalNode { name: node.clone(), settings, keys: own_keys, ..LocalNode::default() };
    info!(node, version = env!("CARGO_PKG_VERSION"), "hauberkd starts");

    let number = Model::new(&node).own_number();
    let mut prepared = Prepared::load(&config, &local, number).await?;
    let (attachments, mut lasting, recovered) = restore_attachments(&config, &local, &prepared).await?;
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
        attach: prepared.datapath_mut().how(),
        lasting,
        cluster: cluster.as_ref().map(cluster::Connected::facts),
    });

    let agent = SharedState::new(AgentState::new(local, source.status()));
    if let Some(event) = recovered {
        warn!(reason = event.reason, "{}", event.message);
        agent.write().events.note(&event, started);
    }
    let (inputs, received) = mpsc::channel(INPUTS);
    let held: Vec<Change> = attachments.list().iter().map(attachments::domain::change).collect();
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
        make_tunnel: tunnel_maker(&config, keys.clone(), inputs.clone()),
        published: publish(&config, keys.keys()),
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
    tokio::spawn(tell_reconciler(source, inputs.clone(), stopped));
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
    tokio::spawn(prove(agent.clone(), map_reader, context.pins.clone()));
    tokio::spawn(reporting("the leak detector", leaks::watch(place, agent.clone())));
    tokio::spawn(watch_devices(inputs.clone()));
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

/// The records of pods' interfaces. A record whose interface is gone, as after a reboot, only keeps
/// its addresses. An interface that exists in the kernel but has no record gets one again, and the
/// event says so.
async fn restore_attachments(
    config: &Config,
    local: &LocalNode,
    prepared: &Prepared,
) -> Result<(Attachments, Vec<Problem>, Option<NewEvent>), RunError> {
    let folder: PathBuf = config.paths.state.join("attachments");
    let (attachments, sentences) = Attachments::open(folder, attachments::Settings::default())?;
    let held = prepared.held().await?;
    let route_mtu = prepared.earlier_tunnel_mtu();
    let given = attachments::Settings {
        cluster_ranges: tunnelled_ranges(&local.settings),
        route_mtu,
        gso_max_size: config.tunnel.backend.mechanism().gso_max_size(route_mtu),
        ..attachments::Settings::default()
    };
    let recovered = attachments.change(move |keeper| keeper.recover(&held, &given)).await?;
    let event = (!recovered.is_empty()).then(|| told(&local.name, config, &recovered));
    let interfaces = prepared.interfaces().await?;
    let exists = move |name: &str, index: u32| interfaces.iter().any(|(n, i)| n == name && *i == index);
    let vanished = attachments.vanished(&exists);
    match attachments.change(move |keeper| keeper.detach_missing(exists)).await {
        Ok(gone) => {
            for attachment in gone {
                info!(
                    container = attachment.request.container,
                    "its interface is gone; its addresses stay reserved until the runtime deletes it"
                );
            }
        }
        Err(error) => warn!(%error, "cannot note that interfaces are gone"),
    }
    for AttachmentKey { container, interface } in vanished {
        info!(container, interface, "its interface, which another plugin made, is gone");
        if let Err(error) = attachments.change(move |keeper| keeper.release(&container, &interface)).await {
            warn!(%error, "cannot forget an interface that is gone");
        }
    }
    let problems = sentences.into_iter().map(|sentence| warning("attachments", sentence)).collect();
    Ok((attachments, problems, event))
}

fn told(node: &str, config: &Config, recovered: &[Attachment]) -> NewEvent {
    let names: Vec<&str> = recovered.iter().take(3).map(|pod| pod.reservation.host_interface.as_str()).collect();
    let more = if recovered.len() > names.len() { ", ..." } else { "" };
    let message = format!(
        "{} of this node's pods had an interface and were on no record in {}, which was lost or is another than before \
         (paths.state): they are on record again as the kernel has them, and go on ({}{more})",
        recovered.len(),
        config.paths.state.display(),
        names.join(", "),
    );
    let objects = vec![format!("Node/{node}")];
    NewEvent { warning: true, reason: reason::ATTACHMENTS_RECOVERED, objects, message }
}

/// What the other nodes need to reach this one.
fn publish(config: &Config, keys: &[NodeKey]) -> String {
    hauberk_keyring::published::render(&Published { port: config.tunnel.port, keys: public_keys(keys) })
}

fn public_keys(keys: &[NodeKey]) -> Vec<PublicKey> {
    keys.iter().map(|key| PublicKey { epoch: key.epoch, bytes: key.public }).collect()
}

fn tunnel_maker(
    config: &Arc<Config>,
    keys: Arc<Store>,
    inputs: mpsc::Sender<Input>,
) -> Box<dyn Fn(u32) -> StartConfig + Send + Sync> {
    let tunnel = config.tunnel.clone();
    Box::new(move |mtu| {
        let inputs = inputs.clone();
        StartConfig {
            device: tunnel.device.clone(),
            mtu,
            port: tunnel.port,
            keys: keys.keys().iter().map(|key| LocalKey { epoch: key.epoch, secret: key.secret.expose() }).collect(),
            handshakes_per_second: u64::from(tunnel.handshakes_per_second),
            spin: Duration::from_micros(tunnel.spin_microseconds.into()),
            copy_dscp: tunnel.copy_dscp,
            threads: tunnel.threads(),
            cipher: tunnel.cipher,
            // This runs on the tunnel's own thread, which must not wait. If the queue is full, the
            // next state change reports the state again, and permissive traffic waits until then.
            on_state: Box::new(move |number, progress| {
                if inputs.try_send(Input::Peer(number, progress)).is_err() {
                    warn!(peer = number.0, "the reconciler is busy: a change of a peer's state was not told");
                }
            }),
        }
    })
}

/// Passes batches from the source to the reconciler, each with the source's own state.
async fn tell_reconciler(source: Arc<dyn Source>, inputs: mpsc::Sender<Input>, stopped: watch::Receiver<bool>) {
    let (sender, mut batches) = mpsc::channel::<Batch>(64);
    let running = tokio::spawn(Arc::clone(&source).run(sender, stopped));
    let mut look = tokio::time::interval(Duration::from_secs(1));
    let mut told = None;
    loop {
        tokio::select! {
            batch = batches.recv() => {
                let Some(batch) = batch else { break };
                let status = Input::Source(Box::new(source.status()), batch.events);
                let told = Input::FromSource(batch.changes, std::time::Instant::now());
                if inputs.send(told).await.is_err() || inputs.send(status).await.is_err() {
                    return;
                }
            }
            _ = look.tick() => {
                let status = source.status();
                let key = (status.synced, status.unavailable_since, status.rejected);
                if told.replace(key) != Some(key) && inputs.send(Input::Source(Box::new(status), Vec::new())).await.is_err() {
                    return;
                }
            }
        }
    }
    if let Ok(Err(error)) = running.await {
        error!(%error, "the source has stopped; what was known stays in force");
    }
}

/// Tells the reconciler when devices change: once for a burst, for example when pods arrive.
async fn watch_devices(inputs: mpsc::Sender<Input>) {
    let mut changes = match Netlink::watch() {
        Ok(changes) => changes,
        Err(error) => return warn!(%error, "new uplinks are found by looking around only"),
    };
    while changes.next().await.is_some() {
        tokio::time::sleep(SETTLE).await;
        while let Some(Some(())) = changes.next().now_or_never() {}
        if inputs.send(Input::Devices).await.is_err() {
            return;
        }
    }
}

/// Runs the self-test until it passes, then periodically, and at once when something new needs it.
async fn prove(agent: SharedState, map_reader: MapReader, pins: Pins) {
    let mut last = Instant::now();
    loop {
        let (running, begun, due) = {
            let agent = agent.read();
            let due = match agent.self_test.outcome() {
                None => true,
                Some(Err(_)) => last.elapsed() > FAILED_SELF_TEST,
                Some(Ok(())) => last.elapsed() > SELF_TEST,
            };
            (agent.running.clone(), agent.self_test.begin(), due)
        };
        if let Some(running) = running.filter(|_| due) {
            let outcome = self_test::run(&running.devices, running.backend.as_ref(), &map_reader, &pins).await;
            last = Instant::now();
            let passed = outcome.is_ok();
            if let Err(reason) = &outcome {
                warn!(%reason, "the self-test failed");
            }
            let is_news = agent.write().self_test.end(begun, outcome);
            if passed && is_news {
                info!("ready: the self-test passed");
            }
        }
        tokio::time::sleep(LOOK_FOR_SELF_TEST).await;
    }
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
