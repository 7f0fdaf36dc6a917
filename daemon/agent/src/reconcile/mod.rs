//! The reconciler: takes in changes, computes what the node should hold, and carries out the
//! difference. It alone writes to the kernel; the other tasks send it an [`Input`].

mod absorb;
mod annotations;
mod announcer;
mod failures;
mod firewalls;
mod handshakes;
mod hops;
mod input;
mod names;
mod sockets;
mod start;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hauberk_api::{Problem, Severity};
use hauberk_backend::StartConfig;
use hauberk_core::names::NodeNumber;
use hauberk_core::plan::plan_within;
use hauberk_core::state::{Scope, State, Step};
use hauberk_source::Source;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use crate::apply::{ApplyError, Kernel, Prepared, carry_out};
use crate::attachments::Attachments;
use crate::config::Config;
use crate::state::SharedState;

use absorb::note;
use announcer::Announcer;
use failures::{Area, Failures};
pub use input::Input;
pub(crate) use start::tunnelled_ranges;

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
    agent: SharedState,
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
    /// When a handshake with a peer was started last.
    handshakes: BTreeMap<NodeNumber, Instant>,
    failures: Failures,
    looked: Option<Instant>,
    /// When to look around next.
    look_around_due: Instant,
    /// When to look at other programs' chains again.
    firewalls_due: Option<Instant>,
    sockets: sockets::Sockets,
    hops: hops::Hops,
}

/// What a [`Reconciler`] is made of.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The shared state.
    pub agent: SharedState,
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
            agent: parts.agent,
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
            handshakes: BTreeMap::new(),
            failures: Failures::default(),
            looked: None,
            look_around_due: Instant::now(),
            firewalls_due: None,
            sockets: sockets::Sockets::default(),
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

    /// The I/O step. Returns whether everything is now as it should be.
    async fn reconcile(&mut self) -> bool {
        self.is_futile = false;
        if !self.start_datapath().await {
            return false;
        }
        self.follow();
        self.take_settings();
        self.follow_node();
        let (mut failures, all_fatal) = self.carry_out().await;
        if !self.sockets.are_looked_at() {
            self.look_at_sockets();
        }
        let of_steps = failures.len();
        self.follow_rules(&mut failures).await;
        self.is_futile = all_fatal && failures.len() == of_steps;
        let clean = failures.is_empty();
        self.tell(Area::Steps, failures);
        if clean {
            let agent = self.agent.write();
            for since in self.waiting_since.drain(..) {
                agent.apply_seconds.observe(since.elapsed().as_secs_f64());
            }
        }
        self.publish(clean).await;
        clean
    }

    /// Updates what is desired from what is known.
    fn follow(&mut self) {
        let now = Timestamp::now();
        let mut agent = self.agent.write();
        let agent = &mut *agent;
        let followed = agent.desired.follow(&mut agent.model, &agent.local);
        for event in &followed.news {
            note(agent, event, now);
        }
        agent.changes.note(followed.scope.addresses(), hauberk_datapath::now());
        self.pending.extend(followed.scope);
    }

    /// Carries out every step of the plan. Returns the failures, and whether there are some and all
    /// of them are fatal.
    async fn carry_out(&mut self) -> (BTreeMap<String, Problem>, bool) {
        let Stage::Running(kernel) = &mut self.stage else { return (BTreeMap::new(), false) };
        let scope = std::mem::take(&mut self.pending);
        let steps = plan_within(&self.actual, &self.agent.read().desired, &scope);
        let failed = carry_out(steps, kernel.as_mut(), &mut self.actual).await;
        self.enforces = !failed.iter().any(|(step, _)| step.concerns_enforcement());
        if !failed.is_empty() {
            self.pending = Scope::everything();
        }
        let all_fatal = !failed.is_empty() && failed.iter().all(|(_, error)| error.is_fatal());
        let agent = self.agent.read();
        let problem = |(step, error): (Step, ApplyError)| {
            let again = if error.is_fatal() { "" } else { "; it is tried again" };
            let object =
                agent.desired.service_of(&step).map_or_else(|| step.object(), |name| format!("Service/{name}"));
            let (severity, message) = match step {
                Step::Service(_) => {
                    (Severity::Warning, format!("{error}; connections to it may be kube-proxy's meanwhile{again}"))
                }
                _ => (Severity::Critical, format!("{error}{again}")),
            };
            (object.clone(), Problem { severity, object, message })
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
        self.start_handshakes();
        self.announce();
    }

    /// Every route that should exist; none while that is not known.
    fn own_routes(&self) -> Option<BTreeSet<IpNet>> {
        let agent = self.agent.read();
        let desired = &agent.desired;
        let pods = desired.state.pods.values().flat_map(|pod| pod.addresses.iter().map(|a| IpNet::from(*a)));
        desired.prune().then(|| desired.state.tunnels.routes.keys().copied().chain(pods).collect())
    }

    /// Whether what a caller waits for is now in force.
    fn answer(&self, waiter: &input::Waiter) -> Result<(), String> {
        let key = &waiter.key;
        let agent = self.agent.read();
        let failure = agent.failures.get(&key.object()).map(|problem| problem.message.clone());
        let held = self.actual.pods.contains_key(key);
        match (waiter.attached, held, failure) {
            (true, true, None) | (false, false, None) => Ok(()),
            (_, _, Some(failure)) => Err(failure),
            (true, false, None) => {
                Err(agent.not_up().unwrap_or_else(|| "it is not attached yet; it is tried again".into()))
            }
            (false, true, None) => Err("the interface is still attached; it is tried again".into()),
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
