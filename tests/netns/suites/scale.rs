//! A thousand peers and twenty thousand pods from the folder, and ten thousand namespaces. The
//! figures are printed and written to `target/netns/scale.json`. The limits are far above what a
//! healthy agent needs.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hauberk_api::Protection;
use hauberk_netns::capture::Moment;
use hauberk_netns::endpoints::Endpoints;
use hauberk_netns::manifests::{self, KEYS};
use hauberk_netns::traffic::{Exchange, Protocol, exchange};
use hauberk_netns::{Cluster, Context, Family, Setup, Test, usage, wait};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("scale::thousand_peers_twenty_thousand_pods", scale).limit(600),
    Test::new("scale::ten_thousand_namespaces", namespaces),
];

const PEERS: usize = 1000;
const PODS: usize = 20_000;
const NAMESPACES: usize = 10_000;
/// Limit of what a node publishes about itself, bytes: Kubernetes allows 256 KiB for all
/// annotations of an object.
const ANNOTATIONS: usize = 16 * 1024;

fn scale(context: &Context) -> Result<()> {
    let config = json!({"clusterRanges": ["10.244.0.0/15", "10.246.0.0/15", "10.248.0.0/16", "fd00:10:244::/47"]});
    let cluster = Cluster::build(context, Setup { nodes: 1, start: false, config, ..Setup::default() })?;
    let written = Instant::now();
    write_objects(&cluster)?;
    println!("{PEERS} nodes and {PODS} pods written in {:?}", written.elapsed());
    let node = &cluster.nodes[0];
    let started = Instant::now();
    node.start_agent()?;
    wait::within(Duration::from_secs(300), "the agent to be ready", || {
        let (code, body) = node.agent.get("/readyz")?;
        ensure!(code == 200, "{body}");
        Ok(Some(()))
    })
    .with_context(|| node.agent.log_tail())?;
    let ready = started.elapsed();
    let endpoints = Endpoints::open(Path::new(&format!("/run/bpf/{}", node.name)))?;
    let last = pod_address(PODS - 1);
    wait::within(Duration::from_secs(300), "the last pod to be in the kernel", || {
        Ok(endpoints.find(last)?.then_some(()))
    })?;
    let loaded = started.elapsed();
    let peers = node.agent.status()?.peers.len();
    ensure!(peers == PEERS, "{peers} peers");
    let id = node.agent.id().context("the agent runs")?;
    usage::settle(id)?;
    let memory = usage::memory(id, "VmRSS")?;
    let (cpu_before, since) = (usage::cpu(id)?, Instant::now());
    thread::sleep(Duration::from_secs(10));
    let idle = (usage::cpu(id)? - cpu_before) / since.elapsed().as_secs_f64() * 100.0;
    let latencies = change_latencies(&cluster, &endpoints)?;
    let median = latencies[latencies.len() / 2];
    let worst = latencies[latencies.len() - 1];
    let figures = json!({
        "peers": PEERS, "pods": PODS,
        "ready_seconds": ready.as_secs_f64(), "loaded_seconds": loaded.as_secs_f64(),
        "memory_mib": memory as f64 / 1024.0, "idle_cpu_percent": idle,
        "file_to_kernel_ms": {"median": millis(median), "worst": millis(worst), "samples": latencies.len()},
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
    });
    println!("{figures:#}");
    fs::write(context.results().join("scale.json"), format!("{figures:#}\n")).context("write scale.json")?;
    ensure!(memory < 1 << 20, "the agent uses {memory} KiB");
    ensure!(idle < 50.0, "an idle agent uses {idle:.1} % of a CPU");
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The `number`th pod's IPv4 address. There are twenty pods on each of the thousand nodes.
fn pod_address(number: usize) -> IpAddr {
    let (node, pod) = (number % PEERS, number / PEERS + 2);
    IpAddr::from([10, 245 + (node / 256) as u8, (node % 256) as u8, pod as u8])
}

fn write_objects(cluster: &Cluster) -> Result<()> {
    let directory = cluster.manifests.directory();
    for number in 0..PEERS {
        let name = format!("peer{number}");
        let (high, low) = (number / 256, number % 256);
        let addresses: [IpAddr; 2] = [
            IpAddr::from([172, 19, high as u8, low as u8]),
            format!("fd00:19::{number:x}").parse().context("address")?,
        ];
        let ranges = [format!("10.{}.{low}.0/24", 245 + high), format!("fd00:10:245:{number:x}::/64")];
        let mut node = manifests::node(&name, &addresses, &ranges);
        let mut secret = [1; 32];
        secret[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
        let public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(secret));
        node["metadata"]["annotations"] = json!({KEYS: manifests::keys(&BASE64.encode(public.as_bytes()))});
        cluster.manifests.put("node", &name, &node)?;
    }
    for number in 0..20 {
        let encryption = (number % 2 == 0).then_some("enabled");
        cluster.namespace(&format!("team{number}"), encryption)?;
    }
    for number in 0..PODS {
        let namespace = format!("team{}", number % 20);
        let name = format!("pod{number}");
        let mut pod = manifests::pod(&namespace, &name, &format!("peer{}", number % PEERS));
        let (node, index) = (number % PEERS, number / PEERS + 2);
        let v6 = format!("fd00:10:245:{node:x}::{index:x}").parse().context("address")?;
        manifests::set_addresses(&mut pod, &[pod_address(number), v6]);
        // JSON is YAML too, and quicker to write.
        fs::write(directory.join(format!("pod-{namespace}-{name}.yaml")), pod.to_string()).context("write pod")?;
    }
    Ok(())
}

/// Times from the rename of a new pod's file to its entry in the kernel, sorted.
fn change_latencies(cluster: &Cluster, endpoints: &Endpoints) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    for number in 0..20u8 {
        let address = IpAddr::from([10, 245, number, 250]);
        let mut pod = manifests::pod("team0", &format!("new{number}"), &format!("peer{number}"));
        manifests::set_addresses(&mut pod, &[address]);
        let changed = Instant::now();
        cluster.manifests.put("pod", &format!("team0-new{number}"), &pod)?;
        let deadline = changed + wait::GENEROUS;
        while !endpoints.find(address)? {
            ensure!(Instant::now() < deadline, "{address} never came to the kernel");
            thread::sleep(Duration::from_micros(500));
        }
        latencies.push(changed.elapsed());
    }
    latencies.sort();
    Ok(latencies)
}

fn namespaces(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { start: false, ..Setup::default() })?;
    let directory = cluster.manifests.directory();
    for number in 0..NAMESPACES {
        let name = format!("team-{number}");
        let namespace = manifests::namespace(&name, Some(if number % 2 == 0 { "enabled" } else { "permissive" }));
        fs::write(directory.join(format!("namespace-{name}.yaml")), namespace.to_string())
            .context("write namespace")?;
    }
    let started = Instant::now();
    for node in &cluster.nodes {
        node.start_agent()?;
    }
    cluster.wait_ready()?;
    let (a, b) = (cluster.pod("team-0", "a", 0)?, cluster.pod("team-9998", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    all_converged(&cluster, NAMESPACES)?;
    println!("ready and converged within {:?}", started.elapsed());
    // One of many namespaces changes, and every node acknowledges that.
    let changed = Instant::now();
    cluster.manifests.label("namespace", "team-9999", Some("enabled"))?;
    cluster.wait_converged("team-9999", Protection::Enabled)?;
    println!("one of them changed and converged within {:?}", changed.elapsed());
    all_converged(&cluster, NAMESPACES)?;
    for (from, to) in [(&a, &b), (&b, &a)] {
        let one = Exchange::new(Protocol::Tcp, Family::V4, from, to);
        let outcome = exchange(&one)?;
        ensure!(outcome.answered, "{one}: {outcome:?}");
    }
    for node in &cluster.nodes {
        let object = cluster.manifests.read("node", &node.name)?;
        let annotations = object["metadata"]["annotations"].as_object().context("no annotations")?;
        let length: usize = annotations.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
        let memory = usage::memory(node.agent.id().context("the agent runs")?, "VmRSS")?;
        println!("{}: {length} bytes of annotations, {memory} KiB of memory", node.name);
        ensure!(annotations.contains_key(KEYS), "no keys: {annotations:?}");
        ensure!(length < ANNOTATIONS, "{length} bytes of annotations");
        ensure!(memory < 256 * 1024, "the agent uses {memory} KiB");
    }
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

fn all_converged(cluster: &Cluster, count: usize) -> Result<()> {
    for node in &cluster.nodes {
        wait::eventually(format!("{} to see every namespace converged", node.name), || {
            let namespaces = node.agent.status()?.namespaces;
            let late = namespaces.iter().filter(|one| one.converged_nodes < 2).count();
            ensure!(namespaces.len() == count && late == 0, "{} namespaces, {late} late", namespaces.len());
            Ok(Some(()))
        })?;
    }
    Ok(())
}
