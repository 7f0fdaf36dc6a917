//! What an operator sees: the `hauberk` command against real agents.

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::traffic::{Exchange, Protocol, exchange};
use hauberk_netns::{Cluster, Context, Family, Setup, Test, eventually, manifests};
use serde_json::Value;

pub const TESTS: &[Test] = &[Test::new("cli::shows_what_is_true", shows)];

/// A pod of an opted-in namespace that has its node's address is named with the reason, and
/// `explain` reports its plaintext as a failure.
fn on_the_nodes_network(cluster: &Cluster) -> Result<()> {
    let (node, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    let mut object = manifests::pod("payments", "proxy", &other.name);
    object["spec"]["hostNetwork"] = true.into();
    manifests::set_addresses(&mut object, &other.addresses());
    cluster.manifests.put("pod", "payments-proxy", &object)?;
    for asked in &cluster.nodes {
        eventually(format!("{} to name the pod", asked.name), || {
            let (_, text, _) = asked.cli(&["status"])?;
            Ok(text.lines().any(|line| line.contains("proxy") && line.contains("hostNetwork")).then_some(()))
        })?;
        let events = asked.agent.events()?;
        let told = events.iter().filter(|event| event.reason == "HostNetworkPod").count();
        ensure!(told == 1, "{told} events on {}: {events:?}", asked.name);
        let (code, text, _) = asked.cli(&["explain", "payments/proxy", &node.name])?;
        ensure!(
            code == 2 && text.contains("payments/proxy is on its node's network"),
            "{code} on {}: {text}",
            asked.name
        );
    }
    let (code, text, _) = node.cli(&["explain", "payments/proxy", "payments/a"])?;
    ensure!(code == 0 && text.contains("is encrypted from n2 to n1"), "{code}: {text}");
    cluster.manifests.remove("pod", "payments-proxy")?;
    eventually("the pod to be forgotten", || Ok((!node.cli(&["status"])?.1.contains("payments/proxy")).then_some(())))
}

fn shows(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup::default())?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    let (c, d) = (cluster.pod("public", "c", 0)?, cluster.pod("public", "d", 1)?);
    cluster.wait_known(&[&a, &b, &c, &d])?;
    for (from, to) in [(&a, &b), (&a, &d), (&c, &d)] {
        let one = Exchange::new(Protocol::Tcp, Family::V4, from, to);
        let outcome = exchange(&one)?;
        ensure!(outcome.answered, "{one}: {outcome:?}");
    }
    let node = &cluster.nodes[0];
    let run = |arguments: &[&str]| -> Result<String> {
        let (code, printed, errors) = node.cli(arguments)?;
        ensure!(code == 0, "`hauberk {}` ended with {code}: {printed}{errors}", arguments.join(" "));
        println!("$ hauberk {}\n{printed}", arguments.join(" "));
        Ok(printed)
    };
    eventually("`hauberk status` to be content", || Ok((node.cli(&["status"])?.0 == 0).then_some(())))?;
    let text = run(&["status", "--verbose"])?;
    for expected in ["n2", "payments", "userspace", "51840", "10.244.2.0/24"] {
        ensure!(text.contains(expected), "`hauberk status` does not say {expected}");
    }
    let status: Value = serde_json::from_str(&run(&["status", "-o", "json"])?).context("JSON of status")?;
    let payments = status["namespaces"].as_array().into_iter().flatten().find(|entry| entry["name"] == "payments");
    let payments = payments.context("no namespace payments in the status")?;
    ensure!(payments["protected_pods"] == 2 && payments["nodes"] == 2, "{payments}");
    let explained = run(&["explain", "payments/a", "payments/b"])?;
    ensure!(explained.contains("n2"), "`hauberk explain` does not name the peer");
    for asked in &cluster.nodes {
        let (_, explained, _) = asked.cli(&["explain", "payments/a", "public/d"])?;
        ensure!(explained.contains("is encrypted from n1 to n2"), "asked on {}: {explained}", asked.name);
        ensure!(
            explained.contains("plaintext_leaving") == (asked.name == "n1"),
            "asked on {}: {explained}",
            asked.name
        );
    }
    on_the_nodes_network(&cluster)?;
    let explained: Value =
        serde_json::from_str(&run(&["explain", "payments/a", "public/d", "-o", "json"])?).context("JSON")?;
    ensure!(explained["encryption"] == "encrypted" && !explained["last_proven"].is_null(), "{explained}");
    let explained: Value =
        serde_json::from_str(&run(&["explain", "public/c", "public/d", "-o", "json"])?).context("JSON")?;
    ensure!(explained["encryption"] == "plain" && explained["why"] == "not_opted_in", "{explained}");
    ensure!(run(&["flows"])?.contains("encrypted"), "`hauberk flows` shows no encrypted flow");
    run(&["drops"])?;
    run(&["bpf"])?;
    run(&["version"])?;
    let (code, _, errors) = node.cli(&["explain", "payments/nobody", "payments/b"])?;
    ensure!(code == 1 && errors.contains("nobody"), "an unknown pod: {code} {errors}");
    cluster.nodes[0].agent.kill()?;
    let (code, _, errors) = node.cli(&["status"])?;
    ensure!(code == 1 && !errors.is_empty(), "without an agent: {code} {errors}");
    println!("{errors}");
    Ok(())
}
