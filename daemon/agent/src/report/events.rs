//! The agent's events about objects, as Events (events.k8s.io/v1) on them.
//!
//! An Event's name is derived from its content. So the same event from an agent before and after
//! its restart, or from two agents, is one Event that counts up. A repeated event is written less
//! and less often. A lasting one is repeated now and then, because the API server forgets Events
//! after an hour.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blake2::{Blake2s256, Digest};
use hauberk_api::Event as Noted;
use hauberk_core::model::Model;
use hauberk_core::names::PodName;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

/// The namespace of Events on objects without one (the API server insists).
const CLUSTER_SCOPED: &str = "default";
/// Longest `note` of an Event, bytes.
const MAX_NOTE: usize = 1_024;
/// Longest name of an object.
const MAX_NAME: usize = 253;
/// A lasting event is written again after this time: less than the hour that the API server
/// remembers.
const REMIND: Duration = Duration::from_secs(40 * 60);
/// The least time between two writes of the same Event.
const PAUSE: Duration = Duration::from_secs(60);
/// The most Events written at once; the rest waits for the next pass.
const AT_ONCE: usize = 10;
/// The most Events that are remembered as written.
const REMEMBERED: usize = 2_000;

/// An Event to be written: it is created, or, if it exists already, its series is updated.
#[derive(Clone, Debug, PartialEq)]
pub struct Writing {
    /// The whole Event, without a series.
    pub event: Event,
    /// How often it was seen, and when last, for an Event that exists.
    pub series: EventSeries,
    key: Key,
}

/// The content of an Event: reason, objects, message.
type Key = (String, Vec<String>, String);

/// What was written, when and how often.
#[derive(Debug, Default)]
pub struct Events {
    written: BTreeMap<Key, Written>,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    count: u64,
    at: Duration,
}

/// The agent that writes, which decides which events it writes.
pub struct Writer<'a> {
    /// What is known of objects.
    pub model: &'a Model,
    /// Whether it holds the Lease.
    pub holder: bool,
}

impl Events {
    /// What to write now. `standing` has the messages of present problems. `uptime` is this agent's
    /// monotonic clock.
    pub fn due(
        &mut self,
        noted: &[Noted],
        standing: &BTreeSet<String>,
        writer: &Writer<'_>,
        now: Timestamp,
        uptime: Duration,
    ) -> Vec<Writing> {
        let mut due = Vec::new();
        for event in noted {
            if due.len() == AT_ONCE {
                break;
            }
            let key = (event.reason.clone(), event.objects.clone(), event.message.clone());
            let wait = match self.written.get(&key) {
                None => false,
                Some(written) => {
                    let age = uptime.saturating_sub(written.at);
                    let doubled = event.count >= 2 * written.count && age >= PAUSE;
                    !(doubled || standing.contains(&event.message) && age >= REMIND)
                }
            };
            if wait || !ours(writer, event) {
                continue;
            }
            due.push(Writing { event: made(writer.model, event), series: series(event, now), key });
        }
        due
    }

    /// Notes that it was written.
    pub fn written(&mut self, writing: &Writing, uptime: Duration) {
        if self.written.len() >= REMEMBERED {
            let oldest = self.written.iter().min_by_key(|(_, written)| written.at).map(|(key, _)| key.clone());
            oldest.map(|key| self.written.remove(&key));
        }
        let count = u64::from(writing.series.count.unsigned_abs()).max(1);
        self.written.insert(writing.key.clone(), Written { count, at: uptime });
    }
}

/// Events about pods are written by the agent on their node, events about its own Node by every
/// agent, all others by the holder of the Lease.
fn ours(writer: &Writer<'_>, event: &Noted) -> bool {
    let own = writer.model.node();
    let Some(object) = event.objects.first() else { return writer.holder };
    match parts(object) {
        ("Pod", Some(namespace), name) => {
            let pod = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
            match writer.model.pod(&pod).and_then(|pod| pod.node.as_deref()) {
                Some(node) => node == own,
                None => writer.holder,
            }
        }
        ("Node", _, name) if name == own => true,
        ("Pod" | "Node" | "Namespace" | "HauberkConfig", ..) => writer.holder,
        // Anything that is not an object of the cluster is on this node: a file, an interface.
        _ => true,
    }
}

/// `kind/name` or `kind/namespace/name`.
fn parts(object: &str) -> (&str, Option<&str>, &str) {
    let mut parts = object.splitn(3, '/');
    let (kind, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    match (second, third) {
        (Some(namespace), Some(name)) => (kind, Some(namespace), name),
        (Some(name), None) => (kind, None, name),
        _ => ("", None, kind),
    }
}

fn reference(model: &Model, object: &str) -> ObjectReference {
    let (kind, namespace, name) = parts(object);
    let (api_version, uid) = match kind {
        "Pod" => {
            let pod = PodName { namespace: namespace.unwrap_or_default().to_owned(), name: name.to_owned() };
            ("v1", model.pod(&pod).and_then(|pod| pod.uid.as_deref()).map(str::to_owned))
        }
        // The kubelet uses the name as uid too, and `kubectl describe node` looks for it.
        "Node" => ("v1", Some(name.to_owned())),
        "Namespace" => ("v1", None),
        "HauberkConfig" => ("hauberk.io/v1alpha1", None),
        _ => return reference(model, &format!("Node/{}", model.node())),
    };
    ObjectReference {
        api_version: Some(api_version.into()),
        kind: Some(kind.into()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.into()),
        uid,
        ..ObjectReference::default()
    }
}

fn made(model: &Model, noted: &Noted) -> Event {
    let own = format!("Node/{}", model.node());
    let regarding = reference(model, noted.objects.first().unwrap_or(&own));
    let mut note = noted.message.clone();
    note.truncate(note.floor_char_boundary(MAX_NOTE));
    Event {
        metadata: ObjectMeta {
            name: Some(name(&regarding, noted)),
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| CLUSTER_SCOPED.into())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(noted.time)),
        action: Some("Protect".into()),
        reason: Some(noted.reason.clone()),
        note: Some(note),
        related: noted.objects.get(1).map(|object| reference(model, object)),
        reporting_controller: Some("hauberk.io/agent".into()),
        reporting_instance: Some(model.node().to_owned()),
        type_: Some(if noted.warning { "Warning" } else { "Normal" }.into()),
        regarding: Some(regarding),
        ..Event::default()
    }
}

fn series(noted: &Noted, now: Timestamp) -> EventSeries {
    // An Event that exists has been seen before, even if this agent does not remember it.
    let count = i32::try_from(noted.count).unwrap_or(i32::MAX).max(2);
    EventSeries { count, last_observed_time: MicroTime(now) }
}

/// The same for the same event on the same object, on every node.
fn name(regarding: &ObjectReference, noted: &Noted) -> String {
    let mut hash = Blake2s256::new();
    let parts = [regarding.uid.as_deref().unwrap_or_default(), &noted.reason, &noted.message];
    for part in parts.into_iter().chain(noted.objects.iter().map(String::as_str)) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let mut object = regarding.name.clone().unwrap_or_default();
    object.truncate(object.floor_char_boundary(MAX_NAME - digest.len() - 1));
    format!("{object}.{digest}")
}
