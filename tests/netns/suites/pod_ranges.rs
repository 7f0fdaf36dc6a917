//! The node's own pod range is set late, and changes, while the agent runs: all consequences follow
//! without a restart.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::plugin::Attachment;
use hauberk_netns::traffic::{Exchange, Protocol, wait_answered};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Netns, Party, Pod, Setup, Test, eventually};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("pod_ranges::one_that_comes_late", late),
    Test::new("pod_ranges::one_that_changes_bpf", |context| changed(context, HostRouting::Bpf)),
    Test::new("pod_ranges::one_that_changes_stack", |context| changed(context, HostRouting::Stack)),
];

/// Talks from one to the other as soon as the agents have followed. Returns the client address that
/// the server saw.
fn talk(from: &Party, to: &Party, family: Family) -> Result<Option<IpAddr>> {
    Ok(wait_answered(&Exchange::new(Protocol::Tcp, family, from, to))?.seen_client)
}

/// Fails unless all of them talk with each other across nodes, and the world sees their node's
/// address.
fn all_talk(cluster: &Cluster, here: &[&Pod], there: &[&Pod]) -> Result<()> {
    for family in Family::ALL {
        for (one, other) in here.iter().flat_map(|one| there.iter().map(move |other| (*one, *other))) {
            talk(one, other, family)?;
            talk(other, one, family)?;
        }
        for pod in here {
            let seen = talk(pod, &cluster.outside, family)?;
            ensure!(seen == Some(pod.node.address(family)), "the world saw {seen:?} for {}", pod.party.name);
        }
    }
    Ok(())
}

fn set_ranges(cluster: &Cluster, node: usize, ranges: &[String]) -> Result<()> {
    cluster.manifests.change("node", &cluster.nodes[node].name, |object| {
        object["spec"] = json!({"podCIDR": ranges.first(), "podCIDRs": ranges});
    })
}

fn late(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { start: false, ..Setup::default() })?;
    let node = &cluster.nodes[0];
    let ranges = node.pod_ranges.clone();
    cluster.manifests.change("node", &node.name, |object| object["spec"] = json!({}))?;
    for node in &cluster.nodes {
        node.start_agent()?;
    }
    cluster.wait_ready()?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    eventually("the status to tell that there is no pod range", || {
        let problems = node.agent.status()?.problems;
        let found = problems.iter().any(|one| one.object == "node/n1" && one.message.contains("spec.podCIDRs"));
        ensure!(found, "{problems:?}");
        Ok(Some(()))
    })?;
    // The plugin waits for a range until its time limit, and then says what it waited for.
    let mut config = node.plugin.config.clone();
    config["timeoutSeconds"] = json!(1);
    let netns = Netns::create("early")?;
    let path = netns.path();
    let early = Attachment { container: "early", netns: &path, interface: "eth0", pod: Some(("payments", "early")) };
    let answer = node.plugin.run("ADD", Some(&early), &config)?;
    ensure!(!answer.success && answer.output.to_string().contains("no pod range"), "{answer:?}");

    set_ranges(&cluster, 0, &ranges)?;
    let pods = [
        cluster.pod("payments", "a", 0)?,
        cluster.pod("public", "c", 0)?,
        cluster.pod("payments", "b", 1)?,
        cluster.pod("public", "d", 1)?,
    ];
    cluster.wait_known(&pods.each_ref())?;
    let [a, c, b, d] = &pods;
    all_talk(&cluster, &[a, c], &[b, d])?;
    let problems = node.agent.status()?.problems;
    ensure!(!problems.iter().any(|one| one.message.contains("podCIDRs")), "{problems:?}");
    assert_protected(&cluster, &pods)
}

fn changed(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let [a, c, b, d] = [
        cluster.pod("payments", "a", 0)?,
        cluster.pod("public", "c", 0)?,
        cluster.pod("payments", "b", 1)?,
        cluster.pod("public", "d", 1)?,
    ];
    cluster.wait_known(&[&a, &b, &c, &d])?;
    all_talk(&cluster, &[&a, &c], &[&b, &d])?;

    let ranges = ["10.244.101.0/24".to_owned(), "fd00:10:244:101::/64".to_owned()];
    set_ranges(&cluster, 0, &ranges)?;
    // Existing pods keep their addresses, also while no agent has followed yet.
    all_talk(&cluster, &[&a, &c], &[&b, &d])?;
    let mut number = 0;
    let a2 = eventually("a new pod to have an address of the new range", || {
        number += 1;
        let pod = cluster.pod("payments", &format!("a{number}"), 0)?;
        let of_new = |address: &IpAddr| {
            let text = address.to_string();
            text.starts_with("10.244.101.") || text.starts_with("fd00:10:244:101:")
        };
        Ok(pod.addresses().iter().all(of_new).then_some(pod))
    })?;
    let c2 = cluster.pod("public", "c2", 0)?;
    let pods = [a, c, b, d, a2, c2];
    cluster.wait_known(&pods.each_ref())?;
    let [a, c, b, d, a2, c2] = &pods;
    all_talk(&cluster, &[a, c, a2, c2], &[b, d])?;
    // A restart does not change that.
    let node = &cluster.nodes[0];
    node.agent.terminate()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    all_talk(&cluster, &[a, c, a2, c2], &[b, d])?;
    let routes = |node: usize| -> Result<BTreeSet<String>> {
        let routes = cluster.nodes[node].run("ip", &["route", "show", "proto", "72"])?;
        Ok(routes.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    };
    ensure!(routes(1)?.contains(&a.v4.to_string()), "no route to the pod that stayed: {:?}", routes(1)?);
    // The route to a pod that kept its address is removed with the pod.
    let address = a.v4.to_string();
    a.detach()?;
    cluster.manifests.remove("pod", "payments-a")?;
    eventually("the route to go", || Ok((!routes(1)?.contains(&address)).then_some(())))?;
    assert_protected(&cluster, &pods)
}

fn assert_protected(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let protected: Vec<&Pod> = pods.iter().filter(|pod| pod.namespace == "payments").collect();
    cluster.assert_no_cleartext(&protected, Moment::START)
}
