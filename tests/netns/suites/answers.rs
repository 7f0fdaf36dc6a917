//! Answers to sealed packets are sealed. Masquerading replaces a protected pod's address by its
//! node's, and the answering party may be a node as well, so that the addresses of an answer do not
//! show that it must be sealed.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::analysis;
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{Exchange, Protocol, exchange, exchange_all};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Marker, Party, Pod, Setup, Test, eventually, nat};

pub const TESTS: &[Test] = &[
    Test::new("answers::bpf_masqueraded_services_on_the_host_network", |context| services(context, HostRouting::Bpf)),
    Test::new("answers::stack_masqueraded_services_on_the_host_network", |context| {
        services(context, HostRouting::Stack)
    }),
    Test::new("answers::errors_that_quote_a_question_are_sealed", errors),
    Test::new("answers::errors_of_a_node_about_its_pods_are_sealed", errors_about_pods),
    Test::new("answers::from_another_address_of_the_node_and_from_another_port", from_elsewhere),
    Test::new("answers::nodes_that_asked_in_the_clear_are_answered_in_the_clear", control),
];

/// Ports of services: after translation the port is all that identifies a packet.
const FIRST_PORT: u16 = 23000;

struct Playground {
    cluster: Cluster,
    client: Pod,
    plain: Pod,
}

/// A protected pod on the first node, which masquerades all of its services, and a plain pod on the
/// second.
fn build(context: &Context, host_routing: HostRouting) -> Result<Playground> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (client, plain) = (cluster.pod("payments", "a", 0)?, cluster.pod("public", "d", 1)?);
    cluster.wait_known(&[&client, &plain])?;
    Ok(Playground { cluster, client, plain })
}

/// A service of the first node for one backend, masqueraded as by kube-proxy.
fn service(cluster: &Cluster, number: u8, backend: IpAddr) -> Result<IpAddr> {
    let service = nat::service_address(Family::of(backend), number);
    nat::add_service(&cluster.nodes[0], service, backend)?;
    nat::masquerade_to(&cluster.nodes[0], backend)?;
    Ok(service)
}

/// The API server's own service is like this: its backends are nodes.
fn services(context: &Context, host_routing: HostRouting) -> Result<()> {
    let Playground { cluster, client, plain } = &build(context, host_routing)?;
    let mut exchanges = Vec::new();
    for family in Family::ALL {
        for (number, backend) in [(1, &cluster.nodes[1].party), (2, &plain.party)] {
            let service = service(cluster, number, backend.address(family))?;
            // The answer to the last one is fragmented.
            for (protocol, bytes) in [(Protocol::Tcp, 400), (Protocol::Udp, 400), (Protocol::Udp, 4000)] {
                let port = FIRST_PORT + exchanges.len() as u16;
                let one = Exchange::new(protocol, family, client, backend).via(SocketAddr::new(service, port), port);
                exchanges.push(Exchange { bytes, ..one });
            }
        }
    }
    let since = cluster.capture.sync()?;
    let outcomes = exchange_all(&exchanges)?;
    let frames = cluster.capture.since(since)?;
    let seen = analysis::markers(&frames);
    let mut wrong = Vec::new();
    for (exchange, outcome) in exchanges.iter().zip(&outcomes) {
        if !outcome.answered {
            wrong.push(format!("{exchange}: no answer: {}", outcome.said));
        }
        let node = cluster.nodes[0].address(exchange.family);
        if outcome.seen_client != Some(node) {
            wrong.push(format!("{exchange}: the backend saw {:?} instead of {node}", outcome.seen_client));
        }
        for (what, marker) in [("request", outcome.request), ("reply", outcome.reply)] {
            if seen.contains_key(&marker) {
                wrong.push(format!("{exchange}: its {what} is on the wire in the clear"));
            }
        }
        if let Some(sighting) = analysis::clear_port(&frames, exchange.port).first() {
            wrong.push(format!("{exchange}: {sighting}"));
        }
    }
    for node in &cluster.nodes {
        println!("drops on {}: {:?}", node.name, node.agent.all_drops()?);
    }
    ensure!(wrong.is_empty(), "{} of {}:\n  {}", wrong.len(), exchanges.len(), wrong.join("\n  "));
    let flows = cluster.nodes[1].agent.flows()?;
    let says = |flow: &&hauberk_api::FlowRecord| {
        flow.why == hauberk_api::Why::AnswersSealed && flow.encryption == hauberk_api::Encryption::Encrypted
    };
    ensure!(flows.iter().any(|flow| says(&flow)), "no flow says that it answers what came sealed: {flows:?}");
    cluster.assert_no_cleartext(&[client], Moment::START)
}

/// A closed port: the node's kernel answers with an error that quotes the request.
fn errors(context: &Context) -> Result<()> {
    let Playground { cluster, client, .. } = &build(context, HostRouting::Stack)?;
    for family in Family::ALL {
        let service = service(cluster, 1, cluster.nodes[1].address(family))?;
        let marker = Marker::unique();
        let refused = |socket: &UdpSocket| -> Result<bool> {
            // The kernel must quote at least 28 bytes of IPv4 and UDP headers; Linux also quotes
            // the rest.
            let sent = socket.send(&marker.fill(200));
            Ok(matches!(sent, Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused))
        };
        let address = client.address(family);
        client.netns.within(|| {
            let socket = UdpSocket::bind((address, 0)).context("bind")?;
            socket.connect((service, 9)).context("connect")?;
            eventually("the error to come back", || Ok(refused(&socket)?.then_some(())))
        })?;
        let seen = analysis::markers(&cluster.capture.all()?);
        ensure!(!seen.contains_key(&marker), "{family}: the question, or the error that quotes it, is in the clear");
    }
    // Now all ICMP to the client is sealed except neighbour discovery: nodes still reach each
    // other.
    for node in &cluster.nodes {
        node.run("ip", &["-6", "neigh", "flush", "dev", "eth0"])?;
    }
    let nodes: [&Party; 2] = [&cluster.nodes[0].party, &cluster.nodes[1].party];
    for (from, to) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
        let one = Exchange::new(Protocol::Tcp, Family::V6, from, to);
        let outcome = exchange(&one)?;
        ensure!(outcome.answered, "{one}: {outcome:?}");
    }
    Ok(())
}

/// The pod's node answers in its place, as a network policy's reject does. The client is a node, or
/// a pod behind its node's masquerading.
fn errors_about_pods(context: &Context) -> Result<()> {
    let Playground { cluster, client, plain } = &build(context, HostRouting::Stack)?;
    let protected = cluster.pod("payments", "b", 1)?;
    cluster.wait_known(&[client, plain, &protected])?;
    let [asker, other] = [&cluster.nodes[0], &cluster.nodes[1]];
    other.netns.nft(
        "table inet rejecting {
            chain forward { type filter hook forward priority filter; policy accept; udp dport 9 reject; }
        }",
    )?;
    for pod in [plain, &protected] {
        for family in Family::ALL {
            nat::masquerade_to(asker, pod.address(family))?;
        }
    }
    let masqueraded = [(&client.party, plain), (&client.party, &protected)];
    for (from, to) in masqueraded.into_iter().chain([(&asker.party, &protected)]) {
        for family in Family::ALL {
            let marker = Marker::unique();
            let (here, there) = (from.address(family), to.address(family));
            from.netns.within(|| {
                let socket = UdpSocket::bind((here, 0)).context("bind")?;
                socket.connect((there, 9)).context("connect")?;
                eventually(format!("{} to have an error about {}", from.name, to.name), || {
                    let sent = socket.send(&marker.fill(200));
                    let refused = matches!(sent, Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused);
                    Ok(refused.then_some(()))
                })
            })?;
            let seen = analysis::markers(&cluster.capture.all()?);
            ensure!(!seen.contains_key(&marker), "{}, {family}: what it quotes is in the clear", to.name);
        }
    }
    cluster.assert_no_cleartext(&[client, &protected], Moment::START)
}

/// A server bound to every address answers from the node's first address although it was asked at
/// the second. A TFTP server answers from a new port.
fn from_elsewhere(context: &Context) -> Result<()> {
    let Playground { cluster, client, .. } = &build(context, HostRouting::Stack)?;
    let (asker, server) = (&cluster.nodes[0], &cluster.nodes[1]);
    let second: IpAddr = "172.18.0.77".parse()?;
    server.netns.ip("addr add 172.18.0.77/24 dev eth0")?;
    eventually("the second address to be known as the node's", || {
        Ok(cluster.manifests.read("node", &server.name)?.to_string().contains("172.18.0.77").then_some(()))
    })?;
    nat::masquerade_to(asker, second)?;
    let listening = server.netns.within(|| UdpSocket::bind("0.0.0.0:6969").context("bind"))?;
    listening.set_read_timeout(Some(Duration::from_millis(300)))?;
    let question = client.netns.within(|| UdpSocket::bind((client.address(Family::V4), 0)).context("bind"))?;
    let answer = Marker::unique();
    let answered_to = eventually("the question to arrive, masqueraded", || {
        question.send_to(&Marker::unique().fill(64), SocketAddr::new(second, 6969)).context("ask")?;
        let mut room = [0; 2048];
        Ok(listening.recv_from(&mut room).ok().map(|(_, from)| from))
    })?;
    ensure!(answered_to.ip() == asker.address(Family::V4), "it was not masqueraded: {answered_to}");
    // Bound to every address: the kernel answers from the first one.
    listening.send_to(&answer.fill(200), answered_to).context("answer")?;
    let other = server.netns.within(|| UdpSocket::bind("0.0.0.0:0").context("bind"))?;
    other.send_to(&answer.fill(200), answered_to).context("answer from another port")?;
    eventually("the answers to be recorded as sealed", || {
        let flows = server.agent.flows()?;
        let sealed = |flow: &&hauberk_api::FlowRecord| {
            flow.why == hauberk_api::Why::AnswersSealed && flow.encryption == hauberk_api::Encryption::Encrypted
        };
        Ok((flows.iter().filter(sealed).count() >= 2).then_some(()))
    })?;
    let seen = analysis::markers(&cluster.capture.all()?);
    ensure!(!seen.contains_key(&answer), "an answer is on the wire in the clear");
    cluster.assert_no_cleartext(&[client], Moment::START)
}

/// Traffic between nodes is left alone, and a flow beside a sealed one does not change.
fn control(context: &Context) -> Result<()> {
    let Playground { cluster, client, .. } = &build(context, HostRouting::Stack)?;
    let nodes: [&Party; 2] = [&cluster.nodes[0].party, &cluster.nodes[1].party];
    for family in Family::ALL {
        let service = service(cluster, 1, nodes[1].address(family))?;
        let sealed = Exchange::new(Protocol::Tcp, family, client, nodes[1]);
        let sealed = exchange(&sealed.via(SocketAddr::new(service, FIRST_PORT), FIRST_PORT))?;
        ensure!(sealed.answered, "{sealed:?}");
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Fragments] {
            let one = Exchange::new(protocol, family, nodes[0], nodes[1]).patience(Duration::from_secs(60));
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
            let seen = analysis::markers(&cluster.capture.all()?);
            ensure!(seen.contains_key(&outcome.reply), "{one}: nodes' own traffic is not on the wire as it is");
        }
    }
    Ok(())
}
