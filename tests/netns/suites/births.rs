//! The edges of a pod's life. A pod may send from its first microsecond, before any agent knows it,
//! and after it has been deleted, and another pod may get its address.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::plugin::{self, Attachment};
use hauberk_netns::traffic::{Exchange, Protocol, UdpStreamer, exchange, exchange_all};
use hauberk_netns::{
    Cluster, Context, Family, HostRouting, Marker, Netns, Party, Pod, Setup, Test, analysis, eventually,
};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("births::bpf_first_microsecond_is_protected", |context| first_microsecond(context, HostRouting::Bpf)),
    Test::new("births::stack_first_microsecond_is_protected", |context| first_microsecond(context, HostRouting::Stack)),
    Test::new("births::a_pod_without_an_object_is_protected", without_object),
    Test::new("births::deleted_while_it_sends", deleted_while_it_sends),
    Test::new("births::address_reused_by_a_plain_pod", address_reused),
];

fn cluster(context: &Context, host_routing: HostRouting) -> Result<Cluster> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    Ok(cluster)
}

/// Sends without pause from the moment there is a route.
struct Eager {
    marker: Marker,
    sent: Arc<AtomicU64>,
    running: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Eager {
    fn start(netns: &Netns, targets: &[IpAddr]) -> Eager {
        let marker = Marker::unique();
        let (sent, running) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let (netns, targets) = (netns.clone(), targets.to_vec());
        let (sent_there, running_there) = (sent.clone(), running.clone());
        let thread = thread::spawn(move || {
            if netns.enter().is_err() {
                return;
            }
            let v4 = UdpSocket::bind("0.0.0.0:0");
            let v6 = UdpSocket::bind("[::]:0");
            let (Ok(v4), Ok(v6)) = (v4, v6) else { return };
            let payload = marker.fill(200);
            while running_there.load(Ordering::Relaxed) {
                for target in &targets {
                    let socket = if target.is_ipv4() { &v4 } else { &v6 };
                    if socket.send_to(&payload, SocketAddr::new(*target, 9)).is_ok() {
                        sent_there.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_micros(200));
                    }
                }
            }
        });
        Eager { marker, sent, running, thread }
    }

    fn stop(self) -> Result<(Marker, u64)> {
        self.running.store(false, Ordering::Relaxed);
        if self.thread.join().is_err() {
            bail!("the eager sender panicked");
        }
        Ok((self.marker, self.sent.load(Ordering::Relaxed)))
    }
}

fn first_microsecond(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = cluster(context, host_routing)?;
    let plain = cluster.pod("public", "sink", 1)?;
    let protected = cluster.pod("payments", "sink", 1)?;
    let node = &cluster.nodes[1];
    let targets: Vec<IpAddr> = [plain.addresses(), protected.addresses(), node.addresses()].concat();
    for number in 0..10 {
        let netns = Netns::create(&format!("payments-eager{number}"))?;
        let eager = Eager::start(&netns, &targets);
        let pod = Pod::run_in(netns, &cluster.nodes[0], &cluster.manifests, "payments", &format!("eager{number}"))?;
        eventually("the eager pod to have sent", || Ok((eager.sent.load(Ordering::Relaxed) > 50).then_some(())))?;
        let one = Exchange::new(Protocol::Tcp, Family::V4, &pod, &protected);
        let outcome = exchange(&one)?;
        ensure!(outcome.answered, "{one}: {outcome:?}");
        let (marker, sent) = eager.stop()?;
        println!("eager{number} sent {sent} datagrams");
        let frames = cluster.capture.all()?;
        let shown = analysis::payload_of(&frames, &[marker].into());
        ensure!(shown.is_empty(), "payload of a pod's first packets in the clear: {}", analysis::list(&shown));
        cluster.assert_no_cleartext(&[&pod], Moment::START)?;
    }
    Ok(())
}

/// The pod is attached, but no node has an object for it: no agent knows whether it is opted in.
fn without_object(context: &Context) -> Result<()> {
    let cluster = cluster(context, HostRouting::Bpf)?;
    let plain = cluster.pod("public", "plain", 1)?;
    cluster.wait_known(&[&plain])?;
    let netns = Netns::create("unknown")?;
    let path = netns.path();
    let pod = Some(("nowhere", "unknown"));
    let attachment = Attachment { container: "unknown", netns: &path, interface: "eth0", pod };
    let addresses = plugin::addresses(&cluster.nodes[0].plugin.add(&attachment)?)?;
    let (Some(IpAddr::V4(v4)), Some(IpAddr::V6(v6))) =
        (addresses.iter().find(|a| a.is_ipv4()), addresses.iter().find(|a| a.is_ipv6()))
    else {
        bail!("addresses of both families: {addresses:?}");
    };
    let unknown = Party { name: "unknown".into(), netns: netns.clone(), v4: *v4, v6: *v6 };
    let mut exchanges = Vec::new();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            exchanges.push(Exchange::new(protocol, family, &unknown, &plain));
            exchanges.push(Exchange::new(protocol, family, &plain, &unknown));
            exchanges.push(Exchange::new(protocol, family, &unknown, &cluster.nodes[1]));
        }
    }
    let outcomes = exchange_all(&exchanges)?;
    for (exchange, outcome) in exchanges.iter().zip(&outcomes) {
        ensure!(outcome.answered, "{exchange}: {outcome:?}");
    }
    let sightings = cluster.cleartext(&unknown.addresses(), Moment::START)?;
    ensure!(sightings.is_empty(), "an unknown pod in the clear: {}", analysis::list(&sightings));
    Ok(())
}

fn deleted_while_it_sends(context: &Context) -> Result<()> {
    let cluster = cluster(context, HostRouting::Bpf)?;
    let (sink, plain) = (cluster.pod("payments", "sink", 1)?, cluster.pod("public", "plain", 1)?);
    for (number, terminating_first) in [true, false].into_iter().enumerate() {
        let pod = cluster.pod("payments", &format!("leaver{number}"), 0)?;
        cluster.wait_known(&[&pod, &sink, &plain])?;
        let mut streams = Vec::new();
        for family in Family::ALL {
            for to in [&sink, &plain] {
                streams.push(UdpStreamer::start(&pod, to, family, 200, Duration::from_micros(500))?);
                streams.push(UdpStreamer::start(to, &pod, family, 200, Duration::from_micros(500))?);
            }
        }
        for stream in &streams {
            stream.wait_flowing()?;
        }
        if terminating_first {
            cluster.manifests.change("pod", &pod.file(), |object| {
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            })?;
            // A terminating pod still owns its address: its traffic goes on.
            for stream in &streams {
                stream.wait_flowing()?;
            }
        }
        // The object is removed while the pod still runs and sends, as when an API server loses it.
        cluster.manifests.remove("pod", &pod.file())?;
        let drops = || -> Result<u64> {
            Ok(cluster
                .nodes
                .iter()
                .map(|node| node.agent.all_drops())
                .collect::<Result<Vec<_>>>()?
                .iter()
                .flat_map(|d| d.values())
                .sum())
        };
        let sent: Vec<u64> = streams.iter().map(UdpStreamer::sent).collect();
        eventually("the deleted pod to go on sending", || {
            Ok(streams.iter().zip(&sent).all(|(stream, sent)| stream.sent() > sent + 100).then_some(()))
        })?;
        println!("drops while the object was gone: {}", drops()?);
        pod.detach()?;
        thread::sleep(Duration::from_millis(200));
        let markers = streams.iter().map(|stream| stream.marker).collect();
        for stream in streams {
            stream.stop()?;
        }
        let shown = analysis::payload_of(&cluster.capture.all()?, &markers);
        ensure!(shown.is_empty(), "payload of a deleted pod in the clear: {}", analysis::list(&shown));
        cluster.assert_no_cleartext(&[&pod], Moment::START)?;
    }
    Ok(())
}

fn address_reused(context: &Context) -> Result<()> {
    let cluster = cluster(context, HostRouting::Bpf)?;
    // The range has room for few pods, so that addresses are reused soon.
    let (sink, plain) = (cluster.pod("payments", "sink", 1)?, cluster.pod("public", "plain", 1)?);
    let first = cluster.pod("payments", "first", 0)?;
    cluster.wait_known(&[&first, &sink, &plain])?;
    let to_first = UdpStreamer::start(&sink, &first, Family::V4, 200, Duration::from_millis(1))?;
    let from_first = UdpStreamer::start(&first, &sink, Family::V4, 200, Duration::from_millis(1))?;
    to_first.wait_flowing()?;
    from_first.wait_flowing()?;
    first.delete(&cluster.manifests)?;
    let mut second = None;
    for number in 0..600 {
        let pod = cluster.pod("public", &format!("taker{number}"), 0)?;
        if pod.v4 == first.v4 {
            second = Some(pod);
            break;
        }
        pod.delete(&cluster.manifests)?;
    }
    let second = second.with_context(|| format!("{} was not given out again", first.v4))?;
    cluster.wait_known(&[&second])?;
    let markers = [to_first.marker, from_first.marker].into();
    let report = to_first.stop()?;
    from_first.stop()?;
    println!("to the address, through its change of hands: {report:?}");
    let shown = analysis::payload_of(&cluster.capture.all()?, &markers);
    ensure!(shown.is_empty(), "payload for a protected pod in the clear: {}", analysis::list(&shown));
    // The new owner is not opted in: with a plain peer it talks in the clear, with a protected one
    // it does not.
    eventually("the new owner's traffic to be plain", || {
        let since = cluster.capture.sync()?;
        let one = Exchange::new(Protocol::Udp, Family::V4, &second, &plain).patience(Duration::from_secs(3));
        let outcome = exchange(&one)?;
        ensure!(outcome.answered, "{one}: {outcome:?}");
        let seen = analysis::markers(&cluster.capture.since(since)?);
        Ok((seen.contains_key(&outcome.request) && seen.contains_key(&outcome.reply)).then_some(()))
    })?;
    let one = Exchange::new(Protocol::Tcp, Family::V4, &sink, &second);
    let outcome = exchange(&one)?;
    ensure!(outcome.answered, "{one}: {outcome:?}");
    let shown = analysis::payload_of(&cluster.capture.all()?, &[outcome.request, outcome.reply].into());
    ensure!(shown.is_empty(), "a protected pod and the new owner in the clear: {}", analysis::list(&shown));
    Ok(())
}
