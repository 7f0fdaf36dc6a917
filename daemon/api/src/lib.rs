//! The agent's API: JSON over HTTP on a unix socket (`/run/hauberk/agent.sock`), so that
//! `curl --unix-socket` works.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/explain?source=..&destination=..` | | [`Explanation`] |
//! | `GET /v1/flows` (`?follow=true`: endless) | | [`FlowRecord`], one JSON object a line |
//! | `GET /v1/drops` | | [`Drops`] |
//! | `GET /v1/maps` | | [`Maps`] |
//! | `GET /v1/events` | | list of [`Event`] |
//! | `GET /v1/services` (`?namespace=..&name=..`: only these) | | list of [`Service`] |
//! | `GET /v1/attachments` | | list of [`Attachment`] |
//! | `POST /v1/attachments` | [`Reserve`] | [`Reservation`]; same id again: same answer |
//! | `POST /v1/attachments/{container}/{interface}/attach` | [`Attach`] | 204 |
//! | `POST /v1/attachments/adopt` | [`Adopt`] | [`Adopted`] |
//! | `POST /v1/attachments/failed` | [`FailedAdd`] | 204 |
//! | `DELETE /v1/attachments/{container}/{interface}` | | 204, also when there was none |
//! | `GET /healthz`, `/readyz`, `/metrics` | | text |
//!
//! The source and destination of `explain` are each a pod (`namespace/name`), a node or an address.
//! `services` is refused with 409 while services are not read (`services.sockets` is off), and with
//! 404 if none has the name. `attach` and `adopt` answer when the datapath holds the interface.
//!
//! Words of a fixed set are [`Word`]s: a client shows one that only a newer agent knows. Errors are
//! [`ApiError`] with a 4xx or 5xx status. Times are RFC 3339 in UTC; durations have
//! their unit in the name.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
mod mac;
#[macro_use]
mod words;
mod services;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use hauberk_abi::identity::{Kind as PartyKind, Protection};
pub use hauberk_abi::layout::Hook;
pub use hauberk_abi::reason::{DropReason, Encryption, Why};
pub use mac::{MacAddress, NoMacAddress};
pub use services::{
    AddressFamily, BackendCondition, FromOutside, FrontendKind, Service, ServiceBackend, ServiceFrontend, ServiceKind,
    ServiceMode, ServicesStatus, TrafficPolicy,
};
pub use words::{AttachMethod, ConfigurationOrigin, DropPlace, FlowStage, HostRouting, SourceKind, Vocabulary, Word};

/// An error answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiError {
    /// What failed, on which object, the likely cause, what to do.
    pub error: String,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// This node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// When the agent started.
    pub started: Timestamp,
    /// When the answer was made.
    pub now: Timestamp,
    /// Whether the datapath is attached and a self-test packet proved it.
    pub ready: bool,
    /// What is wrong, worst first.
    pub problems: Vec<Problem>,
    /// This node's tunnel.
    pub tunnel: TunnelStatus,
    /// `bpf` or `stack`.
    pub host_routing: Word<HostRouting>,
    /// How programs are attached: `tcx` or `clsact`.
    pub attach: Word<AttachMethod>,
    /// Uplinks with their guards, by name.
    pub uplinks: Vec<String>,
    /// Other nodes, by name.
    pub peers: Vec<PeerStatus>,
    /// Namespaces that are opted in or hold pods that are, by name.
    pub namespaces: Vec<NamespaceStatus>,
    /// Number of pods attached on this node.
    pub attachments: usize,
    /// Where objects come from.
    pub source: SourceStatus,
    /// Where the cluster-wide part of the configuration comes from; none without a cluster.
    #[serde(default)]
    pub configuration: Option<ConfigurationStatus>,
    /// What is done of services; none if an older agent does not report it.
    #[serde(default)]
    pub services: Option<ServicesStatus>,
}

/// The object of problems with the records of pods' interfaces: while there is one, pods may not
/// start.
pub const ATTACHMENTS_STORE: &str = "attachments store";

/// Something the operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The object concerned, as `kind/name`.
    pub object: String,
    /// What is wrong, the likely cause and what to do.
    pub message: String,
}

/// How bad a problem is, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Traffic that must be encrypted is not, or cannot pass.
    Critical,
    /// This will become critical if the operator does not act.
    Warning,
}

/// This node's tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// `userspace`, `kernel` or `ipsec`.
    pub backend: String,
    /// Why this backend: the configuration chose it, or what `auto` found.
    pub backend_reason: String,
    /// Device name.
    pub device: String,
    /// UDP port.
    pub port: u16,
    /// Largest inner packet, bytes.
    pub mtu: u32,
    /// Public keys, newest epoch first.
    pub keys: Vec<KeyStatus>,
    /// Offloads in use and those the kernel refused, in words.
    pub offloads: Vec<String>,
    /// The cipher and its implementation: `ChaCha20-Poly1305 (avx512)`. Empty if an older agent
    /// does not report it.
    #[serde(default)]
    pub cipher: String,
    /// Threads that carry packets. Zero if an older agent does not report it.
    #[serde(default)]
    pub threads: usize,
    /// Packets and handshakes that arrived on a thread other than their peer's and were handed over
    /// to it.
    #[serde(default)]
    pub handed_over: u64,
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// The key's epoch.
    pub epoch: u32,
    /// Base64, as WireGuard writes it.
    pub public_key: String,
}

/// A peer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// A handshake succeeded and has not expired.
    Established,
    /// Nothing was sent lately.
    Idle,
    /// Handshake under way.
    Handshaking,
    /// Handshakes go unanswered or are refused.
    Failed,
    /// No usable key is published.
    NoKey,
}

/// Another node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Node name.
    pub node: String,
    /// Its state.
    pub state: PeerState,
    /// Its keys, newest epoch first.
    pub keys: Vec<KeyStatus>,
    /// Where its encrypted packets go: an address of the node, or, while that does not answer,
    /// where the node was last heard.
    pub endpoint: Option<SocketAddr>,
    /// The addresses that it may send from and that are encrypted to it.
    pub allowed_ips: Vec<IpNet>,
    /// When the last handshake succeeded.
    pub latest_handshake: Option<Timestamp>,
    /// Bytes received through the tunnel.
    pub received_bytes: u64,
    /// Bytes sent through the tunnel.
    pub sent_bytes: u64,
    /// Number of the agent's thread that carries its packets: `hauberk-tun-N`.
    #[serde(default)]
    pub thread: Option<usize>,
}

/// A namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamespaceStatus {
    /// Its name.
    pub name: String,
    /// What its label asks for.
    pub protection: Protection,
    /// Pods with addresses in the cluster.
    pub pods: usize,
    /// The number of these that are opted in.
    pub protected_pods: usize,
    /// Nodes that enforce the present digest.
    pub converged_nodes: usize,
    /// Number of nodes that must: all that have an object, whether or not an agent runs there.
    pub nodes: usize,
    /// Names of the nodes that do not enforce it yet.
    pub waiting_for: Vec<String>,
    /// Since when every node enforces it, if known.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Pods whose labels opt them in but that are not protected, because they are on the host
    /// network.
    #[serde(default)]
    pub host_network: Vec<String>,
}

/// The source of objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `directory` or `kubernetes`.
    pub kind: Word<SourceKind>,
    /// The folder or server.
    pub location: String,
    /// Whether everything has been read once.
    pub synced: bool,
    /// Since when it cannot be read, if it cannot be read now.
    pub unavailable_since: Option<Timestamp>,
    /// Why it cannot be read; none while it can be read, or if `hauberk events` has the reason.
    #[serde(default)]
    pub unavailable_because: Option<String>,
    /// Objects that are rejected at the moment.
    pub rejected: usize,
}

/// The cluster-wide part of the configuration: the object HauberkConfig named `cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationStatus {
    /// `object`: from the API server; `copy`: the last accepted object, kept by this node; `file`:
    /// only this node's file.
    pub origin: Word<ConfigurationOrigin>,
    /// Generation of the object that is in force.
    pub generation: Option<i64>,
    /// Generation of the object that is refused, if the present one is.
    pub refused: Option<i64>,
    /// What is wrong, the likely cause and what to do; none if nothing is wrong.
    pub message: Option<String>,
}

/// `GET /v1/explain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The source, resolved.
    pub source: Party,
    /// The destination, resolved.
    pub destination: Party,
    /// `encrypted`, `plain`, `local`, `world` or `refused`.
    pub encryption: Word<Encryption>,
    /// The rule, as in flow records.
    pub why: Word<Why>,
    /// The drop reason if refused.
    pub drop: Option<Word<DropReason>>,
    /// The same as a sentence for people.
    pub sentence: String,
    /// The peer that encrypted packets go through.
    pub peer: Option<String>,
    /// The peer's key in use.
    pub peer_key: Option<KeyStatus>,
    /// Mechanism and cipher.
    pub cipher: Option<String>,
    /// What would make packets of this flow drop from now on.
    pub would_drop: Vec<String>,
    /// When traffic between the two was last seen with this verdict.
    pub last_proven: Option<Timestamp>,
}

/// One end of an explanation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Party {
    /// As asked.
    pub asked: String,
    /// Its address.
    pub address: IpAddr,
    /// `pod`, `node`, `unknown_pod`, `unknown_node` or `world`.
    pub kind: Word<PartyKind>,
    /// `namespace/name` of the pod, or the node's name.
    pub name: Option<String>,
    /// The node it is on.
    pub node: Option<String>,
    /// How it is protected.
    pub protection: Protection,
    /// The label, or the missing object, that decides it.
    pub rule: String,
    /// The protection that the labels of a host-network pod ask for, without effect: it has the
    /// node's address, which no label protects.
    #[serde(default)]
    pub unmet: Option<Protection>,
}

/// One line of `GET /v1/flows`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowRecord {
    /// When it was observed.
    pub time: Timestamp,
    /// `start`, `end`, `refused`, or `ongoing` for flows in the table.
    pub event: Word<FlowStage>,
    /// The node that observed it.
    pub node: String,
    /// The hook where it was observed.
    pub hook: Hook,
    /// Source.
    pub source: IpAddr,
    /// Source port, 0 where there is none.
    pub source_port: u16,
    /// `namespace/name`, or a node's name.
    pub source_name: Option<String>,
    /// Destination.
    pub destination: IpAddr,
    /// Destination port, 0 where there is none.
    pub destination_port: u16,
    /// `namespace/name`, or a node's name.
    pub destination_name: Option<String>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    /// `encrypted`, `plain`, `local`, `world` or `refused`.
    pub encryption: Word<Encryption>,
    /// The rule.
    pub why: Word<Why>,
    /// The drop reason if refused.
    pub drop: Option<Word<DropReason>>,
    /// The peer's node name.
    pub peer: Option<String>,
    /// The peer's key epoch.
    pub epoch: Option<u32>,
    /// Packets so far.
    pub packets: u64,
    /// Bytes of IP so far.
    pub bytes: u64,
    /// Number of events that the kernel could not deliver before this one, since the agent started.
    pub lost_events: u64,
}

/// `GET /v1/drops`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drops {
    /// By reason; reasons with a count of zero are left out unless they indicate a problem.
    pub reasons: Vec<DropCount>,
    /// Packets that were not dropped but should have been encrypted, by device.
    #[serde(default)]
    pub leaked: Vec<LeakCount>,
}

/// Packets that left this node in the clear and should not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakCount {
    /// The device they left through.
    pub device: String,
    /// How many were seen. For most traffic, one packet in 64 is checked.
    pub packets: u64,
}

/// Drops for one reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropCount {
    /// Stable name.
    pub reason: String,
    /// `datapath` (eBPF), `tunnel` (user space) or `netfilter`.
    pub place: Word<DropPlace>,
    /// Packets.
    pub packets: u64,
    /// What it means and what to do about it.
    pub advice: String,
    /// The count also rises on healthy nodes.
    #[serde(default)]
    pub expected: bool,
}

/// `GET /v1/maps`: the datapath's maps in words.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Maps {
    /// Where they are pinned.
    pub pin_directory: String,
    /// The settings, by name.
    pub settings: BTreeMap<String, String>,
    /// Other maps.
    pub maps: Vec<MapContent>,
    /// Attached programs.
    pub links: Vec<LinkStatus>,
}

/// One map.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapContent {
    /// Name as pinned.
    pub name: String,
    /// What it is for.
    pub purpose: String,
    /// Entries in use.
    pub entries: usize,
    /// Entries it has room for.
    pub capacity: usize,
    /// Rows: key and value in words.
    pub rows: Vec<(String, String)>,
    /// A new entry takes the place of the least recently used one when the map is full.
    #[serde(default)]
    pub makes_room: bool,
}

/// One attached program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Interface name.
    pub interface: String,
    /// Which program.
    pub hook: Hook,
    /// `tcx` or `clsact`.
    pub how: Word<AttachMethod>,
}

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was first seen.
    pub time: Timestamp,
    /// Whether the operator must act.
    pub warning: bool,
    /// CamelCase, as Kubernetes events have it.
    pub reason: String,
    /// The objects concerned, as `kind/name` or `kind/namespace/name`.
    pub objects: Vec<String>,
    /// What failed, on which object, the likely cause, what to do.
    pub message: String,
    /// How often it was seen.
    pub count: u64,
}

/// `POST /v1/attachments`: asks for addresses for a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// The runtime's container (sandbox) id.
    pub container: String,
    /// The interface's name inside the pod.
    pub interface: String,
    /// The pod, if the runtime named it.
    pub pod: Option<PodReference>,
    /// The pod's network namespace, as the runtime named it.
    pub netns: String,
}

/// A pod by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodReference {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its uid, where known.
    pub uid: Option<String>,
}

/// What the plugin must set up. The addresses belong to this pod alone until it is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Pod addresses: /32 and /128.
    pub addresses: Vec<IpNet>,
    /// Gateways to route through, one per family of `addresses`; on-link.
    pub gateways: Vec<IpAddr>,
    /// Route MTU for destinations inside the cluster, bytes.
    pub route_mtu: u32,
    /// Device MTU for the veth pair, bytes.
    pub device_mtu: u32,
    /// Name for the host side.
    pub host_interface: String,
    /// Ranges that `route_mtu` applies to; other destinations have the device's MTU.
    pub cluster_ranges: Vec<IpNet>,
    /// Largest GSO super-packet the pod should send, bytes.
    pub gso_max_size: u32,
}

/// `POST .../attach`: the veth exists, and its host side is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Interface index of the host side, in the agent's network namespace.
    pub host_index: u32,
    /// MAC address of the host side.
    pub host_mac: MacAddress,
    /// MAC address inside the pod.
    pub pod_mac: MacAddress,
}

/// A pod's interface as the agent keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The plugin's request.
    pub request: Reserve,
    /// The agent's answer.
    pub reservation: Reservation,
    /// How it was attached; none while it is only reserved.
    pub attach: Option<Attach>,
    /// Another CNI plugin made the interface and gave the addresses ([`Adopt`]): the agent removes
    /// neither.
    #[serde(default)]
    pub adopted: bool,
    /// The agent recovered it from what the kernel held, which does not name the pod: its pod is
    /// the one that has its addresses.
    #[serde(default)]
    pub recovered: bool,
}

/// `POST /v1/attachments/adopt`: an interface that another CNI plugin made and gave addresses. A
/// repeated request with the same id replaces the earlier one. The pair may be up, but the pod must
/// not start before the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopt {
    /// The container, interface and pod.
    pub request: Reserve,
    /// The pod's addresses, as the other plugin gave them.
    pub addresses: Vec<IpAddr>,
    /// Name of the host side.
    pub host_interface: String,
    /// Both sides of the pair.
    pub attach: Attach,
}

/// `POST /v1/attachments/failed`: the plugin could not give a pod its interface, for a reason that
/// the runtime alone would hear of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAdd {
    /// Whose interface it was to be.
    pub request: Reserve,
    /// What the plugin answers the runtime.
    pub message: String,
}

/// The answer to [`Adopt`]: the datapath holds the interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Largest packet inside the tunnel, bytes of IP; the MTU for the pod's routes.
    pub route_mtu: u32,
}

#[cfg(test)]
mod tests;
