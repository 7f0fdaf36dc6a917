//! Pods that are not opted in: the way of their packets between nodes, which bypasses the host's
//! stack with `hostRouting: bpf`.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::Attachment;
use hauberk_netns::capture::{Frame, Moment};
use hauberk_netns::traffic::{Protocol, assert_answered, bulk_tcp, send_of_size};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Party, Pod, Setup, Test};

pub const TESTS: &[Test] = &[
    Test::new("plain::bpf_goes_past_the_stack", past_the_stack),
    Test::new("plain::stack_goes_through_it", through_the_stack),
    Test::new("plain::bpf_says_what_the_stack_would", what_cannot_go_on_is_answered),
];

/// The time to live that Linux gives its packets.
const BORN_WITH: u8 = 64;

fn build(context: &Context, host_routing: HostRouting) -> Result<(Cluster, Pod, Pod)> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("public", "a", 0)?, cluster.pod("public", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    Ok((cluster, a, b))
}

fn talk(a: &Pod, b: &Pod) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        assert_answered(from, to, &Protocol::ALL)?;
        for family in Family::ALL {
            bulk_tcp(from, to, family, 4 << 20)?;
        }
    }
    Ok(())
}

fn past_the_stack(context: &Context) -> Result<()> {
    let (cluster, a, b) = build(context, HostRouting::Bpf)?;
    let before: Vec<u64> = cluster.nodes.iter().map(|node| forwarded(node)).collect::<Result<_>>()?;
    talk(&a, &b)?;
    for (node, before) in cluster.nodes.iter().zip(before) {
        let through = forwarded(node)? - before;
        ensure!(through == 0, "{through} packets went through the stack of {}", node.name);
    }
    // The way still counts as one hop.
    let mut seen = [0; 2];
    for frame in cluster.capture.since(Moment::START)? {
        let Some((family, left)) = time_to_live(&frame, &a, &b) else { continue };
        ensure!(left == BORN_WITH - 1, "a packet of {family} with {left} hops left: {:02x?}", &frame.bytes[..40]);
        seen[usize::from(family == Family::V6)] += 1;
    }
    ensure!(seen.iter().all(|count| *count > 100), "too few packets on the wire to tell: {seen:?}");
    Ok(())
}

fn through_the_stack(context: &Context) -> Result<()> {
    let (cluster, a, b) = build(context, HostRouting::Stack)?;
    talk(&a, &b)?;
    for node in &cluster.nodes {
        let through = forwarded(node)?;
        ensure!(through > 200, "{through} packets went through the stack of {}", node.name);
    }
    Ok(())
}

fn what_cannot_go_on_is_answered(context: &Context) -> Result<()> {
    let (cluster, a, b) = build(context, HostRouting::Bpf)?;
    let attachments: Vec<Attachment> = cluster.nodes[0].agent.ask("/v1/attachments")?;
    let mtu = attachments.first().context("no attachment")?.reservation.route_mtu as usize;
    for family in Family::ALL {
        for size in [mtu, mtu + 1] {
            let outcome = send_of_size(&a, &b, family, size, Duration::from_secs(20))?;
            let said = (size > mtu).then_some(mtu as u32);
            ensure!(
                outcome.delivered == (size <= mtu) && outcome.too_big == said,
                "{size} bytes {family}: {outcome:?}"
            );
        }
        let mut ping = a.netns.command("ping");
        ping.args(["-c", "1", "-W", "5", "-t", "1", &b.address(family).to_string()]);
        let output = ping.output().context("ping")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(!output.status.success(), "a packet at the end of its life arrived, {family}: {said}");
        ensure!(
            said.contains("Time to live exceeded") || said.contains("Hop limit"),
            "nobody said so, {family}: {said}"
        );
    }
    Ok(())
}

/// Number of packets that a node's stack has forwarded, of both families.
fn forwarded(node: &Party) -> Result<u64> {
    node.netns.within(|| {
        let v6 = fs::read_to_string("/proc/thread-self/net/snmp6").context("read the counters of IPv6")?;
        let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams"));
        let v4 = fs::read_to_string("/proc/thread-self/net/snmp").context("read the counters of IPv4")?;
        // A line of names, then a line of values.
        let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Ip: "));
        let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
        let v4 = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "ForwDatagrams");
        let (_, v4) = v4.context("IPv4 forwards nothing")?;
        Ok(v4.trim().parse::<u64>()? + v6.context("IPv6 forwards nothing")?.trim().parse::<u64>()?)
    })
}

/// The family and the remaining hops of a packet between the two pods.
fn time_to_live(frame: &Frame, a: &Pod, b: &Pod) -> Option<(Family, u8)> {
    let (_, packet) = hauberk_netns::analysis::dissect(&frame.bytes);
    let packet = packet?;
    let family = Family::of(packet.source);
    let ends = [a.address(family), b.address(family)];
    let between =
        packet.source != packet.destination && ends.contains(&packet.source) && ends.contains(&packet.destination);
    // Behind an Ethernet header: the ninth byte of an IPv4 header, the eighth of an IPv6 header.
    let at = if family == Family::V4 { 14 + 8 } else { 14 + 7 };
    between.then(|| Some((family, *frame.bytes.get(at)?)))?
}
