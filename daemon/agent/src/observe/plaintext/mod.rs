//! The cross-check on the wire: a node that sends plaintext from or to a protected pod is named
//! here and, by an annotation on this node's own object, to that node itself.
//!
//! A packet's source address is not proven, so a forged packet accuses another node. This is an
//! alarm: it decides nothing.

mod seen;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hauberk_abi::flow::{Flow, FlowKey};
use hauberk_abi::layout::Hook;
use hauberk_abi::reason::{DropReason, Encryption};
use hauberk_core::annotations::PLAINTEXT_ANNOTATION;
use hauberk_core::annotations::plaintext;
use hauberk_core::convergence::convergence;
use hauberk_core::identities::Owner;
use hauberk_core::names::NodeNumber;
use hauberk_source::{Source, SourceError};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use super::MapReader;
use crate::state::{AgentState, SharedState};

pub use seen::{Plaintext, Sighting};

/// Between looks.
const LOOK: Duration = Duration::from_secs(3);
/// For this long after a change, packets do not count against a node: they may have been under way,
/// or sent by a node that did not know of the change yet. Nanoseconds.
const GRACE: u64 = 10_000_000_000;
/// For how long a node that has not acknowledged a namespace yet may send in the clear,
/// nanoseconds.
const PATIENCE: u64 = 60_000_000_000;
/// Between two writes of the annotation, unless another node must be named.
const WRITE: Duration = Duration::from_secs(60);

const REASONS: [DropReason; 2] = [DropReason::PlaintextFromProtected, DropReason::PlaintextToProtected];

/// Looks for plaintext until the runtime ends.
pub async fn watch(agent: SharedState, map_reader: MapReader, source: Arc<dyn Source>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reader = Reader::default();
    let mut writer = Writer::default();
    loop {
        look.tick().await;
        if let Some(flows) = reader.refused(&map_reader) {
            reader.take(&flows);
        }
        reader.judge(&mut agent.write(), hauberk_datapath::now());
        hear(&mut agent.write());
        writer.write(&agent, &source).await;
    }
}

/// What was read from the guard's counters and flows last time.
#[derive(Default)]
struct Reader {
    drops: u64,
    packets: HashMap<FlowKey, u64>,
    /// What arrived since the last look; `held` has what arrived before that.
    fresh: Vec<Refused>,
    held: Vec<Refused>,
    suspects: BTreeMap<String, Suspicion>,
}

/// Packets of one flow that another node sent in the clear. `node` is this node's own number if its
/// rules have translated their source.
struct Refused {
    addresses: [IpAddr; 2],
    node: NodeNumber,
    packets: u64,
    last: u64,
}

/// A node that sends in the clear and may not know yet that it must not; by the monotonic clock,
/// nanoseconds.
#[derive(Clone, Copy)]
struct Suspicion {
    first: u64,
    latest: u64,
}

impl Reader {
    /// Refused flows, if any packet was dropped since the last look.
    fn refused(&mut self, map_reader: &MapReader) -> Option<Vec<(FlowKey, Flow)>> {
        let maps = map_reader.maps();
        let drops = maps.drops().ok()?;
        let drops = drops.into_iter().filter(|(reason, _)| REASONS.contains(reason)).map(|(_, packets)| packets).sum();
        if std::mem::replace(&mut self.drops, drops) == drops {
            return None;
        }
        let mut flows = maps.flows(hauberk_datapath::now()).ok()?;
        flows.retain(|(key, flow)| {
            // At the pod too, for packets sent to a port of this node that leads to the pod.
            (key.hook == Hook::FromWire as u8 || key.hook == Hook::ToPod as u8)
                && flow.encryption == Encryption::Refused as u8
                && REASONS.contains(&DropReason::from_u8(flow.drop))
        });
        Some(flows)
    }

    /// Takes over what is new in these flows.
    fn take(&mut self, flows: &[(FlowKey, Flow)]) {
        let before = std::mem::take(&mut self.packets);
        for (key, flow) in flows {
            // An entry that was evicted and created again counts from one.
            let known = before.get(key).copied().filter(|known| *known <= flow.packets).unwrap_or_default();
            if flow.packets > known {
                self.fresh.push(Refused {
                    addresses: [key.source.into(), key.destination.into()],
                    node: NodeNumber(flow.node),
                    packets: flow.packets - known,
                    last: flow.last,
                });
            }
            self.packets.insert(*key, flow.packets);
        }
    }

    /// Counts packets that arrived before the last look against their nodes. A change that another
    /// node learned of sooner than this one is known here by now.
    fn judge(&mut self, agent: &mut AgentState, now: u64) {
        self.suspects.retain(|_, suspicion| now.saturating_sub(suspicion.latest) < PATIENCE);
        let fresh = std::mem::take(&mut self.fresh);
        let mut waited_for: Option<BTreeMap<String, BTreeSet<String>>> = None;
        for refused in std::mem::replace(&mut self.held, fresh) {
            let Some(node) = agent.model.node_name(refused.node).map(str::to_owned) else { continue };
            if agent.changes.excuse(refused.addresses, refused.last, GRACE) {
                continue;
            }
            let waited_for = waited_for.get_or_insert_with(|| waiting(agent));
            let has_not_heard =
                |namespace: String| waited_for.get(&namespace).is_some_and(|nodes| nodes.contains(&node));
            let unheard = refused.addresses.iter().filter_map(|address| namespace(agent, *address)).any(has_not_heard);
            if self.is_excused(&node, unheard, refused.last, now) {
                continue;
            }
            let sighting = Sighting {
                node,
                addresses: refused.addresses,
                owners: refused.addresses.map(|address| owner(agent, address)),
                packets: refused.packets,
                last: at(refused.last, now),
            };
            let own = agent.model.node().to_owned();
            let event = agent.plaintext.note(&own, sighting);
            tell(agent, &event);
        }
    }

    /// A node that has not acknowledged the namespace gets a minute. Once it has, what it sent
    /// until just before does not count against it.
    fn is_excused(&mut self, node: &str, unheard: bool, last: u64, now: u64) -> bool {
        if unheard {
            let suspicion = self.suspects.entry(node.to_owned()).or_insert(Suspicion { first: now, latest: now });
            suspicion.latest = now;
            return now.saturating_sub(suspicion.first) < PATIENCE;
        }
        self.suspects.get(node).is_some_and(|suspicion| last < suspicion.latest.saturating_add(GRACE))
    }
}

/// Nodes that have not acknowledged yet, by namespace. A node without a key has no agent that
/// could.
fn waiting(agent: &AgentState) -> BTreeMap<String, BTreeSet<String>> {
    let has_key = |node: &String| agent.model.node_object(node).is_some_and(|object| object.keys.is_some());
    let namespaces = convergence(&agent.model, &agent.local).into_iter();
    namespaces.map(|one| (one.name, one.waiting_for.into_iter().filter(has_key).collect())).collect()
}

fn namespace(agent: &AgentState, address: IpAddr) -> Option<String> {
    match agent.desired.owner(&agent.model, &agent.local, address.into())? {
        Owner::Pod(pod) => Some(pod.namespace),
        Owner::Node(_) | Owner::Attachment(_) => None,
    }
}

fn owner(agent: &AgentState, address: IpAddr) -> String {
    agent.name_of(&address.into()).unwrap_or_else(|| "nobody that is known".into())
}

/// Notes what other nodes report of this one.
fn hear(agent: &mut AgentState) {
    let reports = seen::reports(agent);
    for report in &reports {
        let event = seen::reported(agent.model.node(), &report.0);
        if agent.plaintext.is_news(&report.0) {
            tell(agent, &event);
        }
    }
    agent.plaintext.heard(reports);
}

fn tell(agent: &mut AgentState, event: &hauberk_core::events::NewEvent) {
    if agent.events.note(event, Timestamp::now()) {
        warn!(reason = event.reason, objects = ?event.objects, "{}", event.message);
    }
}

fn at(monotonic: u64, now: u64) -> Timestamp {
    let ago = SignedDuration::from_nanos(now.saturating_sub(monotonic).min(i64::MAX as u64) as i64);
    Timestamp::now().checked_sub(ago).unwrap_or_else(|_| Timestamp::now())
}

/// Keeps the annotation up to date.
#[derive(Default)]
struct Writer {
    written: BTreeMap<String, plaintext::Report>,
    at: Option<Instant>,
    /// The write under way. Looks continue meanwhile, however long it takes.
    under_way: Option<UnderWay>,
}

/// A write under way.
struct UnderWay {
    wanted: BTreeMap<String, plaintext::Report>,
    end: JoinHandle<Result<(), SourceError>>,
}

impl Writer {
    async fn write(&mut self, agent: &SharedState, source: &Arc<dyn Source>) {
        match self.under_way.take() {
            Some(write) if write.end.is_finished() => match write.end.await {
                Ok(Ok(())) => self.written = write.wanted,
                Ok(Err(error)) => warn!(%error, "nodes that send in the clear are not told so"),
                Err(error) => warn!(%error, "nodes that send in the clear are not told so"),
            },
            Some(under_way) => {
                self.under_way = Some(under_way);
                return;
            }
            None => {}
        }
        let (wanted, stands) = {
            let agent = agent.read();
            let own = agent.model.node_object(agent.model.node());
            // Before that, this node's object may not be known, and with it what an earlier agent
            // wrote.
            let Some(own) = own.filter(|_| agent.model.synced()) else { return };
            (agent.plaintext.reports(agent.model.node()), own.plaintext_seen.is_some())
        };
        let lately = self.at.is_some_and(|at| at.elapsed() < WRITE);
        let names_more = wanted.keys().any(|node| !self.written.contains_key(node));
        let minutes = |reports: &BTreeMap<String, plaintext::Report>| -> Vec<(String, Timestamp)> {
            reports.iter().map(|(node, report)| (node.clone(), report.last)).collect()
        };
        let differs = minutes(&wanted) != minutes(&self.written) || wanted.is_empty() == stands;
        if !differs || lately && !names_more {
            return;
        }
        let text = (!wanted.is_empty()).then(|| plaintext::render(&wanted));
        self.at = Some(Instant::now());
        let annotations = BTreeMap::from([(PLAINTEXT_ANNOTATION.to_owned(), text)]);
        let end = tokio::spawn(Arc::clone(source).annotate(annotations));
        self.under_way = Some(UnderWay { wanted, end });
    }
}
