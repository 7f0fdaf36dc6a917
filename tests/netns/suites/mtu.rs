//! Sizes: a packet that fits arrives. A packet that is too big is answered, never lost silently,
//! and never in the clear.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::Attachment;
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{bulk_tcp, send_of_size, super_datagram};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Party, Pod, Setup, Test, analysis, eventually};

pub const TESTS: &[Test] = &[
    Test::new("mtu::bpf_boundary_with_dont_fragment", |context| boundary(context, HostRouting::Bpf)),
    Test::new("mtu::stack_boundary_with_dont_fragment", |context| boundary(context, HostRouting::Stack)),
    Test::new("mtu::tcp_through_a_smaller_path", smaller_path),
    Test::new("mtu::bpf_uplinks_that_become_smaller", |context| become_smaller(context, HostRouting::Bpf)),
    Test::new("mtu::stack_uplinks_that_become_smaller", |context| become_smaller(context, HostRouting::Stack)),
    Test::new("mtu::bpf_super_packets", |context| super_packets(context, HostRouting::Bpf)),
    Test::new("mtu::stack_super_packets", |context| super_packets(context, HostRouting::Stack)),
];

struct Playground {
    cluster: Cluster,
    a: Pod,
    b: Pod,
}

impl Playground {
    fn build(context: &Context, setup: Setup) -> Result<Playground> {
        let cluster = Cluster::build(context, setup)?;
        cluster.namespace("payments", Some("enabled"))?;
        let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
        cluster.wait_known(&[&a, &b])?;
        Ok(Playground { cluster, a, b })
    }

    /// The route MTU that a node gave its pods.
    fn route_mtu(&self, node: usize) -> Result<usize> {
        let attachments: Vec<Attachment> = self.cluster.nodes[node].agent.ask("/v1/attachments")?;
        let first = attachments.first().context("no attachment")?;
        Ok(first.reservation.route_mtu as usize)
    }
}

fn boundary(context: &Context, host_routing: HostRouting) -> Result<()> {
    let playground = Playground::build(context, Setup { host_routing, ..Setup::default() })?;
    let mtu = playground.route_mtu(0)?;
    // 40 bytes of IPv6 (RFC 8200), 8 of UDP, 32 of WireGuard with its tag, on Ethernet's 1500.
    ensure!((1280..=1420).contains(&mtu), "route MTU {mtu} cannot be right for an uplink of 1500");
    println!("route MTU {mtu}");
    let nodes: Vec<Party> = playground.cluster.nodes.iter().map(|node| node.party.clone()).collect();
    let (a, b) = (&playground.a.party, &playground.b.party);
    for (from, to) in [(a, b), (b, a), (a, &nodes[1]), (&nodes[1], a)] {
        // The stack routes packets for a pod, and answers. It routes packets for a node with the
        // uplink's MTU, and a node's own sockets choose the size themselves: "too big" is then only
        // counted.
        let is_answered = [a, b].iter().all(|pod| pod.name == from.name || pod.name == to.name);
        for family in Family::ALL {
            for size in mtu - 2..=mtu + 2 {
                let agent = &playground.cluster.nodes[0].agent;
                let counted = agent.drops("too_big")?;
                let patience = Duration::from_secs(if size <= mtu || is_answered { 20 } else { 1 });
                let outcome = send_of_size(from, to, family, size, patience)
                    .with_context(|| format!("{} -> {}", from.name, to.name))?;
                let what = format!("{size} bytes {family} {} -> {}: {outcome:?}", from.name, to.name);
                ensure!(outcome.delivered == (size <= mtu), "should arrive if it is not larger than {mtu}: {what}");
                if size <= mtu {
                    continue;
                }
                if is_answered {
                    ensure!(
                        outcome.too_big == Some(mtu as u32),
                        "should have been answered with the MTU {mtu}: {what}"
                    );
                } else if from.name != nodes[1].name {
                    ensure!(agent.drops("too_big")? > counted, "should have been counted as too_big: {what}");
                }
            }
        }
    }
    playground.cluster.assert_no_cleartext(&[&playground.a, &playground.b], Moment::START)
}

/// The second node is behind a router with a narrower side. The first node's uplink does not know
/// that MTU.
fn smaller_path(context: &Context) -> Result<()> {
    for narrow in [1400] {
        let playground = Playground::build(context, Setup { narrow: Some(narrow), ..Setup::default() })?;
        for family in Family::ALL {
            for (from, to) in [(&playground.a, &playground.b), (&playground.b, &playground.a)] {
                let report = bulk_tcp(from, to, family, 4 << 20)?;
                println!("{} -> {} {family}: {:?}", from.party.name, to.party.name, report.duration);
            }
        }
        playground.cluster.assert_no_cleartext(&[&playground.a, &playground.b], Moment::START)?;
    }
    Ok(())
}

/// The MTU shrinks while agents and pods run, without any other change that an agent would notice.
fn become_smaller(context: &Context, host_routing: HostRouting) -> Result<()> {
    let playground = Playground::build(context, Setup { host_routing, ..Setup::default() })?;
    let Playground { cluster, a, b } = &playground;
    cluster.namespace("public", None)?;
    let (c, d) = (cluster.pod("public", "c", 0)?, cluster.pod("public", "d", 1)?);
    cluster.wait_known(&[a, b, &c, &d])?;
    let smaller = playground.route_mtu(0)? - 100;
    for (_, port) in cluster.wire.ports() {
        cluster.wire.netns.ip(&format!("link set {port} mtu 1400"))?;
    }
    for node in &cluster.nodes {
        node.netns.ip("link set eth0 mtu 1400")?;
    }
    for node in &cluster.nodes {
        for family in ["-4", "-6"] {
            eventually(format!("{}'s routes to pods to have the smaller MTU", node.name), || {
                let routes = node.run("ip", &[family, "route", "show", "proto", "72"])?;
                let mut to_nodes = routes.lines().filter(|route| route.contains(" via ")).peekable();
                ensure!(to_nodes.peek().is_some(), "no route to another node's pods: {routes}");
                ensure!(to_nodes.all(|route| route.contains(&format!(" mtu {smaller} "))), "{routes}");
                Ok(Some(()))
            })?;
        }
    }
    let e = cluster.pod("public", "e", 1)?;
    cluster.wait_known(&[&e])?;
    let attachments: Vec<Attachment> = cluster.nodes[1].agent.ask("/v1/attachments")?;
    let later =
        attachments.iter().find(|attachment| attachment.request.pod.as_ref().is_some_and(|pod| pod.name == "e"));
    let given = later.context("the later pod is not attached")?.reservation.route_mtu as usize;
    ensure!(given == smaller, "a pod made afterwards got routes with {given} bytes");
    for family in Family::ALL {
        for (from, to) in [(&c, &d), (&d, &c), (&c, &e), (&e, &c), (a, b), (b, a)] {
            bulk_tcp(from, to, family, 1 << 20)
                .with_context(|| format!("{} -> {} {family}", from.party.name, to.party.name))?;
        }
    }
    cluster.assert_no_cleartext(&[a, b], Moment::START)
}

fn super_packets(context: &Context, host_routing: HostRouting) -> Result<()> {
    let playground = Playground::build(context, Setup { host_routing, ..Setup::default() })?;
    let (a, b) = (&playground.a, &playground.b);
    let mut markers = std::collections::BTreeSet::new();
    for family in Family::ALL {
        for (from, to) in [(a, b), (b, a)] {
            let report = bulk_tcp(from, to, family, 64 << 20)?;
            let rate = report.bytes as f64 * 8e-9 / report.duration.as_secs_f64();
            println!("{} -> {} {family}: {rate:.2} Gb/s", from.party.name, to.party.name);
            markers.insert(report.marker);
            for (segments, bytes) in [(40, 1200), (2, 1000), (44, 1330)] {
                let (marker, arrived) = super_datagram(from, to, family, segments, bytes)?;
                ensure!(arrived == segments, "{arrived} of {segments} datagrams of {bytes} bytes arrived, {family}");
                markers.insert(marker);
            }
        }
    }
    let frames = playground.cluster.capture.all()?;
    let shown = analysis::payload_of(&frames, &markers);
    ensure!(shown.is_empty(), "payload of super-packets in the clear: {}", analysis::list(&shown));
    println!("largest frame on the wire: {} bytes", frames.iter().map(|frame| frame.bytes.len()).max().unwrap_or(0));
    playground.cluster.assert_no_cleartext(&[a, b], Moment::START)
}
