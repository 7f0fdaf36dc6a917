//! Third-party programs that come between the guard and the wire, or the pod: the guard takes its
//! place back, but does not fight for ever.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::intruder::{Intruder, Way};
use hauberk_netns::traffic::UdpStreamer;
use hauberk_netns::{Cluster, Context, Family, Node, Setup, Test, eventually};

pub const TESTS: &[Test] = &[
    Test::new("intruders::the_last_guard_takes_its_place_back", place_back),
    Test::new("intruders::who_takes_it_every_time_is_told_of_and_left_there", fight),
];

/// Waits until hauberk's programs are next to the wire again and no old copy is left. On the way
/// out of a device the leak detector is one of them.
fn wait_alone(intruder: &Intruder, ours: usize) -> Result<()> {
    eventually("the guard to have its place back", || {
        let others = intruder.others()?;
        ensure!(others == (ours, 0), "{others:?} beside it");
        Ok(Some(()))
    })
}

fn place_back(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup::default())?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let stream = UdpStreamer::start(&a, &b, Family::V4, 200, Duration::from_millis(5))?;
    stream.wait_flowing()?;
    let node = &cluster.nodes[0];
    let interfaces = node.netns.interfaces()?;
    let pod = interfaces.iter().find(|name| name.starts_with("hbk")).context("no pod's interface")?;
    // Twice each, because the programs alternate between two copies.
    for _ in 0..2 {
        for (device, way, ours, object, hook) in [
            ("eth0", Way::Out, 2, "device/eth0".to_owned(), "to_wire"),
            ("eth0", Way::In, 1, "device/eth0".to_owned(), "from_wire"),
            (pod, Way::Out, 1, format!("pod interface/{pod}"), "to_pod"),
            (pod, Way::In, 1, format!("pod interface/{pod}"), "from_pod"),
        ] {
            let before = restored(node, &object, hook)?;
            let intruder = Intruder::attach(&node.netns, device, way)?;
            wait_alone(&intruder, ours)?;
            eventually("it to be told", || Ok((restored(node, &object, hook)? > before).then_some(())))?;
        }
    }
    // The next agent takes over what runs now.
    let intruder = Intruder::attach(&node.netns, "eth0", Way::Out)?;
    wait_alone(&intruder, 2)?;
    node.agent.kill()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    wait_alone(&intruder, 2)?;
    let pins = node.run("find", &[&format!("/sys/fs/bpf/{}", node.name), "-name", "next-*"])?;
    ensure!(pins.is_empty(), "left behind: {pins}");
    stream.wait_flowing()?;
    stream.stop()?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    crate::leaks::accuse_no_one(&cluster)
}

/// How many events say that the program has its place again.
fn restored(node: &Node, object: &str, hook: &str) -> Result<usize> {
    let events = node.agent.events()?;
    let told = events.iter().filter(|event| {
        let named = event.objects.iter().any(|named| named == object);
        named
            && event.reason == "Restored"
            && event.message.contains(&format!("(somebody_elses) had come behind {hook};"))
    });
    Ok(told.map(|event| event.count as usize).sum())
}

fn fight(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 1, ..Setup::default() })?;
    let node = &cluster.nodes[0];
    let given_up = || -> Result<bool> {
        let problems = node.agent.status()?.problems;
        Ok(problems.iter().any(|one| one.object == "device/eth0" && one.message.contains("leaves them there")))
    };
    let mut intruder = Intruder::attach(&node.netns, "eth0", Way::Out)?;
    let started = Instant::now();
    let mut pushed = 0;
    while !given_up()? {
        ensure!(started.elapsed() < Duration::from_secs(60), "it fights for ever: pushed aside {pushed} times");
        if intruder.others()?.0 > 0 {
            intruder = intruder.push()?;
            pushed += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // The leak detector moves behind it as well, so there are more moves than of the guard alone.
    ensure!((5..20).contains(&pushed), "pushed aside {pushed} times");
    std::thread::sleep(Duration::from_secs(3));
    ensure!(given_up()?, "the problem is not told any more");
    ensure!(node.agent.status()?.problems.iter().any(|one| one.message.contains("somebody_elses")), "nobody is named");
    drop(intruder);
    eventually("the problem to be gone", || Ok((!given_up()?).then_some(())))
}
