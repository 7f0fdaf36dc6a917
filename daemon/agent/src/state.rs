//! What the agent knows, shared between its tasks. The reconciler writes it, and observers write
//! their own fields.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hauberk_abi::address::Address;
use hauberk_api::{Event, KeyStatus, Problem, Severity, SourceStatus};
use hauberk_backend::Backend;
use hauberk_core::desired::Incremental;
use hauberk_core::events::NewEvent;
use hauberk_core::identities::Owner;
use hauberk_core::local_node::LocalNode;
use hauberk_core::model::Model;
use hauberk_host::netfilter::{Counters, Neighbours, PacketSocketGuard};
use hauberk_keyring::PublicKey;
use jiff::Timestamp;
use prometheus_client::metrics::histogram::Histogram;

use crate::observe::changes::Changes;
use crate::observe::contests::Contests;
use crate::observe::failed_adds::FailedAdds;
use crate::observe::firewalls::Firewalls;
use crate::observe::leaks::Leaks;
use crate::observe::losses::Losses;
use crate::observe::plaintext::Plaintext;
use crate::observe::self_test::SelfTest;
use crate::observe::unconnected::Missed;

/// The most events that are remembered.
const EVENTS: usize = 1_000;

/// Histogram buckets for the time from a change to the kernel, seconds. The goal is a tenth of a
/// second.
const APPLY_SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// What the agent knows at one moment.
pub struct AgentState {
    /// The cluster as last told.
    pub model: Model,
    /// What the configuration decides.
    pub local: LocalNode,
    /// What the kernel should hold.
    pub desired: Incremental,
    /// What happened.
    pub events: EventLog,
    /// The source of objects.
    pub source: SourceStatus,
    /// Problems with the kernel's side, by what they concern; empty while every step succeeds.
    pub failures: BTreeMap<String, Problem>,
    /// Why the container runtime does not find the CNI plugin, if it should.
    pub cni: Option<Problem>,
    /// The tunnel and the uplinks, once they exist.
    pub running: Option<Running>,
    /// From when the source told a change to when the kernel held it, seconds.
    pub apply_seconds: Histogram,
    /// The result of the last self-test.
    pub self_test: SelfTest,
    /// Addresses whose protection changed a moment ago.
    pub changes: Changes,
    /// What left this node in the clear and should not have.
    pub leaks: Leaks,
    /// What arrived in the clear from other nodes, and what they say of this one.
    pub plaintext: Plaintext,
    /// When packets of addresses that several nodes claim were dropped.
    pub contests: Contests,
    /// Nodes that have no object.
    pub missing: Vec<Problem>,
    /// The indices of this node's devices, as long as the kernel tells of them.
    pub interfaces: Option<BTreeSet<u32>>,
    /// Pods of this node that have no interface.
    pub unconnected: Missed,
    /// Pods that hauberk-cni could not connect.
    pub failed_adds: FailedAdds,
    /// Ports at which load balancers are not answered.
    pub health_checks: Vec<Problem>,
    /// How many connections of clients outside the cluster the kernel remembers; none while that is
    /// not known.
    pub connections: Option<usize>,
}

/// What exists once the node's own object is known.
#[derive(Clone)]
pub struct Running {
    /// The tunnel.
    pub backend: Arc<dyn Backend>,
    /// Names of the devices that lead to other nodes and the world.
    pub uplinks: Vec<String>,
    /// Every guarded device that is up.
    pub devices: Vec<Device>,
    /// Largest packet inside the tunnel, bytes.
    pub mtu: u32,
    /// How well packet sockets are kept from sending as pods.
    pub packet_socket_guard: PacketSocketGuard,
    /// Whether bridges are kept from sending pods' packets out of unguarded ports.
    pub guards_bridges: bool,
    /// What netfilter has counted.
    pub netfilter: Counters,
    /// What came out of the tunnel and was lost in the IP stack recently, and whose rules may be
    /// why.
    pub losses: Option<(Losses, Neighbours)>,
    /// Other programs' chains on the paths of pods' packets.
    pub firewalls: Firewalls,
}

/// A guarded device, for the self-test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Whether its packets have Ethernet headers.
    pub ethernet: bool,
}

/// Objects of problems with the guard itself: while there is one, protection is not what it should
/// be.
const GUARD: [&str; 5] = ["device/", "devices", "pod interface/", "netfilter", "pins"];

impl AgentState {
    /// Nothing is known yet.
    pub fn new(local: LocalNode, source: SourceStatus) -> AgentState {
        AgentState {
            model: Model::new(&local.name),
            local,
            desired: Incremental::default(),
            events: EventLog::default(),
            source,
            failures: BTreeMap::new(),
            cni: None,
            running: None,
            apply_seconds: Histogram::new(APPLY_SECONDS),
            self_test: SelfTest::default(),
            changes: Changes::default(),
            leaks: Leaks::default(),
            plaintext: Plaintext::default(),
            contests: Contests::default(),
            missing: Vec::new(),
            interfaces: None,
            unconnected: Missed::default(),
            failed_adds: FailedAdds::default(),
            health_checks: Vec::new(),
            connections: None,
        }
    }

    /// Whether protected pods can get what they ask for: everything is read, attached, proven and
    /// still there, and no leak was seen recently.
    pub fn is_ready(&self) -> bool {
        self.running.is_some()
            && self.source.synced
            && matches!(self.self_test.outcome(), Some(Ok(())))
            && !self.leaks.lately()
            && !self.failures.values().any(|problem| {
                problem.severity == Severity::Critical && GUARD.iter().any(|part| problem.object.starts_with(part))
            })
    }

    /// Why there is no datapath yet, if there is none.
    pub fn not_up(&self) -> Option<String> {
        if self.running.is_some() {
            return None;
        }
        let (node, location) = (&self.local.name, &self.source.location);
        Some(match self.failures.get("datapath") {
            Some(problem) => problem.message.clone(),
            None if self.model.node_object(node).is_some() => "the datapath is being started".to_owned(),
            None if self.source.synced => {
                format!("the datapath is not up: there is no Node {node} in {location}; is it this node's name?")
            }
            None => format!("the datapath is not up: Node {node} has not been read from {location} yet"),
        })
    }

    /// The owner of `address`, for messages: `namespace/name` of a pod or a node's name.
    pub fn name_of(&self, address: &Address) -> Option<String> {
        Some(match self.desired.owner(&self.model, &self.local, *address)? {
            Owner::Pod(pod) => pod.to_string(),
            Owner::Node(name) => name,
            Owner::Attachment(key) => format!("container {}", key.container),
        })
    }
}

/// Keys in the form of the status.
pub fn key_status(keys: &[PublicKey]) -> Vec<KeyStatus> {
    keys.iter().map(|key| KeyStatus { epoch: key.epoch, public_key: key.to_base64() }).collect()
}

/// The shared state.
#[derive(Clone)]
pub struct SharedState(Arc<RwLock<AgentState>>);

impl SharedState {
    /// Shares a state.
    pub fn new(agent: AgentState) -> SharedState {
        SharedState(Arc::new(RwLock::new(agent)))
    }

    /// For reading. A writer that panicked leaves what it had written; reading that is better than
    /// failing too.
    pub fn read(&self) -> RwLockReadGuard<'_, AgentState> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For writing: the reconciler, and observers for their own fields.
    pub fn write(&self) -> RwLockWriteGuard<'_, AgentState> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Past events, newest last. A repeated event is counted.
#[derive(Debug, Default)]
pub struct EventLog {
    events: VecDeque<Event>,
}

impl EventLog {
    /// Notes an event. Returns whether it is new.
    pub fn note(&mut self, event: &NewEvent, now: Timestamp) -> bool {
        let same = |known: &&mut Event| {
            known.reason == event.reason && known.objects == event.objects && known.message == event.message
        };
        if let Some(known) = self.events.iter_mut().find(same) {
            known.count += 1;
            return false;
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            time: now,
            warning: event.warning,
            reason: event.reason.to_owned(),
            objects: event.objects.clone(),
            message: event.message.clone(),
            count: 1,
        });
        true
    }

    /// All remembered events, oldest first.
    pub fn list(&self) -> Vec<Event> {
        self.events.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use hauberk_core::model::Change;
    use hauberk_core::objects::NodeObject;

    use super::*;

    fn event(message: &str) -> NewEvent {
        NewEvent { warning: true, reason: "Test", objects: vec!["pod/a".into()], message: message.into() }
    }

    #[test]
    fn what_keeps_the_datapath_down_is_told_and_nothing_else() {
        let mut agent = crate::testing::agent("n1");
        agent.source.synced = false;
        assert!(agent.not_up().unwrap().contains("Node n1 has not been read from /objects yet"));
        agent.source.synced = true;
        assert!(agent.not_up().unwrap().contains("there is no Node n1 in /objects"));
        let _ = agent.model.apply(Change::Node(NodeObject { name: "n1".into(), ..NodeObject::default() }));
        assert_eq!(agent.not_up().unwrap(), "the datapath is being started");
        let message = "cannot start the datapath: cannot run nft: too many open files".to_owned();
        let problem = Problem { severity: Severity::Critical, object: "datapath".into(), message: message.clone() };
        agent.failures.insert("datapath".into(), problem);
        assert_eq!(agent.not_up(), Some(message));
    }

    #[test]
    fn the_same_event_counts_up_and_the_log_is_bounded() {
        let mut log = EventLog::default();
        let now = Timestamp::UNIX_EPOCH;
        assert!(log.note(&event("x"), now));
        assert!(!log.note(&event("x"), now));
        assert_eq!(log.list()[0].count, 2);
        for number in 0..2 * EVENTS {
            log.note(&event(&number.to_string()), now);
        }
        assert_eq!(log.list().len(), EVENTS);
    }
}
