//! Frames from a device of the node that leads neither to another node nor to a pod: a container
//! bridge, a second card, a lab's cable. Whatever source they claim, a protected pod does not
//! receive them.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use hauberk_netns::capture::Capture;
use hauberk_netns::inject::{self, Forged};
use hauberk_netns::netns::Netns;
use hauberk_netns::{Cluster, Context, Family, HostRouting, Marker, Node, Setup, Test, analysis, eventually, wire};

pub const TESTS: &[Test] = &[
    Test::new("strangers::bpf_do_not_reach_protected_pods", |context| strangers(context, HostRouting::Bpf)),
    Test::new("strangers::stack_do_not_reach_protected_pods", |context| strangers(context, HostRouting::Stack)),
];

/// A machine on its own cable to the node.
fn stranger(node: &Node) -> Result<Netns> {
    let stranger = Netns::create("stranger")?;
    node.netns.ip("link add lab0 type veth peer name cable
         addr add 10.99.0.1/24 dev lab0
         addr add fd00:99::1/64 dev lab0 nodad
         link set lab0 up")?;
    wire::move_link(&node.netns, "cable", &stranger, "eth0")?;
    stranger.ip("addr add 10.99.0.2/24 dev eth0
         addr add fd00:99::2/64 dev eth0 nodad
         link set eth0 up")?;
    Ok(stranger)
}

fn strangers(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (a, a2) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "a2", 0)?);
    let (b, c) = (cluster.pod("payments", "b", 1)?, cluster.pod("public", "c", 0)?);
    cluster.wait_known(&[&a, &a2, &b, &c])?;
    let node = &cluster.nodes[0];
    let stranger = stranger(node)?;
    // By now the node knows the device, whatever it decides about it.
    let right = inject::mac(&node.netns, "lab0")?;
    let inside = Capture::start(&[(a.netns.clone(), "eth0".into()), (c.netns.clone(), "eth0".into())])?;
    let mut sent = Vec::new();
    for family in Family::ALL {
        let world: IpAddr = if family == Family::V4 { "198.51.100.7".parse()? } else { "2001:db8:7::7".parse()? };
        let own: IpAddr = if family == Family::V4 { "10.99.0.2".parse()? } else { "fd00:99::2".parse()? };
        let sources = [
            ("a plain pod of the node", c.address(family)),
            ("a protected pod of the node", a2.address(family)),
            ("a pod of another node", b.address(family)),
            ("another node", cluster.nodes[1].address(family)),
            ("the world", world),
            ("its own address", own),
        ];
        for (name, source) in sources {
            for forged in Forged::ALL {
                let marker = Marker::unique();
                let frame =
                    inject::frame(([2, 0, 0, 0, 0, 9], right), source, a.address(family), forged, 7, &marker.fill(64))?;
                inject::send(&stranger, "eth0", &frame, false)?;
                sent.push((marker, format!("{forged:?} from {name} {source}")));
            }
        }
        // The control: a plain pod receives a frame from the stranger's own address.
        let marker = Marker::unique();
        let frame =
            inject::frame(([2, 0, 0, 0, 0, 9], right), own, c.address(family), Forged::Udp, 7, &marker.fill(64))?;
        eventually("a frame to the plain pod to arrive", || {
            inject::send(&stranger, "eth0", &frame, false)?;
            Ok(analysis::markers(&inside.all()?).contains_key(&marker).then_some(()))
        })?;
    }
    let arrived = analysis::markers(&inside.all()?);
    let wrong: Vec<&str> =
        sent.iter().filter(|(marker, _)| arrived.contains_key(marker)).map(|(_, what)| what.as_str()).collect();
    println!("drops: {:?}", node.agent.all_drops()?);
    ensure!(wrong.is_empty(), "{} of {} were delivered:\n  {}", wrong.len(), sent.len(), wrong.join("\n  "));
    Ok(())
}
