//! Pods are opted in and out by a label while they talk.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hauberk_api::{Encryption, Protection};
use hauberk_netns::traffic::{TcpStreamer, UdpStreamer};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Setup, Test, eventually};

pub const TESTS: &[Test] = &[
    Test::new("labels::bpf_toggled_100_times_under_traffic", |context| toggled(context, HostRouting::Bpf, 100))
        .limit(600),
    Test::new("labels::stack_toggled_20_times_under_traffic", |context| toggled(context, HostRouting::Stack, 20))
        .limit(300),
    Test::new("labels::permissive_to_enabled_loses_no_connection", permissive_to_enabled),
    Test::new("labels::a_pod_cannot_opt_out_of_its_namespace", no_opt_out),
];

/// Waits until no agent protects the namespace any more.
fn wait_released(cluster: &Cluster, namespace: &str) -> Result<()> {
    for node in &cluster.nodes {
        eventually(format!("{} to release {namespace}", node.name), || {
            let status = node.agent.status()?;
            let found = status.namespaces.iter().find(|entry| entry.name == namespace);
            Ok(found.is_none_or(|entry| entry.protection == Protection::None).then_some(()))
        })?;
    }
    Ok(())
}

fn toggled(context: &Context, host_routing: HostRouting, times: usize) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("shop", None)?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("shop", "a", 0)?, cluster.pod("shop", "b", 1)?);
    let plain = cluster.pod("public", "plain", 1)?;
    cluster.wait_known(&[&a, &b, &plain])?;
    let mut datagrams = Vec::new();
    for family in Family::ALL {
        for (from, to) in [(&a, &b), (&b, &a), (&plain, &a)] {
            datagrams.push(UdpStreamer::start(from, to, family, 150, Duration::from_millis(3))?);
        }
    }
    let connections = [
        TcpStreamer::start(&a, &b, Family::V4, 2000, Duration::from_millis(5))?,
        TcpStreamer::start(&plain, &a, Family::V6, 2000, Duration::from_millis(5))?,
    ];
    let mut slowest = Duration::ZERO;
    for toggle in 0..times {
        let enable = toggle % 2 == 0;
        let started = Instant::now();
        cluster.manifests.label("namespace", "shop", enable.then_some("enabled"))?;
        if enable {
            cluster.wait_converged("shop", Protection::Enabled).with_context(|| format!("toggle {toggle}"))?;
            slowest = slowest.max(started.elapsed());
        } else {
            wait_released(&cluster, "shop").with_context(|| format!("toggle {toggle}"))?;
        }
        let converged = cluster.capture.sync()?;
        for stream in &datagrams {
            stream.wait_flowing().with_context(|| format!("toggle {toggle}"))?;
        }
        for connection in &connections {
            connection.wait_flowing().with_context(|| format!("toggle {toggle}"))?;
        }
        if enable {
            cluster.assert_no_cleartext(&[&a, &b], converged).with_context(|| format!("toggle {toggle}, converged"))?;
        }
    }
    println!("slowest convergence: {slowest:?}");
    for stream in datagrams {
        println!("{:?}", stream.stop()?);
    }
    for connection in connections {
        println!("{:?}", connection.stop()?);
    }
    // Packets in flight while the label changed must not be reported as leaks.
    crate::leaks::accuse_no_one(&cluster)
}

/// The steps of a migration: no label, permissive, enabled, and back, with connections that stay
/// up.
fn permissive_to_enabled(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup::default())?;
    cluster.namespace("shop", None)?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("shop", "a", 0)?, cluster.pod("shop", "b", 1)?);
    let plain = cluster.pod("public", "plain", 1)?;
    cluster.wait_known(&[&a, &b, &plain])?;
    let mut connections = Vec::new();
    for family in Family::ALL {
        for (from, to) in [(&a, &b), (&plain, &a), (&a, &plain)] {
            connections.push(TcpStreamer::start(from, to, family, 1000, Duration::from_millis(2))?);
        }
    }
    for round in 0..5 {
        cluster.manifests.label("namespace", "shop", Some("permissive"))?;
        cluster.wait_converged("shop", Protection::Permissive)?;
        for connection in &connections {
            connection.wait_flowing().with_context(|| format!("round {round}, permissive"))?;
        }
        let datagrams = UdpStreamer::start(&a, &b, Family::V6, 100, Duration::from_millis(1))?;
        datagrams.wait_flowing()?;
        cluster.manifests.label("namespace", "shop", Some("enabled"))?;
        cluster.wait_converged("shop", Protection::Enabled)?;
        let converged = cluster.capture.sync()?;
        for connection in &connections {
            connection.wait_flowing().with_context(|| format!("round {round}, enabled"))?;
        }
        datagrams.wait_flowing()?;
        let report = datagrams.stop()?;
        println!("round {round}: permissive to enabled: {report:?}, lost {}", report.lost());
        cluster.assert_no_cleartext(&[&a, &b], converged).with_context(|| format!("round {round}, converged"))?;
        cluster.manifests.label("namespace", "shop", None)?;
        wait_released(&cluster, "shop")?;
    }
    for connection in connections {
        println!("{:?}", connection.stop()?);
    }
    Ok(())
}

/// A user who may write pods must not be able to undo the namespace's policy.
fn no_opt_out(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup::default())?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("public", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let stream = UdpStreamer::start(&a, &b, Family::V4, 100, Duration::from_millis(2))?;
    stream.wait_flowing()?;
    cluster.manifests.label("pod", &a.file(), Some("disabled"))?;
    eventually("an event that names the pod", || {
        let events = cluster.nodes[0].agent.events()?;
        let named = |object: &String| object.contains("payments/a");
        Ok(events.iter().any(|event| event.warning && event.objects.iter().any(named)).then_some(()))
    })?;
    stream.wait_flowing()?;
    stream.stop()?;
    cluster.assert_no_cleartext(&[&a], hauberk_netns::capture::Moment::START)?;
    // The other direction is allowed: a pod may ask for more protection than its namespace.
    cluster.manifests.label("pod", &b.file(), Some("enabled"))?;
    let c = cluster.pod("public", "c", 0)?;
    eventually("pod b to be protected", || {
        let explained = cluster.nodes[0].agent.explain(c.v4.into(), b.v4.into())?;
        Ok((explained.encryption == Encryption::Encrypted).then_some(()))
    })
}
