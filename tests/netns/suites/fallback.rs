//! On kernels without TCX the programs are filters on a clsact queueing discipline. They give the
//! same guarantees; the next agent takes them over and uninstall removes them, like links.

use anyhow::{Context as _, Result, ensure};
use hauberk_api::{AttachMethod, Problem, Severity};
use hauberk_netns::capture::Moment;
use hauberk_netns::netns::feed;
use hauberk_netns::traffic::{Exchange, Protocol, exchange};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Node, Pod, Setup, Test, eventually, programs};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("fallback::clsact_keeps_every_promise", clsact),
    Test::new("fallback::a_filter_that_comes_before_the_guard_is_outrun", preceded),
    Test::new("fallback::an_old_ingress_discipline_gives_way_or_shuts_its_device", old_discipline),
    Test::new("fallback::a_discipline_in_the_place_of_clsact_gives_way_or_shuts_its_device", replaced),
];

/// A filter that lets every packet pass and skips all other filters.
const PASS_ALL: [&str; 3] = ["bpf", "bytecode", "1,6 0 0 4294967295,"];

fn clsact(context: &Context) -> Result<()> {
    let setup = Setup { config: json!({ "attach": "clsact" }), ..Setup::default() };
    let cluster = Cluster::build(context, setup)?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    let plain = cluster.pod("public", "p", 1)?;
    cluster.wait_known(&[&a, &b, &plain])?;
    let node = &cluster.nodes[0];
    ensure!(node.agent.status()?.attach == AttachMethod::Clsact, "the status names another way of attaching");
    let filters = node.run("tc", &["filter", "show", "dev", "eth0", "egress"])?;
    ensure!(filters.contains("to_wire"), "no filter of ours on the uplink:\n{filters}");

    let talk = || -> Result<()> {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Fragments] {
                for (client, server) in [(&a, &b), (&b, &a), (&a, &plain), (&plain, &a)] {
                    let one = Exchange::new(protocol, family, client, server);
                    let outcome = exchange(&one)?;
                    ensure!(outcome.answered, "{one}: {outcome:?}");
                }
            }
        }
        Ok(())
    };
    talk()?;
    // The next agent replaces the filters and adds none.
    node.agent.kill()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    talk()?;
    let filters = node.run("tc", &["filter", "show", "dev", "eth0", "egress"])?;
    ensure!(filters.matches("name to_wire").count() == 1, "one filter was wanted:\n{filters}");
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;

    // A killed agent leaves the leak detector's filters.
    node.agent.kill()?;
    let config = node.config().to_string_lossy().into_owned();
    node.run(programs::ours("hauberkd")?, &["--config", &config, "uninstall"])?;
    let left = node.run("tc", &["filter", "show", "dev", "eth0", "egress"])?;
    ensure!(!left.contains("to_wire"), "uninstall left a filter:\n{left}");
    let disciplines = node.run("tc", &["qdisc", "show"])?;
    ensure!(!disciplines.contains("clsact"), "uninstall left the queueing discipline it made:\n{disciplines}");
    Ok(())
}

fn preceded(context: &Context) -> Result<()> {
    let (cluster, a, b) = two_pods(context)?;
    let node = &cluster.nodes[0];
    for (way, hook) in [("egress", "to_wire"), ("ingress", "from_wire")] {
        let place = ["filter", "add", "dev", "eth0", way, "protocol", "all", "pref", "1"];
        node.run("tc", &[&place[..], &PASS_ALL].concat())?;
        eventually(format!("{hook} to be asked first, and alone"), || {
            let filters = filters(node, way)?;
            let first = filters.lines().find(|line| line.contains("handle")).unwrap_or_default();
            let ours = filters.matches(&format!("name {hook}")).count();
            ensure!(first.contains(hook) && ours == 1 && filters.matches("handle").count() >= 2, "{filters}");
            Ok(Some(()))
        })?;
        eventually("it to be told", || {
            let events = node.agent.events()?;
            let told = |message: &str| message.contains("preference 1") && message.contains(&format!("before {hook}"));
            Ok(events.iter().any(|event| event.reason == "Restored" && told(&event.message)).then_some(()))
        })?;
    }
    // A filter keeps its place and its handle when another program replaces what it runs.
    for (way, hook) in [("egress", "to_wire"), ("ingress", "from_wire")] {
        let place = ["filter", "replace", "dev", "eth0", way, "protocol", "all", "pref", "1", "handle", "0x6861"];
        node.run("tc", &[&place[..], &PASS_ALL].concat())?;
        eventually(format!("{hook} to run again"), || {
            let filters = filters(node, way)?;
            ensure!(filters.matches(&format!("name {hook}")).count() == 1, "{filters}");
            Ok(Some(()))
        })?;
        eventually("it to be told", || {
            let events = node.agent.events()?;
            let told = |message: &str| message.contains(&format!("{hook} had been detached"));
            Ok(events.iter().any(|event| event.reason == "Restored" && told(&event.message)).then_some(()))
        })?;
    }
    // A filter that runs after the guard on the way out cannot be prevented, only reported.
    let told = || eventually("what comes behind to be told", || warned(node));
    told()?;
    let since = cluster.capture.sync()?;
    for family in Family::ALL {
        for (client, server) in [(&a, &b), (&b, &a)] {
            let one = Exchange::new(Protocol::Tcp, family, client, server);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
        }
    }
    cluster.assert_no_cleartext(&[&a, &b], since)?;
    // A filter that comes after the guard does not keep the node from being ready.
    node.agent.wait_ready()?;
    node.run("tc", &["filter", "del", "dev", "eth0", "egress", "protocol", "all", "pref", "1", "handle", "1", "bpf"])?;
    eventually("it not to be told any more", || Ok(warned(node)?.is_none().then_some(())))?;
    cluster.assert_no_cleartext(&[&a, &b], since)
}

/// Two protected pods on two nodes, with `hostRouting: stack`. There only the last guard keeps
/// pods' packets off the wire.
fn two_pods(context: &Context) -> Result<(Cluster, Pod, Pod)> {
    let config = json!({ "attach": "clsact" });
    let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Stack, config, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    Ok((cluster, a, b))
}

fn filters(node: &Node, way: &str) -> Result<String> {
    node.run("tc", &["filter", "show", "dev", "eth0", way])
}

fn warned(node: &Node) -> Result<Option<()>> {
    let problems = node.agent.status()?.problems;
    let told = problems.iter().any(|one| {
        one.object == "device/eth0" && one.severity == Severity::Warning && one.message.contains("behind to_wire")
    });
    Ok(told.then_some(()))
}

fn old_discipline(context: &Context) -> Result<()> {
    let setup = Setup { nodes: 1, start: false, config: json!({ "attach": "clsact" }), ..Setup::default() };
    let cluster = Cluster::build(context, setup)?;
    let node = &cluster.nodes[0];
    for device in ["lab0", "lab1"] {
        node.netns.ip(&format!("link add {device} type veth peer name {device}p\nlink set {device} up"))?;
        node.run("tc", &["qdisc", "add", "dev", device, "ingress"])?;
    }
    let place = ["filter", "add", "dev", "lab1", "ingress", "protocol", "all", "pref", "7"];
    node.run("tc", &[&place[..], &PASS_ALL].concat())?;
    node.start_agent()?;
    eventually("the empty one to have given way", || {
        let disciplines = node.run("tc", &["qdisc", "show", "dev", "lab0"])?;
        let filters = node.run("tc", &["filter", "show", "dev", "lab0", "egress"])?;
        ensure!(disciplines.contains("clsact") && filters.contains("to_wire"), "{disciplines}{filters}");
        Ok(Some(()))
    })?;
    eventually("the other one's device to be said to be shut", || {
        let problems = node.agent.status()?.problems;
        let told = problems.iter().find(|problem| problem.object == "device/lab1");
        let told =
            told.is_some_and(|told| told.severity == Severity::Critical && told.message.contains("preference 7"));
        ensure!(told, "{problems:?}");
        Ok(Some(()))
    })?;
    let kept = node.run("tc", &["filter", "show", "dev", "lab1", "ingress"])?;
    ensure!(kept.contains("pref 7"), "the other's filter is gone: {kept}");
    ensure!(node.run("nft", &["list", "ruleset"])?.contains("passable"), "no rules that shut it");
    node.run("tc", &["qdisc", "del", "dev", "lab1", "ingress"])?;
    eventually("it to be guarded then", || {
        let filters = node.run("tc", &["filter", "show", "dev", "lab1", "egress"])?;
        Ok(filters.contains("to_wire").then_some(()))
    })?;
    node.agent.wait_ready()
}

/// Does what a script that resets traffic shaping does.
fn replaced(context: &Context) -> Result<()> {
    let (cluster, a, b) = two_pods(context)?;
    let node = &cluster.nodes[0];
    let interfaces = node.netns.interfaces()?;
    let pod = interfaces.iter().find(|name| name.starts_with("hbk")).context("no pod's interface")?;
    // In one run of tc, because the agent puts its own discipline back within a quarter of a
    // second. Once more if it was quicker than that.
    let replace = |device: &str, filter: &str| {
        eventually(format!("{device} to have another discipline"), || {
            let mut tc = node.command("tc");
            tc.args(["-batch", "-"]);
            feed(tc, &format!("qdisc del dev {device} clsact\nqdisc add dev {device} ingress\n{filter}\n")).map(Some)
        })
    };
    let talk = || {
        eventually("the pods to talk", || {
            let one = Exchange::new(Protocol::Tcp, Family::V4, &a, &b);
            Ok(exchange(&one)?.answered.then_some(()))
        })
    };
    for (device, egress, ingress) in [("eth0", "to_wire", "from_wire"), (pod.as_str(), "to_pod", "from_pod")] {
        replace(device, "")?;
        eventually(format!("the guard to be back on {device}"), || {
            let disciplines = node.run("tc", &["qdisc", "show", "dev", device])?;
            let at = |way| node.run("tc", &["filter", "show", "dev", device, way]);
            let (out, inward) = (at("egress")?, at("ingress")?);
            ensure!(disciplines.contains("clsact"), "{disciplines}");
            ensure!(out.contains(egress) && inward.contains(ingress), "{out}{inward}");
            Ok(Some(()))
        })?;
        let since = cluster.capture.sync()?;
        talk()?;
        cluster.assert_no_cleartext(&[&a, &b], since)?;
        node.agent.wait_ready()?;
    }

    // An agent that starts meanwhile finds its own filters there, in the wrong place.
    node.agent.kill()?;
    replace("eth0", "")?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    talk()?;

    // If there is no room for the guard, the device is shut.
    let [kind, bytecode, pass] = PASS_ALL;
    replace("eth0", &format!("filter add dev eth0 ingress protocol all pref 7 {kind} {bytecode} \"{pass}\""))?;
    let shut = |problem: &Problem| problem.object == "device/eth0" && problem.message.contains("preference 7");
    eventually("the device to be said to be shut", || {
        let problems = node.agent.status()?.problems;
        ensure!(problems.iter().any(|one| one.severity == Severity::Critical && shut(one)), "{problems:?}");
        Ok(Some(()))
    })?;
    let since = cluster.capture.sync()?;
    for family in Family::ALL {
        for (client, server) in [(&a, &b), (&b, &a)] {
            exchange(&Exchange::new(Protocol::Udp, family, client, server))?;
        }
    }
    cluster.assert_no_cleartext(&[&a, &b], since)?;
    node.run("tc", &["qdisc", "del", "dev", "eth0", "ingress"])?;
    node.agent.wait_ready()?;
    talk()
}
