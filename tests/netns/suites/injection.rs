//! A packet that comes from the wire in the clear, or through the tunnel with another party's
//! address, is never delivered.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use hauberk_netns::capture::{Capture, Moment};
use hauberk_netns::inject::{self, Forged, Manner};
use hauberk_netns::traffic::{Exchange, Protocol, exchange};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Marker, Party, Pod, Setup, Test, analysis, eventually};

use crate::interop::{Stranger, WIREGUARD_GO};

pub const TESTS: &[Test] = &[
    Test::new("injection::bpf_plaintext_from_the_wire_never_reaches_a_protected_pod", |context| {
        from_the_wire(context, HostRouting::Bpf)
    }),
    Test::new("injection::stack_plaintext_from_the_wire_never_reaches_a_protected_pod", |context| {
        from_the_wire(context, HostRouting::Stack)
    }),
    Test::new("injection::a_peer_speaks_for_its_own_pods_alone", spoofed_inside_tunnel),
    Test::new("injection::packet_sockets_on_a_node_cannot_send_for_a_protected_pod", packet_sockets),
    Test::new("injection::no_mark_and_no_tag_lets_a_packet_socket_send_for_a_protected_pod", forged_marks),
    Test::new("injection::what_a_packet_socket_says_of_a_frame_is_not_believed", forged_protocol),
    Test::new("injection::a_bridge_above_the_uplink_keeps_apart_processes_and_packet_sockets", through_a_bridge),
];

struct Playground {
    cluster: Cluster,
    /// Protected pods on the first and the second node.
    protected: [Pod; 2],
    /// Plain pods on the first and the second node.
    plain: [Pod; 2],
}

impl Playground {
    fn build(context: &Context, host_routing: HostRouting) -> Result<Playground> {
        let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
        cluster.namespace("payments", Some("enabled"))?;
        cluster.namespace("public", None)?;
        let protected = [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?];
        let plain = [cluster.pod("public", "c", 0)?, cluster.pod("public", "d", 1)?];
        cluster.wait_known(&[&protected[0], &protected[1], &plain[0], &plain[1]])?;
        Ok(Playground { cluster, protected, plain })
    }
}

/// A forged frame, and its description for messages.
struct Attempt {
    what: String,
    marker: Marker,
    frame: Vec<u8>,
}

fn attempts(macs: &[(&str, [u8; 6])], sources: &[(&str, IpAddr)], victim: IpAddr) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for (mac_name, mac) in macs {
        for (source_name, source) in sources.iter().filter(|(_, source)| source.is_ipv4() == victim.is_ipv4()) {
            for forged in Forged::ALL {
                let marker = Marker::unique();
                let frame = inject::frame(([2, 0, 0, 0, 0, 9], *mac), *source, victim, forged, 7, &marker.fill(64))?;
                let what = format!("{forged:?} from {source_name} {source} to {victim}, {mac_name}");
                attempts.push(Attempt { what: what.clone(), marker, frame: frame.clone() });
                // The same frame behind a VLAN tag, and truncated.
                let mut tagged = frame[..12].to_vec();
                tagged.extend_from_slice(&[0x81, 0, 0, 5]);
                tagged.extend_from_slice(&frame[12..]);
                attempts.push(Attempt { what: format!("{what}, VLAN tag"), marker, frame: tagged });
                attempts.push(Attempt {
                    what: format!("{what}, truncated"),
                    marker,
                    frame: frame[..frame.len() - 20].to_vec(),
                });
            }
        }
    }
    Ok(attempts)
}

fn from_the_wire(context: &Context, host_routing: HostRouting) -> Result<()> {
    let playground = Playground::build(context, host_routing)?;
    let (cluster, victim) = (&playground.cluster, &playground.protected[0]);
    let node = &cluster.nodes[0];
    let inside =
        Capture::start(&[(victim.netns.clone(), "eth0".into()), (playground.plain[0].netns.clone(), "eth0".into())])?;
    let right = inject::mac(&node.netns, "eth0")?;
    let macs = [("right MAC", right), ("broadcast MAC", [0xff; 6]), ("wrong MAC", [2, 9, 9, 9, 9, 9])];
    let outside = cluster.outside.addresses();
    let mut sources: Vec<(&str, IpAddr)> = Vec::new();
    for family in Family::ALL {
        sources.push(("a remote protected pod", playground.protected[1].address(family)));
        sources.push(("a remote plain pod", playground.plain[1].address(family)));
        sources.push(("a remote node", cluster.nodes[1].address(family)));
        sources.push(("its own node", node.address(family)));
        sources.push(("a local pod", playground.plain[0].address(family)));
        sources.push(("itself", victim.address(family)));
        sources.push((
            "a pod nobody knows",
            if family == Family::V4 { "10.244.2.77".parse()? } else { "fd00:10:244:2::77".parse()? },
        ));
        sources.push(("the world", outside[usize::from(family == Family::V6)]));
    }
    let before: u64 = node.agent.all_drops()?.values().sum();
    let mut all = Vec::new();
    for family in Family::ALL {
        all.extend(attempts(&macs, &sources, victim.address(family))?);
        // To a plain pod, but from a protected one: protected pods never send in the clear.
        let claimed = [("a remote protected pod", playground.protected[1].address(family))];
        all.extend(attempts(&macs, &claimed, playground.plain[0].address(family))?);
    }
    for attempt in &all {
        inject::send(&cluster.wire.netns, "w-n1", &attempt.frame, false)?;
    }
    // The control: the same frames between plain pods arrive, so the others could have arrived as
    // well.
    for family in Family::ALL {
        let marker = Marker::unique();
        let (source, target) = (playground.plain[1].address(family), playground.plain[0].address(family));
        let frame = inject::frame(([2, 0, 0, 0, 0, 9], right), source, target, Forged::Udp, 7, &marker.fill(64))?;
        eventually("a forged frame between plain pods to arrive", || {
            inject::send(&cluster.wire.netns, "w-n1", &frame, false)?;
            Ok(analysis::markers(&inside.all()?).contains_key(&marker).then_some(()))
        })?;
    }
    let arrived = analysis::markers(&inside.all()?);
    let wrong: Vec<&str> = all
        .iter()
        .filter(|attempt| arrived.contains_key(&attempt.marker))
        .map(|attempt| attempt.what.as_str())
        .collect();
    ensure!(
        wrong.is_empty(),
        "{} of {} forged frames were delivered:\n  {}",
        wrong.len(),
        all.len(),
        wrong.join("\n  ")
    );
    let drops = node.agent.all_drops()?;
    println!("{} forged frames; drops: {drops:?}", all.len());
    ensure!(drops.values().sum::<u64>() > before, "nothing was counted");
    ensure!(
        drops.get("plaintext_to_protected").is_some_and(|count| *count > 0),
        "no plaintext_to_protected in {drops:?}"
    );
    Ok(())
}

/// A machine with a valid key and its own pod range, run by an attacker.
fn spoofed_inside_tunnel(context: &Context) -> Result<()> {
    let playground = Playground::build(context, HostRouting::Bpf)?;
    let (cluster, victim) = (&playground.cluster, &playground.protected[0]);
    let evil = Stranger::join(context, cluster, &WIREGUARD_GO)?;
    let inside = Capture::start(&[(victim.netns.clone(), "eth0".into())])?;
    evil.works_with(victim)?;
    let before = cluster.nodes[0].agent.all_drops()?;
    let liars = [
        ("a protected pod of another node", playground.protected[1].party.clone()),
        ("a plain pod of another node", playground.plain[1].party.clone()),
        ("another node", cluster.nodes[1].party.clone()),
        ("a pod of the victim's node", playground.plain[0].party.clone()),
        ("the victim's node", cluster.nodes[0].party.clone()),
        ("the world", cluster.outside.clone()),
    ];
    for (what, claimed) in liars {
        evil.claim(&claimed)?;
        let liar = Party { name: what.into(), netns: evil.party.netns.clone(), ..claimed.clone() };
        for family in Family::ALL {
            for protocol in [Protocol::Udp, Protocol::Icmp, Protocol::Esp, Protocol::Tcp] {
                let one = Exchange::new(protocol, family, &liar, victim).patience(Duration::from_millis(500));
                let outcome = exchange(&one)?;
                let arrived = analysis::markers(&inside.all()?).contains_key(&outcome.request);
                ensure!(!outcome.delivered && !arrived, "delivered, although sealed by another node: {one}");
            }
        }
        evil.disclaim(&claimed)?;
    }
    for address in victim.addresses() {
        let source = playground.protected[1].address(Family::of(address));
        let came = inside.all()?.iter().any(|frame| {
            analysis::dissect(&frame.bytes)
                .1
                .is_some_and(|packet| packet.source == source && packet.destination == address)
        });
        ensure!(!came, "a packet claiming to be from {source} came into the pod");
    }
    let after = cluster.nodes[0].agent.all_drops()?;
    println!("drops before {before:?}, after {after:?}");
    ensure!(after.values().sum::<u64>() > before.values().sum::<u64>(), "nothing was counted");
    evil.works_with(victim)
}

/// Root on a node can send any frame, but none from a protected pod's address, with or without the
/// queueing discipline.
fn packet_sockets(context: &Context) -> Result<()> {
    let playground = Playground::build(context, HostRouting::Bpf)?;
    let (cluster, speaker) = (&playground.cluster, &playground.protected[0]);
    let node = &cluster.nodes[0];
    let next_hop = inject::mac(&cluster.nodes[1].netns, "eth0")?;
    let mut sent = Vec::new();
    for bypass in [false, true] {
        for family in Family::ALL {
            for forged in Forged::ALL {
                for (source, target) in [
                    (speaker.address(family), playground.protected[1].address(family)),
                    (speaker.address(family), playground.plain[1].address(family)),
                    (speaker.address(family), cluster.nodes[1].address(family)),
                    (node.address(family), playground.protected[1].address(family)),
                ] {
                    let marker = Marker::unique();
                    let frame =
                        inject::frame(([2, 0, 0, 0, 0, 9], next_hop), source, target, forged, 7, &marker.fill(64))?;
                    inject::send(&node.netns, "eth0", &frame, bypass)?;
                    sent.push((marker, format!("{forged:?} {source} -> {target}, bypass {bypass}")));
                }
            }
        }
    }
    let seen = analysis::markers(&cluster.capture.all()?);
    let leaked: Vec<&str> =
        sent.iter().filter(|(marker, _)| seen.contains_key(marker)).map(|(_, what)| what.as_str()).collect();
    ensure!(leaked.is_empty(), "{} of {} crossed the wire:\n  {}", leaked.len(), sent.len(), leaked.join("\n  "));
    cluster.assert_no_cleartext(&[speaker], Moment::START)?;
    println!("drops: {:?}", node.agent.all_drops()?);
    Ok(())
}

/// Frames that a packet socket sends from a node, with descriptions.
fn forgeries(playground: &Playground, tags: &[u16]) -> Result<Vec<(Marker, String, Vec<u8>)>> {
    let (cluster, speaker) = (&playground.cluster, &playground.protected[0]);
    let next_hop = inject::mac(&cluster.nodes[1].netns, "eth0")?;
    let mut frames = Vec::new();
    for family in Family::ALL {
        for (source, target) in [
            (speaker.address(family), playground.protected[1].address(family)),
            (cluster.nodes[0].address(family), playground.protected[1].address(family)),
        ] {
            let marker = Marker::unique();
            let payload = marker.fill(64);
            let frame = inject::frame(([2, 0, 0, 0, 0, 9], next_hop), source, target, Forged::Udp, 7, &payload)?;
            frames.push((marker, format!("{source} -> {target} behind tags {tags:x?}"), inject::tagged(&frame, tags)));
        }
    }
    Ok(frames)
}

/// Fails if the payload of one of these frames has crossed the wire.
fn assert_kept(cluster: &Cluster, sent: &[(Marker, String)]) -> Result<()> {
    let seen = analysis::markers(&cluster.capture.all()?);
    let leaked: Vec<&str> =
        sent.iter().filter(|(marker, _)| seen.contains_key(marker)).map(|(_, what)| what.as_str()).collect();
    ensure!(leaked.is_empty(), "{} of {} crossed the wire:\n  {}", leaked.len(), sent.len(), leaked.join("\n  "));
    Ok(())
}

/// The agent's default position of its mark bits.
const MARK_SHIFT: u32 = 20;

fn forged_marks(context: &Context) -> Result<()> {
    let playground = Playground::build(context, HostRouting::Bpf)?;
    let node = &playground.cluster.nodes[0];
    let marks = [0, 1, 2, 4, 8, 15].map(|bits| bits << MARK_SHIFT).into_iter().chain([u32::MAX]);
    let mut sent = Vec::new();
    for mark in marks {
        for tags in [&[][..], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100, 0x8100]] {
            for bypass in [false, true] {
                for (marker, what, frame) in forgeries(&playground, tags)? {
                    let manner = Manner { bypass, mark, protocol: 0 };
                    inject::send_as(&node.netns, "eth0", &frame, manner)?;
                    sent.push((marker, format!("{what}, {manner:?}")));
                }
            }
        }
    }
    assert_kept(&playground.cluster, &sent)?;
    let drops = node.agent.all_drops()?;
    println!("{} frames; drops: {drops:?}", sent.len());
    eventually("what was dropped to be counted", || {
        let count = node.agent.drops("packet_socket")?;
        ensure!(count >= sent.len() as u64, "{count} of {}", sent.len());
        Ok(Some(()))
    })
}

fn forged_protocol(context: &Context) -> Result<()> {
    let playground = Playground::build(context, HostRouting::Bpf)?;
    let node = &playground.cluster.nodes[0];
    let mut sent = Vec::new();
    for protocol in [0x0806, 0x88cc, 0x8100, 0x86dd, 0x0800, 1] {
        for mark in [0, u32::MAX] {
            for bypass in [false, true] {
                for tags in [&[][..], &[0x8100]] {
                    for (marker, what, frame) in forgeries(&playground, tags)? {
                        let manner = Manner { bypass, mark, protocol };
                        inject::send_as(&node.netns, "eth0", &frame, manner)?;
                        sent.push((marker, format!("{what}, {manner:?}")));
                    }
                }
            }
        }
    }
    assert_kept(&playground.cluster, &sent)
}

/// The node's address moves to a bridge that has the uplink as a port. Traffic from processes on
/// the node to plain pods of other nodes goes on, and nothing else.
fn through_a_bridge(context: &Context) -> Result<()> {
    let setup = Setup { host_routing: HostRouting::Stack, start: false, ..Setup::default() };
    let cluster = Cluster::build(context, setup)?;
    let node = &cluster.nodes[0];
    let mac = inject::mac(&node.netns, "eth0")?.map(|byte| format!("{byte:02x}")).join(":");
    let (outside_v4, outside_v6) = ("172.18.0.250", "fd00:18::fa");
    node.netns.ip(&format!(
        "link add br0 address {mac} type bridge
         link set eth0 master br0
         addr flush dev eth0
         link set br0 up
         addr add {}/24 dev br0
         addr add {}/64 dev br0 nodad
         route replace default via {outside_v4}
         route replace default via {outside_v6} dev br0",
        node.v4, node.v6
    ))?;
    node.configure(
        cluster.manifests.directory(),
        &serde_json::json!({
            "clusterRanges": hauberk_netns::cluster::CLUSTER_RANGES, "hostRouting": "stack", "uplinks": ["br0", "eth0"],
        }),
    )?;
    cluster.start()?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let protected = [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?];
    let plain = [cluster.pod("public", "c", 0)?, cluster.pod("public", "d", 1)?];
    cluster.wait_known(&[&protected[0], &protected[1], &plain[0], &plain[1]])?;
    let playground = Playground { cluster, protected, plain };
    let (cluster, plain) = (&playground.cluster, &playground.plain);
    let node = &cluster.nodes[0];
    for family in Family::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            for (client, server) in [(&node.party, &plain[1].party), (&plain[0].party, &plain[1].party)] {
                let one = Exchange::new(protocol, family, client, server);
                let outcome = exchange(&one)?;
                ensure!(outcome.answered, "{one}: {outcome:?}");
            }
        }
    }
    ensure!(node.agent.drops("packet_socket")? == 0, "processes and pods were taken for packet sockets");
    let mut sent = Vec::new();
    for device in ["br0", "eth0"] {
        for bypass in [false, true] {
            for tags in [&[][..], &[0x8100]] {
                for (marker, what, frame) in forgeries(&playground, tags)? {
                    let manner = Manner { bypass, mark: u32::MAX, protocol: 0 };
                    inject::send_as(&node.netns, device, &frame, manner)?;
                    sent.push((marker, format!("{what} by {device}, {manner:?}")));
                }
            }
        }
    }
    assert_kept(cluster, &sent)
}
