//! Existing pods are opted in and out by a label, without a restart, and every user can see it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::{Cluster, Context, Test};
use hauberk_netns::traffic::{Exchange, Protocol, TcpStreamer, UdpStreamer, exchange};
use hauberk_netns::{Family, Party};
use serde_json::Value;

pub const TESTS: &[Test] = &[
    Test::new("labels::existing_pods_join_and_leave", join_and_leave),
    Test::new("labels::a_pods_label_strengthens_and_does_not_weaken", pod_override),
    Test::new("labels::the_status_is_where_people_look", status),
];

const NAMESPACE_STATUS: &str = "hauberk.io/status";

/// Sets the label, or removes it.
pub fn label(cluster: &Cluster, object: &[&str], encryption: Option<&str>) -> Result<()> {
    let value = match encryption {
        Some(encryption) => format!("hauberk.io/encryption={encryption}"),
        None => "hauberk.io/encryption-".to_owned(),
    };
    cluster.kubectl().run(&[&["label", "--overwrite"], object, &[&value]].concat()).map(drop)
}

/// Waits until the namespace's own annotation says that all nodes enforce what its label asks for.
pub fn wait_encrypted(cluster: &Cluster, namespace: &str) -> Result<String> {
    let wanted = format!("encrypted on {0}/{0} nodes since ", cluster.nodes.len());
    let says = |object: &Value| annotation(object).is_some_and(|status| status.starts_with(&wanted));
    let object = cluster.kubectl().wait_for(&["namespace", namespace], &format!("say {wanted}"), says)?;
    Ok(annotation(&object).unwrap_or_default().to_owned())
}

fn annotation(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"][NAMESPACE_STATUS].as_str()
}

/// Whether packets between two pods are in the clear, tested with new packets.
pub fn is_in_the_clear(cluster: &Cluster, from: &Party, to: &Party) -> Result<bool> {
    let since = cluster.capture.sync()?;
    for family in Family::ALL {
        let outcome = exchange(&Exchange::new(Protocol::Tcp, family, from, to))?;
        ensure!(outcome.answered, "{} to {} over {family}: {}", from.name, to.name, outcome.said);
    }
    Ok(!cluster.cleartext(&[from, to], since)?.is_empty())
}

fn join_and_leave(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("shop", None)?;
    let (a, b) = (cluster.pod("shop", "a", "n1")?, cluster.pod("shop", "b", "n2")?);
    ensure!(is_in_the_clear(cluster, &a, &b)?, "nobody asked for encryption and nothing is in the clear");
    let connection = TcpStreamer::start(&a, &b, Family::V4, 1000, Duration::from_millis(5))?;
    let datagrams = UdpStreamer::start(&b, &a, Family::V6, 200, Duration::from_millis(5))?;
    for round in 0..3 {
        label(cluster, &["namespace", "shop"], Some("enabled"))?;
        println!("round {round}: {}", wait_encrypted(cluster, "shop")?);
        let converged = cluster.capture.sync()?;
        connection.wait_flowing().with_context(|| format!("round {round}, enabled"))?;
        datagrams.wait_flowing().with_context(|| format!("round {round}, enabled"))?;
        ensure!(!is_in_the_clear(cluster, &a, &b)?, "round {round}: converged, and still in the clear");
        cluster.assert_no_cleartext(&[&a, &b], converged)?;

        label(cluster, &["namespace", "shop"], None)?;
        let silent = |object: &Value| annotation(object).is_none_or(|status| !status.starts_with("encrypted on"));
        cluster.kubectl().wait_for(&["namespace", "shop"], "say that it is released", silent)?;
        hauberk_netns::eventually("the pods to talk in the clear again", || {
            Ok(is_in_the_clear(cluster, &a, &b)?.then_some(()))
        })?;
        connection.wait_flowing().with_context(|| format!("round {round}, released"))?;
    }
    println!("{:?}", connection.stop()?);
    println!("{:?}", datagrams.stop()?);
    let pods: Value = cluster.kubectl().get(&["pods", "-n", "shop"])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(restarts == 0, "{} was restarted", pod["metadata"]["name"]);
    }
    cluster.delete_namespace("shop")
}

fn pod_override(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("shop", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("shop", "a", "n1")?, cluster.pod("public", "b", "n2")?);
    let other = cluster.pod("public", "other", "n3")?;
    wait_encrypted(cluster, "shop")?;
    ensure!(is_in_the_clear(cluster, &b, &other)?, "plain pods are encrypted");

    let start = cluster.capture.sync()?;
    label(cluster, &["pod", "-n", "shop", "a"], Some("disabled"))?;
    let refusal = |list: &Value| {
        let events = list["items"].as_array().into_iter().flatten();
        events.into_iter().any(|event| event["involvedObject"]["name"] == "a" && event["type"] == "Warning")
    };
    cluster.kubectl().wait_for(&["events", "-n", "shop"], "tell of the refusal", refusal)?;
    ensure!(!is_in_the_clear(cluster, &a, &b)?, "a pod opted out of its namespace");
    cluster.assert_no_cleartext(&[&a], start)?;

    label(cluster, &["pod", "-n", "public", "b"], Some("enabled"))?;
    let protected = |pod: &Value| annotation(pod).is_some_and(|status| status.starts_with("encrypted"));
    cluster.kubectl().wait_for(&["pod", "-n", "public", "b"], "say that it is encrypted", protected)?;
    hauberk_netns::eventually("b to be encrypted", || Ok((!is_in_the_clear(cluster, &b, &other)?).then_some(())))?;
    cluster.delete_namespace("shop")?;
    cluster.delete_namespace("public")
}

fn status(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("shop", Some("enabled"))?;
    cluster.pod("shop", "a", "n1")?;
    wait_encrypted(cluster, "shop")?;
    let encrypted = |pod: &Value| annotation(pod).is_some_and(|status| status.starts_with("encrypted"));
    cluster.kubectl().wait_for(&["pod", "-n", "shop", "a"], "say that it is encrypted", encrypted)?;
    let configuration: Value =
        cluster.kubectl().wait_for(&["hauberkconfig", "cluster"], "be accepted everywhere", |object| {
            object["status"]["acceptedNodes"].as_u64() == Some(cluster.nodes.len() as u64)
        })?;
    println!("{}", configuration["status"]);
    println!("{}", cluster.kubectl().run(&["get", "hauberkconfig"])?);

    let agents: Value = cluster.kubectl().get(&["pods", "-n", "hauberk-system"])?;
    let agents = agents["items"].as_array().context("no agents")?.clone();
    ensure!(agents.len() == cluster.nodes.len(), "{} agents", agents.len());
    for agent in &agents {
        let name = agent["metadata"]["name"].as_str().unwrap_or_default();
        let said = cluster.kubectl().exec(&format!("hauberk-system/{name}"), &["hauberk", "status"])?;
        ensure!(said.contains("shop"), "hauberk status in {name}:\n{said}");
        println!("{said}");
    }
    cluster.delete_namespace("shop")
}
