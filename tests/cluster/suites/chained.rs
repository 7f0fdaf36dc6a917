//! Beside another CNI plugin on a running cluster. Node n1 has `bridge` and n2 has `ptp`, with
//! routes between them; n3 has `bridge` behind a VXLAN as flannel makes it. Pods that are older
//! than hauberk are opted in by a label, unchanged.

mod exchanges;
mod overlay;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::{Cluster, Context, Setup, Test};
use hauberk_netns::traffic::TcpStreamer;
use hauberk_netns::{Family, Party, eventually};
use serde_json::Value;

use crate::inventory::{Inventory, assert_same, inventory};
use crate::labels::{label, wait_encrypted};
use crate::uninstall::by_the_documentation;
use exchanges::Exchanges;

pub const TESTS: &[Test] = &[
    Test::new("chained::pods_that_were_there_join_without_a_restart", existing_pods).limit(900),
    Test::new("chained::new_pods_are_protected_from_the_start", new_pods),
    Test::new("chained::uninstall_gives_the_pods_back_to_their_plugin", uninstall),
];

const PLUGINS: [&str; 3] = ["bridge", "ptp", "bridge"];

/// A cluster with pods on every node. hauberk was installed after the pods.
struct World {
    cluster: Cluster,
    /// One pod on each node, in the namespace that is opted in.
    shop: Vec<Party>,
    /// One pod on each node, in a namespace that is not opted in.
    public: Vec<Party>,
    /// Connections between pods of `shop` that are older than hauberk: by routes and through the
    /// overlay.
    connections: Vec<TcpStreamer>,
    /// The state of the nodes before hauberk.
    before: Vec<Inventory>,
    /// The containers of all these pods before hauberk.
    containers: BTreeMap<String, String>,
}

/// The session's tests run one after the other in one process, on one cluster.
static WORLD: Mutex<Option<World>> = Mutex::new(None);

fn with_world(context: &Context, test: impl FnOnce(&World) -> Result<()>) -> Result<()> {
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    if world.is_none() {
        *world = Some(World::create(context)?);
    }
    let world = world.as_ref().context("made above")?;
    test(world).inspect_err(|_| world.cluster.explain())
}

impl World {
    fn create(context: &Context) -> Result<World> {
        let setup = Setup { nodes: PLUGINS.len(), hauberk: None, dns: false, ..Setup::default() };
        let cluster = Cluster::start(context, &setup)?;
        cluster.connect_plainly(&PLUGINS)?;
        overlay::connect(&cluster)?;
        let (mut shop, mut public) = (Vec::new(), Vec::new());
        for namespace in ["shop", "public"] {
            cluster.namespace(namespace, None)?;
        }
        for node in &cluster.nodes {
            cluster.open_for_pods(node)?;
            let name = format!("on-{}", node.name());
            shop.push(cluster.pod("shop", &name, node.name())?);
            public.push(cluster.pod("public", &name, node.name())?);
        }
        let all: Vec<&Party> = shop.iter().chain(&public).collect();
        Exchanges::among(&cluster, &all)?.assert_in_the_clear().context("before hauberk")?;
        let before = cluster.nodes.iter().map(inventory).collect::<Result<Vec<_>>>()?;
        let connect = |to: &Party, family| TcpStreamer::start(&shop[0], to, family, 200, Duration::from_millis(20));
        let connections = vec![connect(&shop[1], Family::V4)?, connect(&shop[2], Family::V6)?];
        let containers = containers(&cluster)?;
        cluster.install(&["cni.install=chained", "config.log.level=debug"])?;
        Ok(World { cluster, shop, public, connections, before, containers })
    }

    /// Opts the namespace in, and waits until that is enforced.
    fn opt_in(&self) -> Result<()> {
        label(&self.cluster, &["namespace", "shop"], Some("enabled"))?;
        println!("{}", wait_encrypted(&self.cluster, "shop")?);
        Ok(())
    }

    fn pods(&self) -> Vec<&Party> {
        self.shop.iter().chain(&self.public).collect()
    }
}

fn existing_pods(context: &Context) -> Result<()> {
    with_world(context, |world| {
        let cluster = &world.cluster;
        for connection in &world.connections {
            connection.wait_flowing().context("a connection of plain pods, after hauberk was installed")?;
        }
        Exchanges::among(cluster, &world.pods())?.assert_in_the_clear().context("nobody has joined yet")?;
        world.opt_in()?;
        let converged = cluster.capture.sync()?;
        Exchanges::among(cluster, &world.pods())?.assert_sealed_for("shop")?;
        for connection in &world.connections {
            connection.wait_flowing().context("a connection that was there before its pods joined")?;
        }
        cluster.assert_no_cleartext(&world.shop.iter().collect::<Vec<_>>(), converged)?;
        let now = containers(cluster)?;
        ensure!(now == world.containers, "containers were restarted: {:?}, now {now:?}", world.containers);
        Ok(())
    })
}

fn new_pods(context: &Context) -> Result<()> {
    with_world(context, |world| {
        let cluster = &world.cluster;
        world.opt_in()?;
        let start = cluster.capture.sync()?;
        let mut new = Vec::new();
        for node in &cluster.nodes {
            let list = node.machine.file("/etc/cni/net.d/05-hauberk.conflist");
            let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
            ensure!(text.contains("hauberk-cni") && text.contains("host-local"), "{text} is not behind another plugin");
            let name = format!("new-{}", node.name());
            new.push(cluster.pod("shop", &name, node.name())?);
            new.push(cluster.pod("public", &name, node.name())?);
            eventually(format!("the agent on {} to guard what it did not make", node.name()), || {
                let held: Value = node.agent.ask("/v1/attachments")?;
                let held = held.as_array().context("no list")?;
                ensure!(held.len() == 4 && held.iter().all(|one| one["adopted"] == true), "{held:?}");
                Ok(Some(()))
            })?;
        }
        // Until a node's agent knows that a new pod is plain, it treats the pod as protected.
        eventually("what new plain pods say to go its plugins' way, and the rest to be sealed", || {
            Exchanges::among(cluster, &new.iter().collect::<Vec<_>>())?.assert_sealed_for("shop").map(Some)
        })?;
        let pods: Vec<&Party> = new.iter().chain(world.pods()).collect();
        Exchanges::among(cluster, &pods)?.assert_sealed_for("shop")?;
        let protected: Vec<&Party> = pods.into_iter().filter(|pod| pod.name.starts_with("shop/")).collect();
        cluster.assert_no_cleartext(&protected, start)?;
        for namespace in ["shop", "public"] {
            let names = cluster.nodes.iter().map(|node| format!("new-{}", node.name())).collect::<Vec<_>>();
            let arguments = ["delete", "pod", "-n", namespace].into_iter().chain(names.iter().map(String::as_str));
            cluster.kubectl().run(&arguments.collect::<Vec<_>>())?;
        }
        Ok(())
    })
}

/// The pods that were opted in talk as before hauberk, and no node shows a trace of hauberk.
fn uninstall(context: &Context) -> Result<()> {
    with_world(context, |world| {
        let cluster = &world.cluster;
        world.opt_in()?;
        for (node, before) in cluster.nodes.iter().zip(&world.before) {
            ensure!(inventory(node)? != *before, "hauberk made nothing on {}", node.name());
        }
        by_the_documentation(cluster)?;
        for (node, before) in cluster.nodes.iter().zip(&world.before) {
            assert_same(node, before)?;
        }
        Exchanges::among(cluster, &world.pods())?.assert_in_the_clear()?;
        for connection in &world.connections {
            connection.wait_flowing().context("a connection that was there before hauberk came and went")?;
        }
        let now = containers(cluster)?;
        ensure!(now == world.containers, "containers were restarted: {:?}, now {now:?}", world.containers);
        Ok(())
    })
}

/// The container of each pod that is older than hauberk.
fn containers(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for namespace in ["shop", "public"] {
        for node in &cluster.nodes {
            let name = format!("on-{}", node.name());
            let pod: Value = cluster.kubectl().get(&["pod", "-n", namespace, &name])?;
            let container = pod["status"]["containerStatuses"][0]["containerID"].as_str().context("no container")?;
            found.insert(format!("{namespace}/{name}"), container.to_owned());
        }
    }
    Ok(found)
}
