//! The harness without hauberk: everything works on this cluster, and the capture sees plaintext.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::{Cluster, Context, Setup, Test};
use hauberk_netns::traffic::{Exchange, Protocol, exchange};
use hauberk_netns::{Family, eventually};
use serde_json::{Value, json};

pub const TESTS: &[Test] = &[Test::new("harness::an_ordinary_cluster_works_and_shows_its_cleartext", ordinary)];

fn ordinary(context: &Context) -> Result<()> {
    let mut cluster = Cluster::start(context, &Setup { nodes: 2, hauberk: None, ..Setup::default() })?;
    let result = works(&cluster).and_then(|()| survives_a_reboot(&mut cluster));
    if result.is_err() {
        cluster.explain();
    }
    result
}

fn works(cluster: &Cluster) -> Result<()> {
    cluster.connect_plainly(&["bridge", "bridge"])?;
    for node in &cluster.nodes {
        cluster.open_for_pods(node)?;
    }
    cluster.wait_available("kube-system", "coredns")?;
    cluster.namespace("shop", None)?;
    let (a, b) = (cluster.pod("shop", "a", "n1")?, cluster.pod("shop", "b", "n2")?);
    for family in Family::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            let since = cluster.capture.sync()?;
            let outcome = exchange(&Exchange::new(protocol, family, &a, &b))?;
            ensure!(outcome.answered, "{protocol} over {family}: {}", outcome.said);
            ensure!(!cluster.cleartext(&[&a], since)?.is_empty(), "{protocol} over {family} was not seen");
        }
    }
    let found = cluster.kubectl().exec("shop/a", &["getent", "ahostsv4", "kubernetes.default"])?;
    ensure!(found.contains("10.96.0.1"), "{found}");

    cluster.kubectl().apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b", "namespace": "shop"},
            "spec": {"selector": {"app": "b"}, "ports": [{"port": 8080}]}})
        .to_string(),
    )?;
    let service: Value = cluster.kubectl().get(&["service", "-n", "shop", "b"])?;
    let address = service["spec"]["clusterIP"].as_str().and_then(|text| text.parse().ok()).context("no address")?;
    let through = Exchange::new(Protocol::Tcp, Family::V4, &a, &b).via(SocketAddr::new(address, 8080), 8080);
    // kube-proxy refuses connections until it knows the endpoint.
    eventually("the Service to lead to its pod", || {
        let outcome = exchange(&through)?;
        ensure!(outcome.answered, "{}", outcome.said);
        Ok(Some(()))
    })
}

/// The containers of existing pods are started again, with the addresses of a new namespace.
fn survives_a_reboot(cluster: &mut Cluster) -> Result<()> {
    let before: Value = cluster.kubectl().get(&["pod", "-n", "shop", "b"])?;
    let count = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default();
    cluster.reboot(1)?;
    let restarted = |pod: &Value| {
        count(pod) > count(&before) && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
    };
    cluster.kubectl().wait_for(&["pod", "-n", "shop", "b"], "run again", restarted)?;
    let b = cluster.party("shop", "b")?;
    let since = cluster.capture.sync()?;
    let node = cluster.nodes[0].machine.party.clone();
    let outcome = exchange(&Exchange::new(Protocol::Tcp, Family::V4, &b, &node))?;
    ensure!(outcome.answered, "after the reboot: {}", outcome.said);
    ensure!(!cluster.cleartext(&[&b], since)?.is_empty(), "the rebooted node's cable is not watched");
    Ok(())
}
