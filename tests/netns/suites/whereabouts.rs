//! Peers that do not match their configuration in place or time: behind address translation, cut
//! off in one address family, or with a clock that was set back.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{Exchange, Protocol, wait_answered};
use hauberk_netns::{Cluster, Context, Family, Node, Pod, Setup, Test, eventually, programs};

pub const TESTS: &[Test] = &[
    Test::new("whereabouts::a_family_that_is_cut_between_nodes", one_family),
    Test::new("whereabouts::a_peer_behind_a_translation_of_addresses", behind_nat),
    Test::new("whereabouts::a_clock_that_was_set_back_over_a_restart", clock),
];

/// Two nodes with a protected pod each. `prepare` runs before the agents start.
fn playground(context: &Context, prepare: impl FnOnce(&Cluster) -> Result<()>) -> Result<(Cluster, Pod, Pod)> {
    let cluster = Cluster::build(context, Setup { start: false, ..Setup::default() })?;
    prepare(&cluster)?;
    cluster.start()?;
    cluster.wait_ready()?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    Ok((cluster, a, b))
}

fn wait_talking(from: &Pod, to: &Pod) -> Result<()> {
    for family in Family::ALL {
        wait_answered(&Exchange::new(Protocol::Tcp, family, from, to))?;
    }
    Ok(())
}

fn one_family(context: &Context) -> Result<()> {
    let (cluster, a, b) = playground(context, |_| Ok(()))?;
    wait_talking(&a, &b)?;
    let node = &cluster.nodes[1];
    let endpoint_is = |v4: bool| {
        eventually("the status to name the address that is used", || {
            let peers = cluster.nodes[0].agent.status()?.peers;
            let used = peers.iter().find(|peer| peer.node == node.name).and_then(|peer| peer.endpoint);
            Ok(used.is_some_and(|used| used.is_ipv4() == v4).then_some(()))
        })
    };
    endpoint_is(true)?;
    // A firewall or a router between the nodes that carries IPv6 alone.
    node.netns.nft(
        "table ip cut {
           chain input { type filter hook input priority -200; iifname \"eth0\" udp dport 51840 drop; }
           chain output { type filter hook output priority -200; oifname \"eth0\" udp sport 51840 drop; }
         }",
    )?;
    wait_talking(&a, &b)?;
    wait_talking(&b, &a)?;
    endpoint_is(false)?;
    // The same when the agent starts in this state.
    cluster.nodes[0].agent.kill()?;
    cluster.nodes[0].start_agent()?;
    cluster.nodes[0].agent.wait_ready()?;
    wait_talking(&a, &b)?;
    node.netns.nft("delete table ip cut")?;
    wait_talking(&b, &a)?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

/// As a router in front of a node does: packets from the node get another source port, and packets
/// to the node's own port are lost.
fn translate(node: &Node) -> Result<()> {
    node.netns.nft(&format!(
        "table ip translated {{
           chain out {{ type nat hook postrouting priority 100
             oifname \"eth0\" udp sport 51840 snat to {}:40000-40099
           }}
           chain in {{ type filter hook prerouting priority -300; iifname \"eth0\" udp dport 51840 drop; }}
         }}
         table ip6 translated {{
           chain in {{ type filter hook prerouting priority -300; iifname \"eth0\" udp dport 51840 drop; }}
         }}",
        node.v4
    ))
}

fn behind_nat(context: &Context) -> Result<()> {
    let (cluster, a, b) = playground(context, |cluster| translate(&cluster.nodes[0]))?;
    wait_talking(&a, &b)?;
    wait_talking(&b, &a)?;
    let node = &cluster.nodes[0];
    let peers = cluster.nodes[1].agent.status()?.peers;
    let heard = peers.iter().find(|peer| peer.node == node.name).and_then(|peer| peer.endpoint);
    ensure!(heard.is_some_and(|heard| (40000..40100).contains(&heard.port())), "answered at {heard:?}");
    node.netns.nft("delete table ip translated; delete table ip6 translated")?;
    wait_talking(&b, &a)?;
    wait_talking(&a, &b)?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

/// The library that shows a process a different time: Debian's `libfaketime`.
fn fake_time() -> Result<String> {
    let folders = fs::read_dir("/usr/lib")?.flatten();
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let found = libraries.find(|library| library.exists()).context("libfaketime is missing: run `make setup`")?;
    Ok(found.to_string_lossy().into_owned())
}

fn clock(context: &Context) -> Result<()> {
    let (cluster, a, b) = playground(context, |_| Ok(()))?;
    let node = &cluster.nodes[0];
    node.agent.kill()?;
    let library = fake_time()?;
    let tomorrow = [("LD_PRELOAD", library.as_str()), ("FAKETIME", "+1d"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    node.start_agent_from(&programs::ours("hauberkd")?, &tomorrow)?;
    node.agent.wait_ready()?;
    wait_talking(&a, &b)?;
    // The peer has seen a handshake with tomorrow's timestamp. The clock is corrected while the
    // agent does not run.
    node.agent.kill()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    wait_talking(&a, &b)?;
    wait_talking(&b, &a)?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}
