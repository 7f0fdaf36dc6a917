//! How much one pod may use of a shared resource: the node's neighbour table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::inject::{self, Forged, Solicits};
use hauberk_netns::traffic::{Exchange, Protocol, exchange_all};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Node, Pod, Setup, Test};
use serde_json::Value;

use crate::chained::{Playground, Plugin, Underlay};

pub const TESTS: &[Test] = &[
    Test::new("floods::bpf_a_pod_cannot_fill_the_neighbour_table", |context| own(context, HostRouting::Bpf)),
    Test::new("floods::stack_a_pod_cannot_fill_the_neighbour_table", |context| own(context, HostRouting::Stack)),
    Test::new("floods::bridge_a_pod_cannot_fill_the_neighbour_table", behind_a_bridge),
];

/// Addresses of each kind. All kinds together are more than the kernel's tables hold.
const MANY: u16 = 200;
/// Entries by which the table may grow: eight link-local addresses from which the pod speaks, eight
/// to which it speaks, as many again if a new minute begins meanwhile, and what the other pods'
/// traffic needs.
const ROOM: usize = 48;

fn own(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let evil = cluster.pod("public", "evil", 0)?;
    let pods = [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "a2", 0)?, cluster.pod("payments", "b", 1)?];
    let node = &cluster.nodes[0];
    let host = node.netns.interfaces()?;
    let host = host.iter().find(|name| name.starts_with("hbk")).context("no pod's interface")?;
    let mac = inject::mac(&node.netns, host)?;
    // Every pod's gateway has these addresses. The MAC address does not matter, because the frame
    // reaches the gateway in any case.
    flood(&cluster, &evil, &pods, [[0xff; 6], mac], ["169.254.1.1".parse()?, "fe80::1".parse()?])
}

fn behind_a_bridge(context: &Context) -> Result<()> {
    let playground = Playground::build(context, Plugin::Bridge, Underlay::Routes, false)?;
    playground.start()?;
    let evil = playground.pod("public", "evil", 0)?;
    let pods = [
        playground.pod("payments", "a", 0)?,
        playground.pod("payments", "a2", 0)?,
        playground.pod("payments", "b", 1)?,
    ];
    playground.wait_adopted([3, 1])?;
    let node = &playground.cluster.nodes[0];
    let mac = inject::mac(&node.netns, "cni0")?;
    let [v4, v6] = [&node.pod_ranges[0], &node.pod_ranges[1]];
    let gateways = [v4.replace("0/24", "1").parse()?, v6.replace("/64", "1").parse()?];
    flood(&playground.cluster, &evil, &pods, [mac, mac], gateways)
}

/// Makes one pod send everything that could become an entry of its node's neighbour table.
fn flood(cluster: &Cluster, evil: &Pod, pods: &[Pod; 3], macs: [[u8; 6]; 2], gateways: [IpAddr; 2]) -> Result<()> {
    let node = &cluster.nodes[0];
    cluster.wait_known(&[evil, &pods[0], &pods[1], &pods[2]])?;
    talk(cluster, pods)?;
    let before = neighbours(node)?;
    let spoofed = node.agent.drops("spoofed_neighbour")?;
    let frames = frames(node, evil, macs[1], gateways)?;
    inject::send_all(&evil.netns, "eth0", &frames)?;
    talk(cluster, pods)?;
    let after = neighbours(node)?;
    let more: Vec<&String> = after.iter().filter(|entry| !before.contains(entry)).collect();
    println!(
        "{} frames: {} neighbours before, {} after; {:?}",
        frames.len(),
        before.len(),
        after.len(),
        node.agent.all_drops()?
    );
    ensure!(more.len() <= ROOM, "{} more neighbours: {more:?}", more.len());
    let limited = node.agent.drops("neighbour_limit")?;
    let counted = node.agent.drops("spoofed_neighbour")? - spoofed;
    ensure!(counted >= u64::from(MANY) * 5 && limited > 0, "{counted} and {limited} of {} counted", frames.len());
    cluster.assert_no_cleartext(&[&pods[0], &pods[1], &pods[2]], Moment::START)
}

fn frames(node: &Node, evil: &Pod, mac: [u8; 6], gateways: [IpAddr; 2]) -> Result<Vec<Vec<u8>>> {
    let own = inject::mac(&evil.netns, "eth0")?;
    let (IpAddr::V4(gateway_v4), IpAddr::V6(gateway_v6)) = (gateways[0], gateways[1]) else {
        anyhow::bail!("{gateways:?}")
    };
    let range: Ipv6Addr = node.pod_ranges[1].trim_end_matches("/64").parse()?;
    let mut frames = Vec::new();
    for number in 1..=MANY {
        let [high, low] = (number + 1000).to_be_bytes();
        let v4 = Ipv4Addr::new(10, 77, high, low);
        frames.push(inject::arp(own, 1, v4, gateway_v4));
        frames.push(inject::arp(own, 2, v4, gateway_v4));
        frames.push(inject::arp(own, 1, v4, v4));
        let within = |prefix: Ipv6Addr| Ipv6Addr::from_bits(prefix.to_bits() | u128::from(number + 1000));
        let (local, foreign) = (within("fe80::".parse()?), within("fd00:77::".parse()?));
        for source in [local, foreign] {
            frames.push(inject::discovery((own, mac), Solicits::Neighbour, source, gateway_v6)?);
            frames.push(inject::discovery((own, mac), Solicits::Router, source, "ff02::2".parse()?)?);
            frames.push(inject::discovery((own, mac), Solicits::Nothing, source, gateway_v6)?);
        }
        let mut ask = |source: Ipv6Addr, target: Ipv6Addr| -> Result<()> {
            frames.push(inject::frame((own, mac), source.into(), target.into(), Forged::Echo, 7, b"flood")?);
            Ok(())
        };
        ask(local, gateway_v6)?;
        let IpAddr::V6(address) = evil.address(Family::V6) else { anyhow::bail!("no IPv6 address") };
        ask(address, within("fe80::5:0".parse()?))?;
        ask(address, within(range))?;
    }
    Ok(frames)
}

/// The other pods' traffic: on the node and to another node.
fn talk(cluster: &Cluster, pods: &[Pod; 3]) -> Result<()> {
    let [a, a2, b] = pods;
    let mut exchanges = Vec::new();
    for family in Family::ALL {
        for (from, to) in [(&a.party, &b.party), (&b.party, &a2.party), (&a.party, &a2.party)] {
            exchanges.push(Exchange::new(Protocol::Tcp, family, from, to));
        }
        exchanges.push(Exchange::new(Protocol::Udp, family, &cluster.nodes[0].party, &a.party));
    }
    for (one, outcome) in exchanges.iter().zip(exchange_all(&exchanges)?) {
        ensure!(outcome.answered, "{one}: {outcome:?}");
    }
    Ok(())
}

fn neighbours(node: &Node) -> Result<Vec<String>> {
    let text = node.run("ip", &["-j", "neigh", "show", "nud", "all"])?;
    let entries: Vec<Value> = serde_json::from_str(&text).context("parse `ip -j neigh`")?;
    // The table also lists destinations of multicast, which are no neighbours.
    let real = entries.iter().filter(|entry| !entry["state"].to_string().contains("NOARP"));
    Ok(real.map(|entry| format!("{} {}", entry["dev"], entry["dst"])).collect())
}
