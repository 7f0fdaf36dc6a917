//! Under two real agents, the API server freezes and comes back with an emptied etcd: nothing
//! closed opens, and sealed traffic goes on. There are no kubelets, which would end every pod that
//! etcd has lost; so the result depends on the agents alone.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::daemon::Daemon;
use hauberk_cluster::machine::Machine;
use hauberk_cluster::node::POD_IMAGE;
use hauberk_cluster::{Context, ControlPlane, Options, Test, session};
use hauberk_netns::agent::Agent;
use hauberk_netns::capture::{Capture, Moment};
use hauberk_netns::plugin::{self, Attachment, Plugin};
use hauberk_netns::traffic::{self, Exchange, Protocol, exchange};
use hauberk_netns::{Family, Netns, Party, analysis, eventually, programs, wait};
use serde_json::{Value, json};

pub const TESTS: &[Test] = &[Test::new("outage::a_frozen_api_server_and_an_emptied_etcd_open_nothing", outage)];

/// The agents' user name at the API server.
const USER: &str = "agent";

fn outage(context: &Context) -> Result<()> {
    let options = Options { users: vec![(USER.into(), vec!["system:masters".into()])], ..Options::default() };
    let mut control_plane = ControlPlane::start(&context.directory, &options)?;
    namespace(&control_plane, json!({"hauberk.io/encryption": "enabled"}))?;
    let one = Host::start(context, &mut control_plane, 1)?;
    let two = Host::start(context, &mut control_plane, 2)?;
    let capture = Capture::start(control_plane.wire.ports())?;
    context.watch(&capture);
    for host in [&one, &two] {
        wait_ready(host)?;
    }
    let (a, b) = (one.pod(&control_plane, "a")?, two.pod(&control_plane, "b")?);
    eventually("the pods to talk", || assert_answered(&a, &b).map(Some))?;
    assert_sealed(&capture, &[&a, &b])?;

    control_plane.freeze_api_server(true)?;
    // This needs only the agent.
    let late = one.attach("late")?;
    let frozen = assert_answered(&a, &b);
    control_plane.freeze_api_server(false)?;
    frozen.context("while the API server did not answer")?;

    control_plane.stop_api_server()?;
    control_plane.wipe_etcd()?;
    control_plane.start_api_server()?;
    // The new cluster's objects would open everything if an agent took it for the old cluster.
    namespace(&control_plane, json!({}))?;
    for host in [&one, &two] {
        wait_refuses(host)?;
        let peers = host.api.status()?.peers;
        ensure!(peers.len() == 1, "the other node was forgotten: {peers:?}");
    }
    assert_answered(&a, &b).context("with an emptied etcd")?;
    assert_answered(&b, &a).context("with an emptied etcd")?;
    assert_sealed(&capture, &[&a, &b, &late])?;

    // An agent that starts now trusts what it reads. It knows no protected pod, and unknown
    // addresses stay closed.
    for host in [&one, &two] {
        host.agent.stop()?;
        host.agent.start()?;
    }
    for host in [&one, &two] {
        eventually("the agent to answer again", || host.api.status().map(Some))?;
    }
    for family in Family::ALL {
        let outcome = exchange(&Exchange::new(Protocol::Udp, family, &a, &b))?;
        ensure!(!outcome.answered, "{family}: answered, by a tunnel to a node that nobody knows");
    }
    assert_sealed(&capture, &[&a, &b, &late])
}

/// A node with an agent, and no other part of Kubernetes.
struct Host {
    name: String,
    agent: Daemon,
    api: Agent,
    plugin: Plugin,
}

impl Host {
    fn start(context: &Context, control_plane: &mut ControlPlane, number: u8) -> Result<Host> {
        let name = format!("n{number}");
        let state = session::state(context.session_directory());
        let machine = Machine::boot(&mut control_plane.wire, &name, number, &state, None)?;
        make_node(control_plane, &machine, number)?;
        let config = json!({
            "node": name,
            "source": {"kubernetes": {"kubeconfig": control_plane.kubeconfig(USER)}},
            "clusterRanges": ["10.244.0.0/16", "fd00:244::/48"],
            "metrics": null,
            "log": {"level": "debug"},
        });
        let path = context.directory.join(format!("{name}.yaml"));
        std::fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        let mut command = machine.command(programs::ours("hauberkd")?);
        command.arg("--config").arg(&path);
        let agent = Daemon::new(&format!("hauberkd-{name}"), &context.directory, command);
        agent.start()?;
        let socket = machine.file("/run/hauberk/agent.sock");
        let api = Agent::new(&name, &socket, &context.directory.join(format!("hauberkd-{name}.log")));
        let plugin = Plugin::new(&machine.party, &machine.run, &socket)?;
        Ok(Host { name, agent, api, plugin })
    }

    /// A pod with an object, as the kubelet would report it.
    fn pod(&self, control_plane: &ControlPlane, name: &str) -> Result<Party> {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"nodeName": self.name, "automountServiceAccountToken": false,
                "containers": [{"name": "pod", "image": POD_IMAGE}]}});
        control_plane.kubectl.apply(&object.to_string())?;
        let pod = self.attach(name)?;
        let addresses: Vec<Value> = pod.addresses().iter().map(|address| json!({"ip": address})).collect();
        let status = json!({"status": {"phase": "Running", "podIP": pod.v4, "podIPs": addresses}}).to_string();
        patch_status(control_plane, &["pod", "-n", "shop", name], &status)?;
        Ok(pod)
    }

    /// A pod's network without an object.
    fn attach(&self, name: &str) -> Result<Party> {
        let netns = Netns::create(&format!("pod-{name}"))?;
        let (container, path) = (format!("sandbox-{name}"), netns.path());
        let attachment =
            Attachment { container: &container, netns: &path, interface: "eth0", pod: Some(("shop", name)) };
        let addresses = plugin::addresses(&self.plugin.add(&attachment)?)?;
        Party::new(format!("shop/{name}"), netns, &addresses)
    }
}

/// Creates the namespace `shop` and the service account without which the API server refuses pods.
fn namespace(control_plane: &ControlPlane, labels: Value) -> Result<()> {
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "shop"}});
    control_plane.kubectl.apply(&format!("{shop}\n---\n{account}")).map(drop)
}

fn make_node(control_plane: &ControlPlane, machine: &Machine, number: u8) -> Result<()> {
    let ranges = [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")];
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": machine.party.name},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges}});
    control_plane.kubectl.apply(&node.to_string())?;
    let addresses: Vec<Value> =
        machine.party.addresses().iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    let status = json!({"status": {"addresses": addresses}}).to_string();
    patch_status(control_plane, &["node", &machine.party.name], &status)
}

fn patch_status(control_plane: &ControlPlane, object: &[&str], status: &str) -> Result<()> {
    let patch = ["--subresource=status", "--type=merge", "-p", status];
    control_plane.kubectl.run(&[&["patch"], object, &patch].concat()).map(drop)
}

fn wait_ready(host: &Host) -> Result<()> {
    eventually(format!("the agent on {} to be ready", host.name), || {
        let (code, body) = host.api.get("/readyz")?;
        ensure!(code == 200, "/readyz says {code}: {}; its log ends with\n{}", body.trim(), host.agent.log_tail());
        Ok(Some(()))
    })
}

/// Waits until the agent has noticed that another cluster answers, and reports it.
fn wait_refuses(host: &Host) -> Result<()> {
    wait::within(Duration::from_secs(120), format!("the agent on {} to refuse another cluster", host.name), || {
        let source = host.api.status()?.source;
        let why = source.unavailable_because.unwrap_or_default();
        ensure!(source.unavailable_since.is_some() && why.contains("another cluster"), "it says {why:?}");
        Ok(Some(()))
    })
}

fn assert_answered(from: &Party, to: &Party) -> Result<()> {
    traffic::assert_answered(from, to, &[Protocol::Tcp, Protocol::Udp])
}

/// Fails if a packet of these pods was in the clear at any time.
fn assert_sealed(capture: &Capture, pods: &[&Party]) -> Result<()> {
    let addresses: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.addresses()).collect();
    let sightings = analysis::cleartext_of(&capture.since(Moment::START)?, &addresses);
    ensure!(sightings.is_empty(), "packets of protected pods in the clear: {}", analysis::list(&sightings));
    Ok(())
}
