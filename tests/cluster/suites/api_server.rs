//! What the harness itself guarantees about the API server. If it fails, the suites on it prove
//! nothing.

use anyhow::{Result, ensure};
use hauberk_cluster::{Context, ControlPlane, Options, Test};
use serde_json::Value;

pub const TESTS: &[Test] = &[Test::new("api_server::comes_back_as_it_was_or_empty", comes_back)];

fn comes_back(context: &Context) -> Result<()> {
    let control_plane = ControlPlane::start(&context.directory, &Options::default())?;
    let kubectl = &control_plane.kubectl;
    kubectl.apply("{apiVersion: v1, kind: Node, metadata: {name: n1}}")?;
    kubectl.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: agent, namespace: default}}")?;

    // A bound token names the node to the API server; a kubelet may not write another node's
    // object.
    let token = kubectl.token("default/agent", Some("n1"))?;
    let account = kubectl.with_token("agent", &token)?;
    let me = account.run(&["auth", "whoami", "-o", "json"])?;
    ensure!(me.contains("authentication.kubernetes.io/node-name"), "the token names no node: {me}");
    kubectl.apply("{apiVersion: v1, kind: Node, metadata: {name: n2}}")?;
    let refusal = control_plane.kubectl_as("n1").refused(&["annotate", "node", "n2", "a=b"], "")?;
    ensure!(refusal.contains("is forbidden"), "{refusal}");

    let uid = |object: Value| object["metadata"]["uid"].as_str().map(str::to_owned);
    let before = uid(kubectl.get(&["namespace", "kube-system"])?);
    control_plane.stop_api_server()?;
    kubectl.refused(&["get", "nodes"], "")?;
    control_plane.start_api_server()?;
    kubectl.run(&["get", "node", "n1"])?;
    ensure!(uid(kubectl.get(&["namespace", "kube-system"])?) == before, "a restart made another cluster");

    control_plane.stop_api_server()?;
    control_plane.wipe_etcd()?;
    control_plane.start_api_server()?;
    let refusal = kubectl.refused(&["get", "node", "n1"], "")?;
    ensure!(refusal.contains("not found"), "{refusal}");
    let fresh = kubectl.wait_for(&["namespace", "kube-system"], "exist", |_| true)?;
    ensure!(uid(fresh) != before, "emptied, it is still the same cluster");
    Ok(())
}
