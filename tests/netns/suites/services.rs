//! Services at the socket: connections are led to a backend where they are made, and what reaches
//! the wire is encrypted as between any two parties. No kube-proxy runs here, so what is answered
//! was led there by hauberk.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::manifests::endpoint;
use hauberk_netns::traffic::{Exchange, Protocol, exchange, wait_answered};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Party, Pod, Setup, Test, eventually};
use serde_json::{Value, json};

use crate::serving::{
    PORT, Server, TARGET, address, ask, backend_of, connect, put_backends, put_endpoints, put_service, spread,
    wait_spread,
};

pub const TESTS: &[Test] = &[
    Test::new("services::bpf_a_service_leads_to_its_backend_encrypted", |context| leads(context, HostRouting::Bpf)),
    Test::new("services::stack_a_service_leads_to_its_backend_encrypted", |context| leads(context, HostRouting::Stack)),
    Test::new("services::a_process_sees_the_address_that_it_gave", names),
    Test::new("services::without_backends_it_is_refused_at_once", refused),
    Test::new("services::backends_follow_the_policies", policies),
    Test::new("services::a_client_keeps_its_backend", affinity),
    Test::new("services::datagrams_of_a_socket_keep_their_backend_until_it_is_gone", datagrams),
    Test::new("services::no_service_takes_a_pods_or_the_tunnels_traffic", hijack),
    Test::new("services::services_outlive_the_agent", outlive),
    Test::new("services::no_connection_fails_while_backends_come_and_go", churn),
    Test::new("services::programs_that_are_detached_come_back", detached),
    Test::new("services::switched_off_nothing_is_left", switched_off),
];

const NODE_PORT: u16 = 30080;

fn playground(context: &Context, host_routing: HostRouting) -> Result<Cluster> {
    let cluster = Cluster::build(context, Setup { host_routing, sockets: true, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    Ok(cluster)
}

/// Waits until a TCP connection from the party to `to` gets a backend, or is refused.
fn wait_led(from: &Party, to: SocketAddr, led: bool) -> Result<()> {
    eventually(format!("{to} to be {} for {}", if led { "led to a backend" } else { "refused" }, from.name), || {
        let outcome = from.netns.within(|| Ok(connect(to)))?;
        match outcome {
            Ok(_) => ensure!(led, "it is led to a backend"),
            Err(error) => ensure!(error.kind() == ErrorKind::ConnectionRefused && !led, "{error}"),
        }
        Ok(Some(()))
    })
}

/// Waits until the party's node leads connections to `to`. No server needs to run: what is led to a
/// backend is answered by the backend's kernel.
fn wait_taken(from: &Party, to: SocketAddr) -> Result<()> {
    eventually(format!("{to} to be a service's for {}", from.name), || {
        let outcome = from.netns.within(|| Ok(TcpStream::connect_timeout(&to, Duration::from_millis(500))))?;
        let is_taken = outcome.as_ref().map_or_else(|error| error.kind() == ErrorKind::ConnectionRefused, |_| true);
        ensure!(is_taken, "{outcome:?}");
        Ok(Some(()))
    })
}

fn leads(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = playground(context, host_routing)?;
    let (server, client) = (cluster.pod("payments", "server", 1)?, cluster.pod("payments", "client", 0)?);
    let plain = cluster.pod("public", "plain", 0)?;
    cluster.wait_known(&[&server, &client, &plain])?;
    let extra = json!({"type": "NodePort", "ports": [
        {"name": "tcp", "protocol": "TCP", "port": PORT, "nodePort": NODE_PORT},
        {"name": "udp", "protocol": "UDP", "port": PORT, "nodePort": NODE_PORT},
    ], "externalIPs": ["198.51.100.7", "2001:db8:51::7"]});
    put_service(&cluster, "web", 10, &extra)?;
    put_backends(&cluster, "web", &[&server])?;
    let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
    let clients: [&Party; 4] = [&client, &plain, first, second];
    for (from, family) in [first, second].into_iter().flat_map(|node| Family::ALL.map(|family| (node, family))) {
        wait_taken(from, SocketAddr::new(address(family, 10), PORT))?;
    }
    // Until then, packets have the service's address.
    let since = cluster.capture.sync()?;
    for family in Family::ALL {
        let external: IpAddr = if family == Family::V4 { "198.51.100.7" } else { "2001:db8:51::7" }.parse()?;
        let mut services = vec![SocketAddr::new(address(family, 10), PORT), SocketAddr::new(external, PORT)];
        services.extend([first, second].map(|node| SocketAddr::new(node.address(family), NODE_PORT)));
        for from in clients {
            for service in &services {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let one = Exchange::new(protocol, family, from, &server).via(*service, TARGET);
                    let outcome = wait_answered(&one)?;
                    let seen = outcome.seen_client.context("no client")?;
                    ensure!(
                        seen == from.address(family) || from.name == second.name,
                        "{one}: the backend saw {seen} in the client's place"
                    );
                }
            }
        }
    }
    cluster.assert_no_cleartext(&[&server, &client], since)?;
    let services = cluster.cleartext(&Family::ALL.map(|family| address(family, 10)), since)?;
    ensure!(services.is_empty(), "packets with the service's address were on the wire");
    Ok(())
}

fn names(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let (server, client) = (cluster.pod("payments", "server", 1)?, cluster.pod("payments", "client", 0)?);
    cluster.wait_known(&[&server, &client])?;
    put_service(&cluster, "web", 10, &json!({}))?;
    put_backends(&cluster, "web", &[&server])?;
    let running = Server::start(&server)?;
    for family in Family::ALL {
        let service = SocketAddr::new(address(family, 10), PORT);
        wait_led(&client, service, true)?;
        client.netns.within(|| {
            let stream = connect(service).context("connect")?;
            let peer = stream.peer_addr().context("getpeername")?;
            ensure!(peer == service, "getpeername() says {peer}");
            for connected in [true, false] {
                let socket = UdpSocket::bind(SocketAddr::new(client.address(family), 0)).context("bind")?;
                socket.set_read_timeout(Some(Duration::from_secs(20))).context("SO_RCVTIMEO")?;
                if connected {
                    socket.connect(service).context("connect")?;
                    let peer = socket.peer_addr().context("getpeername")?;
                    ensure!(peer == service, "getpeername() says {peer} of a datagram socket");
                    socket.send(b"who").context("send")?;
                } else {
                    socket.send_to(b"who", service).context("sendto")?;
                }
                let mut buffer = [0; 64];
                let (count, from) = socket.recv_from(&mut buffer).context("recvfrom")?;
                ensure!(buffer[..count] == *b"server" && from == service, "the answer came from {from}");
            }
            Ok(())
        })?;
        // A socket of IPv6 for an IPv4 address: what most runtimes open.
        if let IpAddr::V4(v4) = service.ip() {
            let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), PORT);
            client.netns.within(|| {
                let peer =
                    connect(mapped).context("connect to a mapped address")?.peer_addr().context("getpeername")?;
                ensure!(peer == mapped, "getpeername() says {peer}");
                let socket = UdpSocket::bind("[::]:0").context("bind")?;
                socket.set_read_timeout(Some(Duration::from_secs(20))).context("SO_RCVTIMEO")?;
                socket.send_to(b"who", mapped).context("sendto a mapped address")?;
                let (_, from) = socket.recv_from(&mut [0; 64]).context("recvfrom")?;
                ensure!(from == mapped, "the answer came from {from}");
                Ok(())
            })?;
        }
    }
    running.stop()?;
    cluster.assert_no_cleartext(&[&server, &client], Moment::START)
}

fn refused(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let client = cluster.pod("payments", "client", 0)?;
    cluster.wait_known(&[&client])?;
    put_service(&cluster, "web", 10, &json!({}))?;
    for family in Family::ALL {
        let service = SocketAddr::new(address(family, 10), PORT);
        for from in [&client.party, &cluster.nodes[0].party] {
            wait_led(from, service, false)?;
            from.netns.within(|| {
                let socket = UdpSocket::bind(SocketAddr::new(from.address(family), 0)).context("bind")?;
                let sent = socket.send_to(b"who", service).map_err(|error| error.kind());
                ensure!(sent == Err(ErrorKind::ConnectionRefused), "sendto() says {sent:?}");
                Ok(())
            })?;
        }
    }
    let (status, text, _) = cluster.nodes[0].cli(&["services", "payments/web"])?;
    ensure!(status == 0 && text.contains("web"), "{status}: {text}");
    Ok(())
}

fn policies(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let (near, far) = (cluster.pod("payments", "near", 0)?, cluster.pod("payments", "far", 1)?);
    let client = cluster.pod("payments", "client", 0)?;
    cluster.wait_known(&[&near, &far, &client])?;
    let servers = [Server::start(&near)?, Server::start(&far)?];
    let all = |family: Family, change: &dyn Fn(&mut Value, &mut Value)| {
        let mut near = endpoint(near.address(family), &near.node.name);
        let mut far = endpoint(far.address(family), &far.node.name);
        change(&mut near, &mut far);
        vec![near, far]
    };
    let conditions = |ready: bool| json!({"ready": ready, "serving": true, "terminating": !ready});
    put_service(&cluster, "web", 10, &json!({}))?;
    put_backends(&cluster, "web", &[&near, &far])?;
    let web = |family| SocketAddr::new(address(family, 10), PORT);
    for family in Family::ALL {
        wait_spread(&client, web(family), &["far", "near"])?;
    }
    put_service(&cluster, "web", 10, &json!({"internalTrafficPolicy": "Local"}))?;
    for family in Family::ALL {
        wait_spread(&client, web(family), &["near"])?;
        wait_spread(&cluster.nodes[1], web(family), &["far"])?;
    }
    // None is ready on the client's node, but one still serves while it ends.
    put_endpoints(&cluster, "web", |family| all(family, &|near, _| near["conditions"] = conditions(false)))?;
    for family in Family::ALL {
        wait_spread(&client, web(family), &["near"])?;
    }
    put_service(&cluster, "web", 10, &json!({}))?;
    for family in Family::ALL {
        wait_spread(&client, web(family), &["far"])?;
    }
    put_endpoints(&cluster, "web", |family| {
        all(family, &|near, far| {
            near["hints"] = json!({"forNodes": [{"name": "n1"}]});
            far["hints"] = json!({"forNodes": [{"name": "n2"}]});
        })
    })?;
    for family in Family::ALL {
        wait_spread(&client, web(family), &["near"])?;
        wait_spread(&cluster.nodes[1], web(family), &["far"])?;
    }
    put_service(&cluster, "web", 10, &json!({"publishNotReadyAddresses": true}))?;
    put_endpoints(&cluster, "web", |family| {
        all(family, &|near, far| {
            near["conditions"] = json!({"ready": false, "serving": false});
            far["conditions"] = json!({"ready": false, "serving": false});
        })
    })?;
    for family in Family::ALL {
        wait_spread(&client, web(family), &["far", "near"])?;
    }
    for server in servers {
        server.stop()?;
    }
    cluster.assert_no_cleartext(&[&near, &far, &client], Moment::START)
}

fn affinity(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let pods = ["a", "b", "c", "d"].map(|name| cluster.pod("payments", name, usize::from(name > "b")));
    let [a, b, c, d] = pods;
    let pods = [a?, b?, c?, d?];
    let client = cluster.pod("payments", "client", 0)?;
    cluster.wait_known(&pods.each_ref())?;
    let servers: Vec<Server> = pods.iter().map(Server::start).collect::<Result<_>>()?;
    put_service(&cluster, "web", 10, &json!({"sessionAffinity": "ClientIP"}))?;
    put_backends(&cluster, "web", &pods.each_ref())?;
    for family in Family::ALL {
        let service = SocketAddr::new(address(family, 10), PORT);
        wait_led(&client, service, true)?;
        let kept = backend_of(&client.netns, service)?;
        let again = spread(&client.netns, service, 20)?;
        ensure!(again.keys().eq([&kept]), "{family}: the client had {kept} and got {again:?}");
        // A change of the others does not move the client; the end of its own backend does.
        let others: Vec<&Pod> = pods.iter().filter(|pod| pod.name != kept).collect();
        let own: Vec<&Pod> = pods.iter().filter(|pod| pod.name == kept).chain([others[0]]).collect();
        put_backends(&cluster, "web", &own)?;
        let names: Vec<&str> = own.iter().map(|pod| pod.name.as_str()).collect();
        eventually("the node's processes to reach the backends that are left", || {
            let now = backend_of(&cluster.nodes[0].netns, service)?;
            ensure!(names.contains(&now.as_str()), "they reach {now}, not one of {names:?}");
            Ok(Some(()))
        })?;
        let again = spread(&client.netns, service, 20)?;
        ensure!(again.keys().eq([&kept]), "{family}: the client had {kept} and got {again:?} after a change");
        put_backends(&cluster, "web", &others[..1])?;
        wait_spread(&client, service, &[&others[0].name])?;
        put_backends(&cluster, "web", &pods.each_ref())?;
    }
    for server in servers {
        server.stop()?;
    }
    Ok(())
}

fn datagrams(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let pods = [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?];
    let client = cluster.pod("payments", "client", 0)?;
    cluster.wait_known(&[&pods[0], &pods[1], &client])?;
    let servers: Vec<Server> = pods.iter().map(Server::start).collect::<Result<_>>()?;
    put_service(&cluster, "web", 10, &json!({}))?;
    put_backends(&cluster, "web", &pods.each_ref())?;
    for family in Family::ALL {
        let service = SocketAddr::new(address(family, 10), PORT);
        wait_spread(&client, service, &["a", "b"])?;
        let mut seen = BTreeMap::new();
        client.netns.within(|| {
            for _ in 0..12 {
                let socket = UdpSocket::bind(SocketAddr::new(client.address(family), 0)).context("bind")?;
                socket.set_read_timeout(Some(Duration::from_millis(500))).context("SO_RCVTIMEO")?;
                let first = ask(&socket, service)?;
                for _ in 0..10 {
                    let next = ask(&socket, service)?;
                    ensure!(next == first, "{family}: a socket's datagrams went to {first} and {next}");
                }
                *seen.entry(first).or_insert(0) += 1;
            }
            Ok(())
        })?;
        ensure!(seen.len() == 2, "{family}: twelve sockets reached {seen:?} alone");
        // The socket's backend goes: its next datagram reaches the other one.
        client.netns.within(|| {
            let socket = UdpSocket::bind(SocketAddr::new(client.address(family), 0)).context("bind")?;
            socket.set_read_timeout(Some(Duration::from_millis(500))).context("SO_RCVTIMEO")?;
            let first = ask(&socket, service)?;
            let other = pods.iter().find(|pod| pod.name != first).context("no other backend")?;
            put_backends(&cluster, "web", &[other])?;
            eventually("a socket's datagrams to reach the backend that is left", || {
                let now = ask(&socket, service)?;
                ensure!(now == other.name, "they reach {now}");
                Ok(Some(()))
            })
        })?;
        put_backends(&cluster, "web", &pods.each_ref())?;
    }
    for server in servers {
        server.stop()?;
    }
    Ok(())
}

fn hijack(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let (victim, thief) = (cluster.pod("payments", "victim", 1)?, cluster.pod("public", "thief", 0)?);
    let client = cluster.pod("payments", "client", 0)?;
    cluster.wait_known(&[&victim, &thief, &client])?;
    let taken: Vec<String> =
        victim.addresses().iter().chain(&cluster.nodes[1].addresses()).map(IpAddr::to_string).collect();
    let ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": TARGET}, {"name": "udp", "protocol": "UDP", "port": TARGET},
        {"name": "tunnel", "protocol": "UDP", "port": 51840},
    ]);
    put_service(&cluster, "theft", 66, &json!({"externalIPs": taken, "ports": ports}))?;
    put_service(&cluster, "marker", 67, &json!({}))?;
    put_endpoints(&cluster, "theft", |family| vec![endpoint(thief.address(family), "n1")])?;
    put_backends(&cluster, "marker", &[&thief])?;
    // Both services were written in this order, so the first is known when the second is.
    let running = Server::start(&thief)?;
    for family in Family::ALL {
        wait_led(&client, SocketAddr::new(address(family, 67), PORT), true)?;
        wait_led(&client, SocketAddr::new(address(family, 66), TARGET), true)?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let own = SocketAddr::new(victim.address(family), TARGET);
            let one = Exchange::new(protocol, family, &client, &victim).via(own, TARGET);
            let outcome = exchange(&one)?;
            ensure!(outcome.delivered && outcome.answered, "{one}: {outcome:?}");
        }
    }
    running.stop()?;
    eventually("the refusal to be told", || {
        let (_, text, _) = cluster.nodes[0].cli(&["events"])?;
        ensure!(text.contains("ServiceAddressRefused") && text.contains("theft"), "{text}");
        Ok(Some(()))
    })?;
    cluster.assert_no_cleartext(&[&victim, &client], Moment::START)
}

fn outlive(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let pods = [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?];
    let client = cluster.pod("public", "client", 0)?;
    cluster.wait_known(&[&pods[0], &pods[1], &client])?;
    let servers: Vec<Server> = pods.iter().map(Server::start).collect::<Result<_>>()?;
    put_service(&cluster, "web", 10, &json!({}))?;
    put_service(&cluster, "other", 11, &json!({}))?;
    put_backends(&cluster, "web", &[&pods[0]])?;
    put_backends(&cluster, "other", &[&pods[0]])?;
    let [web, other] = [10, 11].map(|last| SocketAddr::new(address(Family::V6, last), PORT));
    let node = &cluster.nodes[0];
    for graceful in [true, false] {
        put_backends(&cluster, "web", &[&pods[0]])?;
        wait_spread(&client, web, &["a"])?;
        wait_spread(&client, other, &["a"])?;
        let held = client.netns.within(|| connect(web).context("connect"))?;
        if graceful {
            node.agent.terminate()?
        } else {
            node.agent.kill()?
        }
        ensure!(spread(&client.netns, web, 10)?.keys().eq(["a"]), "without the agent");
        // What changes meanwhile is in force when the next agent is ready; the rest stays as it is.
        put_backends(&cluster, "web", &[&pods[1]])?;
        cluster.manifests.remove("service", "other")?;
        node.start_agent()?;
        node.agent.wait_ready()?;
        wait_spread(&client, web, &["b"])?;
        let peer = client.netns.within(|| held.peer_addr().context("getpeername"))?;
        ensure!(peer == web, "getpeername() of an earlier connection says {peer}");
        eventually("the service that is gone to lead nowhere", || {
            let gone = client.netns.within(|| Ok(TcpStream::connect_timeout(&other, Duration::from_secs(1))))?;
            ensure!(gone.is_err(), "it still leads to a backend");
            Ok(Some(()))
        })?;
        put_service(&cluster, "other", 11, &json!({}))?;
    }
    for server in servers {
        server.stop()?;
    }
    Ok(())
}

fn churn(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let names = ["a", "b", "c", "d"];
    let pods: Vec<Pod> =
        names.iter().map(|name| cluster.pod("payments", name, usize::from(*name > "b"))).collect::<Result<_>>()?;
    let client = cluster.pod("payments", "client", 0)?;
    let known: Vec<&Pod> = pods.iter().chain([&client]).collect();
    cluster.wait_known(&known)?;
    let servers: Vec<Server> = pods.iter().map(Server::start).collect::<Result<_>>()?;
    put_service(&cluster, "web", 10, &json!({}))?;
    put_backends(&cluster, "web", &[&pods[0], &pods[1]])?;
    let service = SocketAddr::new(address(Family::V4, 10), PORT);
    wait_spread(&client, service, &["a", "b"])?;
    let over = AtomicBool::new(false);
    let count = thread::scope(|scope| {
        let client = scope.spawn(|| -> Result<usize> {
            let mut count = 0;
            while !over.load(Ordering::SeqCst) {
                let name = backend_of(&client.netns, service).with_context(|| format!("after {count} connections"))?;
                ensure!(names.contains(&name.as_str()), "an answer of {name:?}");
                count += 1;
            }
            Ok(count)
        });
        // All four serve all the time; which of them are the service's changes.
        for round in 0..400_usize {
            let chosen: Vec<&Pod> = pods
                .iter()
                .enumerate()
                .filter(|(index, _)| (index + round) % 4 < 1 + round % 3)
                .map(|(_, pod)| pod)
                .collect();
            put_backends(&cluster, "web", &chosen)?;
            thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::SeqCst);
        client.join().unwrap_or_else(|_| bail!("the client panicked"))
    })?;
    println!("{count} connections while the backends changed 400 times");
    put_backends(&cluster, "web", &[&pods[3]])?;
    wait_spread(&client, service, &["d"])?;
    for server in servers {
        server.stop()?;
    }
    cluster.assert_no_cleartext(&known, Moment::START)
}

/// Any program with `CAP_NET_ADMIN` can detach them. The files of their links stay.
fn detached(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let (server, client) = (cluster.pod("payments", "server", 1)?, cluster.pod("payments", "client", 0)?);
    cluster.wait_known(&[&server, &client])?;
    put_service(&cluster, "web", 10, &json!({}))?;
    put_backends(&cluster, "web", &[&server])?;
    let running = Server::start(&server)?;
    for (family, program) in [(Family::V4, "connect4"), (Family::V6, "connect6")] {
        let service = SocketAddr::new(address(family, 10), PORT);
        wait_spread(&client, service, &["server"])?;
        cluster.nodes[0].detach_socket_program(program)?;
        wait_spread(&client, service, &["server"])?;
    }
    let (_, events, _) = cluster.nodes[0].cli(&["events"])?;
    ensure!(events.contains("Restored"), "nothing is said of it: {events}");
    running.stop()
}

fn switched_off(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let (server, client) = (cluster.pod("payments", "server", 1)?, cluster.pod("payments", "client", 0)?);
    cluster.wait_known(&[&server, &client])?;
    put_service(&cluster, "web", 10, &json!({}))?;
    put_backends(&cluster, "web", &[&server])?;
    let running = Server::start(&server)?;
    let service = SocketAddr::new(address(Family::V4, 10), PORT);
    wait_spread(&client, service, &["server"])?;
    let held = client.netns.within(|| connect(service).context("connect"))?;
    let node = &cluster.nodes[0];
    node.agent.terminate()?;
    let text = std::fs::read_to_string(node.config()).context("read the configuration")?;
    ensure!(text.contains("sockets: true"), "{text}");
    std::fs::write(node.config(), text.replace("sockets: true", "sockets: false")).context("write it")?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    eventually("connections to be left alone", || {
        let outcome = client.netns.within(|| Ok(TcpStream::connect_timeout(&service, Duration::from_secs(1))))?;
        ensure!(outcome.is_err(), "they are led to a backend");
        Ok(Some(()))
    })?;
    // What was connected goes on.
    let mut name = String::new();
    client.netns.within(|| (&held).read_to_string(&mut name).context("read"))?;
    ensure!(name == "server", "{name:?}");
    eventually("the tables to be empty", || {
        let maps: hauberk_api::Maps = node.agent.ask("/v1/maps")?;
        for name in ["FRONTENDS", "BACKENDS"] {
            let map = maps.maps.iter().find(|map| map.name == name).with_context(|| format!("no map {name}"))?;
            ensure!(map.rows.is_empty(), "{name} has {:?}", map.rows);
        }
        Ok(Some(()))
    })?;
    running.stop()
}
