//! Nodes are open for pods only through hauberk, names resolve, and pods talk across nodes.

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::{Context, Test};
use hauberk_netns::Family;
use hauberk_netns::traffic::{Exchange, Protocol, exchange_all};

pub const TESTS: &[Test] = &[
    Test::new("nodes::are_ready_only_through_hauberk", only_through_hauberk),
    Test::new("nodes::pods_resolve_names", names),
    Test::new("nodes::pods_talk_across_nodes", across_nodes),
];

fn only_through_hauberk(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    for bare in &cluster.bare_nodes {
        let name = &bare["metadata"]["name"];
        let conditions = bare["status"]["conditions"].as_array().context("no conditions")?;
        let ready = conditions.iter().find(|each| each["type"] == "Ready").context("no condition Ready")?;
        ensure!(ready["status"] == "False", "{name} was Ready before hauberk: {ready}");
        let message = ready["message"].as_str().unwrap_or_default();
        ensure!(message.contains("cni plugin not initialized"), "{name} was not waiting for us: {message}");
        let taints = bare["spec"]["taints"].as_array().context("no taints")?;
        ensure!(taints.iter().any(|taint| taint["key"] == "hauberk.io/agent-not-ready"), "{name}: {taints:?}");
    }
    cluster.wait_ready()?;
    for node in &cluster.nodes {
        let file = node.machine.file("/etc/cni/net.d/05-hauberk.conflist");
        ensure!(file.is_file(), "no {}", file.display());
    }
    Ok(())
}

fn names(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.namespace("names", Some("enabled"))?;
    for node in &cluster.nodes {
        let name = format!("on-{}", node.name());
        cluster.pod("names", &name, node.name())?;
        // glibc's resolver with the resolv.conf that the kubelet wrote: search domains, and the
        // Service of CoreDNS.
        let pod = format!("names/{name}");
        let found = cluster.kubectl().exec(&pod, &["getent", "ahostsv4", "kubernetes.default"])?;
        ensure!(found.contains("10.96.0.1"), "on {}: {found}", node.name());
        let found = cluster.kubectl().exec(&pod, &["getent", "ahostsv4", "kube-dns.kube-system.svc.cluster.local"])?;
        ensure!(found.contains("10.96.0.10"), "on {}: {found}", node.name());
    }
    cluster.delete_namespace("names")
}

/// Every pair of nodes, both ways, both families: within an opted-in namespace, and to and from one
/// that is not opted in.
fn across_nodes(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    let start = cluster.capture.sync()?;
    cluster.namespace("shop", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (mut protected, mut plain) = (Vec::new(), Vec::new());
    for node in &cluster.nodes {
        protected.push(cluster.pod("shop", &format!("on-{}", node.name()), node.name())?);
        plain.push(cluster.pod("public", &format!("on-{}", node.name()), node.name())?);
    }
    let all: Vec<_> = protected.iter().chain(&plain).collect();
    let mut exchanges = Vec::new();
    for from in &all {
        for to in all.iter().filter(|to| to.name != from.name) {
            for family in Family::ALL {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                    exchanges.push(Exchange::new(protocol, family, from, to));
                }
            }
        }
    }
    let outcomes = exchange_all(&exchanges)?;
    let failed: Vec<_> = exchanges.iter().zip(&outcomes).filter(|(_, outcome)| !outcome.answered).collect();
    for (exchange, outcome) in &failed {
        println!("{exchange}: {}", outcome.said);
    }
    ensure!(failed.is_empty(), "{} of {} exchanges failed", failed.len(), exchanges.len());
    cluster.assert_no_cleartext(&protected.iter().collect::<Vec<_>>(), start)?;
    // The capture sees plaintext: the traffic between plain pods.
    let seen = cluster.cleartext(&plain.iter().collect::<Vec<_>>(), start)?;
    ensure!(!seen.is_empty(), "plain pods talked across nodes and the capture saw nothing");
    for namespace in ["shop", "public"] {
        cluster.delete_namespace(namespace)?;
    }
    Ok(())
}
