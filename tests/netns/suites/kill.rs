//! An agent that is killed at any moment leaves nothing open, and traffic recovers.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::plugin::Attachment;
use hauberk_netns::traffic::{Exchange, Protocol, UdpStreamer, exchange, exchange_all};
use hauberk_netns::{Cluster, Context, Family, Netns, Pod, Random, Setup, Test, analysis, eventually, programs};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("kill::two_hundred_random_moments_under_traffic", random_moments).limit(700),
    Test::new("kill::before_every_operation_of_an_apply", every_operation).limit(700),
    Test::new("kill::before_every_operation_of_a_first_start", first_start).limit(300),
];

/// Protected pods on two nodes and a plain pod on the second, with traffic in every protected
/// direction.
struct Playground {
    cluster: Cluster,
    a: Pod,
    b: Pod,
    plain: Pod,
}

impl Playground {
    fn build(context: &Context) -> Result<Playground> {
        let cluster = Cluster::build(context, Setup::default())?;
        cluster.namespace("payments", Some("enabled"))?;
        cluster.namespace("public", None)?;
        let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
        let plain = cluster.pod("public", "plain", 1)?;
        cluster.wait_known(&[&a, &b, &plain])?;
        Ok(Playground { cluster, a, b, plain })
    }

    fn streams(&self) -> Result<Vec<UdpStreamer>> {
        let mut streams = Vec::new();
        for (from, to) in [(&self.a, &self.b), (&self.b, &self.a), (&self.a, &self.plain), (&self.plain, &self.a)] {
            for family in Family::ALL {
                streams.push(UdpStreamer::start(from, to, family, 120, Duration::from_millis(8))?);
            }
        }
        for stream in &streams {
            stream.wait_flowing()?;
        }
        Ok(streams)
    }

    fn assert_tight(&self, since: Moment) -> Result<()> {
        self.cluster.assert_no_cleartext(&[&self.a, &self.b], since)
    }

    /// Fails unless everything works in the end.
    fn assert_whole(&self) -> Result<()> {
        let mut exchanges = Vec::new();
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                exchanges.push(Exchange::new(protocol, family, &self.a, &self.b));
                exchanges.push(Exchange::new(protocol, family, &self.plain, &self.a));
            }
        }
        for (exchange, outcome) in exchanges.iter().zip(exchange_all(&exchanges)?) {
            ensure!(outcome.answered, "{exchange}: {outcome:?}");
        }
        self.assert_tight(Moment::START)
    }
}

fn random_moments(context: &Context) -> Result<()> {
    const KILLS: usize = 200;
    let mut random = Random::from_environment();
    let playground = Playground::build(context)?;
    let streams = playground.streams()?;
    let mut checked = Moment::START;
    for kill in 1..=KILLS {
        let node = &playground.cluster.nodes[random.below(2) as usize];
        // Half of the kills hit an agent that is still starting after the kill before.
        let recovers = kill % 2 == 0;
        if recovers {
            node.agent.wait_ready().with_context(|| format!("before kill {kill}"))?;
            for stream in &streams {
                stream.wait_flowing().with_context(|| format!("before kill {kill}"))?;
            }
        }
        thread::sleep(random.duration(Duration::from_millis(if recovers { 60 } else { 500 })));
        node.agent.kill()?;
        thread::sleep(random.duration(Duration::from_millis(40)));
        node.start_agent()?;
        if kill % 20 == 0 {
            let now = playground.cluster.capture.sync()?;
            playground.assert_tight(checked).with_context(|| format!("by kill {kill}"))?;
            checked = now;
        }
    }
    playground.cluster.wait_ready()?;
    for stream in &streams {
        stream.wait_flowing().context("after the last kill")?;
    }
    for stream in streams {
        let report = stream.stop()?;
        println!("sent {}, lost {}, longest gap {:?}", report.sent, report.lost(), report.longest_gap);
    }
    playground.assert_whole()
}

/// The agent kills itself before its n-th kernel operation, for every n until no operation is left.
/// Each start finds the half-done work of the one before, has a label to enforce, and a pod to
/// attach that sends at once.
fn every_operation(context: &Context) -> Result<()> {
    let program = programs::tool("hauberkd-fault-injection")?;
    let playground = Playground::build(context)?;
    let streams = playground.streams()?;
    let cluster = &playground.cluster;
    let node = &cluster.nodes[0];
    let mut config = node.plugin.config.clone();
    config["timeoutSeconds"] = json!(20);
    let mut checked = Moment::START;
    let mut deaths = 0;
    for operation in 1u64.. {
        ensure!(operation < 2000, "no end of operations");
        cluster.namespace(&format!("toggled{}", operation % 3), Some("enabled"))?;
        node.agent.kill()?;
        node.start_agent_from(&program, &[("HAUBERK_FAULT_KILL_AT", &operation.to_string())])?;
        let name = format!("new{operation}");
        let netns = Netns::create(&format!("payments-{name}"))?;
        let path = netns.path();
        let container = format!("sandbox-{name}");
        let attachment =
            Attachment { container: &container, netns: &path, interface: "eth0", pod: Some(("payments", &name)) };
        cluster.manifests.put(
            "pod",
            &format!("payments-{name}"),
            &hauberk_netns::manifests::pod("payments", &name, "n1"),
        )?;
        let mut died = false;
        let added = thread::scope(|scope| {
            let adding = scope.spawn(|| node.plugin.run("ADD", Some(&attachment), &config));
            // An agent that dies cannot answer. The state after its death is checked, and a new
            // agent answers instead.
            while !(adding.is_finished() && node.agent.get("/readyz").is_ok_and(|(code, _)| code == 200)) {
                if !node.agent.is_running()? {
                    ensure!(!died, "hauberkd ended without fault injection:\n{}", node.agent.log_tail());
                    died = true;
                    node.agent.kill()?;
                    let now = cluster.capture.sync()?;
                    playground.assert_tight(checked).with_context(|| format!("killed before operation {operation}"))?;
                    checked = now;
                    node.start_agent()?;
                }
                thread::sleep(Duration::from_millis(5));
            }
            adding.join().unwrap_or_else(|_| anyhow::bail!("ADD panicked"))
        })?;
        if !died {
            node.agent.kill()?;
            node.start_agent()?;
            node.agent.wait_ready()?;
        }
        ensure!(
            added.success,
            "killed before operation {operation}, ADD fails: {} {}",
            added.output,
            added.errors.trim()
        );
        node.plugin.delete(&attachment)?;
        cluster.manifests.remove("pod", &format!("payments-{name}"))?;
        netns.remove()?;
        if !died {
            println!("killed before each of {deaths} operations");
            break;
        }
        deaths += 1;
        for stream in &streams {
            stream.wait_flowing().with_context(|| format!("after the kill before operation {operation}"))?;
        }
    }
    ensure!(deaths > 10, "only {deaths} operations: is hauberkd-fault-injection built with its feature?");
    for stream in streams {
        stream.stop()?;
    }
    let late = cluster.pod("payments", "late", 0)?;
    let one = Exchange::new(Protocol::Tcp, Family::V6, &late, &playground.b);
    eventually("a new pod to talk", || Ok(exchange(&one)?.answered.then_some(())))?;
    let frames = cluster.capture.all()?;
    let shown = analysis::cleartext_of(&frames, &late.addresses());
    ensure!(shown.is_empty(), "{}", analysis::list(&shown));
    playground.assert_whole()
}

/// A new node joins, and its agent dies before each operation of its first start in turn, without
/// any cleanup in between. A protected pod elsewhere talks to the node all the time.
fn first_start(context: &Context) -> Result<()> {
    let program = programs::tool("hauberkd-fault-injection")?;
    let cluster = Cluster::build(context, Setup { start: false, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.nodes[1].start_agent()?;
    cluster.nodes[1].agent.wait_ready()?;
    let b = cluster.pod("payments", "b", 1)?;
    let node = &cluster.nodes[0];
    let mut streams = Vec::new();
    for family in Family::ALL {
        streams.push(UdpStreamer::start(&b, node, family, 120, Duration::from_millis(2))?);
        streams.push(UdpStreamer::start(node, &b, family, 120, Duration::from_millis(2))?);
    }
    let mut deaths = 0;
    for operation in 1u64.. {
        ensure!(operation < 2000, "no end of operations");
        node.start_agent_from(&program, &[("HAUBERK_FAULT_KILL_AT", &operation.to_string())])?;
        let survived = eventually("hauberkd to end or to be ready", || {
            let ready = node.agent.get("/readyz").is_ok_and(|(code, _)| code == 200);
            Ok(if ready { Some(true) } else { (!node.agent.is_running()?).then_some(false) })
        })?;
        node.agent.kill()?;
        if survived {
            break;
        }
        deaths += 1;
    }
    println!("killed before each of {deaths} operations");
    ensure!(deaths > 10, "only {deaths} operations: is hauberkd-fault-injection built with its feature?");
    // Packets that the node's own sockets sent before the node had a guard are plaintext to a
    // protected pod. That pod's node drops them.
    let before_guard = [streams[1].marker, streams[3].marker].into();
    let frames = cluster.capture.all()?;
    let from_pod = frames
        .iter()
        .filter(|frame| analysis::dissect(&frame.bytes).1.is_some_and(|packet| b.addresses().contains(&packet.source)));
    ensure!(from_pod.count() == 0, "packets of a protected pod in the clear");
    println!("in the clear from the unguarded node: {}", analysis::payload_of(&frames, &before_guard).len());
    for stream in streams {
        stream.stop()?;
    }
    node.start_agent()?;
    cluster.wait_ready()?;
    let guarded = cluster.capture.sync()?;
    let a = cluster.pod("payments", "a", 0)?;
    for family in Family::ALL {
        for one in [Exchange::new(Protocol::Tcp, family, &a, &b), Exchange::new(Protocol::Tcp, family, node, &b)] {
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
        }
    }
    cluster.assert_no_cleartext(&[&a, &b], guarded)
}
