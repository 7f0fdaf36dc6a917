//! The leak detector and the cross-check on the wire: they see deliberate leaks, name the sender,
//! and report nothing where there is no leak.
//!
//! A leak must be made where the agent cannot repair it. So the agent is stopped while its guard is
//! removed, or the payload is in an overlay that a program of the node makes itself, in packets
//! between nodes' addresses, which the guard lets pass.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::{Drops, Problem, Severity};
use hauberk_netns::capture::Moment;
use hauberk_netns::inject::{self, Forged};
use hauberk_netns::{
    Cluster, Context, Family, HostRouting, Marker, Node, Pod, Setup, Test, analysis, eventually, wait::within,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("leaks::what_leaves_without_the_guard_is_seen_and_both_nodes_say_so", without_the_guard),
    Test::new("leaks::a_node_that_is_seen_to_send_in_the_clear_is_named_on_both", forged_on_the_wire),
    Test::new("leaks::a_detector_that_is_detached_comes_back_and_is_told_of", |context| detached(context, "auto")),
    Test::new("leaks::a_detector_whose_clsact_goes_comes_back_and_is_told_of", |context| detached(context, "clsact")),
];

/// Longer than the interval at which the agent reads the observer's counts.
const TO_BE_COUNTED: Duration = Duration::from_secs(6);

/// IANA's port for VXLAN.
const VXLAN: u16 = 4789;

/// Fails unless the leak detector on each node has counted nothing so far, and counts one leak that
/// is made now.
pub fn sees_nothing_but_one(cluster: &Cluster, protected: &Pod, elsewhere: &Pod) -> Result<()> {
    for (from, to) in [(0, 1), (1, 0)] {
        let (node, peer) = (&cluster.nodes[from], &cluster.nodes[to]);
        let frame = inject::frame(
            ([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8]),
            if from == 0 { protected } else { elsewhere }.address(Family::V4),
            if from == 0 { elsewhere } else { protected }.address(Family::V4),
            Forged::TcpSyn,
            7_777,
            &Marker::unique().fill(64),
        )?;
        let datagram = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &frame].concat();
        let address = node.address(Family::V4);
        let mut sent = 0;
        // Packets within two seconds after a change are not reported. In that case the packet is
        // sent again.
        let leaked = eventually(format!("{} to see the leak", node.name), || {
            node.netns.within(|| {
                let socket = UdpSocket::bind(SocketAddr::new(address, 0)).context("bind")?;
                socket.send_to(&datagram, SocketAddr::new(peer.address(Family::V4), VXLAN)).context("send")?;
                Ok(())
            })?;
            sent += 1;
            within(TO_BE_COUNTED, "it to be counted", || {
                let leaked = node.agent.ask::<Drops>("/v1/drops")?.leaked;
                Ok((!leaked.is_empty()).then_some(leaked))
            })
            .map(Some)
        })?;
        ensure!(leaked.iter().map(|count| count.packets).sum::<u64>() <= sent, "{}: {leaked:?} of {sent}", node.name);
        let problem = problem(node, |problem| problem.message.contains("in the clear"))?;
        ensure!(problem.message.contains("port 7777"), "another leak was seen: {}", problem.message);
    }
    Ok(())
}

/// Fails if a node reports a leak of another node or of itself.
pub fn accuse_no_one(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let events = node.agent.events()?;
        let accusing = ["LeakSeen", "PlaintextSeen", "PlaintextReported"];
        let wrong: Vec<_> = events.iter().filter(|event| accusing.contains(&event.reason.as_str())).collect();
        ensure!(wrong.is_empty(), "{} says {wrong:?}", node.name);
    }
    Ok(())
}

struct Playground {
    cluster: Cluster,
    a: Pod,
    b: Pod,
}

impl Playground {
    fn build(context: &Context) -> Result<Playground> {
        let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Bpf, ..Setup::default() })?;
        cluster.namespace("payments", Some("enabled"))?;
        let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
        cluster.wait_known(&[&a, &b])?;
        Ok(Playground { cluster, a, b })
    }

    /// Sends frames of every kind in the clear from one pod to another, by this device of a
    /// machine.
    fn send(
        &self,
        netns: &hauberk_netns::netns::Netns,
        device: &str,
        ends: [IpAddr; 2],
        mac: [u8; 6],
    ) -> Result<Marker> {
        let marker = Marker::unique();
        for forged in Forged::ALL {
            let frame = inject::frame(([2, 0, 0, 0, 0, 9], mac), ends[0], ends[1], forged, 7_777, &marker.fill(64))?;
            inject::send(netns, device, &frame, false)?;
        }
        Ok(marker)
    }
}

/// The guard and the rules are removed while the agent cannot restore them. The observer is still
/// there.
fn without_the_guard(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let cluster = &playground.cluster;
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let watched = || eventually("the observer to be attached", || sample(n1, "leaked", "device=\"eth0\""));
    ensure!(watched()? == 0, "something has leaked");
    let agent = Pid::from_raw(n1.agent.id().context("no agent")? as i32);
    kill(agent, Signal::SIGSTOP).context("stop the agent")?;
    n1.detach_program("to_wire@eth0")?;
    n1.run("nft", &["flush", "ruleset"])?;
    let mac = inject::mac(&n2.netns, "eth0")?;
    let ends = [playground.a.address(Family::V4), playground.b.address(Family::V4)];
    let marker = playground.send(&n1.netns, "eth0", ends, mac)?;
    ensure!(analysis::markers(&cluster.capture.all()?).contains_key(&marker), "this is no leak: nothing left the node");
    let seen = eventually("n2 to name n1", || {
        playground.send(&n1.netns, "eth0", ends, mac)?;
        Ok(n2.agent.status()?.problems.into_iter().find(|problem| problem.object == "node/n1" && is_sending(problem)))
    })?;
    ensure!(seen.message.contains("node n1 sends in the clear"), "{}", seen.message);
    ensure!(sample(n2, "plaintext_received", "node=\"n1\"")?.is_some_and(|packets| packets > 0), "not in n2's metrics");
    kill(agent, Signal::SIGCONT).context("let the agent go on")?;
    let leak = problem(n1, |problem| problem.object == "device/eth0" && problem.message.contains("in the clear"))?;
    for part in [&ends[0].to_string(), &ends[1].to_string(), "payments/a", "payments/b", "port 7777"] {
        ensure!(leak.message.contains(part), "no {part} in: {}", leak.message);
    }
    ensure!(!n1.agent.status()?.ready, "ready, although it leaked");
    ensure!(sample(n1, "leaked", "device=\"eth0\"")?.is_some_and(|packets| packets > 0), "not in n1's metrics");
    let (code, text, _) = n1.cli(&["drops"])?;
    ensure!(code == 0 && text.contains("NOT DROPPED, IN THE CLEAR"), "{code}: {text}");
    for (node, reason) in [(n1, "LeakSeen"), (n2, "PlaintextSeen"), (n1, "PlaintextReported")] {
        eventually(format!("event {reason}"), || {
            Ok(node.agent.events()?.iter().any(|event| event.reason == reason).then_some(()))
        })?;
    }
    let told = problem(n1, |problem| problem.object == "node/n2" && !is_sending(problem))?;
    ensure!(told.message.starts_with("n2 saw plaintext from this node"), "{}", told.message);
    Ok(())
}

/// With TCX the detector's own link is detached. Otherwise the queueing discipline is removed, with
/// everything on it.
fn detached(context: &Context, attach: &str) -> Result<()> {
    let cluster = Cluster::build(context, Setup { config: json!({ "attach": attach }), ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    for node in &cluster.nodes[..2] {
        eventually("the observer to be attached", || sample(node, "leaked", "device=\"eth0\""))?;
        let told = |problem: &Problem| problem.message.contains("detached it from eth0");
        ensure!(!node.agent.status()?.problems.iter().any(told), "{} tells of it before it happened", node.name);
        node.detach_last("eth0")?;
        eventually("the detached detector to be told of", || {
            let event = node.agent.events()?.into_iter().find(|event| {
                event.objects.contains(&"device/eth0".to_owned())
                    && event.message.contains("leak detector had been detached")
            });
            Ok((event.is_some() && node.agent.status()?.problems.iter().any(told)).then_some(()))
        })?;
    }
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    sees_nothing_but_one(&cluster, &a, &b)
}

/// Frames that n2 would send without a guard, injected on n1's cable.
fn forged_on_the_wire(context: &Context) -> Result<()> {
    let playground = Playground::build(context)?;
    let cluster = &playground.cluster;
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let mac = inject::mac(&n1.netns, "eth0")?;
    let ends = [playground.b.address(Family::V6), playground.a.address(Family::V6)];
    eventually("n1 to name n2", || {
        playground.send(&cluster.wire.netns, "w-n1", ends, mac)?;
        Ok(n1.agent.status()?.problems.into_iter().find(|problem| problem.object == "node/n2" && is_sending(problem)))
    })?;
    let told = problem(n2, |problem| problem.object == "node/n1" && !is_sending(problem))?;
    ensure!(told.message.starts_with("n1 saw plaintext from this node"), "{}", told.message);
    let object = cluster.manifests.read("node", "n1")?;
    let text = object["metadata"]["annotations"]["hauberk.io/plaintext-seen"].as_str().context("no annotation")?;
    ensure!(text.starts_with(r#"{"version":1,"nodes":{"n2":{"packets":"#), "{text}");
    // An alarm changes no verdict, and the reported node has not leaked.
    ensure!(n1.agent.status()?.ready && n2.agent.status()?.ready, "an accusation made a node not ready");
    ensure!(n2.agent.ask::<Drops>("/v1/drops")?.leaked.is_empty(), "n2 has leaked");
    Ok(())
}

fn is_sending(problem: &Problem) -> bool {
    problem.message.contains("sends in the clear")
}

fn problem(node: &Node, mut is_it: impl FnMut(&Problem) -> bool) -> Result<Problem> {
    eventually(format!("a critical problem on {}", node.name), || {
        let problems = node.agent.status()?.problems;
        Ok(problems.into_iter().find(|problem| problem.severity == Severity::Critical && is_it(problem)))
    })
}

/// The value of `hauberk_NAME_packets_total` with this label, if there is one.
fn sample(node: &Node, name: &str, label: &str) -> Result<Option<u64>> {
    let (_, text) = node.agent.get("/metrics")?;
    let line = text.lines().find(|line| line.starts_with(&format!("hauberk_{name}_packets_total{{{label}}}")));
    line.map(|line| line.rsplit(' ').next().unwrap_or_default().parse().context("a number")).transpose()
}
