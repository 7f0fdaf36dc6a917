//! Whatever ends an agent, a kubelet or the API server, protected pods' packets are sealed or
//! dropped, and traffic that can go on does. Traffic flows all the time, and the capture begins
//! before its pods exist.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::chart::NAMESPACE;
use hauberk_cluster::{Cluster, Context, Node, Test};
use hauberk_netns::Party;
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{self, Protocol};
use hauberk_netns::wait::{self, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::conversation::Conversation;

pub const TESTS: &[Test] = &[
    Test::new("lifecycle::a_deleted_agent_leaves_no_gap", deleted_agent),
    Test::new("lifecycle::a_rolling_update_leaves_no_gap", rolling_update),
    Test::new("lifecycle::a_killed_agent_leaves_no_gap", killed_agent),
    Test::new("lifecycle::a_restarted_kubelet_is_not_noticed", restarted_kubelet),
    Test::new("lifecycle::an_api_server_that_is_away_opens_nothing_and_stops_nothing", api_server_away),
];

/// How long the API server does not run.
const AWAY: Duration = Duration::from_secs(40);
/// Limit for a kubelet that backs off before it restarts a container.
const RESTART: Duration = Duration::from_secs(180);

fn deleted_agent(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("shop", Some("enabled"))?;
    let talk = Conversation::begin(cluster, "shop", ["n1", "n2"])?;
    let start = cluster.capture.sync()?;
    let node = cluster.node("n1")?;
    let before = started(node)?;
    let agent = agent_pod(cluster, node)?;
    let name = agent["metadata"]["name"].as_str().context("the agent's pod has no name")?;
    cluster.kubectl().run(&["delete", "pod", "-n", NAMESPACE, name, "--wait=false"])?;
    // A new pod waits while there is no agent.
    let late = cluster.pod("shop", "late", "n1")?;
    wait_restarted(node, &before)?;
    cluster.wait_ready()?;
    ensure!(agent_pod(cluster, node)?["metadata"]["uid"] != agent["metadata"]["uid"], "the agent is still the old one");
    talk.wait_flowing("after the agent was deleted")?;
    assert_sealed(cluster, &late, &talk.pods[1], start)?;
    talk.end()?;
    cluster.delete_namespace("shop")
}

fn rolling_update(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("shop", Some("enabled"))?;
    let talk = Conversation::begin(cluster, "shop", ["n1", "n2"])?;
    let before = cluster.nodes.iter().map(started).collect::<Result<Vec<_>>>()?;
    cluster.kubectl().run(&["rollout", "restart", "daemonset/hauberk", "-n", NAMESPACE])?;
    cluster.kubectl().run(&["rollout", "status", "daemonset/hauberk", "-n", NAMESPACE, "--timeout=300s"])?;
    for (node, before) in cluster.nodes.iter().zip(&before) {
        wait_restarted(node, before)?;
    }
    cluster.wait_ready()?;
    talk.wait_flowing("after the rolling update")?;
    talk.end()?;
    cluster.delete_namespace("shop")
}

/// As when the kernel kills the agent because memory is short.
fn killed_agent(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("shop", Some("enabled"))?;
    let talk = Conversation::begin(cluster, "shop", ["n1", "n2"])?;
    let node = cluster.node("n2")?;
    let before = started(node)?;
    let agent = agent_pod(cluster, node)?;
    kill(agent_process(node, &agent)?, Signal::SIGKILL).context("SIGKILL to the agent")?;
    wait_restarted(node, &before)?;
    cluster.wait_ready()?;
    talk.wait_flowing("after the agent was killed")?;
    let container = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
    let name = agent["metadata"]["name"].as_str().context("the agent's pod has no name")?;
    let told = cluster.kubectl().wait_for(&["pod", "-n", NAMESPACE, name], "tell of its restart", |pod| {
        container(pod)["restartCount"].as_u64() > container(&agent)["restartCount"].as_u64()
    })?;
    let code = &container(&told)["lastState"]["terminated"]["exitCode"];
    ensure!(*code == 137, "the agent was not killed, it ended with {code}");
    talk.end()?;
    cluster.delete_namespace("shop")
}

fn restarted_kubelet(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("shop", Some("enabled"))?;
    let talk = Conversation::begin(cluster, "shop", ["n1", "n2"])?;
    let start = cluster.capture.sync()?;
    let node = cluster.node("n2")?;
    let before = started(node)?;
    node.kubelet.stop()?;
    let without = talk.wait_flowing("without a kubelet");
    // Restored after a failure too: other tests need it.
    node.kubelet.start()?;
    without?;
    let late = cluster.pod("shop", "late", "n2")?;
    assert_sealed(cluster, &late, &talk.pods[0], start)?;
    cluster.wait_ready()?;
    ensure!(started(node)? == before, "the kubelet restarted the agent as well");
    talk.wait_flowing("after the kubelet's restart")?;
    talk.end()?;
    cluster.delete_namespace("shop")
}

fn api_server_away(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("shop", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let steady = Conversation::begin(cluster, "shop", ["n1", "n2"])?;
    let disturbed = Conversation::begin(cluster, "shop", ["n1", "n3"])?;
    let plain = [cluster.pod("public", "a", "n1")?, cluster.pod("public", "b", "n3")?];
    assert_answered(&plain[0], &plain[1])?;
    let node = cluster.node("n3")?;
    let agent = agent_process(node, &agent_pod(cluster, node)?)?;

    cluster.control_plane.stop_api_server()?;
    let meanwhile = without_api_server(cluster, &steady, node, agent, &plain);
    // Restored after a failure too: other tests need it.
    cluster.control_plane.start_api_server()?;
    meanwhile?;

    for node in &cluster.nodes {
        wait::within(RESTART, format!("the agent on {} to have read everything", node.name()), || {
            let source = source(node)?;
            ensure!(source["unavailable_since"].is_null() && source["synced"] == true, "{source}");
            Ok(Some(()))
        })?;
        ensure!(unavailable_seconds(node)? == 0, "the metrics on {} say that the source is still away", node.name());
    }
    cluster.wait_ready()?;
    steady.wait_flowing("after the API server came back")?;
    disturbed.wait_flowing("after the API server came back to an agent that started without it")?;
    assert_answered(&plain[0], &plain[1])?;
    steady.end()?;
    disturbed.end()?;
    cluster.delete_namespace("shop")?;
    cluster.delete_namespace("public")
}

/// Checks what must hold without the API server. On `restarted`, `agent` is killed and starts
/// without an API server.
fn without_api_server(
    cluster: &Cluster,
    steady: &Conversation<'_>,
    restarted: &Node,
    agent: Pid,
    plain: &[Party; 2],
) -> Result<()> {
    let left = Instant::now();
    let mut since = Vec::new();
    for node in &cluster.nodes {
        since.push(eventually(format!("the status on {} to say since when the source is away", node.name()), || {
            let since = source(node)?["unavailable_since"].take();
            Ok((!since.is_null()).then_some(since))
        })?);
        eventually(format!("the metrics on {} to say so", node.name()), || {
            Ok((unavailable_seconds(node)? > 0).then_some(()))
        })?;
    }
    println!("away since {since:?}");
    steady.wait_flowing("without an API server")?;

    let before = started(restarted)?;
    kill(agent, Signal::SIGKILL).context("SIGKILL to the agent")?;
    wait_restarted(restarted, &before)?;
    eventually("the agent that started without an API server to name the problem", || {
        let status: Value = restarted.agent.ask("/v1/status")?;
        let mut problems = status["problems"].as_array().context("no problems")?.iter();
        ensure!(problems.any(|problem| problem["object"] == "source"), "{}", status["problems"]);
        Ok(Some(()))
    })?;
    // Plain pods' traffic goes on through the datapath that stayed.
    assert_answered(&plain[0], &plain[1])?;
    while left.elapsed() < AWAY {
        steady.wait_flowing("without an API server")?;
        thread::sleep(Duration::from_secs(1));
    }
    let still = source(&cluster.nodes[0])?["unavailable_since"].take();
    ensure!(still == since[0], "away since {}, and later since {still}", since[0]);
    Ok(())
}

/// The agent's pod on a node, without pods that are terminating.
fn agent_pod(cluster: &Cluster, node: &Node) -> Result<Value> {
    let on_node = format!("spec.nodeName={}", node.name());
    let agents = ["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=agent", "--field-selector", &on_node];
    let pods: Value = cluster.kubectl().get(&agents)?;
    let mut staying =
        pods["items"].as_array().into_iter().flatten().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    staying.next().cloned().with_context(|| format!("no agent's pod on {}", node.name()))
}

fn agent_process(node: &Node, pod: &Value) -> Result<Pid> {
    let container =
        pod["status"]["containerStatuses"][0]["containerID"].as_str().context("the agent has no container")?;
    Ok(Pid::from_raw(node.process(container)? as i32))
}

/// The start time of the agent that answers on a node.
fn started(node: &Node) -> Result<Value> {
    Ok(node.agent.ask::<Value>("/v1/status")?["started"].take())
}

/// Waits until an agent answers that was not started at `before`.
fn wait_restarted(node: &Node, before: &Value) -> Result<()> {
    wait::within(RESTART, format!("a new agent on {}", node.name()), || Ok((started(node)? != *before).then_some(())))
}

fn source(node: &Node) -> Result<Value> {
    Ok(node.agent.ask::<Value>("/v1/status")?["source"].take())
}

fn unavailable_seconds(node: &Node) -> Result<u64> {
    let (code, text) = node.agent.get("/metrics")?;
    ensure!(code == 200, "/metrics on {} says {code}", node.name());
    let value = text.lines().find_map(|line| line.strip_prefix("hauberk_source_unavailable_seconds "));
    let value = value.with_context(|| format!("no hauberk_source_unavailable_seconds on {}:\n{text}", node.name()))?;
    value.trim().parse().with_context(|| format!("hauberk_source_unavailable_seconds {value}"))
}

fn assert_answered(from: &Party, to: &Party) -> Result<()> {
    traffic::assert_answered(from, to, &[Protocol::Tcp])
}

/// Fails unless a pod that is newer than `start` can talk with another, and was never in the clear.
fn assert_sealed(cluster: &Cluster, new: &Party, other: &Party, start: Moment) -> Result<()> {
    assert_answered(new, other)?;
    assert_answered(other, new)?;
    cluster.assert_no_cleartext(&[new], start)
}
