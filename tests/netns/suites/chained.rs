//! Beside another CNI plugin: the reference plugins `bridge` and `ptp`, with routes between nodes
//! or a VXLAN as flannel makes it. Opted-in pods' packets are sealed and never in the VXLAN; plain
//! pods' packets take the other plugin's way.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::{Attachment, Encryption, FlowRecord, Maps};
use hauberk_netns::analysis;
use hauberk_netns::capture::{Frame, Moment};
use hauberk_netns::chain::Chain;
use hauberk_netns::traffic::{Exchange, Outcome, Protocol, bulk_tcp, exchange, exchange_all, send_of_size};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Node, Party, Pod, Setup, Test, eventually, nat};
use serde_json::{Value, json};

pub const TESTS: &[Test] = &[
    Test::new("chained::bridge_and_routes", |context| every_pair(context, Plugin::Bridge, Underlay::Routes, false)),
    Test::new("chained::bridge_and_vxlan", |context| every_pair(context, Plugin::Bridge, Underlay::Vxlan, false)),
    Test::new("chained::bridge_that_masquerades", |context| every_pair(context, Plugin::Bridge, Underlay::Vxlan, true)),
    Test::new("chained::masqueraded_services_on_the_host_network", host_network),
    Test::new("chained::ptp_and_routes", |context| every_pair(context, Plugin::Ptp, Underlay::Routes, false)),
    Test::new("chained::ptp_and_vxlan", |context| every_pair(context, Plugin::Ptp, Underlay::Vxlan, false)),
    Test::new("chained::the_world_and_the_node_are_reached_as_before", world_and_node),
    Test::new("chained::pods_that_were_there_are_adopted_and_forgotten", adoption),
    Test::new("chained::sizes_that_pods_were_not_told_of", sizes),
    Test::new("chained::an_overlay_that_is_made_anew_lets_nothing_out", overlay_made_anew),
    Test::new("chained::the_agent_installs_itself_behind_another_plugin", installer),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugin {
    Bridge,
    Ptp,
}

/// How the other plugin's network reaches other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Underlay {
    /// By routes over the nodes' own addresses.
    Routes,
    /// In UDP packets, as flannel does it.
    Vxlan,
}

const OVERLAY: &str = "flannel.1";
const VXLAN_PORT: u16 = 8472;
const VXLAN_MTU: u32 = 1450;

/// A cluster whose pods another plugin connects.
pub(crate) struct Playground {
    pub(crate) cluster: Cluster,
    underlay: Underlay,
    chains: Vec<Chain>,
}

impl Playground {
    /// A connected cluster with agents that are configured but not started.
    pub(crate) fn build(context: &Context, plugin: Plugin, underlay: Underlay, masquerade: bool) -> Result<Playground> {
        let setup = Setup { host_routing: HostRouting::Stack, start: false, ..Setup::default() };
        let cluster = Cluster::build(context, setup)?;
        cluster.namespace("payments", Some("enabled"))?;
        cluster.namespace("public", None)?;
        let mut chains = Vec::new();
        for (index, node) in cluster.nodes.iter().enumerate() {
            connect(node, index, &cluster.nodes, underlay)?;
            let chain = Chain::new(node, list(node, plugin, masquerade))?;
            node.configure(cluster.manifests.directory(), &agent(&chain, node))?;
            chains.push(chain);
        }
        Ok(Playground { cluster, underlay, chains })
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str, node: usize) -> Result<Pod> {
        self.chains[node].run(&self.cluster.manifests, namespace, name)
    }

    pub(crate) fn start(&self) -> Result<()> {
        self.cluster.start()
    }

    /// Waits until the agents guard this many pod interfaces.
    pub(crate) fn wait_adopted(&self, counts: [usize; 2]) -> Result<()> {
        for (node, count) in self.cluster.nodes.iter().zip(counts) {
            eventually(format!("{count} attachments on {}", node.name), || {
                let held: Vec<Attachment> = node.agent.ask("/v1/attachments")?;
                ensure!(held.len() == count && held.iter().all(|one| one.adopted), "{held:?}");
                let interfaces = map_entries(node, "INTERFACES")?;
                ensure!(interfaces == count, "{interfaces} interfaces in the datapath");
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// Fails unless plain packets crossed the wire in the form in which the other plugin sends
    /// them.
    fn assert_in_the_clear(&self, frames: &[Arc<Frame>], exchange: &Exchange<'_>, outcome: &Outcome) -> Result<()> {
        let seen = analysis::markers(frames);
        for marker in [outcome.request, outcome.reply] {
            let frame = seen.get(&marker).with_context(|| format!("{exchange}: payload not on the wire"))?;
            let ports = analysis::dissect(&frame.bytes).1.and_then(|packet| packet.ports);
            let in_vxlan = ports.is_some_and(|(_, destination)| destination == VXLAN_PORT);
            ensure!(in_vxlan == (self.underlay == Underlay::Vxlan), "{exchange}: not by its own way: ports {ports:?}");
        }
        Ok(())
    }
}

/// The other plugin's own configuration.
fn list(node: &Node, plugin: Plugin, masquerade: bool) -> Value {
    let mut one = json!({
        "type": if plugin == Plugin::Bridge { "bridge" } else { "ptp" },
        "ipMasq": masquerade,
        "mtu": VXLAN_MTU,
        "ipam": {
            "type": "host-local",
            "dataDir": node.state.join("ipam"),
            "ranges": [[{"subnet": node.pod_ranges[0]}], [{"subnet": node.pod_ranges[1]}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    if plugin == Plugin::Bridge {
        one["bridge"] = json!("cni0");
        one["isGateway"] = json!(true);
        one["hairpinMode"] = json!(true);
    }
    json!({"cniVersion": "1.0.0", "name": "net", "plugins": [one, hauberk(node)]})
}

fn hauberk(node: &Node) -> Value {
    json!({"type": "hauberk-cni", "socket": node.socket(), "chained": true, "timeoutSeconds": 30})
}

/// The chain without hauberk's plugin, as before its installation.
fn without_hauberk(chain: &Chain) -> Chain {
    let mut chain = chain.clone();
    chain.list["plugins"].as_array_mut().and_then(Vec::pop);
    chain
}

fn agent(chain: &Chain, node: &Node) -> Value {
    json!({
        "clusterRanges": hauberk_netns::cluster::CLUSTER_RANGES,
        "hostRouting": "stack",
        "cni": {
            "install": "chained",
            "binaryDirectory": node.state.join("bin"),
            "configurationDirectory": node.state.join("net.d"),
            "resultsDirectory": chain.results,
        },
    })
}

/// Connects a node as flannel's daemon does, or with routes.
fn connect(node: &Node, index: usize, nodes: &[Arc<Node>], underlay: Underlay) -> Result<()> {
    node.netns.sysctl("net.ipv4.ip_forward", "1")?;
    node.netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    if underlay == Underlay::Vxlan {
        return make_overlay(node, index, nodes);
    }
    for other in nodes.iter().filter(|other| other.name != node.name) {
        node.netns.ip(&format!(
            "route add {} via {}\nroute add {} via {}",
            other.pod_ranges[0], other.v4, other.pod_ranges[1], other.v6
        ))?;
    }
    Ok(())
}

fn make_overlay(node: &Node, index: usize, nodes: &[Arc<Node>]) -> Result<()> {
    let (v4, v6) = overlay_addresses(index);
    node.netns.ip(&format!(
        "link add {OVERLAY} address {} mtu {VXLAN_MTU} type vxlan id 1 local {} dev eth0 dstport {VXLAN_PORT} nolearning
         addr add {v4}/32 dev {OVERLAY}
         link set {OVERLAY} up
         addr add {v6}/128 dev {OVERLAY} nodad",
        overlay_mac(index),
        node.v4
    ))?;
    for (other, peer) in nodes.iter().enumerate().filter(|(other, _)| *other != index) {
        let ((v4, v6), mac) = (overlay_addresses(other), overlay_mac(other));
        node.netns.ip(&format!(
            "neigh add {v4} lladdr {mac} dev {OVERLAY} nud permanent
             neigh add {v6} lladdr {mac} dev {OVERLAY} nud permanent
             route add {} via {v4} dev {OVERLAY} onlink
             route add {} via {v6} dev {OVERLAY} onlink",
            peer.pod_ranges[0], peer.pod_ranges[1]
        ))?;
        let mac = mac.as_str();
        node.run("bridge", &["fdb", "append", mac, "dev", OVERLAY, "dst", &peer.v4.to_string()])?;
    }
    Ok(())
}

/// The first address of the node's pod range, which flannel uses.
fn overlay_addresses(index: usize) -> (Ipv4Addr, Ipv6Addr) {
    let number = index as u8 + 1;
    (Ipv4Addr::new(10, 244, number, 0), Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(number), 0, 0, 0, 0))
}

fn overlay_mac(index: usize) -> String {
    format!("0e:00:00:00:00:{:02x}", index + 1)
}

fn map_entries(node: &Node, name: &str) -> Result<usize> {
    let maps: Maps = node.agent.ask("/v1/maps")?;
    Ok(maps.maps.iter().filter(|map| map.name == name).map(|map| map.entries).sum())
}

const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Fragments];

fn every_pair(context: &Context, plugin: Plugin, underlay: Underlay, masquerade: bool) -> Result<()> {
    let playground = Playground::build(context, plugin, underlay, masquerade)?;
    playground.start()?;
    let mut pods: BTreeMap<&str, Pod> = BTreeMap::new();
    for (key, namespace, node) in
        [("a", "payments", 0), ("a2", "payments", 0), ("b", "payments", 1), ("c", "public", 0), ("d", "public", 1)]
    {
        pods.insert(key, playground.pod(namespace, key, node)?);
    }
    playground.wait_adopted([3, 2])?;
    let cluster = &playground.cluster;
    cluster.wait_known(&pods.values().collect::<Vec<_>>())?;
    for (index, pod) in [(0, "a"), (0, "c"), (1, "b"), (1, "d")] {
        playground.chains[index].check(&pods[pod])?;
    }
    let across = [("a", "b"), ("b", "a"), ("a", "d"), ("d", "a"), ("c", "b"), ("b", "c"), ("c", "d"), ("d", "c")];
    let local = [("a", "a2"), ("a2", "a"), ("a", "c"), ("c", "a"), ("b", "d"), ("d", "b")];
    let exchanges: Vec<Exchange<'_>> = across
        .iter()
        .chain(&local)
        .flat_map(|(client, server)| {
            let ends = (&pods[client].party, &pods[server].party);
            Family::ALL.map(|family| PROTOCOLS.map(|protocol| Exchange::new(protocol, family, ends.0, ends.1)))
        })
        .flatten()
        .collect();
    let since = cluster.capture.sync()?;
    let outcomes = exchange_all(&exchanges)?;
    let frames = cluster.capture.since(since)?;
    let seen = analysis::markers(&frames);
    let mut wrong = Vec::new();
    for (exchange, outcome) in exchanges.iter().zip(&outcomes) {
        if !outcome.answered {
            wrong.push(format!("{exchange}: no answer: {}", outcome.said));
            continue;
        }
        let plain = [&pods["c"], &pods["d"]].map(|pod| pod.name.clone());
        let is_plain =
            [exchange.client, exchange.server].iter().all(|end| plain.iter().any(|name| end.name.ends_with(name)));
        let crosses = across.iter().any(|(client, server)| {
            pods[client].party.name == exchange.client.name && pods[server].party.name == exchange.server.name
        });
        // Behind their node's address plain pods' packets could be protected ones, so they are
        // sealed, and nothing is visible.
        if is_plain && crosses && masquerade {
            continue;
        }
        if is_plain && crosses {
            if let Err(error) = playground.assert_in_the_clear(&frames, exchange, outcome) {
                wrong.push(error.to_string());
            }
            continue;
        }
        if [outcome.request, outcome.reply].iter().any(|marker| seen.contains_key(marker)) {
            wrong.push(format!("{exchange}: its payload is on the wire in the clear"));
        }
        // The other plugin masquerades its pods' packets, but not sealed ones.
        let expected = exchange.client.address(exchange.family);
        let protected = exchange.client.name.starts_with("payments");
        if exchange.protocol != Protocol::Icmp && protected && outcome.seen_client != Some(expected) {
            wrong.push(format!("{exchange}: the server saw {:?}, not {expected}", outcome.seen_client));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} exchanges:\n  {}", wrong.len(), exchanges.len(), wrong.join("\n  "));
    cluster.assert_no_cleartext(&[&pods["a"], &pods["a2"], &pods["b"]], Moment::START)?;
    crate::leaks::accuse_no_one(cluster)?;
    crate::leaks::sees_nothing_but_one(cluster, &pods["a"], &pods["b"])?;
    let (a, a2) = (pods["a"].address(Family::V4), pods["a2"].address(Family::V4));
    let flows = cluster.nodes[0].agent.flows()?;
    let flow = flows.iter().find(|flow| flow.source == a && flow.destination == a2);
    ensure!(
        flow.is_some_and(|flow| flow.encryption == Encryption::Local),
        "the flow {a} -> {a2} does not say local: {flow:?}"
    );
    for (index, node) in cluster.nodes.iter().enumerate() {
        let drops = node.agent.all_drops()?;
        println!("drops on {}: {drops:?}", node.name);
        for reason in
            ["spoofed_source", "no_peer", "plaintext_to_protected", "plaintext_from_protected", "packet_socket"]
        {
            ensure!(drops.get(reason).is_none_or(|count| *count == 0), "{reason} on {}: {drops:?}", node.name);
        }
        for pod in pods.values().filter(|pod| pod.node.name == node.name) {
            playground.chains[index].delete(pod)?;
        }
        ensure!(map_entries(node, "ATTACHMENTS")? + map_entries(node, "INTERFACES")? == 0, "entries are left");
        let held: Vec<Attachment> = node.agent.ask("/v1/attachments")?;
        ensure!(held.is_empty(), "DEL left {held:?}");
        let left: Vec<String> = node.netns.interfaces()?.into_iter().filter(|name| name.starts_with("veth")).collect();
        ensure!(left.is_empty(), "DEL left {left:?}");
    }
    Ok(())
}

fn world_and_node(context: &Context) -> Result<()> {
    let playground = Playground::build(context, Plugin::Bridge, Underlay::Vxlan, true)?;
    playground.start()?;
    let (a, b) = (playground.pod("payments", "a", 0)?, playground.pod("payments", "b", 1)?);
    let (c, d) = (playground.pod("public", "c", 0)?, playground.pod("public", "d", 1)?);
    playground.wait_adopted([2, 2])?;
    let cluster = &playground.cluster;
    cluster.wait_known(&[&a, &b, &c, &d])?;
    let host = |index: usize| {
        let node = &cluster.nodes[index];
        let (v4, v6) = overlay_addresses(index);
        // The kernel chooses the overlay's address as the source, because the route has it.
        Party { name: format!("{} by its overlay", node.name), netns: node.netns.clone(), v4, v6 }
    };
    let hosts = [host(0), host(1)];
    let nodes = [&cluster.nodes[0].party, &cluster.nodes[1].party];
    let mut exchanges = Vec::new();
    for family in Family::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for pod in [&b, &d] {
                for host in [&hosts[0], nodes[0]] {
                    exchanges.push(Exchange::new(protocol, family, host, pod));
                    exchanges.push(Exchange::new(protocol, family, pod, host));
                }
            }
            // The kubelet's probes.
            for pod in [&a, &c] {
                exchanges.push(Exchange::new(protocol, family, nodes[0], pod));
                exchanges.push(Exchange::new(protocol, family, &hosts[0], pod));
            }
        }
    }
    let mut wrong = Vec::new();
    for (exchange, outcome) in exchanges.iter().zip(exchange_all(&exchanges)?) {
        if !outcome.answered {
            wrong.push(format!("{exchange}: no answer: {}", outcome.said));
        }
    }
    let worlds: Vec<Exchange<'_>> = [&a, &c]
        .iter()
        .flat_map(|pod| Family::ALL.map(|family| Exchange::new(Protocol::Tcp, family, pod, &cluster.outside)))
        .collect();
    for (exchange, outcome) in worlds.iter().zip(exchange_all(&worlds)?) {
        if !outcome.answered || outcome.seen_client != Some(nodes[0].address(exchange.family)) {
            wrong.push(format!("{exchange}: by the other plugin's masquerading: {outcome:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n  "));
    // Pods' packets to the world are not sealed; those to nodes and pods are.
    let frames = cluster.capture.all()?;
    let outside: Vec<IpAddr> = cluster.outside.addresses().into();
    let pods: Vec<IpAddr> = [&a, &b].iter().flat_map(|pod| pod.addresses()).collect();
    let shown = analysis::cleartext_of(&frames, &pods);
    let inside: Vec<_> = shown
        .into_iter()
        .filter(|seen| {
            let packet = analysis::dissect(&seen.frame.bytes).1;
            packet.is_none_or(|packet| !outside.contains(&packet.source) && !outside.contains(&packet.destination))
        })
        .collect();
    ensure!(inside.is_empty(), "protected pods' packets in the clear: {}", analysis::list(&inside));
    Ok(())
}

/// The API server's own service: its backends are nodes, and the other plugin's masquerading makes
/// the client a node as well.
fn host_network(context: &Context) -> Result<()> {
    let playground = Playground::build(context, Plugin::Bridge, Underlay::Vxlan, true)?;
    playground.start()?;
    let a = playground.pod("payments", "a", 0)?;
    playground.wait_adopted([1, 0])?;
    let cluster = &playground.cluster;
    cluster.wait_known(&[&a])?;
    let backend = &cluster.nodes[1].party;
    let since = cluster.capture.sync()?;
    for family in Family::ALL {
        let service = nat::service_address(family, 1);
        nat::add_service(&cluster.nodes[0], service, backend.address(family))?;
        for (protocol, port) in [(Protocol::Tcp, 25001), (Protocol::Udp, 25002)] {
            let one = Exchange::new(protocol, family, &a, backend).via(SocketAddr::new(service, port), port);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
            let seen = analysis::markers(&cluster.capture.since(since)?);
            ensure!(!seen.contains_key(&outcome.request), "{one}: the request is in the clear");
            ensure!(!seen.contains_key(&outcome.reply), "{one}: the reply is in the clear");
        }
    }
    cluster.assert_no_cleartext(&[&a], Moment::START)
}

fn adoption(context: &Context) -> Result<()> {
    let playground = Playground::build(context, Plugin::Bridge, Underlay::Vxlan, false)?;
    let cluster = &playground.cluster;
    cluster.namespace("payments", None)?;
    let mut pods = Vec::new();
    for (name, node) in [("a", 0), ("b", 1), ("short", 0)] {
        pods.push(without_hauberk(&playground.chains[node]).run(&cluster.manifests, "payments", name)?);
    }
    let [a, b, short] = &pods[..] else { anyhow::bail!("three pods") };
    let before = exchange(&Exchange::new(Protocol::Tcp, Family::V4, a, b))?;
    ensure!(before.answered, "the other plugin's network does not work by itself: {before:?}");
    let results = &playground.chains[0].results;
    fs::write(results.join("net-torn-eth0"), "{\"kind\":\"cniCache").context("write a torn result")?;
    fs::write(
        results.join("net-gone-eth0"),
        fs::read_to_string(results.join(format!("net-{}-eth0", a.container)))?
            .replace(&a.container, "gone")
            .replace("\"mac\":\"", "\"mac\":\"f"),
    )?;
    playground.start()?;
    playground.wait_adopted([2, 1])?;
    cluster.wait_known(&[a, b])?;
    let mut live = Exchange::new(Protocol::Tcp, Family::V4, a, b);
    live.patience = Duration::from_secs(30);
    ensure!(exchange(&live)?.answered, "plain pods do not talk any more");
    cluster.namespace("payments", Some("enabled"))?;
    cluster.wait_converged("payments", hauberk_api::Protection::Enabled)?;
    let since = cluster.capture.sync()?;
    for family in Family::ALL {
        for (client, server) in [(a, b), (b, a)] {
            for protocol in PROTOCOLS {
                let one = Exchange::new(protocol, family, client, server);
                let outcome = exchange(&one)?;
                ensure!(outcome.answered, "{one}: {outcome:?}");
            }
        }
    }
    cluster.assert_no_cleartext(&[a, b], since)?;
    let torn = cluster.nodes[0].agent.events()?.into_iter().any(|event| event.message.contains("net-torn-eth0"));
    ensure!(torn, "nobody was told of the torn result");
    // The pod ends without DEL, as when the runtime crashes. The namespace lives on while the test
    // holds it, so the interface is deleted.
    short.netns.ip("link del eth0")?;
    short.netns.remove()?;
    playground.wait_adopted([1, 1])?;
    // A restarted agent takes over what exists, and notices what disappeared meanwhile.
    cluster.nodes[1].agent.kill()?;
    playground.chains[1].delete(b)?;
    cluster.nodes[1].start_agent()?;
    cluster.nodes[1].agent.wait_ready()?;
    playground.wait_adopted([1, 0])?;
    playground.chains[0].delete(a)?;
    playground.wait_adopted([0, 0])?;
    cluster.assert_no_cleartext(&[a, b], since)
}

/// Pods that are older than hauberk assume the VXLAN's MTU for the path.
fn sizes(context: &Context) -> Result<()> {
    let playground = Playground::build(context, Plugin::Bridge, Underlay::Vxlan, false)?;
    let cluster = &playground.cluster;
    let a = without_hauberk(&playground.chains[0]).run(&cluster.manifests, "payments", "a")?;
    let b = without_hauberk(&playground.chains[1]).run(&cluster.manifests, "payments", "b")?;
    playground.start()?;
    playground.wait_adopted([1, 1])?;
    cluster.wait_known(&[&a, &b])?;
    let mtu = cluster.nodes[0].agent.status()?.tunnel.mtu as usize;
    ensure!((1280..VXLAN_MTU as usize).contains(&mtu), "tunnel MTU {mtu} leaves nothing to test");
    for family in Family::ALL {
        for (from, to) in [(&a.party, &b.party), (&b.party, &a.party), (&cluster.nodes[0].party, &b.party)] {
            for size in [mtu, mtu + 1, VXLAN_MTU as usize] {
                let outcome = send_of_size(from, to, family, size, Duration::from_secs(20))?;
                let what = format!("{size} bytes {family} {} -> {}: {outcome:?}", from.name, to.name);
                ensure!(outcome.delivered == (size <= mtu), "should arrive if it is not larger than {mtu}: {what}");
                ensure!(size <= mtu || outcome.too_big == Some(mtu as u32), "should have been told of {mtu}: {what}");
            }
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            let report = bulk_tcp(from, to, family, 8 << 20)?;
            println!("{} -> {} {family}: {:?}", from.party.name, to.party.name, report.duration);
            // Without "don't fragment" the sender learns the MTU and makes its packets smaller.
            let one = Exchange::new(Protocol::Fragments, family, from, to);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
        }
    }
    ensure!(cluster.nodes[0].agent.drops("too_big")? > 0, "what was too big was not counted");
    let flows = cluster.nodes[0].agent.flows()?;
    let invented = flows.iter().find(|flow| flow.encryption == Encryption::Encrypted && is_too_big(flow));
    // The "too big" message came from the node, through no tunnel.
    ensure!(invented.is_none(), "the node's own answer is told as another's encrypted packet: {invented:?}");
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

/// The record has ICMP's type and code in the place of a destination port.
fn is_too_big(flow: &FlowRecord) -> bool {
    matches!((flow.protocol.as_str(), flow.destination_port), ("icmp", 0x0304) | ("icmpv6", 0x0200))
}

fn overlay_made_anew(context: &Context) -> Result<()> {
    let playground = Playground::build(context, Plugin::Bridge, Underlay::Vxlan, false)?;
    playground.start()?;
    let (a, b) = (playground.pod("payments", "a", 0)?, playground.pod("payments", "b", 1)?);
    playground.wait_adopted([1, 1])?;
    let cluster = &playground.cluster;
    cluster.wait_known(&[&a, &b])?;
    let over = AtomicBool::new(false);
    let sender = |family: Family| {
        while !over.load(Ordering::Relaxed) {
            let _ = exchange(&Exchange::new(Protocol::Udp, family, &a, &b).patience(Duration::from_millis(100)));
        }
    };
    thread::scope(|scope| -> Result<()> {
        for family in Family::ALL {
            scope.spawn(move || sender(family));
        }
        let node = &cluster.nodes[0];
        let remade = (0..5).try_for_each(|_| {
            thread::sleep(Duration::from_millis(200));
            node.netns.ip(&format!("link del {OVERLAY}"))?;
            make_overlay(node, 0, &cluster.nodes)
        });
        over.store(true, Ordering::Relaxed);
        remade
    })?;
    eventually("the pods to talk again", || {
        let outcome = exchange(&Exchange::new(Protocol::Tcp, Family::V4, &a, &b))?;
        ensure!(outcome.answered, "{outcome:?}");
        Ok(Some(()))
    })?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

fn installer(context: &Context) -> Result<()> {
    let playground = Playground::build(context, Plugin::Ptp, Underlay::Routes, false)?;
    let cluster = &playground.cluster;
    let node = &cluster.nodes[0];
    let (folder, binaries) = (node.state.join("net.d"), node.state.join("bin"));
    fs::create_dir_all(&folder)?;
    let others = folder.join("10-net.conflist");
    let alone = without_hauberk(&playground.chains[0]);
    fs::write(&others, alone.list.to_string())?;
    fs::create_dir_all(cluster.nodes[1].state.join("net.d"))?;
    playground.start()?;
    let own = folder.join("05-hauberk.conflist");
    let installed = |what: &str| {
        eventually(format!("the list to have {what}"), || {
            let text = fs::read_to_string(&own).context("no list")?;
            ensure!(text.contains(what) && text.contains("hauberk-cni"), "{text}");
            Ok(Some(serde_json::from_str::<Value>(&text)?))
        })
    };
    let list = installed("ptp")?;
    ensure!(list["name"] == "net" && binaries.join("hauberk-cni").is_file(), "{list}");
    // A pod with the installed configuration.
    let chain = playground.chains[0].with_list(list);
    let a = chain.run(&cluster.manifests, "payments", "a")?;
    let b = playground.pod("payments", "b", 1)?;
    playground.wait_adopted([1, 1])?;
    cluster.wait_known(&[&a, &b])?;
    let outcome = exchange(&Exchange::new(Protocol::Tcp, Family::V4, &a, &b))?;
    ensure!(outcome.answered, "{outcome:?}");
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    // The other plugin is upgraded, and hauberk's configuration is removed.
    fs::write(&others, alone.list.to_string().replace("1450", "1400"))?;
    installed("1400")?;
    fs::remove_file(&own)?;
    installed("1400")?;
    chain.delete(&a)?;
    node.agent.terminate()?;
    ensure!(own.is_file(), "a stopped agent takes its list away");
    node.run(
        hauberk_netns::programs::ours("hauberkd")?,
        &["--config", &node.config().display().to_string(), "uninstall"],
    )?;
    let left: Vec<_> =
        fs::read_dir(&folder)?.chain(fs::read_dir(&binaries)?).flatten().map(|e| e.file_name()).collect();
    ensure!(left == ["10-net.conflist"], "uninstall left {left:?}");
    ensure!(fs::read_to_string(&others)?.contains("1400"), "the other's file was touched");
    Ok(())
}
