//! Programs of others on a node that the operator has to be told of, because only they can make it right.

use std::time::Duration;

use anyhow::{Result, ensure};
use hauberk_core::api::{Problem, Severity};
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{Exchange, Protocol, exchange};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Node, Party, Setup, Test, eventually};

pub const TESTS: &[Test] = &[
    Test::new("neighbours::a_firewall_that_drops_what_is_forwarded_is_named", |context| {
        firewall(context, "FORWARD", "forward")
    }),
    Test::new("neighbours::a_firewall_that_drops_what_is_delivered_is_named", |context| {
        firewall(context, "INPUT", "input")
    }),
];

/// What the status says of netfilter.
fn problems(node: &Node) -> Result<Vec<Problem>> {
    Ok(node.agent.status()?.problems.into_iter().filter(|problem| problem.object == "netfilter").collect())
}

/// As Docker, ufw and firewalld leave a node: what no rule accepts is dropped.
fn firewall(context: &Context, chain: &str, hook: &str) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Stack, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let node = &cluster.nodes[1];
    let server: &Party = if hook == "forward" { &b.party } else { &node.party };
    let talk = |patience| -> Result<bool> {
        Ok(exchange(&Exchange::new(Protocol::Udp, Family::V4, &a, server).patience(patience))?.answered)
    };
    ensure!(talk(Duration::from_secs(20))?, "no answer without a firewall");
    ensure!(problems(node)?.is_empty(), "{:?}", problems(node)?);
    // The tunnel's own packets are let in, as every guide says.
    node.netns.nft(&format!(
        "table ip filter {{
           chain {chain} {{ type filter hook {hook} priority 0; policy drop; iifname \"eth0\" udp dport 51840 accept
             iifname \"lo\" accept
           }}
         }}"
    ))?;
    eventually("the status to name the chain", || {
        ensure!(!talk(Duration::from_millis(300))?, "answered through a firewall that drops it");
        let found = problems(node)?;
        let named = found.iter().any(|problem| {
            problem.severity == Severity::Critical && problem.message.contains(&format!("ip filter {chain} ({hook})"))
        });
        ensure!(named, "{found:?}");
        Ok(Some(()))
    })?;
    let check = node
        .command(hauberk_netns::programs::ours("hauberkd")?)
        .arg("--config")
        .arg(node.config())
        .arg("check")
        .output()?;
    let said = String::from_utf8_lossy(&check.stdout);
    ensure!(said.contains(&format!("ip filter {chain}")), "`hauberkd check` does not name it: {said}");
    ensure!(said.contains("the kernel takes all 7 programs"), "`hauberkd check` does not try the programs: {said}");
    let left = node.run("find", &["/sys/fs/bpf", "-name", "hauberk-check-*"])?;
    ensure!(left.is_empty(), "`hauberkd check` left {left}");
    node.netns.nft("delete table ip filter")?;
    eventually("the pods to talk, and the status to be without it", || {
        ensure!(talk(Duration::from_secs(5))?, "no answer");
        let found = problems(node)?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(Some(()))
    })?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}
