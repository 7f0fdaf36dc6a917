//! The rest of an agent's life: restarts under streams, SIGTERM that leaves the guard in place,
//! uninstall that leaves nothing, a state folder that is lost.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::Attachment as Held;
use hauberk_netns::capture::Moment;
use hauberk_netns::plugin::Attachment;
use hauberk_netns::traffic::{Exchange, Protocol, TcpStreamer, UdpStreamer, exchange};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Netns, Pod, Setup, Test, eventually, programs};

pub const TESTS: &[Test] = &[
    Test::new("restart::bpf_streams_survive", |context| streams_survive(context, HostRouting::Bpf)),
    Test::new("restart::stack_streams_survive", |context| streams_survive(context, HostRouting::Stack)),
    Test::new("restart::a_stopped_agent_leaves_the_guard", stopped_agent),
    Test::new("restart::pods_survive_that_the_state_folder_is_lost", lost_state),
    Test::new("restart::an_interface_that_nobody_knows_is_shut_and_told", unknown_interface),
    Test::new("restart::uninstall_removes_everything_and_only_that", uninstall),
];

fn playground(context: &Context, host_routing: HostRouting) -> Result<(Cluster, Pod, Pod)> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    Ok((cluster, a, b))
}

fn streams_survive(context: &Context, host_routing: HostRouting) -> Result<()> {
    let (cluster, a, b) = playground(context, host_routing)?;
    for (node, graceful) in [(0, true), (1, true), (0, false), (1, false)] {
        let mut datagrams = Vec::new();
        let mut connections = Vec::new();
        for family in Family::ALL {
            datagrams.push(UdpStreamer::start(&a, &b, family, 200, Duration::from_millis(2))?);
            datagrams.push(UdpStreamer::start(&b, &a, family, 200, Duration::from_millis(2))?);
            connections.push(TcpStreamer::start(&a, &b, family, 4000, Duration::from_millis(2))?);
        }
        for stream in &datagrams {
            stream.wait_flowing()?;
        }
        let node = &cluster.nodes[node];
        let how = if graceful { "SIGTERM" } else { "SIGKILL" };
        if graceful {
            node.agent.terminate()?
        } else {
            node.agent.kill()?
        }
        node.start_agent()?;
        node.agent.wait_ready()?;
        for stream in &datagrams {
            stream.wait_flowing().with_context(|| format!("after {how} on {}", node.name))?;
        }
        for connection in &connections {
            connection.wait_flowing().with_context(|| format!("after {how} on {}", node.name))?;
        }
        for stream in datagrams {
            let report = stream.stop()?;
            println!(
                "{how} on {}: UDP lost {} of {}, longest gap {:?}",
                node.name,
                report.lost(),
                report.sent,
                report.longest_gap
            );
        }
        for connection in connections {
            let report = connection.stop()?;
            println!("{how} on {}: TCP survived, longest stall {:?}", node.name, report.longest_stall);
        }
    }
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

fn stopped_agent(context: &Context) -> Result<()> {
    let (cluster, a, b) = playground(context, HostRouting::Bpf)?;
    let plain = [cluster.pod("public", "c", 0)?, cluster.pod("public", "d", 1)?];
    cluster.wait_known(&plain.each_ref())?;
    for node in &cluster.nodes {
        node.agent.terminate()?;
    }
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            for (from, to) in [(&a, &b), (&b, &a), (&a, &plain[1]), (&plain[0], &b)] {
                let one = Exchange::new(protocol, family, from, to).patience(Duration::from_millis(250));
                let outcome = exchange(&one)?;
                ensure!(!outcome.answered, "{one}: answered, with no agent to carry it");
            }
        }
        let one = Exchange::new(Protocol::Tcp, family, &plain[0], &plain[1]);
        let outcome = exchange(&one)?;
        ensure!(outcome.answered, "{one}: {outcome:?}");
    }
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    for node in &cluster.nodes {
        node.start_agent()?;
    }
    cluster.wait_ready()?;
    let one = Exchange::new(Protocol::Tcp, Family::V6, &a, &b);
    let outcome = exchange(&one)?;
    ensure!(outcome.answered, "{one}: {outcome:?}");
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

/// Kills the first node's agent and starts it without its state; it has only what is in the kernel.
fn lose_state(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    node.agent.kill()?;
    fs::remove_dir_all(&node.state).with_context(|| format!("remove {}", node.state.display()))?;
    node.start_agent()?;
    cluster.wait_ready()
}

/// Waits until each pair's exchange is answered: other nodes learn a node's new key a moment after
/// its agent is ready.
fn wait_answered(pairs: &[(&Pod, &Pod)]) -> Result<()> {
    for (from, to) in pairs {
        for family in Family::ALL {
            let one = Exchange::new(Protocol::Tcp, family, from, to);
            eventually(format!("{one} to be answered"), || Ok(exchange(&one)?.answered.then_some(())))?;
        }
    }
    Ok(())
}

fn recoveries(cluster: &Cluster) -> Result<usize> {
    let events = cluster.nodes[0].agent.events()?;
    Ok(events.iter().filter(|event| event.reason == "AttachmentsRecovered").count())
}

fn lost_state(context: &Context) -> Result<()> {
    let (cluster, a, b) = playground(context, HostRouting::Bpf)?;
    let (c, d) = (cluster.pod("public", "c", 0)?, cluster.pod("public", "d", 1)?);
    cluster.wait_known(&[&c, &d])?;
    let node = &cluster.nodes[0];
    // An attachment whose result the runtime keeps.
    let netns = Netns::create("kept")?;
    let path = netns.path();
    let kept = Attachment { container: "kept", netns: &path, interface: "eth0", pod: Some(("payments", "kept")) };
    let mut checked = node.plugin.config.clone();
    checked["prevResult"] = node.plugin.add(&kept)?;
    let before: Vec<Held> = node.agent.ask("/v1/attachments")?;

    lose_state(&cluster)?;
    let pairs = [(&a, &b), (&b, &a), (&a, &d), (&d, &a), (&c, &d), (&d, &c), (&c, &b), (&b, &c), (&a, &c)];
    wait_answered(&pairs)?;
    ensure!(recoveries(&cluster)? == 1, "nobody is told: {:?}", node.agent.events()?);
    let after: Vec<Held> = node.agent.ask("/v1/attachments")?;
    let held = |list: &[Held]| -> Vec<_> {
        let one = |held: &Held| (held.request.container.clone(), held.reservation.clone(), held.attach.clone());
        list.iter().map(one).collect()
    };
    ensure!(held(&after) == held(&before), "{after:#?} is not what was on record: {before:#?}");
    node.plugin.run("CHECK", Some(&kept), &checked)?.into_result().context("CHECK")?;
    node.plugin.delete(&kept)?;

    let late = cluster.pod("payments", "late", 0)?;
    for pod in [&a, &c] {
        ensure!(late.v4 != pod.v4 && late.v6 != pod.v6, "{} was given out twice", late.v4);
    }
    wait_answered(&[(&late, &b), (&b, &late)])?;
    c.delete(&cluster.manifests)?;
    let held: Vec<Held> = node.agent.ask("/v1/attachments")?;
    ensure!(held.len() == 2, "{held:#?} instead of those of {} and {}", a.party.name, late.party.name);
    let interfaces = node.netns.interfaces()?;
    let of_pods: Vec<&String> = interfaces.iter().filter(|name| name.starts_with("hbk")).collect();
    ensure!(of_pods.len() == 2, "{of_pods:?}");

    node.agent.kill()?;
    node.start_agent()?;
    cluster.wait_ready()?;
    wait_answered(&[(&a, &b), (&b, &a), (&a, &d), (&d, &a), (&late, &b)])?;
    ensure!(recoveries(&cluster)? == 0, "what is on record is not put there again");
    eventually("no problem", || {
        let problems = node.agent.status()?.problems;
        ensure!(problems.is_empty(), "{problems:#?}");
        Ok(Some(()))
    })?;
    cluster.assert_no_cleartext(&[&a, &b, &late], Moment::START)
}

fn unknown_interface(context: &Context) -> Result<()> {
    let (cluster, a, b) = playground(context, HostRouting::Bpf)?;
    let node = &cluster.nodes[0];
    let held: Vec<Held> = node.agent.ask("/v1/attachments")?;
    let name = held.first().context("no attachment")?.reservation.host_interface.clone();
    // Once the state is lost, only this alias says which pod the interface belongs to.
    node.netns.ip(&format!("link set {name} alias somebody"))?;
    lose_state(&cluster)?;
    let told = || -> Result<bool> {
        let problems = node.agent.status()?.problems;
        Ok(problems.iter().any(|problem| problem.object == format!("pod interface/{name}")))
    };
    eventually(format!("a problem that names {name}"), || Ok(told()?.then_some(())))?;
    for family in Family::ALL {
        for (from, to) in [(&a, &b), (&b, &a)] {
            let one = Exchange::new(Protocol::Tcp, family, from, to).patience(Duration::from_millis(500));
            ensure!(!exchange(&one)?.answered, "{one}: answered, and nobody knows whose the interface is");
        }
    }
    ensure!(node.netns.interfaces()?.contains(&name), "{name} was taken from a pod that may be alive");
    a.delete(&cluster.manifests)?;
    ensure!(!node.netns.interfaces()?.contains(&name), "{name} stays after DEL");
    eventually(format!("no problem with {name}"), || Ok((!told()?).then_some(())))?;
    let late = cluster.pod("payments", "late", 0)?;
    wait_answered(&[(&late, &b), (&b, &late)])?;
    cluster.assert_no_cleartext(&[&a, &b, &late], Moment::START)
}

/// The state of a node outside the agent.
fn inventory(cluster: &Cluster, node: usize) -> Result<Vec<String>> {
    let node = &cluster.nodes[node];
    let mut found = node.netns.interfaces()?;
    for arguments in [
        &["-o", "route", "show", "table", "all"][..],
        &["-o", "-6", "route", "show", "table", "all"],
        &["rule", "show"],
        &["-6", "rule", "show"],
        &["-o", "neigh", "show", "nud", "permanent"],
    ] {
        found.extend(node.run("ip", arguments)?.lines().map(|line| format!("{arguments:?} {}", line.trim())));
    }
    found.extend(node.run("nft", &["list", "ruleset"])?.lines().map(|line| format!("nft {line}")));
    found.extend(node.run("tc", &["qdisc", "show"])?.lines().map(|line| format!("tc {}", line.trim())));
    found.extend(node.run("find", &["/sys/fs/bpf", "-mindepth", "1"])?.lines().map(|line| format!("pin {line}")));
    for name in [
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
        "net.ipv4.conf.eth0.rp_filter",
        "net.ipv4.conf.all.rp_filter",
    ] {
        found.push(format!("{name} {}", node.run("cat", &[&format!("/proc/sys/{}", name.replace('.', "/"))])?.trim()));
    }
    found.retain(|line| !line.contains("169.254.") && !line.contains("fe80::"));
    found.sort();
    Ok(found)
}

fn uninstall(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 1, start: false, ..Setup::default() })?;
    let node = &cluster.nodes[0];
    node.netns.nft(
        "table inet theirs {
            chain input { type filter hook input priority 0; policy accept; }
        }",
    )?;
    // Every node of a cluster forwards. Other programs rely on that too, so uninstall must not
    // switch it off.
    node.netns.sysctl("net.ipv4.ip_forward", "1")?;
    node.netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    node.netns.ip("route add 198.51.100.0/24 via 172.18.0.250")?;
    let before = inventory(&cluster, 0)?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    cluster.namespace("payments", Some("enabled"))?;
    let pod = cluster.pod("payments", "a", 0)?;
    ensure!(inventory(&cluster, 0)? != before, "the agent made nothing?");
    pod.delete(&cluster.manifests)?;
    eventually("the attachment to go", || Ok((node.agent.status()?.attachments == 0).then_some(())))?;
    node.agent.terminate()?;
    let program = programs::ours("hauberkd")?;
    let config = node.config().to_string_lossy().into_owned();
    println!("{}", node.run(&program, &["--config", &config, "uninstall"])?);
    let after = inventory(&cluster, 0)?;
    let left: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    let lost: Vec<&String> = before.iter().filter(|line| !after.contains(line)).collect();
    ensure!(left.is_empty() && lost.is_empty(), "left behind: {left:#?}\nremoved, though not ours: {lost:#?}");
    // A second uninstall does no harm.
    node.run(&program, &["--config", &config, "uninstall"])?;
    Ok(())
}
