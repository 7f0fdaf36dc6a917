//! Nodes that start: one that joins while many pods wait for it, and one that loses power and comes
//! back with new namespaces and its old pods. The pods send from their first moment on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::cluster::pod_manifest;
use hauberk_cluster::node::POD_IMAGE;
use hauberk_cluster::{Cluster, Context, Setup, Test};
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{self, Protocol, UdpStreamer};
use hauberk_netns::{Family, Party, analysis, wait};
use serde_json::{Value, json};

use crate::ear::Ear;
use crate::inventory::{Inventory, inventory};

pub const TESTS: &[Test] = &[
    Test::new("reboot::fifty_pods_on_a_node_that_joins_send_nothing_in_the_clear", joining).limit(900),
    Test::new("reboot::a_node_that_lost_power_comes_back_encrypted", power_cut),
];

/// Node n1 with hauberk, and a machine that becomes n2.
pub struct World {
    pub cluster: Cluster,
    /// The state of the machines before hauberk, by name.
    pub bare: BTreeMap<String, Inventory>,
}

/// The session's tests run one after the other in one process, on one cluster.
static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// Runs a test on the cluster. The first call starts it.
pub fn with_world(context: &Context, test: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    if world.is_none() {
        *world = Some(World::create(context)?);
    }
    let world = world.as_mut().context("made above")?;
    let result = test(world);
    if result.is_err() {
        world.cluster.explain();
    }
    result
}

impl World {
    fn create(context: &Context) -> Result<World> {
        let setup = Setup { nodes: 1, joining: 1, hauberk: None, dns: false, ..Setup::default() };
        let cluster = Cluster::start(context, &setup)?;
        let mut bare = BTreeMap::new();
        for node in cluster.nodes.iter().chain(&cluster.waiting) {
            bare.insert(node.name().to_owned(), inventory(node)?);
        }
        cluster.install(&["cni.install=primary", "config.log.level=debug"])?;
        Ok(World { cluster, bare })
    }

    /// Makes both nodes members of the cluster and waits until they are ready.
    pub fn complete(&mut self) -> Result<()> {
        if !self.cluster.waiting.is_empty() {
            self.cluster.join()?;
        }
        self.cluster.wait_ready()
    }
}

/// Kinds of pods: two families, and for each pods that wait for the start-up taint to be removed
/// and pods that do not. `MANY` is 52 pods.
const KINDS: usize = 4;
const MANY: usize = 52;
const FEW: usize = 8;

fn joining(context: &Context) -> Result<()> {
    with_world(context, |world| {
        let cluster = &mut world.cluster;
        ensure!(!cluster.waiting.is_empty(), "n2 has joined already");
        cluster.namespace("shop", Some("enabled"))?;
        cluster.namespace("public", None)?;
        let ear = Ear::open(cluster.pod("shop", "ear", "n1")?)?;
        let plain = Ear::open(cluster.pod("public", "ear", "n1")?)?;
        let start = cluster.capture.sync()?;
        gather(cluster, &ear, MANY)?;
        // The control: the capture sees a plain pod, so it would see the others.
        cluster.kubectl().apply(&shouter("public", "voice", &plain.shout(Family::V4)).to_string())?;

        cluster.join()?;
        let senders = wait_heard(cluster, &ear, MANY)?;
        cluster.wait_ready()?;
        assert_sealed(cluster, &ear, &senders, start)?;
        let voice = cluster.party("public", "voice")?;
        wait::eventually("the plain pod to be heard", || Ok(plain.heard().contains(&voice.v4.into()).then_some(())))?;
        let seen = analysis::payload_of(&cluster.capture.since(start)?, &BTreeSet::from([plain.marker]));
        ensure!(!seen.is_empty(), "a plain pod was heard on the other node and the capture saw nothing");
        cluster.delete_namespace("shop")?;
        cluster.delete_namespace("public")
    })
}

fn power_cut(context: &Context) -> Result<()> {
    with_world(context, |world| {
        world.complete()?;
        let cluster = &mut world.cluster;
        cluster.namespace("shop", Some("enabled"))?;
        let start = cluster.capture.sync()?;
        let ear = Ear::open(cluster.pod("shop", "ear", "n1")?)?;
        let before = cluster.pod("shop", "stays", "n2")?;
        gather(cluster, &ear, FEW)?;
        let mut senders = wait_heard(cluster, &ear, FEW)?;
        // A sender that does not know that the node is down.
        let stream = UdpStreamer::start(&ear.pod, &before, Family::V4, 200, Duration::from_millis(20))?;
        stream.wait_flowing()?;

        cluster.reboot(1)?;
        ear.forget();
        // Scheduled while nothing on the node runs as before.
        cluster.kubectl().apply(&pod_manifest("shop", "meanwhile", "n2").to_string())?;
        let restarted = |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            container["restartCount"].as_u64() > Some(0) && container["state"]["running"].is_object()
        };
        cluster.kubectl().wait_for(&["pod", "-n", "shop", "stays"], "run again", restarted)?;
        senders.extend(wait_heard(cluster, &ear, FEW)?);
        cluster.wait_ready()?;
        for pod in [cluster.party("shop", "stays")?, cluster.party("shop", "meanwhile")?] {
            assert_answered(&ear.pod, &pod)?;
            assert_answered(&pod, &ear.pod)?;
            senders.extend(pod.addresses());
        }
        println!("to a node that lost power: {:?}", stream.stop()?);
        senders.extend(before.addresses());
        assert_sealed(cluster, &ear, &senders, start)?;
        cluster.delete_namespace("shop")
    })
}

/// Creates this many pods for n2, whether or not the node exists.
fn gather(cluster: &Cluster, ear: &Ear, pods: usize) -> Result<()> {
    for family in Family::ALL {
        for eager in [false, true] {
            let name = format!("crowd-{family}-{}", if eager { "eager" } else { "patient" });
            let mut spec = shouter("shop", &name, &ear.shout(family))["spec"].take();
            if eager {
                spec["tolerations"] = json!([{"operator": "Exists"}]);
            }
            let pod = json!({"metadata": {"labels": {"app": name, "crowd": family.to_string()}}, "spec": spec});
            let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
                "spec": {"replicas": pods / KINDS, "selector": {"matchLabels": {"app": name}}, "template": pod}});
            cluster.kubectl().apply(&deployment.to_string())?;
        }
    }
    wait::eventually(format!("{pods} pods to be made"), || {
        let found = crowd(cluster)?.len();
        ensure!(found == pods, "{found} pods");
        Ok(Some(()))
    })
}

/// A pod for n2 that runs `hauberk-pod shout`.
fn shouter(namespace: &str, name: &str, shout: &[String; 3]) -> Value {
    let mut pod = pod_manifest(namespace, name, "n2");
    pod["spec"]["containers"] = json!([{"name": "pod", "image": POD_IMAGE, "imagePullPolicy": "Never", "args": shout}]);
    pod
}

fn crowd(cluster: &Cluster) -> Result<Vec<Value>> {
    let pods: Value = cluster.kubectl().get(&["pods", "-n", "shop", "-l", "crowd"])?;
    Ok(pods["items"].as_array().cloned().unwrap_or_default())
}

/// Waits until every pod of the crowd was heard across the wire, and returns their addresses.
fn wait_heard(cluster: &Cluster, ear: &Ear, pods: usize) -> Result<BTreeSet<IpAddr>> {
    wait::within(Duration::from_secs(480), format!("{pods} pods to be heard"), || {
        let heard = ear.heard();
        let mut everybody = BTreeSet::new();
        let mut silent = Vec::new();
        for pod in crowd(cluster)? {
            let addresses: Vec<IpAddr> = pod["status"]["podIPs"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|entry| entry["ip"].as_str()?.parse().ok())
                .collect();
            if !addresses.iter().any(|address| heard.contains(address)) {
                silent.push(format!("{} {addresses:?}", pod["metadata"]["name"]));
            }
            everybody.extend(addresses);
        }
        ensure!(silent.is_empty(), "{} are not: {silent:?}", silent.len());
        ensure!(everybody.len() == 2 * pods, "{} addresses of {pods} pods", everybody.len());
        Ok(Some(everybody))
    })
}

/// Fails if the text or a packet of its senders was ever in the clear.
fn assert_sealed(cluster: &Cluster, ear: &Ear, senders: &BTreeSet<IpAddr>, start: Moment) -> Result<()> {
    let frames = cluster.capture.since(start)?;
    let leaked = analysis::payload_of(&frames, &BTreeSet::from([ear.marker]));
    ensure!(leaked.is_empty(), "what protected pods said is in the clear: {}", analysis::list(&leaked));
    let addresses: Vec<IpAddr> = senders.iter().copied().chain(ear.pod.addresses()).collect();
    let leaked = analysis::cleartext_of(&frames, &addresses);
    ensure!(leaked.is_empty(), "packets of protected pods in the clear: {}", analysis::list(&leaked));
    Ok(())
}

fn assert_answered(from: &Party, to: &Party) -> Result<()> {
    traffic::assert_answered(from, to, &[Protocol::Tcp, Protocol::Udp])
}
