//! A whole cluster: wire, nodes, folder of manifests, capture.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use hauberk_api::{Maps, PeerState};
use serde_json::{Value, json};

use crate::analysis::{self, Sighting};
use crate::capture::{Capture, Moment};
use crate::cgroup::Cgroups;
use crate::manifests::{self, Manifests};
use crate::netns::Netns;
use crate::node::Node;
use crate::party::Party;
use crate::pod::Pod;
use crate::runner::Context;
use crate::wait;
use crate::wire::{self, Wire};

/// The ranges all pods' addresses come from.
pub const CLUSTER_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

/// The values of the configuration field `hostRouting`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRouting {
    /// Directly from hook to pod.
    Bpf,
    /// Through the host's IP stack and its netfilter rules.
    Stack,
}

impl HostRouting {
    /// Both.
    pub const ALL: [HostRouting; 2] = [HostRouting::Bpf, HostRouting::Stack];

    /// The value as the configuration spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            HostRouting::Bpf => "bpf",
            HostRouting::Stack => "stack",
        }
    }
}

/// The kind of cluster a test needs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many nodes.
    pub nodes: usize,
    /// Whether agents run and hauberk's plugin attaches pods. If not, the harness connects pods by
    /// plain routing.
    pub hauberk: bool,
    /// Whether [`Cluster::build`] starts the agents and waits for them.
    pub start: bool,
    /// The agents' `hostRouting`.
    pub host_routing: HostRouting,
    /// MTU of the nodes' uplinks, bytes.
    pub uplink_mtu: u32,
    /// Nodes with an even number are behind a router whose far side has this MTU.
    pub narrow: Option<u32>,
    /// Whether the traffic on the wire is captured.
    pub capture: bool,
    /// Whether connections to services are led to a backend: `services.sockets`. Each node has a
    /// cgroup of its own then.
    pub sockets: bool,
    /// More configuration for all agents. It overrides the defaults.
    pub config: Value,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            nodes: 2,
            hauberk: true,
            start: true,
            host_routing: HostRouting::Bpf,
            uplink_mtu: 1500,
            narrow: None,
            capture: true,
            sockets: false,
            config: json!({}),
        }
    }
}

/// A running cluster. It is not torn down: all of it ends with the test's process.
pub struct Cluster {
    /// The nodes, `n1` first.
    pub nodes: Vec<Arc<Node>>,
    /// A host that is no node: the default gateway of every node, and the world behind it.
    pub outside: Party,
    /// The folder that the agents read.
    pub manifests: Manifests,
    /// The traffic on the wire.
    pub capture: Capture,
    /// The bridges.
    pub wire: Wire,
    /// The setup it was built from.
    pub setup: Setup,
    /// The folder for logs.
    pub directory: PathBuf,
    plain_pods: AtomicU32,
}

impl Cluster {
    /// Builds a cluster.
    ///
    /// # Errors
    /// A step failed; the message says where to look.
    pub fn build(context: &Context, setup: Setup) -> Result<Cluster> {
        let mut wire = Wire::create(if setup.narrow.is_some() { 2 } else { 1 })?;
        let outside = build_outside(&mut wire, setup.uplink_mtu)?;
        if let Some(mtu) = setup.narrow {
            build_router(&mut wire, setup.uplink_mtu, mtu)?;
        }
        let manifests = Manifests::create(&context.directory.join("manifests"))?;
        let cgroups = if setup.sockets { Some(Cgroups::create()?) } else { None };
        let mut nodes = Vec::new();
        for number in 1..=setup.nodes {
            let segment = if setup.narrow.is_some() { (number - 1) % 2 } else { 0 };
            let cgroup = cgroups.as_ref().map(|cgroups| cgroups.node(&format!("n{number}"))).transpose()?;
            let (folder, file) = cgroup.unzip();
            let node = build_node(&mut wire, &setup, context, number as u8, segment as u8, file)?;
            manifests.put("node", &node.name, &manifests::node(&node.name, &node.addresses(), &node.pod_ranges))?;
            node.configure(manifests.directory(), &agent_config(&setup, folder.as_deref()))?;
            nodes.push(Arc::new(node));
        }
        let capture = Capture::start(if setup.capture { wire.ports() } else { &[] })?;
        context.watch(&capture);
        context.attend(&nodes);
        let directory = context.directory.clone();
        let plain_pods = AtomicU32::new(0);
        let cluster = Cluster { nodes, outside, manifests, capture, wire, setup, directory, plain_pods };
        if !cluster.setup.hauberk {
            cluster.route_plainly()?;
        } else if cluster.setup.start {
            cluster.start()?;
        }
        Ok(cluster)
    }

    /// Starts the agents and waits until they are ready and know each other's keys.
    ///
    /// # Errors
    /// An agent did not become ready; the message has the end of its log.
    pub fn start(&self) -> Result<()> {
        for node in &self.nodes {
            node.start_agent()?;
        }
        self.wait_ready()
    }

    /// Waits until all agents are ready and know each other's keys.
    ///
    /// # Errors
    /// An agent did not become ready.
    pub fn wait_ready(&self) -> Result<()> {
        for node in &self.nodes {
            node.agent.wait_ready()?;
        }
        for node in &self.nodes {
            wait::eventually(format!("{} to have all nodes' keys", node.name), || {
                let status = node.agent.status()?;
                let usable = status.peers.iter().filter(|peer| peer.state != PeerState::NoKey && !peer.keys.is_empty());
                let count = usable.count();
                ensure!(count + 1 >= self.nodes.len(), "{} peers with a key", count);
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// Makes a namespace with or without the encryption label.
    ///
    /// # Errors
    /// File access fails.
    pub fn namespace(&self, name: &str, encryption: Option<&str>) -> Result<()> {
        self.manifests.put("namespace", name, &manifests::namespace(name, encryption))
    }

    /// Runs a pod on a node (counted from 0).
    ///
    /// # Errors
    /// It could not be attached.
    pub fn pod(&self, namespace: &str, name: &str, node: usize) -> Result<Pod> {
        let node = &self.nodes[node];
        if self.setup.hauberk {
            Pod::run(node, &self.manifests, namespace, name)
        } else {
            self.plain_pod(namespace, name, node)
        }
    }

    /// Waits until every agent has all of `pods` in its kernel maps, and no agent counts them as
    /// unknown.
    ///
    /// # Errors
    /// An agent never did.
    pub fn wait_known(&self, pods: &[&Pod]) -> Result<()> {
        for node in &self.nodes {
            wait::eventually(format!("{} to know all pods", node.name), || {
                let maps: Maps = node.agent.ask("/v1/maps")?;
                let endpoints = maps.maps.iter().find(|map| map.name == "ENDPOINTS").context("no map ENDPOINTS")?;
                for pod in pods {
                    for address in pod.addresses() {
                        let known = endpoints.rows.iter().any(|(key, _)| key == &address.to_string());
                        ensure!(known, "{} ({address}) is not in ENDPOINTS", pod.party.name);
                    }
                }
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// Waits until the status of every agent says that a namespace is enforced everywhere.
    ///
    /// # Errors
    /// It never did; the message says which nodes are missing.
    pub fn wait_converged(&self, namespace: &str, protection: hauberk_api::Protection) -> Result<()> {
        for node in &self.nodes {
            wait::eventually(format!("{namespace} to be {protection:?} everywhere, says {}", node.name), || {
                let status = node.agent.status()?;
                let found = status.namespaces.iter().find(|entry| entry.name == namespace);
                let found = found.with_context(|| format!("no namespace {namespace} in the status"))?;
                ensure!(found.protection == protection, "is {:?}", found.protection);
                let (converged, nodes) = (found.converged_nodes, found.nodes);
                ensure!(converged == nodes, "{converged} of {nodes} nodes; waiting for {:?}", found.waiting_for);
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// Fails if a packet of one of `pods` crossed the wire in the clear since a moment.
    ///
    /// # Errors
    /// A packet did; the message shows the frames. Or the capture is incomplete.
    pub fn assert_no_cleartext(&self, pods: &[&Pod], since: Moment) -> Result<()> {
        let addresses: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.addresses()).collect();
        let sightings = self.cleartext(&addresses, since)?;
        ensure!(sightings.is_empty(), "packets of protected pods in the clear: {}", analysis::list(&sightings));
        Ok(())
    }

    /// Frames with packets of `addresses` in the clear since a moment.
    ///
    /// # Errors
    /// The capture is incomplete.
    pub fn cleartext(&self, addresses: &[IpAddr], since: Moment) -> Result<Vec<Sighting>> {
        Ok(analysis::cleartext_of(&self.capture.since(since)?, addresses))
    }

    /// Connects nodes as a cluster without hauberk does: forwarding, and a route to each other's
    /// pods.
    fn route_plainly(&self) -> Result<()> {
        for node in &self.nodes {
            node.netns.sysctl("net.ipv4.ip_forward", "1")?;
            node.netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
            for other in self.nodes.iter().filter(|other| other.name != node.name) {
                node.netns.ip(&format!(
                    "route add {} via {}\nroute add {} via {}",
                    other.pod_ranges[0], other.v4, other.pod_ranges[1], other.v6
                ))?;
            }
        }
        Ok(())
    }

    fn plain_pod(&self, namespace: &str, name: &str, node: &Arc<Node>) -> Result<Pod> {
        let number = self.plain_pods.fetch_add(1, Ordering::Relaxed) + 2;
        let netns = Netns::create(&format!("{namespace}-{name}"))?;
        let host = format!("pod{number}");
        let v4: Ipv4Addr = node.pod_ranges[0].replace("0/24", &number.to_string()).parse().context("pod address")?;
        let v6: Ipv6Addr = node.pod_ranges[1].replace("/64", &format!("{number:x}")).parse().context("pod address")?;
        node.netns.ip(&format!(
            "link add {host} type veth peer name {host}p
             addr add 169.254.1.1/32 dev {host}
             link set {host} up
             addr add fe80::1/64 dev {host} nodad
             route add {v4} dev {host}
             route add {v6} dev {host}"
        ))?;
        wire::move_link(&node.netns, &format!("{host}p"), &netns, "eth0")?;
        netns.ip(&format!(
            "addr add {v4}/32 dev eth0
             addr add {v6}/128 dev eth0 nodad
             link set eth0 up
             route add 169.254.1.1 dev eth0
             route add default via 169.254.1.1 dev eth0
             route add default via fe80::1 dev eth0"
        ))?;
        Pod::with_addresses(netns, node, namespace, name, String::new(), &[v4.into(), v6.into()])
    }
}

fn agent_config(setup: &Setup, cgroup: Option<&Path>) -> Value {
    let mut config = json!({"clusterRanges": CLUSTER_RANGES, "hostRouting": setup.host_routing.as_str()});
    if let Some(cgroup) = cgroup {
        config["services"] = json!({"sockets": true});
        config["paths"] = json!({"cgroup": cgroup});
    }
    if let (Some(config), Some(extra)) = (config.as_object_mut(), setup.config.as_object()) {
        config.extend(extra.clone());
    }
    config
}

/// The gateway of a segment: the router if there is one, else the host outside.
fn gateway(setup: &Setup, segment: u8) -> (Ipv4Addr, Ipv6Addr) {
    let last = if setup.narrow.is_some() { 1 } else { 250 };
    segment_addresses(segment, last)
}

fn segment_addresses(segment: u8, last: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd00, 0x18, u16::from(segment), 0, 0, 0, 0, u16::from(last));
    (Ipv4Addr::new(172, 18, segment, last), v6)
}

fn build_node(
    wire: &mut Wire,
    setup: &Setup,
    context: &Context,
    number: u8,
    segment: u8,
    cgroup: Option<Arc<File>>,
) -> Result<Node> {
    let netns = Netns::create_in(&format!("n{number}"), cgroup)?;
    let mtu = match setup.narrow {
        Some(narrow) if segment == 1 => narrow,
        _ => setup.uplink_mtu,
    };
    let (v4, v6) = segment_addresses(segment, 10 + number);
    let (gateway_v4, gateway_v6) = gateway(setup, segment);
    wire.plug(&netns, "eth0", usize::from(segment), mtu)?;
    netns.ip(&format!(
        "addr add {v4}/24 dev eth0
         addr add {v6}/64 dev eth0 nodad
         route add default via {gateway_v4}
         route add default via {gateway_v6}"
    ))?;
    let pod_ranges = vec![format!("10.244.{number}.0/24"), format!("fd00:10:244:{number:x}::/64")];
    let party = Party { name: format!("n{number}"), netns, v4, v6 };
    Node::create(party, pod_ranges, &context.directory.join("state"), &context.directory)
}

/// Builds the host outside: it is on the first segment and also has an address that stands for the
/// internet.
fn build_outside(wire: &mut Wire, mtu: u32) -> Result<Party> {
    let netns = Netns::create("outside")?;
    let (v4, v6) = segment_addresses(0, 250);
    wire.plug(&netns, "eth0", 0, mtu)?;
    netns.ip(&format!(
        "addr add {v4}/24 dev eth0
         addr add {v6}/64 dev eth0 nodad
         addr add 203.0.113.10/32 dev lo
         addr add 2001:db8:113::10/128 dev lo nodad
         route add 172.18.1.0/24 via 172.18.0.1
         route add fd00:18:1::/64 via fd00:18::1"
    ))?;
    netns.sysctl("net.ipv4.ip_forward", "1")?;
    netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    let internet = (Ipv4Addr::new(203, 0, 113, 10), Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10));
    Ok(Party { name: "outside".into(), netns, v4: internet.0, v6: internet.1 })
}

fn build_router(wire: &mut Wire, mtu: u32, narrow: u32) -> Result<()> {
    let netns = Netns::create("router")?;
    netns.sysctl("net.ipv4.ip_forward", "1")?;
    netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    for (segment, interface, mtu) in [(0, "eth0", mtu), (1, "eth1", narrow)] {
        let (v4, v6) = segment_addresses(segment, 1);
        wire.plug(&netns, interface, usize::from(segment), mtu)?;
        netns.ip(&format!("addr add {v4}/24 dev {interface}\naddr add {v6}/64 dev {interface} nodad"))?;
    }
    let (v4, v6) = segment_addresses(0, 250);
    netns.ip(&format!("route add default via {v4}\nroute add default via {v6}"))
}
