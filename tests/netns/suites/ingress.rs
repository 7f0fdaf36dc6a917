//! Connections to a pod: a connection that arrives through the host's stack is also answered
//! through it, so that connection tracking sees both directions or none.

use anyhow::{Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{Exchange, Protocol, assert_answered, exchange_all};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Setup, Test};
use serde_json::json;

use crate::outages::pods;

pub const TESTS: &[Test] = &[
    Test::new("ingress::bpf_the_world_talks_to_pods", |context| from_the_world(context, HostRouting::Bpf)),
    Test::new("ingress::stack_the_world_talks_to_pods", |context| from_the_world(context, HostRouting::Stack)),
    Test::new("ingress::bpf_a_strict_firewall_sees_whole_connections", |context| strict(context, HostRouting::Bpf)),
    Test::new("ingress::stack_a_strict_firewall_sees_whole_connections", |context| strict(context, HostRouting::Stack)),
];

/// Connections to pods' own addresses, through a router that has routes to them.
fn from_the_world(context: &Context, host_routing: HostRouting) -> Result<()> {
    let config = json!({"worldIngress": "direct"});
    let cluster = Cluster::build(context, Setup { host_routing, config, ..Setup::default() })?;
    let pods = pods(&cluster)?;
    let outside = &cluster.outside;
    for node in &cluster.nodes {
        outside.netns.ip(&format!(
            "route add {} via {}\nroute add {} via {}",
            node.pod_ranges[0], node.v4, node.pod_ranges[1], node.v6
        ))?;
    }
    let mut exchanges = Vec::new();
    for pod in &pods {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Fragments] {
                exchanges.push(Exchange::new(protocol, family, outside, pod));
            }
        }
    }
    let outcomes = exchange_all(&exchanges)?;
    let wrong: Vec<String> = exchanges
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| !outcome.answered)
        .map(|(exchange, outcome)| format!("{exchange}: delivered {}: {}", outcome.delivered, outcome.said))
        .collect();
    ensure!(wrong.is_empty(), "{} of {} were not answered:\n  {}", wrong.len(), exchanges.len(), wrong.join("\n  "));
    Ok(())
}

/// With a rule that many administrators begin with: packets that connection tracking calls invalid
/// are dropped.
fn strict(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    let [a, b, c, d] = pods(&cluster)?;
    for node in &cluster.nodes {
        node.netns.nft(
            "table inet strict {
                chain forward {
                    type filter hook forward priority filter; policy accept;
                    ct state invalid drop
                }
            }",
        )?;
    }
    let [n1, n2] = [&cluster.nodes[0].party, &cluster.nodes[1].party];
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];
    let pairs = [(&c.party, n2), (n2, &c.party), (&d.party, n1), (n1, &d.party), (&a.party, n2), (n2, &a.party)];
    for (from, to) in pairs {
        assert_answered(from, to, &protocols)?;
    }
    for (from, to) in [(&a, &b), (&b, &a), (&c, &d), (&d, &c), (&a, &d), (&d, &a)] {
        assert_answered(from, to, &protocols)?;
    }
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}
