//! The reconciler: takes in changes, computes what the node should hold, and carries out the
//! difference. It alone writes to the kernel; the other tasks send it an [`Input`].

mod annotations;
mod announcer;
mod failures;
mod firewalls;
mod hops;
mod input;
mod names;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hauberk_abi::framing::Framing;
use hauberk_api::{Problem, Severity};
use hauberk_backend::{Progress, StartConfig};
use hauberk_core::events::NewEvent;
use hauberk_core::local_node::Settings;
use hauberk_core::model::Change;
use hauberk_core::names::NodeNumber;
use hauberk_core::plan::plan_within;
use hauberk_core::state::{Scope, State, Step};
use hauberk_host::netfilter::Counters;
use hauberk_source::Source;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::apply::{ApplyError, Found, Kernel, Node, Prepared, carry_out};
use crate::attachments::{self, Attachments};
use crate::cluster_config;
use crate::config::Config;
use crate::observe::firewalls::Firewalls;
use crate::world::{Device, Running, Shared};

use announcer::Announcer;
use failures::{Area, Failures};
pub use input::Input;

/// First pause after a failure; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between checks whether the programs on devices still run where they were attached, and between
/// those that include the programs on pods' interfaces.
const LOOK: Duration = Duration::from_millis(250);
const WHOLE_LOOK: Duration = Duration::from_secs(1);
/// Between checks of everything else that the kernel does not announce: flushed netfilter rules,
/// silent peers.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// Between two attempts to start a handshake with a peer that may not answer.
const GREETING: Duration = Duration::from_secs(30);
/// The most inputs that are taken in before the next computation.
const BATCH: usize = 4_096;

/// Makes the tunnel's configuration once the tunnel's MTU is known.
pub type TunnelMaker = Box<dyn Fn(u32) -> StartConfig + Send + Sync>;

/// The kernel's side, as far as it is up.
enum Stage {
    /// Waiting for the node's own object.
    Prepared(Box<Prepared>),
    Running(Box<Kernel>),
    /// Between the two; only during a transition.
    Changing,
}

/// See the module.
pub struct Reconciler {
    config: Arc<Config>,
    world: Shared,
    stage: Stage,
    actual: State,
    /// Where the kernel may not hold what is desired yet.
    pending: Scope,
    /// When the source told the changes that are not in the kernel yet.
    waiting_since: Vec<std::time::Instant>,
    /// Whether the settings of new pods may have changed.
    settings_due: bool,
    attachments: Attachments,
    make_tunnel: TunnelMaker,
    /// The keys annotation this node publishes.
    published: String,
    announcer: Announcer,
    /// When to retry annotations that could not be written.
    announce_at: Option<Instant>,
    /// Whether the kernel holds everything desired that concerns enforcement.
    enforces: bool,
    /// Interfaces of the attachments that were on record when the agent started.
    known_interfaces: BTreeSet<u32>,
    pause: Duration,
    /// Whether what the node should hold has changed without an input.
    stale: bool,
    /// Whether only fatal errors are left: then only a change is worth another try.
    is_futile: bool,
    foreign_routes_removed: bool,
    greeted: BTreeMap<NodeNumber, Instant>,
    failures: Failures,
    looked: Option<Instant>,
    /// When to look around next.
    look_around_due: Instant,
    /// When to look at other programs' chains again.
    firewalls_due: Option<Instant>,
    hops: hops::Hops,
}

/// What a [`Reconciler`] is made of.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The shared state.
    pub world: Shared,
    /// The kernel's side, loaded.
    pub prepared: Prepared,
    /// Pods' interfaces on record.
    pub attachments: Attachments,
    /// Writes this node's annotations.
    pub source: Arc<dyn Source>,
    /// Makes the tunnel's configuration.
    pub make_tunnel: TunnelMaker,
    /// The keys annotation to publish.
    pub published: String,
}

impl Reconciler {
    /// Ready to run.
    pub fn new(parts: Parts) -> Reconciler {
        let known_interfaces =
            parts.attachments.list().iter().filter_map(|a| Some(a.attach.as_ref()?.host_index)).collect();
        Reconciler {
            config: parts.config,
            world: parts.world,
            stage: Stage::Prepared(Box::new(parts.prepared)),
            actual: State::default(),
            pending: Scope::everything(),
            waiting_since: Vec::new(),
            settings_due: true,
            attachments: parts.attachments,
            make_tunnel: parts.make_tunnel,
            published: parts.published,
            announcer: Announcer::new(parts.source),
            announce_at: None,
            enforces: false,
            known_interfaces,
            pause: FIRST_PAUSE,
            stale: false,
            is_futile: false,
            foreign_routes_removed: false,
            greeted: BTreeMap::new(),
            failures: Failures::default(),
            looked: None,
            look_around_due: Instant::now(),
            firewalls_due: None,
            hops: hops::Hops::default(),
        }
    }

    /// Runs until the last sender of inputs is gone.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut retry: Option<Instant> = None;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                count = inputs.recv_many(&mut batch, BATCH) => if count == 0 { return },
                () = sleep_until(retry) => {}
                end = self.announcer.end() => {
                    self.announced(end);
                    continue;
                }
                () = sleep_until(self.announce_at) => {
                    self.announce();
                    continue;
                }
                _ = look.tick() => {
                    if self.look().await { retry = Some(Instant::now()); }
                    continue;
                }
            }
            let devices = batch.iter().any(|input| matches!(input, Input::Devices));
            // Addresses come first: the guards must know a new one before a packet carries it.
            if devices && !(self.take_host_addresses().await & self.refresh_devices(false).await) {
                retry = Some(Instant::now() + self.pause);
            }
            let (changed, waiting) = self.absorb(batch);
            if changed || retry.is_some() || !waiting.is_empty() || self.stale {
                self.stale = false;
                let clean = self.reconcile().await;
                self.pause = if clean { FIRST_PAUSE } else { (self.pause * 2).min(LONGEST_PAUSE) };
                retry = (!clean && !self.is_futile).then(|| Instant::now() + self.pause);
            } else {
                // The kernel holds already what was told.
                self.waiting_since.clear();
            }
            for waiter in waiting {
                let answer = self.answer(&waiter);
                waiter.answer(answer);
            }
        }
    }

    /// The memory step: changes go into the model. Returns whether anything is different, and the
    /// callers that wait for it.
    fn absorb(&mut self, batch: Vec<Input>) -> (bool, Vec<input::Waiter>) {
        let mut changed = false;
        let mut waiting = Vec::new();
        let now = Timestamp::now();
        let mut world = self.world.write();
        for input in batch {
            let changes = match input {
                Input::Changes(changes) => changes,
                Input::Told(changes, at) => {
                    // Before everything is known, most changes wait for the rest and would distort
                    // the measurement.
                    if world.model.synced() && self.waiting_since.len() < BATCH {
                        self.waiting_since.push(at);
                    }
                    changes
                }
                Input::Waiting(change, waiter) => {
                    waiting.push(waiter);
                    vec![*change]
                }
                Input::Peer(number, progress) => match (world.model.node_name(number).map(str::to_owned), progress) {
                    (Some(node), Progress::Established) => vec![Change::PeerReady { node, ready: true }],
                    (Some(node), Progress::Failed) => vec![Change::PeerReady { node, ready: false }],
                    _ => Vec::new(),
                },
                Input::Devices => Vec::new(),
                Input::Source(status, events) => {
                    world.source = *status;
                    for event in events {
                        note(&mut world, &event, now);
                    }
                    Vec::new()
                }
                Input::Configuration(config) => {
                    let settings = cluster_config::settings(&world.local.settings, &config);
                    changed |= settings != world.local.settings;
                    world.local.settings = settings;
                    Vec::new()
                }
            };
            for change in changes {
                let applied = world.model.apply(change);
                changed |= applied.changed;
                for event in &applied.events {
                    note(&mut world, event, now);
                }
            }
        }
        (changed, waiting)
    }

    /// The I/O step. Returns whether everything is now as it should be.
    async fn reconcile(&mut self) -> bool {
        self.is_futile = false;
        if !self.settle().await {
            return false;
        }
        self.follow();
        self.take_settings();
        self.follow_node();
        let (mut failures, all_fatal) = self.carry_out().await;
        let of_steps = failures.len();
        self.follow_rules(&mut failures).await;
        self.is_futile = all_fatal && failures.len() == of_steps;
        let clean = failures.is_empty();
        self.tell(Area::Steps, failures);
        if clean {
            let world = self.world.write();
            for since in self.waiting_since.drain(..) {
                world.apply_seconds.observe(since.elapsed().as_secs_f64());
            }
        }
        self.publish(clean).await;
        clean
    }

    /// From prepared to running, as soon as the node's own object is known.
    async fn settle(&mut self) -> bool {
        if matches!(self.stage, Stage::Running(_)) {
            return true;
        }
        let Some(node) = self.own_node() else {
            // Nothing to retry: the source will tell the object.
            return true;
        };
        let Stage::Prepared(prepared) = std::mem::replace(&mut self.stage, Stage::Changing) else { return false };
        let local = self.world.read().local.clone();
        let settled = prepared.settle(&self.config, &local, &node, |mtu| (self.make_tunnel)(mtu)).await;
        let mut kernel = match settled {
            Ok(kernel) => kernel,
            Err((prepared, error)) => {
                self.stage = Stage::Prepared(prepared);
                self.is_futile = error.is_fatal();
                return self.fail("datapath", format!("cannot start the datapath: {error}"));
            }
        };
        match kernel.read(&self.known_interfaces).await {
            Ok(actual) => {
                self.actual = actual;
                self.pending = Scope::everything();
            }
            Err(error) => warn!(%error, "cannot read the kernel's state back; everything is written anew"),
        }
        info!(uplinks = ?uplinks(&kernel), mtu = kernel.tunnel_mtu(), "datapath attached");
        {
            let mut world = self.world.write();
            world.interfaces = Some(kernel.devices().present().clone());
            world.local.route_mtu = Some(kernel.tunnel_mtu());
            world.running = Some(Running {
                backend: kernel.backend(),
                uplinks: uplinks(&kernel),
                devices: devices(&kernel),
                mtu: kernel.tunnel_mtu(),
                packet_socket_guard: kernel.packet_socket_guard(),
                guards_bridges: kernel.guards_bridges(),
                netfilter: Counters::default(),
                losses: None,
                firewalls: Firewalls::default(),
            });
        }
        let problems = watch::device_problems(&kernel, &self.world, &self.actual);
        self.stage = Stage::Running(Box::new(kernel));
        self.succeed("datapath");
        self.tell(Area::Devices, problems);
        self.take_host_addresses().await
    }

    fn own_node(&self) -> Option<Node> {
        let world = self.world.read();
        let object = world.model.node_object(world.model.node())?;
        let mut addresses = object.addresses.clone();
        addresses.sort_by_key(|address| !address.internal);
        Some(Node { addresses: addresses.iter().map(|a| a.address).collect(), pod_ranges: object.pod_ranges.clone() })
    }

    /// Updates the settings of new pods from the node's object.
    fn take_settings(&mut self) {
        let Stage::Running(kernel) = &self.stage else { return };
        // A change of nodes or of the local node marks everything as pending.
        if !std::mem::take(&mut self.settings_due) && !self.pending.is_everything() {
            return;
        }
        let Some(node) = self.own_node() else { return };
        let world = self.world.read();
        let settings = attachments::Settings {
            pod_ranges: node.pod_ranges,
            excluded: {
                let nodes = world.model.nodes().flat_map(|node| node.addresses.iter().map(|a| a.address));
                nodes.chain(world.local.addresses.iter().copied()).collect()
            },
            cluster_ranges: tunnelled_ranges(&world.local.settings),
            route_mtu: kernel.tunnel_mtu(),
            device_mtu: kernel.uplinks().iter().map(|uplink| uplink.mtu).min().unwrap_or(1_500),
            gso_max_size: self.config.tunnel.backend.mechanism().gso_max_size(kernel.tunnel_mtu()),
            limit: self.config.limits.attachments as usize,
        };
        drop(world);
        self.attachments.set_settings(settings);
    }

    /// Updates what is desired from what is known.
    fn follow(&mut self) {
        let now = Timestamp::now();
        let mut world = self.world.write();
        let world = &mut *world;
        let followed = world.desired.follow(&mut world.model, &world.local);
        for event in &followed.news {
            note(world, event, now);
        }
        world.changes.note(followed.scope.addresses(), hauberk_datapath::now());
        self.pending.extend(followed.scope);
    }

    /// Carries out every step of the plan. Returns the failures, and whether there are some and all
    /// of them are fatal.
    async fn carry_out(&mut self) -> (BTreeMap<String, Problem>, bool) {
        let Stage::Running(kernel) = &mut self.stage else { return (BTreeMap::new(), false) };
        let scope = std::mem::take(&mut self.pending);
        let steps = plan_within(&self.actual, &self.world.read().desired, &scope);
        let failed = carry_out(steps, kernel.as_mut(), &mut self.actual).await;
        self.enforces = !failed.iter().any(|(step, _)| step.concerns_enforcement());
        if !failed.is_empty() {
            self.pending = Scope::everything();
        }
        let all_fatal = !failed.is_empty() && failed.iter().all(|(_, error)| error.is_fatal());
        let problem = |(step, error): (Step, ApplyError)| {
            let again = if error.is_fatal() { "" } else { "; it is tried again" };
            let (object, message) = (step.object(), format!("{error}{again}"));
            (object.clone(), Problem { severity: Severity::Critical, object, message })
        };
        (failed.into_iter().map(problem).collect(), all_fatal)
    }

    /// Publishes this node's keys, whatever failed, and acknowledges what is enforced now. Removes
    /// an earlier agent's routes once.
    async fn publish(&mut self, clean: bool) {
        let Stage::Running(kernel) = &self.stage else { return };
        if !self.foreign_routes_removed
            && clean
            && let Some(routes) = self.own_routes()
        {
            match kernel.remove_foreign_routes(&routes).await {
                Ok(()) => self.foreign_routes_removed = true,
                Err(error) => warn!(%error, "cannot remove routes of an earlier agent"),
            }
        }
        self.greet();
        self.announce();
    }

    /// Every route that should exist; none while that is not known.
    fn own_routes(&self) -> Option<BTreeSet<IpNet>> {
        let world = self.world.read();
        let desired = &world.desired;
        let pods = desired.state.pods.values().flat_map(|pod| pod.addresses.iter().map(|a| IpNet::from(*a)));
        desired.prune.then(|| desired.state.tunnels.routes.keys().copied().chain(pods).collect())
    }

    /// Permissive traffic is encrypted only after a handshake has succeeded, and nothing else would
    /// start one.
    fn greet(&mut self) {
        let Stage::Running(kernel) = &self.stage else { return };
        let world = self.world.read();
        let wanted = &world.desired;
        if wanted.permissive_endpoints == 0 {
            return;
        }
        let now = Instant::now();
        let ready = hauberk_abi::layout::peer_flag::READY;
        for (number, entry) in &wanted.state.tunnels.peer_entries {
            let lately = self.greeted.get(number).is_some_and(|at| now.duration_since(*at) < GREETING);
            if entry.flags & ready == 0 && wanted.state.tunnels.peers.contains_key(number) && !lately {
                self.greeted.insert(*number, now);
                if let Err(error) = kernel.backend().start_handshake(*number, false) {
                    warn!(%error, peer = number.0, "cannot start a handshake");
                }
            }
        }
    }

    /// The addresses of this node's devices are its own, whatever its object says. Returns whether
    /// they could be read.
    async fn take_host_addresses(&mut self) -> bool {
        let Stage::Running(kernel) = &self.stage else { return true };
        match kernel.host_addresses().await {
            Ok(addresses) => {
                {
                    let known = &mut self.world.write().local.addresses;
                    self.stale |= addresses != *known;
                    *known = addresses;
                }
                self.succeed("addresses");
                true
            }
            Err(error) => self.fail("addresses", format!("cannot tell this node's own addresses: {error}")),
        }
    }

    /// Whether what a caller waits for is now in force.
    fn answer(&self, waiter: &input::Waiter) -> Result<(), String> {
        let key = &waiter.key;
        let world = self.world.read();
        let failure = world.failures.get(&key.object()).map(|problem| problem.message.clone());
        let held = self.actual.pods.contains_key(key);
        match (waiter.attached, held, failure) {
            (true, true, None) | (false, false, None) => Ok(()),
            (_, _, Some(failure)) => Err(failure),
            (true, false, None) => {
                Err(world.not_up().unwrap_or_else(|| "it is not attached yet; it is tried again".into()))
            }
            (false, true, None) => Err("the interface is still attached; it is tried again".into()),
        }
    }
}

/// The uplinks that are up.
fn uplinks(kernel: &Kernel) -> Vec<String> {
    kernel.uplinks().iter().filter(|uplink| uplink.up).map(|uplink| uplink.name.clone()).collect()
}

/// The guarded devices that the self-test can check.
fn devices(kernel: &Kernel) -> Vec<Device> {
    let up = kernel.devices().guarded.iter().filter(|(_, guarded)| guarded.up);
    up.map(|(index, guarded)| Device {
        name: guarded.name.clone(),
        index: *index,
        ethernet: guarded.framing == Framing::Ethernet,
    })
    .collect()
}

/// Notes an event, and logs it if it is new.
fn note(world: &mut crate::world::World, event: &NewEvent, now: Timestamp) {
    if world.events.note(event, now) {
        if event.warning {
            warn!(reason = event.reason, objects = ?event.objects, "{}", event.message);
        } else {
            info!(reason = event.reason, objects = ?event.objects, "{}", event.message);
        }
    }
}

/// The destinations to which pods' packets may have to go through the tunnel: other pods and nodes.
/// Unless `nodeRanges` says where nodes are, any address may be a node's.
pub(crate) fn tunnelled_ranges(settings: &Settings) -> Vec<IpNet> {
    if settings.node_ranges.is_empty() {
        let [v4, v6]: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        return [v4, v6].into_iter().filter_map(|address| IpNet::new(address, 0).ok()).collect();
    }
    settings.cluster_ranges.iter().chain(&settings.node_ranges).copied().collect()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
