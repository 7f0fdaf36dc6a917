//! Several threads in one tunnel: each peer belongs to one thread, the kernel delivers packets to
//! the right one, and a peer that is flooded with packets does not affect the others.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{Flood, Protocol, UdpStreamer, assert_answered, bulk_tcp};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Node, Pod, Setup, Test, eventually};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("threads::bpf_packets_reach_their_thread_at_once", |context| at_once(context, HostRouting::Bpf)),
    Test::new("threads::stack_packets_reach_their_thread_at_once", |context| at_once(context, HostRouting::Stack)),
    Test::new("threads::who_is_flooded_costs_others_nothing", |context| flooded(context, THREADS)),
    Test::new("threads::who_is_flooded_costs_nothing_to_others_of_its_thread", |context| flooded(context, 1)),
];

const THREADS: usize = 4;
/// Handshakes are handed over between threads, a few for each peer. Packets would be thousands.
const MOST_HANDED_OVER: u64 = 40;

fn build(context: &Context, host_routing: HostRouting, threads: usize) -> Result<(Cluster, Vec<Pod>)> {
    let config = json!({"tunnel": {"threads": threads}});
    let cluster = Cluster::build(context, Setup { nodes: 4, host_routing, config, ..Setup::default() })?;
    cluster.namespace("secret", Some("enabled"))?;
    let pod = |node| cluster.pod("secret", &format!("p{node}"), node);
    let pods = (0..4).map(pod).collect::<Result<Vec<_>>>()?;
    cluster.wait_known(&pods.iter().collect::<Vec<_>>())?;
    Ok((cluster, pods))
}

/// The threads that serve `others` on `node`, in the same order.
fn threads_of(node: &Node, others: &[&str]) -> Result<Vec<usize>> {
    let peers = node.agent.status()?.peers;
    let thread = |name: &&str| peers.iter().find(|peer| peer.node == **name).and_then(|peer| peer.thread);
    others.iter().map(|name| thread(name).with_context(|| format!("{} has no thread for {name}", node.name))).collect()
}

fn at_once(context: &Context, host_routing: HostRouting) -> Result<()> {
    let (cluster, pods) = build(context, host_routing, THREADS)?;
    for (index, from) in pods.iter().enumerate() {
        for to in pods.iter().skip(index + 1) {
            assert_answered(from, to, &Protocol::ALL)?;
            for family in Family::ALL {
                bulk_tcp(from, to, family, 4 << 20)?;
                bulk_tcp(to, from, family, 1 << 20)?;
            }
        }
    }
    let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    for node in &cluster.nodes {
        let others: Vec<&str> = names.iter().copied().filter(|name| *name != node.name).collect();
        let threads = threads_of(node, &others)?;
        ensure!(threads.iter().any(|thread| *thread > 0), "{}: all on the first thread, this shows nothing", node.name);
        let tunnel = node.agent.status()?.tunnel;
        ensure!(tunnel.threads == THREADS, "{} threads", tunnel.threads);
        ensure!(
            tunnel.handed_over <= MOST_HANDED_OVER,
            "{}: {} packets came to another thread than their peer's ({threads:?})",
            node.name,
            tunnel.handed_over
        );
    }
    cluster.assert_no_cleartext(&pods.iter().collect::<Vec<_>>(), Moment::START)
}

/// With one thread for all peers, the device's queues keep the peers apart.
fn flooded(context: &Context, threads: usize) -> Result<()> {
    let (cluster, pods) = build(context, HostRouting::Bpf, threads)?;
    cluster.capture.tolerate_loss();
    let node = &cluster.nodes[0];
    // The nodes' numbers modulo four are 0, 3 and 1: three queues, or three threads.
    let of = threads_of(node, &["n2", "n3", "n4"])?;
    let expected = if threads == 1 { [0, 0, 0] } else { [0, 3, 1] };
    ensure!(of == expected, "the nodes are on other threads than this test takes them to be: {of:?}");
    let (hot, calm) = (&pods[1], &pods[2]);
    for to in [hot, calm] {
        assert_answered(&pods[0], to, &[Protocol::Udp])?;
    }
    let dropped = || -> Result<u64> {
        let text = node.run("cat", &["/sys/class/net/hauberk0/statistics/tx_dropped"])?;
        text.trim().parse().with_context(|| text.clone())
    };
    let before = dropped()?;
    let calm_stream = UdpStreamer::start(&pods[0], calm, Family::V4, 200, Duration::from_millis(1))?;
    calm_stream.wait_flowing()?;
    let flood = Flood::start(&pods[0], hot, Family::V4)?;
    eventually("the flooded peer's queue to overflow", || Ok((dropped()? > before + 1000).then_some(())))?;
    std::thread::sleep(Duration::from_secs(3));
    flood.stop()?;
    let report = calm_stream.stop()?;
    ensure!(report.sent > 100, "too little to tell: {report:?}");
    ensure!(report.lost() == 0, "{} of {} packets to a peer that nobody floods were lost", report.lost(), report.sent);
    Ok(())
}
