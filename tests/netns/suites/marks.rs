//! Other programs write packets' marks as well. Whatever they write, hauberk's verdicts do not
//! depend on it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use hauberk_netns::analysis;
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{Exchange, Protocol, exchange_all};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Node, Pod, Setup, Test, nat};

pub const TESTS: &[Test] = &[
    Test::new("marks::bpf_lost_on_the_way", |context| rewritten(context, HostRouting::Bpf, LOST)),
    Test::new("marks::stack_lost_on_the_way", |context| rewritten(context, HostRouting::Stack, LOST)),
    Test::new("marks::stack_set_to_what_hauberk_writes", |context| rewritten(context, HostRouting::Stack, FORGED)),
    Test::new("marks::stack_lost_before_the_last_guard", |context| rewritten(context, HostRouting::Stack, LATE)),
];

/// Rules that restore a connection's mark, as wg-quick and VPCs' CNI plugins have. No connection
/// has a mark, so every packet's mark is cleared.
const LOST: [(&str, &str); 3] = [
    ("prerouting priority mangle", "meta mark set ct mark"),
    ("output priority mangle", "meta mark set ct mark"),
    ("postrouting priority mangle", "meta mark set ct mark"),
];
/// A rule that runs after all of hauberk's own rules.
const LATE: [(&str, &str); 1] = [("postrouting priority 300", "meta mark set 0")];
/// Rules that set every bit of a mark, including hauberk's.
const FORGED: [(&str, &str); 2] =
    [("prerouting priority raw", "meta mark set 0xffffffff"), ("postrouting priority 300", "meta mark set 0xffffffff")];

fn rewrite(node: &Node, rules: &[(&str, &str)]) -> Result<()> {
    let chains: Vec<String> = rules
        .iter()
        .enumerate()
        .map(|(number, (hook, rule))| {
            let kind = if hook.starts_with("output") { "route" } else { "filter" };
            format!("chain c{number} {{ type {kind} hook {hook}; policy accept; {rule}; }}")
        })
        .collect();
    node.netns.nft(&format!("table inet others {{\n{}\n}}", chains.join("\n")))
}

/// Every protected pair still talks, directly and through a masqueraded service, and none of its
/// packets are in the clear.
fn rewritten(
    context: &Context,
    host_routing: HostRouting,
    rules: impl AsRef<[(&'static str, &'static str)]>,
) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    let (c, d) = (cluster.pod("public", "c", 0)?, cluster.pod("public", "d", 1)?);
    cluster.wait_known(&[&a, &b, &c, &d])?;
    for node in &cluster.nodes {
        rewrite(node, rules.as_ref())?;
    }
    let mut exchanges = Vec::new();
    for family in Family::ALL {
        let pairs: [(&Pod, &Pod); 5] = [(&a, &b), (&a, &d), (&c, &b), (&b, &a), (&d, &a)];
        for (client, server) in pairs {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                exchanges.push(Exchange::new(protocol, family, client, server));
            }
        }
        for (number, backend) in [(1, &d.party), (2, &cluster.nodes[1].party)] {
            let service = nat::service_address(family, number);
            nat::add_service(&cluster.nodes[0], service, backend.address(family))?;
            nat::masquerade_to(&cluster.nodes[0], backend.address(family))?;
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let port = 24000 + exchanges.len() as u16;
                exchanges.push(Exchange::new(protocol, family, &a, backend).via(SocketAddr::new(service, port), port));
            }
        }
        // The kubelet's probes, and a pod on the same node.
        exchanges.push(Exchange::new(Protocol::Tcp, family, &cluster.nodes[0], &a));
        exchanges.push(Exchange::new(Protocol::Udp, family, &c, &a));
    }
    let since = cluster.capture.sync()?;
    let outcomes = exchange_all(&exchanges)?;
    let seen = analysis::markers(&cluster.capture.since(since)?);
    let mut wrong = Vec::new();
    for (exchange, outcome) in exchanges.iter().zip(&outcomes) {
        if !outcome.answered {
            wrong.push(format!("{exchange}: no answer: {}", outcome.said));
        }
        if [outcome.request, outcome.reply].iter().any(|marker| seen.contains_key(marker)) {
            wrong.push(format!("{exchange}: its payload is on the wire in the clear"));
        }
    }
    for node in &cluster.nodes {
        println!("drops on {}: {:?}", node.name, node.agent.all_drops()?);
    }
    ensure!(wrong.is_empty(), "{} of {}:\n  {}", wrong.len(), exchanges.len(), wrong.join("\n  "));
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}
