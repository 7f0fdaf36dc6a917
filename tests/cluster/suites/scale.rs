//! One real agent in a cluster of 1,000 nodes and 50,000 pods on a real API server; 100 pods a
//! second come and 100 go.
//!
//! The objects are written directly into etcd, in the steps in which they would change. To the API
//! server this looks like the writes of another API server of the same cluster: it reads, keeps and
//! sends the objects as any others. The test measures the agent from there on: its memory, its CPU
//! time, its requests to the API server, and the time from the moment another client is told of a
//! change until the agent's kernel map has it. The figures are printed and written to
//! `target/bench/control-plane.json`, together with how much of the machine other programs used
//! meanwhile. The test fails only if an entry is missing or left over.

mod etcd;
mod objects;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_cluster::daemon::Daemon;
use hauberk_cluster::machine::Machine;
use hauberk_cluster::{Context, ControlPlane, Options, Test, session};
use hauberk_netns::endpoints::{self, Endpoints};
use hauberk_netns::{programs, usage, wait};
use serde_json::{Value, json};

use etcd::{Operation, TRANSACTION};
use objects::{CHURN, CLUSTER_RANGES, NODES, PODS, Phase, Pod};

pub const TESTS: &[Test] = &[Test::new("scale::thousand_nodes_fifty_thousand_pods", scale)];

/// The node with an agent.
const NODE: &str = "n1";
/// The agent's user name at the API server.
const USER: &str = "agent";
/// Pods that come each second; as many go.
const RATE: usize = 100;
/// How long pods come and go.
const CHURNING: Duration = Duration::from_secs(60);
/// Steps between a pod's phases: scheduled, running, terminating, gone.
const STEPS: [usize; 3] = [50, 1_000, 50];
/// The goals.
const MEMORY_MIB: f64 = 100.0;
const LATENCY: Duration = Duration::from_millis(100);

fn scale(context: &Context) -> Result<()> {
    let audit = Audit::new(&context.directory)?;
    let options = Options {
        users: vec![(USER.into(), vec!["system:masters".into()])],
        api_server_arguments: audit.arguments(),
        ..Options::default()
    };
    let mut control_plane = ControlPlane::start(&context.directory, &options)?;
    let started = Instant::now();
    control_plane.within(load)?;
    println!("time: {NODES} nodes and {PODS} pods written in {:.1} s", started.elapsed().as_secs_f64());
    let served = control_plane.kubectl.run(&["get", "--raw", "/api/v1/pods?limit=1"])?;
    let served: Value = serde_json::from_str(&served).context("list of pods")?;
    let rest = served["metadata"]["remainingItemCount"].as_u64().unwrap_or_default() as usize;
    ensure!(rest + 1 == PODS, "the API server has {} pods", rest + 1);

    let machine = Machine::boot(&mut control_plane.wire, NODE, 1, &session::state(context.session_directory()), None)?;
    let agent = start_agent(context, &control_plane, &machine)?;
    let started = Instant::now();
    let id = agent.id().context("the agent runs")?;
    let all = expected(0..PODS);
    let mut endpoints = None;
    wait_for(&agent, Duration::from_secs(240), "every pod to be in the kernel", || {
        if endpoints.is_none() {
            // Through the process's root, because the agent has its own bpffs.
            endpoints = Some(Endpoints::open(Path::new(&format!("/proc/{id}/root/sys/fs/bpf")))?);
        }
        let Some(endpoints) = &endpoints else { return Ok(false) };
        Ok(endpoints.find(Pod { number: PODS - 1 }.addresses()[0])? && all.is_subset(&endpoints.keys()?))
    })?;
    let endpoints = endpoints.context("the agent's map")?;
    let loaded = started.elapsed();
    usage::settle(id)?;

    let before = Measured::now(id, &audit)?;
    let since = Instant::now();
    let latencies = churn(&control_plane, &endpoints)?;
    let minutes = since.elapsed().as_secs_f64() / 60.0;
    let after = Measured::now(id, &audit)?;

    let gone = expected(PODS..PODS + CHURNING.as_secs() as usize * RATE);
    wait_for(&agent, Duration::from_secs(30), "the kernel to have all that stay and none that went", || {
        let now = endpoints.keys()?;
        Ok(all.is_subset(&now) && gone.is_disjoint(&now))
    })?;
    let mebibytes = |field| Ok::<f64, anyhow::Error>(usage::memory(id, field)? as f64 / 1024.0);
    let memory = mebibytes("VmRSS")?;
    let machine = after.machine.since(before.machine)?;
    let (p50, p99) = (percentile(&latencies.told, 50), percentile(&latencies.told, 99));
    let figures = json!({
        "nodes": NODES, "pods": PODS, "addresses_of_a_pod": 2,
        "churn": {"pods_per_second": RATE, "seconds": minutes * 60.0, "changes": latencies.told.len()},
        "loaded_seconds": loaded.as_secs_f64(),
        "memory_mib": {"resident": memory, "peak": mebibytes("VmHWM")?},
        "cpu_seconds_per_second": (after.cpu - before.cpu) / (minutes * 60.0),
        "event_to_kernel_ms": {"p50": millis(p50), "p99": millis(p99), "max": millis(percentile(&latencies.told, 100))},
        "write_to_kernel_ms": {
            "p50": millis(percentile(&latencies.written, 50)), "p99": millis(percentile(&latencies.written, 99)),
        },
        "api_requests_per_minute": (after.requests - before.requests) as f64 / minutes,
        "machine": {"steal_percent": machine.steal_percent, "busy_percent": 100.0 - machine.idle_percent},
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "goals": {
            "memory": goal(memory < MEMORY_MIB, format!("below {MEMORY_MIB} MiB")),
            "event_to_kernel": goal(p99 < LATENCY, format!("99 of 100 below {LATENCY:?}")),
        },
    });
    println!("{figures:#}");
    let results = programs::target_directory()?.join("bench");
    fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
    fs::write(results.join("control-plane.json"), format!("{figures:#}\n")).context("write control-plane.json")
}

fn goal(met: bool, goal: String) -> String {
    format!("{goal}: {}", if met { "met" } else { "missed" })
}

/// Writes the whole cluster. Call it where etcd runs.
fn load() -> Result<()> {
    let mut operations = objects::everything(NODE).peekable();
    while operations.peek().is_some() {
        let some: Vec<Operation> = operations.by_ref().take(TRANSACTION).collect();
        etcd::write(&some)?;
    }
    Ok(())
}

fn start_agent(context: &Context, control_plane: &ControlPlane, machine: &Machine) -> Result<Daemon> {
    let config = json!({
        "node": NODE,
        "source": {"kubernetes": {"kubeconfig": control_plane.kubeconfig(USER)}},
        "clusterRanges": CLUSTER_RANGES,
        "limits": {"endpoints": 262_144},
        "metrics": null,
    });
    let path = context.directory.join("hauberkd.yaml");
    fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
    let mut command = machine.command(programs::ours("hauberkd")?);
    command.arg("--config").arg(&path);
    let agent = Daemon::new("hauberkd", &context.directory, command);
    agent.start()?;
    Ok(agent)
}

/// The addresses of these pods.
fn expected(pods: std::ops::Range<usize>) -> BTreeSet<[u8; 16]> {
    pods.flat_map(|number| Pod { number }.addresses()).map(endpoints::key).collect()
}

/// Waits until the condition holds, as long as there is time.
fn wait_for(agent: &Daemon, limit: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait::within(limit, what, || condition().map(|holds| holds.then_some(())))
        .with_context(|| format!("the agent's log ends with:\n{}", agent.log_tail()))
}

/// Times until the kernel had a change, sorted.
struct Latencies {
    /// Since the API server told another client.
    told: Vec<Duration>,
    /// Since the change was written to etcd.
    written: Vec<Duration>,
}

/// Makes pods come and go, and measures when the kernel knows.
fn churn(control_plane: &ControlPlane, endpoints: &Endpoints) -> Result<Latencies> {
    let (told, events) = channel();
    let mut watch = watch(control_plane, told)?;
    let pods = CHURNING.as_secs() as usize * RATE;
    let (wrote, writes) = channel();
    let latencies = control_plane.within(move || {
        thread::scope(|scope| {
            let writer = scope.spawn(move || write_pods(pods, &wrote));
            let latencies = look(endpoints, &events, &writes, 2 * pods);
            writer.join().unwrap_or_else(|_| bail!("the writer panicked"))?;
            latencies
        })
    });
    watch.kill().context("stop the watch")?;
    watch.wait().context("wait for the watch")?;
    latencies
}

/// A change of an address: whether a pod has it now.
type Change = (IpAddr, bool, Instant);

/// One step each hundredth of a second: one pod is scheduled, one gets its addresses, one is
/// deleted, one is gone.
fn write_pods(pods: usize, wrote: &Sender<Change>) -> Result<()> {
    let started = Instant::now();
    for step in 0..pods + STEPS.iter().sum::<usize>() {
        let due = started + Duration::from_secs(1) * step as u32 / RATE as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let pod = |delay: usize| {
            let number = step.checked_sub(delay).filter(|number| *number < pods)?;
            Some(Pod { number: PODS + number })
        };
        let [running, terminating, gone] = [STEPS[0], STEPS[0] + STEPS[1], STEPS.iter().sum()].map(pod);
        let put = |pod: Option<Pod>, phase| pod.map(|pod| Operation::Put(pod.key(), pod.object(phase)));
        let operations = [
            put(pod(0), Phase::Scheduled),
            put(running, Phase::Running),
            put(terminating, Phase::Terminating),
            gone.map(|pod| Operation::Delete(pod.key())),
        ];
        let now = Instant::now();
        for (pod, there) in [(running, true), (gone, false)] {
            // The receiver may have given up.
            let _ = pod.map(|pod| wrote.send((pod.addresses()[0], there, now)));
        }
        etcd::write(&operations.into_iter().flatten().collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Another client of the API server. It reports when it is told that a pod has its address, or is
/// gone.
fn watch(control_plane: &ControlPlane, told: Sender<Change>) -> Result<std::process::Child> {
    let path = format!("/api/v1/namespaces/{CHURN}/pods");
    let list: Value =
        serde_json::from_str(&control_plane.kubectl.run(&["get", "--raw", &format!("{path}?limit=1")])?)
            .context("list of pods")?;
    let version = list["metadata"]["resourceVersion"].as_str().context("no resource version")?;
    let mut command =
        control_plane.kubectl.command(&["get", "--raw", &format!("{path}?watch=true&resourceVersion={version}")])?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start a watch")?;
    let output = child.stdout.take().context("output of the watch")?;
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let now = Instant::now();
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            let address = event["object"]["status"]["podIP"].as_str().and_then(|address| address.parse().ok());
            let change = address.map(|address: IpAddr| (address, event["type"] != "DELETED", now));
            if change.is_some_and(|change| told.send(change).is_err()) {
                return;
            }
        }
    });
    Ok(child)
}

/// Waits until `count` changes have reached the kernel's map.
fn look(
    endpoints: &Endpoints,
    events: &Receiver<Change>,
    writes: &Receiver<Change>,
    count: usize,
) -> Result<Latencies> {
    let deadline = Instant::now() + CHURNING + Duration::from_secs(60);
    // A change may be in the kernel, reported to the client, or neither yet. A terminating pod is
    // reported, but changes nothing.
    let mut pending: HashMap<(IpAddr, bool), Pending> = HashMap::new();
    let mut latencies = Latencies { told: Vec::new(), written: Vec::new() };
    while latencies.told.len() < count {
        ensure!(Instant::now() < deadline, "only {} of {count} changes came to the kernel", latencies.told.len());
        // The client's reports are taken first: every reported change has been written before.
        let told: Vec<Change> = events.try_iter().collect();
        for (address, there, at) in writes.try_iter() {
            pending.insert((address, there), Pending { written: at, told: None, held: None });
        }
        for (address, there, at) in told {
            if let Some(change) = pending.get_mut(&(address, there)) {
                change.told.get_or_insert(at);
            }
        }
        for ((address, there), change) in &mut pending {
            if change.held.is_none() && endpoints.find(*address)? == *there {
                change.held = Some(Instant::now());
            }
        }
        pending.retain(|_, change| match (change.told, change.held) {
            (Some(told), Some(held)) => {
                // The agent may be told before the other client.
                latencies.told.push(held.saturating_duration_since(told));
                latencies.written.push(held.duration_since(change.written));
                false
            }
            _ => true,
        });
        thread::sleep(Duration::from_micros(500));
    }
    latencies.told.sort();
    latencies.written.sort();
    Ok(latencies)
}

struct Pending {
    written: Instant,
    told: Option<Instant>,
    held: Option<Instant>,
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The API server's audit log.
struct Audit {
    policy: PathBuf,
    log: PathBuf,
}

impl Audit {
    fn new(directory: &Path) -> Result<Audit> {
        let audit = Audit { policy: directory.join("audit.yaml"), log: directory.join("audit.log") };
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}],
        });
        fs::write(&audit.policy, policy.to_string()).with_context(|| format!("write {}", audit.policy.display()))?;
        Ok(audit)
    }

    fn arguments(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", self.policy.display()),
            format!("--audit-log-path={}", self.log.display()),
        ]
    }

    /// The number of the agent's requests so far. A request that stays open is logged at its start
    /// and at its end.
    fn requests(&self) -> Result<usize> {
        let text = fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        let ids = text.lines().filter_map(|line| {
            let record: Value = serde_json::from_str(line).ok()?;
            record["auditID"].as_str().map(str::to_owned)
        });
        Ok(ids.collect::<BTreeSet<String>>().len())
    }
}

/// What has been used so far.
struct Measured {
    /// The agent's CPU time, seconds.
    cpu: f64,
    requests: usize,
    /// All CPUs of the machine.
    machine: usage::Clock,
}

impl Measured {
    fn now(agent: u32, audit: &Audit) -> Result<Measured> {
        Ok(Measured { cpu: usage::cpu(agent)?, requests: audit.requests()?, machine: usage::Clock::read()? })
    }
}
