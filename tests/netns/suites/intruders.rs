//! Third-party programs beside the guard: it takes its place in front of them back, but does not
//! fight for ever, and a device where it has lost is shut.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::intruder::{Answer, Intruder, Place, Way};
use hauberk_netns::traffic::{Exchange, Protocol, UdpStreamer, exchange};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Node, Setup, Test, eventually};

pub const TESTS: &[Test] = &[
    Test::new("intruders::the_last_guard_takes_its_place_back", place_back),
    Test::new("intruders::a_program_that_lets_packets_pass_does_not_let_them_past_the_guard", passing),
    Test::new("intruders::who_takes_it_every_time_is_told_of_and_left_there", fight),
];

/// Waits until the guard is before the other program and no old copy of it is left. On the way out
/// of a device the leak detector is after it.
fn wait_first(intruder: &Intruder, after: usize) -> Result<()> {
    eventually("the guard to have its place back", || {
        let others = intruder.others()?;
        ensure!(others == (1, after), "{others:?} beside it");
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
        for (device, way, after, object, hook) in [
            ("eth0", Way::Out, 1, "device/eth0".to_owned(), "to_wire"),
            ("eth0", Way::In, 0, "device/eth0".to_owned(), "from_wire"),
            (pod, Way::Out, 0, format!("pod interface/{pod}"), "to_pod"),
            (pod, Way::In, 0, format!("pod interface/{pod}"), "from_pod"),
        ] {
            let before = restored(node, &object, hook)?;
            let intruder = Intruder::attach(&node.netns, device, way, Place::Front, Answer::Next)?;
            wait_first(&intruder, after)?;
            eventually("it to be told", || Ok((restored(node, &object, hook)? > before).then_some(())))?;
        }
    }
    // The next agent takes over what runs now.
    let intruder = Intruder::attach(&node.netns, "eth0", Way::Out, Place::Front, Answer::Next)?;
    wait_first(&intruder, 1)?;
    node.agent.kill()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    wait_first(&intruder, 1)?;
    let pins = node.run("find", &[&format!("/sys/fs/bpf/{}", node.name), "-name", "next-*"])?;
    ensure!(pins.is_empty(), "left behind: {pins}");
    stream.wait_flowing()?;
    stream.stop()?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    crate::leaks::accuse_no_one(&cluster)
}

/// TCX ends at a program that lets a packet pass, as most do that were written for `tc`.
fn passing(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Stack, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let node = &cluster.nodes[0];
    let pairs = || Family::ALL.map(|family| Exchange::new(Protocol::Udp, family, &a, &b));
    let talk = || eventually("the pods to talk", || Ok(pairs().iter().all(|one| answered(one)).then_some(())));
    let guarded = |since| cluster.assert_no_cleartext(&[&a, &b], since);
    talk()?;

    let since = cluster.capture.sync()?;
    let after = Intruder::attach(&node.netns, "eth0", Way::Out, Place::End, Answer::Pass)?;
    eventually("it to be told", || {
        let problems = node.agent.status()?.problems;
        let told = problems.iter().any(|one| one.object == "device/eth0" && one.message.contains("somebody_elses"));
        Ok(told.then_some(()))
    })?;
    talk()?;
    guarded(since)?;
    drop(after);

    let before = Intruder::attach(&node.netns, "eth0", Way::Out, Place::Front, Answer::Pass)?;
    eventually("the guard to be first", || Ok((before.others()?.0 == 1).then_some(())))?;
    let since = cluster.capture.sync()?;
    talk()?;
    guarded(since)?;

    let before = push_until_it_gives_up(node, before)?;
    ensure!(before.others()?.0 == 0, "it still has its place");
    let since = cluster.capture.sync()?;
    for one in pairs() {
        answered(&one);
    }
    guarded(since)?;
    ensure!(node.agent.get("/readyz")?.0 != 200, "ready although nothing guards the device");

    // An agent that starts meanwhile opens the device when its guard is the first, and not before.
    let stream = UdpStreamer::start(&a, &b, Family::V4, 200, Duration::from_millis(5))?;
    node.agent.kill()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    stream.wait_flowing()?;
    stream.stop()?;
    guarded(since)?;
    ensure!(before.others()?.0 == 1, "the guard is not the first");
    drop(before);
    talk()?;
    node.agent.wait_ready()
}

fn answered(one: &Exchange<'_>) -> bool {
    exchange(one).is_ok_and(|exchanged| exchanged.answered)
}

/// How many events say that the program has its place again.
fn restored(node: &Node, object: &str, hook: &str) -> Result<usize> {
    let events = node.agent.events()?;
    let told = events.iter().filter(|event| {
        let named = event.objects.iter().any(|named| named == object);
        named
            && event.reason == "Restored"
            && event.message.contains(&format!("(somebody_elses) had come before {hook};"))
    });
    Ok(told.map(|event| event.count as usize).sum())
}

fn fight(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 1, ..Setup::default() })?;
    let node = &cluster.nodes[0];
    let intruder = Intruder::attach(&node.netns, "eth0", Way::Out, Place::Front, Answer::Next)?;
    let intruder = push_until_it_gives_up(node, intruder)?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(has_given_up(node)?, "the problem is not told any more");
    ensure!(node.agent.status()?.problems.iter().any(|one| one.message.contains("somebody_elses")), "nobody is named");
    drop(intruder);
    eventually("the problem to be gone", || Ok((!has_given_up(node)?).then_some(())))
}

fn has_given_up(node: &Node) -> Result<bool> {
    let problems = node.agent.status()?.problems;
    Ok(problems.iter().any(|one| one.object == "device/eth0" && one.message.contains("leaves them there")))
}

fn push_until_it_gives_up(node: &Node, mut intruder: Intruder) -> Result<Intruder> {
    let started = Instant::now();
    let mut pushed = 0;
    while !has_given_up(node)? {
        ensure!(started.elapsed() < Duration::from_secs(60), "it fights for ever: pushed aside {pushed} times");
        if intruder.others()?.0 > 0 {
            intruder = intruder.push()?;
            pushed += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!((4..10).contains(&pushed), "pushed aside {pushed} times");
    Ok(intruder)
}
