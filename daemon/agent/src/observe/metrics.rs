//! `/metrics`: the Prometheus text format (OpenMetrics), read from maps and statistics at each
//! scrape.

use std::fmt::Write as _;

use hauberk_api::{PeerState, Severity, Status};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::flows::FlowLog;
use super::status::{Facts, status};
use super::{MapReader, drops};
use crate::state::SharedState;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Drop {
    place: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verdict {
    hook: Text,
    encryption: Text,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DeviceLabel {
    device: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NamespaceLabel {
    namespace: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SeverityLabel {
    severity: Text,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: Text,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Text(&'static str);

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.0)
    }
}

type Counters<L> = Family<L, Counter>;
type Gauges<L> = Family<L, Gauge>;

/// All metrics, as text.
pub fn metrics(
    agent: &SharedState,
    map_reader: &MapReader,
    facts: &Facts,
    log: &FlowLog,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("hauberk");
    let now = status(&agent.read(), map_reader, facts);
    register_node(&mut registry, &now, agent.read().apply_seconds.clone());
    register_packets(&mut registry, agent, map_reader, &facts.config.tunnel.device);
    register_tunnel(&mut registry, &now);
    let lost: Counter = Counter::default();
    lost.inc_by(log.lost());
    registry.register("flow_events_lost", "Flow events the kernel could not deliver", lost);
    register_peers(&mut registry, &now);
    register_namespaces(&mut registry, &now);
    register_services(&mut registry, &now);

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// The agent itself, its source and its problems.
fn register_node(registry: &mut Registry, now: &Status, apply_seconds: Histogram) {
    registry.register(
        "build",
        "Version, backend and how programs are attached",
        Info::new([
            ("version", now.version.clone()),
            ("backend", now.tunnel.backend.clone()),
            ("attach", now.attach.to_string()),
            ("host_routing", now.host_routing.to_string()),
        ]),
    );
    gauge(registry, "ready", "1 if the datapath is attached and a self-test packet proved it", i64::from(now.ready));
    gauge(registry, "source_synced", "1 if every object has been read once", i64::from(now.source.synced));
    let since = now.source.unavailable_since.map_or(0, |since| now.now.duration_since(since).as_secs());
    gauge(registry, "source_unavailable_seconds", "How long the source has been unreadable", since);
    gauge(registry, "source_rejected_objects", "Objects that are rejected at the moment", now.source.rejected as i64);
    registry.register_with_unit(
        "apply",
        "From when the source told of a change to when the kernel held it",
        Unit::Seconds,
        apply_seconds,
    );
    gauge(registry, "attachments", "Pods attached on this node", now.attachments as i64);

    let problems = Gauges::<SeverityLabel>::default();
    for (severity, name) in [(Severity::Critical, "critical"), (Severity::Warning, "warning")] {
        let count = now.problems.iter().filter(|problem| problem.severity == severity).count();
        problems.get_or_create(&SeverityLabel { severity: Text(name) }).set(count as i64);
    }
    registry.register("problems", "Problems at the moment, as in `hauberk status`", problems);
}

/// What became of packets; `tunnel` is the name of the tunnel device.
fn register_packets(registry: &mut Registry, agent: &SharedState, map_reader: &MapReader, tunnel: &str) {
    let dropped = Counters::<Drop>::default();
    if let Ok(drops) = drops::drops(agent, map_reader, tunnel) {
        for count in drops.reasons {
            dropped.get_or_create(&Drop { place: count.place.to_string(), reason: count.reason }).inc_by(count.packets);
        }
    }
    registry.register("drop_packets", "Dropped packets by reason", dropped);

    let leaked = Counters::<DeviceLabel>::default();
    for (device, packets) in agent.read().leaks.devices() {
        leaked.get_or_create(&DeviceLabel { device: device.to_owned() }).inc_by(packets);
    }
    registry.register("leaked_packets", "Packets seen leaving in the clear that had to be encrypted", leaked);

    let plaintext = Counters::<NodeLabel>::default();
    for (node, packets) in agent.read().plaintext.senders() {
        plaintext.get_or_create(&NodeLabel { node: node.to_owned() }).inc_by(packets);
    }
    registry.register(
        "plaintext_received_packets",
        "Packets dropped because another node sent them in the clear and had to encrypt them",
        plaintext,
    );

    let packets = Counters::<Verdict>::default();
    let bytes = Counters::<Verdict>::default();
    let counted = map_reader.maps().counters().unwrap_or_default();
    for count in counted.iter().filter(|count| count.counter.packets > 0) {
        let labels = Verdict { hook: Text(count.hook.as_str()), encryption: Text(count.encryption.as_str()) };
        packets.get_or_create(&labels).inc_by(count.counter.packets);
        bytes.get_or_create(&labels).inc_by(count.counter.bytes);
    }
    registry.register("verdict_packets", "Packets by hook and what happened to them", packets);
    registry.register_with_unit("verdict", "Bytes of IP by hook and what happened to them", Unit::Bytes, bytes);
}

/// The tunnel's threads.
fn register_tunnel(registry: &mut Registry, now: &Status) {
    gauge(registry, "tunnel_threads", "Threads that carry encrypted packets", now.tunnel.threads as i64);
    let handed_over: Counter = Counter::default();
    handed_over.inc_by(now.tunnel.handed_over);
    registry.register(
        "tunnel_handed_over_packets",
        "Packets and handshakes that came to another thread than their peer's",
        handed_over,
    );
}

/// One line of each for every peer.
fn register_peers(registry: &mut Registry, now: &Status) {
    let handshake = Gauges::<PeerLabel>::default();
    let established = Gauges::<PeerLabel>::default();
    let received = Counters::<PeerLabel>::default();
    let sent = Counters::<PeerLabel>::default();
    for peer in &now.peers {
        let label = PeerLabel { peer: peer.node.clone() };
        handshake.get_or_create(&label).set(peer.latest_handshake.map_or(0, |time| time.as_second()));
        established.get_or_create(&label).set(i64::from(peer.state == PeerState::Established));
        received.get_or_create(&label).inc_by(peer.received_bytes);
        sent.get_or_create(&label).inc_by(peer.sent_bytes);
    }
    registry.register_with_unit(
        "peer_latest_handshake",
        "When the last handshake succeeded, Unix time; 0: never",
        Unit::Seconds,
        handshake,
    );
    registry.register("peer_established", "1 if there is a session with the peer", established);
    registry.register_with_unit("peer_received", "Bytes received through the tunnel", Unit::Bytes, received);
    registry.register_with_unit("peer_sent", "Bytes sent through the tunnel", Unit::Bytes, sent);
}

/// One line of each for every namespace.
fn register_namespaces(registry: &mut Registry, now: &Status) {
    let protected = Gauges::<NamespaceLabel>::default();
    let converged = Gauges::<NamespaceLabel>::default();
    for namespace in &now.namespaces {
        let label = NamespaceLabel { namespace: namespace.name.clone() };
        protected.get_or_create(&label).set(namespace.protected_pods as i64);
        converged.get_or_create(&label).set((namespace.nodes - namespace.converged_nodes.min(namespace.nodes)) as i64);
    }
    registry.register("namespace_protected_pods", "Opted-in pods by namespace", protected);
    registry.register(
        "namespace_unconverged_nodes",
        "Nodes that do not enforce the namespace's present generation",
        converged,
    );
}

/// What is done of services.
fn register_services(registry: &mut Registry, now: &Status) {
    let Some(services) = &now.services else { return };
    gauge(registry, "services", "Services that are read", services.services as i64);
    gauge(
        registry,
        "service_frontends",
        "Addresses and ports at which connections to services are led to a backend",
        services.frontends as i64,
    );
    gauge(registry, "service_backends", "Backends in use, once for each set", services.backends as i64);
    gauge(
        registry,
        "service_connections",
        "Connections of clients outside the cluster to services, at the last count",
        services.connections.unwrap_or_default() as i64,
    );
    let connections = Counters::<ResultLabel>::default();
    for (result, count) in [("balanced", services.balanced), ("refused", services.refused), ("failed", services.failed)]
    {
        connections.get_or_create(&ResultLabel { result: Text(result) }).inc_by(count);
    }
    registry.register(
        "socket_connections",
        "Connections and datagrams to services by processes of this node",
        connections,
    );
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}
