//! The CNI plugin with the real agent: many calls at once, no agent, and the CNI project's own
//! driver.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::{Attachment as Held, Maps, Severity};
use hauberk_netns::netns::feed;
use hauberk_netns::plugin::{self, Attachment};
use hauberk_netns::traffic::{Exchange, Protocol, exchange};
use hauberk_netns::{Cluster, Context, Family, Netns, Pod, Setup, Test, eventually, manifests, programs};
use serde_json::{Value, json};

pub const TESTS: &[Test] = &[
    Test::new("cni::two_hundred_parallel_adds_and_dels_leave_nothing", many).limit(400),
    Test::new("cni::verbs_and_error_codes", verbs),
    Test::new("cni::cnitool_drives_it", cnitool),
    Test::new("cni::agent_restart_keeps_attachments", restart_keeps),
    Test::new("cni::an_add_that_fails_is_in_the_status", failed_add),
];

fn cluster(context: &Context) -> Result<Cluster> {
    let cluster = Cluster::build(context, Setup::default())?;
    cluster.namespace("payments", Some("enabled"))?;
    Ok(cluster)
}

fn attachment_maps(cluster: &Cluster) -> Result<usize> {
    let maps: Maps = cluster.nodes[0].agent.ask("/v1/maps")?;
    let of = |name: &str| maps.maps.iter().filter(|map| map.name == name).map(|map| map.entries).sum::<usize>();
    Ok(of("ATTACHMENTS") + of("INTERFACES"))
}

fn many(context: &Context) -> Result<()> {
    const PODS: usize = 200;
    let cluster = cluster(context)?;
    let node = &cluster.nodes[0];
    let interfaces = node.netns.interfaces()?.len();
    let entries = attachment_maps(&cluster)?;
    let retries = AtomicUsize::new(0);
    for round in 0..2 {
        let started = Instant::now();
        let names: Vec<String> = (0..PODS).map(|number| format!("many{number}")).collect();
        let spaces: Vec<Netns> = names.iter().map(|name| Netns::create(name)).collect::<Result<_>>()?;
        let add = |name: &str, netns: &Netns| -> Result<Vec<IpAddr>> {
            let path = netns.path();
            let pod = Some(("payments", name));
            let result = node.plugin.add(&Attachment { container: name, netns: &path, interface: "eth0", pod })?;
            plugin::addresses(&result)
        };
        let given: Vec<Result<Vec<IpAddr>>> = thread::scope(|scope| {
            let started: Vec<_> =
                names.iter().zip(&spaces).map(|(name, netns)| scope.spawn(move || add(name, netns))).collect();
            started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("panic"))).collect()
        });
        let given: Vec<Vec<IpAddr>> = given.into_iter().collect::<Result<_>>().context("parallel ADD")?;
        println!("{PODS} parallel ADDs: {:?}", started.elapsed());
        let distinct: BTreeSet<&IpAddr> = given.iter().flatten().collect();
        ensure!(distinct.len() == 2 * PODS, "{} distinct addresses for {PODS} pods", distinct.len());
        let held: Vec<Held> = node.agent.ask("/v1/attachments")?;
        ensure!(held.len() == PODS, "{} attachments", held.len());
        let delete = |name: &str, netns: &Netns| -> Result<()> {
            let path = netns.path();
            let pod = Some(("payments", name));
            let attachment = Attachment { container: name, netns: &path, interface: "eth0", pod };
            // A runtime repeats the call when it is told to try again.
            eventually(format!("DEL of {name}"), || {
                let answer = node.plugin.run("DEL", Some(&attachment), &node.plugin.config)?;
                if answer.output["code"] == 11 {
                    retries.fetch_add(1, Ordering::Relaxed);
                    return Ok(None);
                }
                answer.into_result().map(Some)
            })?;
            Ok(())
        };
        let started = Instant::now();
        // Every other pod's namespace is gone before DEL, as after a crash of the runtime.
        let deleted: Vec<Result<()>> = thread::scope(|scope| {
            let one = |(number, (name, netns)): (usize, (&String, &Netns))| {
                if number % 2 == 1 {
                    netns.remove()?;
                }
                delete(name, netns)
            };
            let started: Vec<_> =
                names.iter().zip(&spaces).enumerate().map(|item| scope.spawn(move || one(item))).collect();
            started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("panic"))).collect()
        });
        deleted.into_iter().collect::<Result<Vec<()>>>().context("parallel DEL")?;
        println!("{PODS} parallel DELs: {:?}, {} tried again", started.elapsed(), retries.load(Ordering::Relaxed));
        for netns in spaces.iter().step_by(2) {
            netns.remove()?;
        }
        eventually(format!("nothing to be left after round {round}"), || {
            let held: Vec<Held> = node.agent.ask("/v1/attachments")?;
            ensure!(held.is_empty(), "{} attachments are left", held.len());
            let left = node.netns.interfaces()?.len();
            ensure!(left == interfaces, "{left} interfaces instead of {interfaces}");
            let left = attachment_maps(&cluster)?;
            ensure!(left == entries, "{left} map entries instead of {entries}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

fn verbs(context: &Context) -> Result<()> {
    let cluster = cluster(context)?;
    let node = &cluster.nodes[0];
    let plugin = &node.plugin;
    let netns = Netns::create("verbs")?;
    let path = netns.path();
    let attachment =
        Attachment { container: "verbs", netns: &path, interface: "eth0", pod: Some(("payments", "verbs")) };
    let code = |verb: &str, config: &Value, attachment: Option<&Attachment<'_>>| -> Result<Option<u64>> {
        let answer = plugin.run(verb, attachment, config)?;
        ensure!(!answer.success, "{verb} succeeded: {}", answer.output);
        let message = answer.output["msg"].as_str().unwrap_or_default();
        ensure!(!message.is_empty(), "{verb}: an error without a message: {}", answer.output);
        Ok(answer.output["code"].as_u64())
    };
    let version = plugin.run("VERSION", None, &json!({"cniVersion": "1.1.0"}))?.into_result()?;
    let supported = version["supportedVersions"].as_array().cloned().unwrap_or_default();
    ensure!(supported.contains(&json!("1.1.0")), "VERSION: {version}");
    plugin.run("STATUS", None, &plugin.config)?.into_result().context("STATUS")?;
    let result = plugin.add(&attachment)?;
    // CHECK gets the result of ADD.
    let mut checked = plugin.config.clone();
    checked["prevResult"] = result.clone();
    plugin.run("CHECK", Some(&attachment), &checked)?.into_result().context("CHECK")?;
    netns.ip("link set eth0 down")?;
    netns.ip("addr flush dev eth0")?;
    ensure!(
        !plugin.run("CHECK", Some(&attachment), &checked)?.success,
        "CHECK does not see that the addresses are gone"
    );
    // GC: the runtime no longer knows any attachment.
    let mut collected = plugin.config.clone();
    collected["cni.dev/valid-attachments"] = json!([]);
    plugin.run("GC", None, &collected)?.into_result().context("GC")?;
    let held: Vec<Held> = node.agent.ask("/v1/attachments")?;
    ensure!(held.is_empty(), "GC left {held:?}");
    for _ in 0..2 {
        plugin.delete(&attachment)?;
    }
    let other = Attachment { container: "", ..attachment.clone() };
    ensure!(code("ADD", &plugin.config, Some(&other))? == Some(4), "no container id is an invalid environment");
    let old = json!({"cniVersion": "9.9.9", "name": "hauberk", "type": "hauberk-cni"});
    ensure!(code("ADD", &old, Some(&attachment))? == Some(1), "an unknown version is an incompatible version");
    node.agent.terminate()?;
    let mut hasty = plugin.config.clone();
    hasty["timeoutSeconds"] = json!(1);
    ensure!(code("ADD", &hasty, Some(&attachment))? == Some(11), "without an agent, ADD says: try again later");
    ensure!(code("STATUS", &hasty, None)? == Some(50), "without an agent, STATUS says that ADD would fail");
    ensure!(netns.interfaces()?.iter().all(|name| name == "lo"), "a refused ADD left an interface");
    Ok(())
}

/// `cnitool` reads the configuration from a folder and finds the plugin by name, as a runtime does.
fn cnitool(context: &Context) -> Result<()> {
    let cluster = cluster(context)?;
    let node = &cluster.nodes[0];
    let remote = cluster.pod("payments", "remote", 1)?;
    let netns = Netns::create("byhand")?;
    cluster.manifests.put("pod", "payments-byhand", &manifests::pod("payments", "byhand", "n1"))?;
    let tool = programs::tool("cnitool")?;
    let directory = programs::ours("hauberk-cni")?.parent().context("folder")?.to_owned();
    let path = netns.path();
    let run = |verb: &str| -> Result<String> {
        let mut command = node.netns.command(&tool);
        command.arg(verb).arg("hauberk").arg(&path);
        command.env("NETCONFPATH", &node.plugin.config_directory).env("CNI_PATH", &directory);
        command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=payments;K8S_POD_NAME=byhand");
        feed(command, "").with_context(|| format!("cnitool {verb}"))
    };
    let result: Value = serde_json::from_str(&run("add")?).context("parse the result")?;
    println!("{result:#}");
    let addresses = plugin::addresses(&result)?;
    run("check")?;
    let mut object = manifests::pod("payments", "byhand", "n1");
    manifests::set_addresses(&mut object, &addresses);
    cluster.manifests.put("pod", "payments-byhand", &object)?;
    let find = |family: Family| addresses.iter().copied().find(|address| Family::of(*address) == family);
    let (Some(IpAddr::V4(v4)), Some(IpAddr::V6(v6))) = (find(Family::V4), find(Family::V6)) else {
        anyhow::bail!("addresses of both families: {addresses:?}");
    };
    let party = hauberk_netns::Party { name: "byhand".into(), netns: netns.clone(), v4, v6 };
    for family in Family::ALL {
        let one = Exchange::new(Protocol::Tcp, family, &party, &remote);
        let outcome = exchange(&one)?;
        ensure!(outcome.answered, "{one}: {outcome:?}");
    }
    run("del")?;
    run("del")?;
    ensure!(netns.interfaces()? == ["lo"], "cnitool del left {:?}", netns.interfaces()?);
    let held: Vec<Held> = node.agent.ask("/v1/attachments")?;
    ensure!(held.is_empty(), "cnitool del left {held:?}");
    Ok(())
}

fn restart_keeps(context: &Context) -> Result<()> {
    let cluster = cluster(context)?;
    let node = &cluster.nodes[0];
    let remote = cluster.pod("payments", "remote", 1)?;
    let pods: Vec<Pod> =
        (0..5).map(|number| cluster.pod("payments", &format!("kept{number}"), 0)).collect::<Result<_>>()?;
    node.agent.kill()?;
    // One pod's namespace is removed while no agent runs.
    pods[0].netns.remove()?;
    drop(pods[0].clone());
    node.start_agent()?;
    node.agent.wait_ready()?;
    for pod in &pods[1..] {
        for family in Family::ALL {
            let one = Exchange::new(Protocol::Tcp, family, pod, &remote);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
        }
    }
    let late = cluster.pod("payments", "late", 0)?;
    for pod in &pods[1..] {
        ensure!(late.v4 != pod.v4 && late.v6 != pod.v6, "{} was given out twice", late.v4);
    }
    pods[0].detach()?;
    let held: Vec<Held> = node.agent.ask("/v1/attachments")?;
    ensure!(held.len() == pods.len(), "{} attachments", held.len());
    Ok(())
}

/// Behind a plugin that connects pods by other means than veth pairs, as macvlan does.
fn failed_add(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 1, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let node = &cluster.nodes[0];
    cluster.manifests.put("pod", "payments-odd", &manifests::pod("payments", "odd", &node.name))?;
    let netns = Netns::create("odd")?;
    netns.ip("link add eth0 type bridge")?;
    let path = netns.path();
    let attachment =
        |container| Attachment { container, netns: &path, interface: "eth0", pod: Some(("payments", "odd")) };
    let mut config = node.plugin.config.clone();
    config["chained"] = json!(true);
    config["prevResult"] = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": [{"address": "10.9.0.5/24"}]});
    let told = || -> Result<bool> {
        let problems = node.agent.status()?.problems.into_iter();
        let mut about = problems.filter(|problem| problem.object == "pod/payments/odd");
        Ok(about.any(|problem| problem.severity == Severity::Critical && problem.message.contains("veth pair")))
    };
    let answer = node.plugin.run("ADD", Some(&attachment("first")), &config)?;
    ensure!(!answer.success, "{answer:?}");
    eventually("the status to say what the runtime was told", || Ok(told()?.then_some(())))?;
    // As runtimes do after an ADD that failed: the pod lacks its interface still.
    node.plugin.run("DEL", Some(&attachment("first")), &config)?.into_result().context("DEL")?;
    ensure!(told()?, "{:?}", node.agent.status()?.problems);
    netns.ip("link del eth0")?;
    node.plugin.add(&attachment("second"))?;
    ensure!(!told()?, "{:?}", node.agent.status()?.problems);
    Ok(())
}
