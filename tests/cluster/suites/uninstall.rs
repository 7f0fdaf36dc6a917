//! Uninstalled as docs/OPERATIONS.md says, hauberk leaves nodes and cluster as they were. Its
//! custom resource definition is removed only if the operator does so.

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::chart::{self, CHART, NAMESPACE, RELEASE};
use hauberk_cluster::node::POD_IMAGE;
use hauberk_cluster::{Cluster, Context, Test};
use serde_json::Value;

use crate::inventory::{assert_same, inventory};
use crate::reboot;

pub const TESTS: &[Test] = &[Test::new("uninstall::leaves_nodes_and_cluster_clean", primary)];

/// With a pod on each node that is connected by hauberk.
fn primary(context: &Context) -> Result<()> {
    reboot::with_world(context, |world| {
        world.complete()?;
        let cluster = &world.cluster;
        cluster.namespace("shop", Some("enabled"))?;
        for node in &cluster.nodes {
            cluster.pod("shop", &format!("on-{}", node.name()), node.name())?;
            let before = world.bare.get(node.name()).context("the node was not looked at before")?;
            let used = inventory(node)?;
            let made = |kind: &str| used.difference(before).any(|line| line.starts_with(kind));
            for kind in ["interface", "ip", "nft", "pin", "file /etc/cni", "file /opt/cni"] {
                ensure!(made(kind), "hauberk made no {kind} on {}, so nothing shows that it removes them", node.name());
            }
        }
        by_the_documentation(cluster)?;
        cluster.nodes.iter().try_for_each(|node| {
            assert_same(node, world.bare.get(node.name()).context("the node was not looked at before")?)
        })
    })
}

/// "Upgrade and uninstall on Kubernetes" in docs/OPERATIONS.md, step by step.
pub fn by_the_documentation(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    // The clean-up pods' final image must be one that exists here.
    let pause = format!("pauseImage={POD_IMAGE}");
    chart::helm(kubectl, &["upgrade", RELEASE, CHART, "--reuse-values", "--set", "uninstall=true", "--set", &pause])?;
    let status = ["rollout", "status", "daemonset/hauberk-uninstall", "-n", NAMESPACE, "--timeout=300s"];
    kubectl.run(&status).inspect_err(|_| cluster.explain())?;
    chart::helm(kubectl, &["uninstall", RELEASE, "--wait"])?;
    hauberk_netns::eventually("the API server to forget who may write annotations", || {
        let annotations = [
            "hauberk.io/keys-",
            "hauberk.io/addresses-",
            "hauberk.io/enforced-",
            "hauberk.io/config-",
            "hauberk.io/plaintext-seen-",
        ];
        kubectl.run(&[&["annotate", "nodes", "--all"][..], &annotations].concat()).map(Some)
    })?;
    // It exists up to here: the operator chooses to delete it.
    kubectl.run(&["get", "crd", "hauberkconfigs.hauberk.io"])?;
    kubectl.run(&["delete", "crd", "hauberkconfigs.hauberk.io"])?;
    assert_clean(cluster)
}

fn assert_clean(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    for node in &cluster.nodes {
        let object: Value = kubectl.get(&["node", node.name()])?;
        let annotations = object["metadata"]["annotations"].as_object().context("no annotations")?;
        let left: Vec<&String> = annotations.keys().filter(|key| key.starts_with("hauberk.io/")).collect();
        ensure!(left.is_empty(), "annotations of {}: {left:?}", node.name());
    }
    let kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings";
    let left = kubectl.run(&["get", kinds, "-l", "app.kubernetes.io/name=hauberk", "-o", "name"])?;
    ensure!(left.trim().is_empty(), "left in the cluster: {left}");
    let kinds = "daemonsets,configmaps,roles,rolebindings,serviceaccounts";
    let left = kubectl.run(&["get", kinds, "-n", NAMESPACE, "-l", "app.kubernetes.io/name=hauberk", "-o", "name"])?;
    ensure!(left.trim().is_empty(), "left in {NAMESPACE}: {left}");
    hauberk_netns::eventually("the clean-up pods to go", || {
        let pods = kubectl.run(&["get", "pods", "-n", NAMESPACE, "-o", "name"])?;
        ensure!(pods.trim().is_empty(), "{pods}");
        Ok(Some(()))
    })
}
