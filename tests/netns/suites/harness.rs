//! Proof of the harness: without hauberk the capture shows every payload in the clear. If the
//! capture could not see a leak, every other suite would be worthless.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use hauberk_netns::analysis::{self, Kind};
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{Exchange, Protocol, UdpStreamer, bulk_tcp, exchange_all};
use hauberk_netns::{Cluster, Context, Family, Setup, Test, inject};

pub const TESTS: &[Test] = &[
    Test::new("harness::sees_every_protocol_in_the_clear_without_hauberk", sees_every_protocol),
    Test::new("harness::sees_payload_inside_super_packets", sees_super_packets),
    Test::new("harness::sees_frames_that_bypass_the_queueing_discipline", sees_bypass),
];

fn plain() -> Setup {
    Setup { hauberk: false, ..Setup::default() }
}

fn sees_every_protocol(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, plain())?;
    let (a, b) = (cluster.pod("public", "a", 0)?, cluster.pod("public", "b", 1)?);
    let mut exchanges = Vec::new();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            exchanges.push(Exchange::new(protocol, family, &a, &b));
            exchanges.push(Exchange::new(protocol, family, &a, &cluster.nodes[1]));
        }
    }
    let outcomes = exchange_all(&exchanges)?;
    let frames = cluster.capture.all()?;
    let seen = analysis::markers(&frames);
    for (exchange, outcome) in exchanges.iter().zip(&outcomes) {
        ensure!(outcome.delivered && outcome.answered, "{exchange}: {outcome:?}");
        ensure!(seen.contains_key(&outcome.request), "{exchange}: the capture missed the request");
        ensure!(seen.contains_key(&outcome.reply), "{exchange}: the capture missed the reply");
    }
    ensure!(!analysis::cleartext_of(&frames, &a.addresses()).is_empty(), "no cleartext of a");
    ensure!(analysis::of_kind(&frames, Kind::Tunnel).is_empty(), "tunnel frames without a tunnel");
    println!("{:?}", analysis::count(&frames));
    Ok(())
}

fn sees_super_packets(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, plain())?;
    let (a, b) = (cluster.pod("public", "a", 0)?, cluster.pod("public", "b", 1)?);
    for family in Family::ALL {
        let since = cluster.capture.sync()?;
        let report = bulk_tcp(&a, &b, family, 8 << 20)?;
        let frames = cluster.capture.since(since)?;
        let bytes: usize = frames.iter().filter(|frame| frame.to_machine).map(|frame| frame.bytes.len()).sum();
        ensure!(bytes >= report.bytes, "only {bytes} bytes of {} seen", report.bytes);
        let largest = frames.iter().map(|frame| frame.bytes.len()).max().unwrap_or(0);
        ensure!(largest > 20_000, "no super-packets on the wire: largest frame {largest} bytes");
        let shown = analysis::payload_of(&frames, &BTreeSet::from([report.marker]));
        ensure!(shown.iter().any(|sighting| sighting.frame.bytes.len() > 20_000), "no payload seen in a super-packet");
    }
    let stream = UdpStreamer::start(&a, &b, Family::V6, 300, std::time::Duration::from_millis(1))?;
    stream.wait_flowing()?;
    let report = stream.stop()?;
    ensure!(report.lost() == 0, "{report:?}");
    Ok(())
}

fn sees_bypass(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, plain())?;
    let node = &cluster.nodes[0];
    let marker = hauberk_netns::Marker::unique();
    let frame = inject::frame(
        ([2; 6], [0xff; 6]),
        node.v4.into(),
        cluster.nodes[1].v4.into(),
        inject::Forged::Udp,
        9,
        &marker.fill(64),
    )?;
    inject::send(&node.netns, "eth0", &frame, true)?;
    let seen = analysis::payload_of(&cluster.capture.since(Moment::START)?, &BTreeSet::from([marker]));
    ensure!(!seen.is_empty(), "a frame that bypassed the queueing discipline was not captured");
    Ok(())
}
