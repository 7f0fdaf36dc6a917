//! Point 10: a thousand peers and twenty thousand pods from the folder. The figures are printed and written to
//! `target/netns/scale.json`; the limits are far from what a healthy agent needs.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hauberk_netns::manifests::{self, KEYS};
use hauberk_netns::{Cluster, Context, Setup, Test, wait};
use serde_json::json;

pub const TESTS: &[Test] = &[Test::new("scale::thousand_peers_twenty_thousand_pods", scale).limit(600)];

const PEERS: usize = 1000;
const PODS: usize = 20_000;

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
    let endpoints = Endpoints::open(&node.name)?;
    let last = pod_address(PODS - 1);
    wait::within(Duration::from_secs(300), "the last pod to be in the kernel", || {
        Ok(endpoints.find(last)?.then_some(()))
    })?;
    let loaded = started.elapsed();
    let peers = node.agent.status()?.peers.len();
    ensure!(peers == PEERS, "{peers} peers");
    let id = node.agent.id().context("the agent runs")?;
    settle(id)?;
    let memory = memory(id)?;
    let (cpu_before, since) = (cpu(id)?, Instant::now());
    thread::sleep(Duration::from_secs(10));
    let idle = (cpu(id)? - cpu_before) / since.elapsed().as_secs_f64() * 100.0;
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

/// The `number`th pod's IPv4 address: twenty pods on each of the thousand nodes.
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
        let keys =
            json!({"version": 1, "port": 51840, "keys": [{"epoch": 1, "publicKey": BASE64.encode(public.as_bytes())}]});
        node["metadata"]["annotations"] = json!({KEYS: keys.to_string()});
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

/// The kernel's own map, past every cache of the agent.
struct Endpoints {
    map: HashMap<MapData, [u8; 16], [u8; 8]>,
}

impl Endpoints {
    fn open(node: &str) -> Result<Endpoints> {
        let found = find(Path::new(&format!("/run/bpf/{node}")), "ENDPOINTS")?;
        let data = MapData::from_pin(&found).with_context(|| format!("open {}", found.display()))?;
        let map = HashMap::try_from(Map::HashMap(data)).context("ENDPOINTS is a hash map")?;
        Ok(Endpoints { map })
    }

    fn find(&self, address: IpAddr) -> Result<bool> {
        // IPv4 addresses are kept as ::ffff:a.b.c.d.
        let key = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        match self.map.get(&key, 0) {
            Ok(_) => Ok(true),
            Err(aya::maps::MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error).context("look up ENDPOINTS"),
        }
    }
}

/// A file of this name below a folder.
fn find(directory: &Path, name: &str) -> Result<PathBuf> {
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|file| file == name) {
                return Ok(path);
            }
        }
    }
    anyhow::bail!("no {name} below {}", directory.display())
}

/// From the rename of a new pod's file to its entry in the kernel, sorted.
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

/// Waits until the agent has nothing left to do.
fn settle(id: u32) -> Result<()> {
    wait::within(Duration::from_secs(120), "the agent to come to rest", || {
        let before = cpu(id)?;
        thread::sleep(Duration::from_secs(1));
        Ok((cpu(id)? - before < 0.1).then_some(()))
    })
}

/// Resident memory, KiB.
fn memory(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).context("read status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).context("VmRSS in KiB")
}

/// CPU time so far, seconds.
fn cpu(id: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).context("read stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).context("sysconf")?.context("CLK_TCK")?;
    Ok(ticks as f64 / per_second as f64)
}
