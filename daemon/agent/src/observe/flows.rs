//! Flow records: from the kernel's ring buffer to followers. The last few thousand are kept for
//! later requests.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hauberk_abi::address::Address;
use hauberk_abi::flow::{EventKind, Flow, FlowEvent, FlowKey};
use hauberk_abi::layout::Hook;
use hauberk_abi::reason::{DropReason, Encryption, Why};
use hauberk_api::{FlowRecord, FlowStage};
use hauberk_core::names::NodeNumber;
use hauberk_datapath::{DatapathError, Events};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::broadcast;
use tracing::warn;

use super::{MapReader, protocol_in_words};
use crate::state::{AgentState, SharedState};
use crate::syscalls::{self, OwnsDescriptor};

/// Records kept for later requests.
const KEPT: usize = 4_096;
/// How many records a slow follower may lag behind before it loses some. It is told when it does.
const LAG: usize = 8_192;
/// How long events are gathered after the first one: one look at many instead of a wake-up for
/// each. The ring has room for some 450,000 events a second.
const GATHER: Duration = Duration::from_millis(20);
/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(15);

/// The flow log.
#[derive(Clone)]
pub struct FlowLog {
    kept: Arc<Mutex<VecDeque<Seen>>>,
    live: broadcast::Sender<Seen>,
    lost: Arc<AtomicU64>,
}

/// What was seen of a flow, and the names of its ends at that time. It becomes a full record only
/// on request, because most are overwritten before one.
#[derive(Clone)]
pub struct Seen {
    event: FlowStage,
    time: Timestamp,
    key: FlowKey,
    flow: Flow,
    node: Arc<str>,
    source: Name,
    destination: Name,
    peer: Name,
    lost: u64,
}

type Name = Option<Arc<str>>;

impl Default for FlowLog {
    fn default() -> Self {
        FlowLog { kept: Arc::default(), live: broadcast::channel(LAG).0, lost: Arc::default() }
    }
}

impl FlowLog {
    /// The remembered records, oldest first.
    pub fn recent(&self) -> Vec<FlowRecord> {
        self.kept().iter().map(Seen::record).collect()
    }

    /// All records from now on.
    pub fn follow(&self) -> broadcast::Receiver<Seen> {
        self.live.subscribe()
    }

    /// Events that the kernel could not deliver.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Seen>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, seen: impl Iterator<Item = Seen>) {
        let followed = self.live.receiver_count() > 0;
        let mut kept = self.kept();
        for seen in seen {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            if followed {
                // The followers may be gone by now.
                let _ = self.live.send(seen.clone());
            }
            kept.push_back(seen);
        }
    }
}

impl OwnsDescriptor for Events {}

/// Reads events as they come, and removes idle flows, until the runtime ends.
///
/// # Errors
/// The ring buffer cannot be waited on.
pub async fn run(events: Events, log: FlowLog, agent: SharedState, map_reader: MapReader) -> io::Result<()> {
    let mut ring = syscalls::readable(events)?;
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ready = ring.readable_mut() => {
                let mut ready = ready?;
                tokio::time::sleep(GATHER).await;
                let events = drain(ready.get_inner_mut());
                ready.clear_ready();
                if let Ok(lost) = map_reader.maps().lost_events() {
                    log.lost.store(lost, Ordering::Relaxed);
                }
                let agent = agent.read();
                let mut observer = Observer::new(&agent, log.lost());
                log.append(events.iter().map(|event| {
                    let kind = match event.kind {
                        kind if kind == EventKind::End as u32 => FlowStage::End,
                        kind if kind == EventKind::Refused as u32 => FlowStage::Refused,
                        _ => FlowStage::Start,
                    };
                    observer.see(kind, &event.key, &event.flow)
                }));
            }
            _ = sweep.tick() => forget_idle(&log, &agent, &map_reader),
        }
    }
}

fn drain(ring: &mut Events) -> Vec<FlowEvent> {
    let mut events = Vec::new();
    for event in ring {
        match event {
            Ok(event) => events.push(event),
            Err(bytes) => warn!(bytes, "a flow event has the wrong size: programs of another version are attached"),
        }
    }
    events
}

/// Ends flows that have been silent for so long that the programs would start them anew.
fn forget_idle(log: &FlowLog, agent: &SharedState, map_reader: &MapReader) {
    let mut maps = map_reader.maps();
    let silent = match maps.silent_flows(hauberk_datapath::now()) {
        Ok(flows) => flows,
        Err(error) => {
            warn!(%error, "cannot look for idle flows");
            return;
        }
    };
    for (key, _) in &silent {
        if let Err(error) = maps.remove_flow(key) {
            warn!(%error, "cannot forget an idle flow");
        }
    }
    if let Err(error) = maps.forget_answers(hauberk_datapath::now()) {
        warn!(%error, "cannot forget answers that are not waited for any more");
    }
    drop(maps);
    // The end of a closed TCP connection was reported already.
    let untold = silent.iter().filter(|(_, flow)| {
        let closed = flow.tcp_flags & (hauberk_abi::flow::TCP_FIN | hauberk_abi::flow::TCP_RST) != 0;
        !closed || flow.encryption == Encryption::Refused as u8
    });
    let agent = agent.read();
    let mut observer = Observer::new(&agent, log.lost());
    log.append(untold.map(|(key, flow)| observer.see(FlowStage::End, key, flow)));
}

/// The flows that the kernel remembers, as records of kind `ongoing`.
///
/// # Errors
/// [`DatapathError`] if they cannot be read.
pub fn ongoing(agent: &AgentState, map_reader: &MapReader, lost: u64) -> Result<Vec<FlowRecord>, DatapathError> {
    let mut observer = Observer::new(agent, lost);
    let flows = map_reader.maps().flows(observer.clock.monotonic)?;
    Ok(flows.iter().map(|(key, flow)| observer.see(FlowStage::Ongoing, key, flow).record()).collect())
}

/// When traffic between `source` and `destination` was last seen, in either direction and on any
/// port, and with which encryption value.
pub fn last_seen(map_reader: &MapReader, source: Address, destination: Address) -> Vec<(Timestamp, Encryption)> {
    let clock = Clock::now();
    let between = |key: &FlowKey| {
        (key.source == source && key.destination == destination)
            || (key.source == destination && key.destination == source)
    };
    // Flows that cannot be read prove nothing.
    let flows = map_reader.maps().flows(clock.monotonic).unwrap_or_default();
    let seen = flows.into_iter().filter(|(key, _)| between(key));
    seen.map(|(_, flow)| (clock.at(flow.last), Encryption::from_u8(flow.encryption))).collect()
}

/// Both clocks at one moment: flows carry the monotonic one, as the programs read it.
struct Clock {
    now: Timestamp,
    monotonic: u64,
}

impl Clock {
    fn now() -> Clock {
        Clock { now: Timestamp::now(), monotonic: hauberk_datapath::now() }
    }

    fn at(&self, monotonic: u64) -> Timestamp {
        let ago = SignedDuration::from_nanos(self.monotonic.saturating_sub(monotonic).min(i64::MAX as u64) as i64);
        self.now.checked_sub(ago).unwrap_or(self.now)
    }
}

/// Gives the flows of one moment a time and names. Each name is looked up once.
struct Observer<'a> {
    agent: &'a AgentState,
    clock: Clock,
    node: Arc<str>,
    names: BTreeMap<Address, Name>,
    peers: BTreeMap<u32, Name>,
    lost: u64,
}

impl<'a> Observer<'a> {
    fn new(agent: &'a AgentState, lost: u64) -> Observer<'a> {
        let node = agent.local.name.as_str().into();
        Observer { agent, clock: Clock::now(), node, names: BTreeMap::new(), peers: BTreeMap::new(), lost }
    }

    fn see(&mut self, event: FlowStage, key: &FlowKey, flow: &Flow) -> Seen {
        let encrypted = flow.encryption == Encryption::Encrypted as u8;
        Seen {
            event,
            time: self.clock.at(flow.last),
            key: *key,
            flow: *flow,
            node: Arc::clone(&self.node),
            source: self.name(key.source),
            destination: self.name(key.destination),
            peer: if encrypted { self.peer(flow.node) } else { None },
            lost: self.lost,
        }
    }

    fn name(&mut self, address: Address) -> Name {
        let look_up = || self.agent.name_of(&address).map(Arc::from);
        self.names.entry(address).or_insert_with(look_up).clone()
    }

    fn peer(&mut self, number: u32) -> Name {
        let look_up = || self.agent.model.node_name(NodeNumber(number)).map(Arc::from);
        self.peers.entry(number).or_insert_with(look_up).clone()
    }
}

impl Seen {
    /// The record for the API.
    pub fn record(&self) -> FlowRecord {
        let (key, flow) = (&self.key, &self.flow);
        let encryption = Encryption::from_u8(flow.encryption);
        let text = |name: &Name| name.as_deref().map(str::to_owned);
        FlowRecord {
            time: self.time,
            event: self.event.into(),
            node: self.node.to_string(),
            hook: Hook::ALL.into_iter().find(|hook| *hook as u8 == key.hook).unwrap_or(Hook::ToWire),
            source: key.source.into(),
            source_port: key.source_port,
            source_name: text(&self.source),
            destination: key.destination.into(),
            destination_port: key.destination_port,
            destination_name: text(&self.destination),
            protocol: protocol_in_words(key.protocol),
            encryption: encryption.into(),
            why: Why::from_u8(flow.why).into(),
            drop: (encryption == Encryption::Refused).then(|| DropReason::from_u8(flow.drop).into()),
            peer: text(&self.peer),
            epoch: (encryption == Encryption::Encrypted).then_some(flow.epoch),
            packets: flow.packets,
            bytes: flow.bytes,
            lost_events: self.lost,
        }
    }
}
