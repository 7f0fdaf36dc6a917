//! Services for clients outside the cluster: what arrives for one at a node is led to a backend,
//! and what goes on to another node is encrypted as between any two parties. No kube-proxy runs
//! here.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::manifests::endpoint;
use hauberk_netns::traffic::{Exchange, Protocol, exchange, wait_answered};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Netns, Node, Party, Pod, Setup, Test, eventually};
use serde_json::{Value, json};

use crate::serving::{
    PORT, Server, TARGET, address, ask, backend_of, connect, put_backends, put_endpoints, put_service, spread,
    wait_spread,
};

pub const TESTS: &[Test] = &[
    Test::new("outside::bpf_clients_reach_a_service_by_any_node_encrypted", |context| leads(context, HostRouting::Bpf)),
    Test::new("outside::stack_clients_reach_a_service_by_any_node_encrypted", |context| {
        leads(context, HostRouting::Stack)
    }),
    Test::new("outside::nodes_and_pods_that_come_in_the_clear_reach_no_protected_backend", from_the_cluster),
    Test::new("outside::a_backend_may_be_a_process_of_a_node", on_nodes),
    Test::new("outside::pods_whose_sockets_are_not_led_reach_services_too", not_led),
    Test::new("outside::clients_come_by_any_device", any_device),
    Test::new("outside::a_local_policy_keeps_to_the_node_and_keeps_the_source", local),
    Test::new("outside::a_load_balancer_admits_whom_it_should", source_ranges),
    Test::new("outside::without_backends_a_client_is_refused_at_once", refused),
    Test::new("outside::a_client_keeps_its_backend", affinity),
    Test::new("outside::bpf_a_strict_firewall_is_in_nobodys_way", |context| strict(context, HostRouting::Bpf)),
    Test::new("outside::stack_a_strict_firewall_is_in_nobodys_way", |context| strict(context, HostRouting::Stack)),
    Test::new("outside::connections_outlive_the_agent_and_the_setting", outlive),
    Test::new("outside::no_connection_fails_while_backends_come_and_go", churn),
    Test::new("outside::a_client_learns_what_fits_the_tunnel", large),
];

const NODE_PORT: u16 = 30080;

fn playground(context: &Context, host_routing: HostRouting) -> Result<Cluster> {
    build(context, Setup { host_routing, ..Setup::default() })
}

fn build(context: &Context, setup: Setup) -> Result<Cluster> {
    let config = json!({"services": {"sockets": true, "outside": true}});
    let cluster = Cluster::build(context, Setup { sockets: true, config, ..setup })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    Ok(cluster)
}

/// A service that is reached at node ports, at a load balancer's and at external addresses.
fn everywhere(extra: &Value) -> Value {
    let mut spec = json!({
        "type": "LoadBalancer",
        "ports": [
            {"name": "tcp", "protocol": "TCP", "port": PORT, "nodePort": NODE_PORT},
            {"name": "udp", "protocol": "UDP", "port": PORT, "nodePort": NODE_PORT},
        ],
        "externalIPs": Family::ALL.map(external),
    });
    if let (Some(spec), Some(extra)) = (spec.as_object_mut(), extra.as_object()) {
        spec.extend(extra.clone());
    }
    spec
}

fn external(family: Family) -> IpAddr {
    match family {
        Family::V4 => [198, 51, 100, 7].into(),
        Family::V6 => [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 7].into(),
    }
}

/// The client's network leads a service's external addresses to this node.
fn route_to(cluster: &Cluster, node: &Node) -> Result<()> {
    let [v4, v6] = Family::ALL.map(external);
    cluster.outside.netns.ip(&format!("route replace {v4} via {}\nroute replace {v6} via {}", node.v4, node.v6))
}

fn node_port(node: &Node, family: Family) -> SocketAddr {
    SocketAddr::new(node.address(family), NODE_PORT)
}

fn leads(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = playground(context, host_routing)?;
    let outside = &cluster.outside;
    let (protected, plain) = (cluster.pod("payments", "protected", 1)?, cluster.pod("public", "plain", 1)?);
    cluster.wait_known(&[&protected, &plain])?;
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    let mut since = Moment::START;
    for server in [&protected, &plain] {
        put_backends(&cluster, "web", &[server])?;
        // The other backend's connections go on where they are: see `outlive`.
        let running = Server::start(server)?;
        for node in &cluster.nodes {
            for family in Family::ALL {
                wait_spread(outside, node_port(node, family), &[&server.name])?;
            }
        }
        running.stop()?;
        since = cluster.capture.sync()?;
        for node in &cluster.nodes {
            route_to(&cluster, node)?;
            for family in Family::ALL {
                for at in [node_port(node, family), SocketAddr::new(external(family), PORT)] {
                    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Fragments] {
                        let one = Exchange::new(protocol, family, outside, server).via(at, TARGET);
                        let outcome = wait_answered(&one)?;
                        let seen = outcome.seen_client.context("no client")?;
                        let expected =
                            if node.name == server.node.name { outside.address(family) } else { node.address(family) };
                        ensure!(seen == expected, "{one} by {}: the backend saw {seen}, not {expected}", node.name);
                    }
                }
            }
        }
        cluster.assert_no_cleartext(&[&protected], since)?;
    }
    // A cluster address is no client's outside.
    let [v4, _] = Family::ALL.map(|family| address(family, 10));
    outside.netns.ip(&format!("route add {v4} via {}", cluster.nodes[0].v4))?;
    let outcome =
        outside.netns.within(|| Ok(connect(SocketAddr::new(v4, PORT)).map(drop).map_err(|error| error.kind())))?;
    ensure!(outcome == Err(ErrorKind::ConnectionRefused), "a cluster address says {outcome:?}");
    cluster.assert_no_cleartext(&[&protected], since)
}

/// A node's process whose sockets are not led comes by the wire in the clear.
fn from_the_cluster(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let (protected, plain) = (cluster.pod("payments", "protected", 0)?, cluster.pod("public", "plain", 0)?);
    let far = cluster.pod("payments", "far", 1)?;
    cluster.wait_known(&[&protected, &plain, &far])?;
    put_service(&cluster, "web", 10, &everywhere(&json!({"externalTrafficPolicy": "Local"})))?;
    put_backends(&cluster, "web", &[&protected])?;
    let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
    let running = Server::start(&protected)?;
    for family in Family::ALL {
        wait_spread(&cluster.outside, node_port(first, family), &["protected"])?;
        // Another node's own backends are left to it: this comes by the tunnel, as the answer does.
        wait_spread(&far, node_port(first, family), &["protected"])?;
        let reached = second
            .netns
            .within(|| Ok(TcpStream::connect_timeout(&node_port(first, family), Duration::from_secs(3))))?;
        ensure!(reached.is_err(), "{family}: a node reached a protected pod in the clear");
    }
    running.stop()?;
    let refused = first.agent.drops("plaintext_to_protected")?;
    ensure!(refused > 0, "the refusal is not counted");
    put_backends(&cluster, "web", &[&plain])?;
    let running = Server::start(&plain)?;
    for family in Family::ALL {
        wait_spread(second, node_port(first, family), &["plain"])?;
        wait_spread(&far, node_port(first, family), &["plain"])?;
    }
    running.stop()?;
    cluster.assert_no_cleartext(&[&protected, &far], Moment::START)
}

fn on_nodes(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let client = cluster.pod("payments", "client", 0)?;
    cluster.wait_known(&[&client])?;
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    for server in &cluster.nodes {
        put_endpoints(&cluster, "web", |family| vec![endpoint(server.address(family), &server.name)])?;
        for node in &cluster.nodes {
            for family in Family::ALL {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let one = Exchange::new(protocol, family, &cluster.outside, server);
                    let one = one.via(node_port(node, family), TARGET).patience(Duration::from_secs(5));
                    eventually(format!("{one} by {}", node.name), || {
                        let outcome = exchange(&one)?;
                        ensure!(outcome.answered, "{outcome:?}");
                        Ok(Some(()))
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// By a second network with small packets, and from a container behind a bridge of the node.
fn any_device(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let pods = [cluster.pod("payments", "near", 0)?, cluster.pod("payments", "far", 1)?];
    cluster.wait_known(&[&pods[0], &pods[1]])?;
    let node = &cluster.nodes[0];
    let clients = [neighbour(node, "second", 71, false)?, neighbour(node, "container", 72, true)?];
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    for pod in &pods {
        put_backends(&cluster, "web", &[pod])?;
        for client in &clients {
            for (family, protocol) in
                Family::ALL.into_iter().flat_map(|family| [(family, Protocol::Tcp), (family, Protocol::Udp)])
            {
                let mut one = Exchange::new(protocol, family, client, pod).via(node_port(node, family), TARGET);
                one.bytes = if protocol == Protocol::Tcp { 100_000 } else { 900 };
                wait_answered(&one)?;
            }
        }
    }
    cluster.assert_no_cleartext(&[&pods[0], &pods[1]], Moment::START)
}

/// A host that has the node as its gateway: by a device of the node, or by a bridge.
fn neighbour(node: &Node, name: &str, number: u8, by_bridge: bool) -> Result<Party> {
    let netns = Netns::create(name)?;
    let device = format!("nic{number}");
    let (holder, mtu) = if by_bridge { (format!("bridge{number}"), 1500) } else { (device.clone(), 1400) };
    let path = netns.path().display().to_string();
    netns.ip("link set lo up")?;
    node.run("ip", &["link", "add", &device, "type", "veth", "peer", "name", "eth0", "netns", &path])?;
    if by_bridge {
        node.netns.ip(&format!("link add {holder} type bridge\nlink set {device} master {holder} up"))?;
    }
    node.netns.ip(&format!(
        "link set {device} mtu {mtu}
         addr add 192.168.{number}.1/24 dev {holder}
         addr add fd77:{number}::1/64 dev {holder} nodad
         link set {holder} up"
    ))?;
    netns.ip(&format!(
        "link set eth0 mtu {mtu} up
         addr add 192.168.{number}.2/24 dev eth0
         addr add fd77:{number}::2/64 dev eth0 nodad
         route add default via 192.168.{number}.1
         route add default via fd77:{number}::1"
    ))?;
    let v6 = std::net::Ipv6Addr::new(0xfd77, u16::from_str_radix(&number.to_string(), 16)?, 0, 0, 0, 0, 0, 2);
    Party::new(name.into(), netns, &[[192, 168, number, 2].into(), v6.into()])
}

/// A virtual machine's or a sandbox's sockets are not the node's: its packets have the service's
/// address.
fn not_led(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let pods = [cluster.pod("payments", "near", 0)?, cluster.pod("payments", "far", 1)?];
    let client = cluster.pod("payments", "client", 0)?;
    cluster.wait_known(&[&pods[0], &pods[1], &client])?;
    let party = |pod: &Pod| -> Result<Party> {
        let netns = Netns::adopt(&format!("{}-not-led", pod.name), &pod.netns.path())?;
        Party::new(format!("{} (not led)", pod.name), netns, &pod.addresses())
    };
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    for pod in &pods {
        put_backends(&cluster, "web", &[pod])?;
        let running = Server::start(pod)?;
        for family in Family::ALL {
            wait_spread(&client, SocketAddr::new(address(family, 10), PORT), &[&pod.name])?;
        }
        running.stop()?;
        // A pod may be led to itself.
        for from in [party(&client)?, party(&pods[0])?] {
            for family in Family::ALL {
                for at in [SocketAddr::new(address(family, 10), PORT), node_port(&cluster.nodes[0], family)] {
                    for protocol in [Protocol::Tcp, Protocol::Udp] {
                        wait_answered(&Exchange::new(protocol, family, &from, pod).via(at, TARGET))?;
                    }
                }
            }
        }
    }
    cluster.assert_no_cleartext(&[&pods[0], &pods[1], &client], Moment::START)
}

fn local(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let outside = &cluster.outside;
    let pods = [cluster.pod("payments", "near", 0)?, cluster.pod("payments", "far", 1)?];
    cluster.wait_known(&[&pods[0], &pods[1]])?;
    put_service(&cluster, "web", 10, &everywhere(&json!({"externalTrafficPolicy": "Local"})))?;
    put_backends(&cluster, "web", &[&pods[0], &pods[1]])?;
    let servers = [Server::start(&pods[0])?, Server::start(&pods[1])?];
    let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
    for family in Family::ALL {
        wait_spread(outside, node_port(first, family), &["near"])?;
        wait_spread(outside, node_port(second, family), &["far"])?;
    }
    // The last backend of a node ends, and serves as long as it does.
    put_endpoints(&cluster, "web", |family| {
        let mut near = endpoint(pods[0].address(family), "n1");
        near["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        vec![near, endpoint(pods[1].address(family), "n2")]
    })?;
    for family in Family::ALL {
        wait_spread(outside, node_port(first, family), &["near"])?;
    }
    put_backends(&cluster, "web", &[&pods[1]])?;
    for family in Family::ALL {
        wait_spread(outside, node_port(second, family), &["far"])?;
        eventually("a node without backends to be silent", || {
            let at = node_port(first, family);
            let outcome = outside.netns.within(|| Ok(TcpStream::connect_timeout(&at, Duration::from_secs(1))))?;
            let kind = outcome.map(drop).map_err(|error| error.kind());
            ensure!(kind == Err(ErrorKind::TimedOut), "{kind:?}");
            Ok(Some(()))
        })?;
    }
    for server in servers {
        server.stop()?;
    }
    for (node, pod) in cluster.nodes.iter().zip(&pods) {
        put_backends(&cluster, "web", &[pod])?;
        for (family, protocol) in
            Family::ALL.into_iter().flat_map(|family| [(family, Protocol::Tcp), (family, Protocol::Udp)])
        {
            let one = Exchange::new(protocol, family, outside, pod).via(node_port(node, family), TARGET);
            let outcome = wait_answered(&one)?;
            ensure!(outcome.seen_client == Some(outside.address(family)), "{one}: {outcome:?}");
        }
    }
    cluster.assert_no_cleartext(&[&pods[0], &pods[1]], Moment::START)
}

fn source_ranges(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let server = cluster.pod("payments", "server", 1)?;
    cluster.wait_known(&[&server])?;
    let balancer = [10_u8, 200].map(|last| IpAddr::from([192, 0, 2, last]));
    let running = Server::start(&server)?;
    put_backends(&cluster, "web", &[&server])?;
    let node = &cluster.nodes[0];
    cluster.outside.netns.ip(&format!("route add {} via {}", balancer[0], node.v4))?;
    let at = SocketAddr::new(balancer[0], PORT);
    let put = |ranges: &[&str]| -> Result<()> {
        let extra = everywhere(&json!({"loadBalancerSourceRanges": ranges}));
        let addresses = Family::ALL.map(|family| address(family, 10));
        let ports = [("tcp", "TCP", PORT), ("udp", "UDP", PORT)];
        let mut object = hauberk_netns::manifests::service("payments", "web", &addresses, &ports, &extra);
        object["status"] = json!({"loadBalancer": {"ingress": [{"ip": balancer[0]}]}});
        cluster.manifests.put("service", "web", &object)
    };
    let own = cluster.outside.v4;
    let narrow = format!("{own}/32");
    for (ranges, admitted) in [
        (vec![], true),
        (vec!["192.0.2.128/25", "2001:db8::/32"], false),
        (vec!["192.0.2.128/25", narrow.as_str()], true),
        (vec!["2001:db8::/32"], false),
    ] {
        put(&ranges)?;
        eventually(format!("{ranges:?} to admit {own}: {admitted}"), || {
            let outcome = cluster.outside.netns.within(|| {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
                socket.bind(&SocketAddr::new(own.into(), 0).into())?;
                Ok(socket.connect_timeout(&at.into(), Duration::from_secs(1)).is_ok())
            })?;
            ensure!(outcome == admitted, "a connection succeeds: {outcome}");
            Ok(Some(()))
        })?;
        // The ranges are the load balancer's alone.
        wait_spread(&cluster.outside, node_port(node, Family::V4), &["server"])?;
    }
    ensure!(node.agent.drops("source_not_admitted")? > 0, "the refusal is not counted");
    running.stop()
}

fn refused(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    let node = &cluster.nodes[0];
    route_to(&cluster, node)?;
    for family in Family::ALL {
        for at in [node_port(node, family), SocketAddr::new(external(family), PORT)] {
            eventually(format!("{at} to refuse a connection"), || {
                let outcome =
                    cluster.outside.netns.within(|| Ok(connect(at).map(drop).map_err(|error| error.kind())))?;
                ensure!(outcome == Err(ErrorKind::ConnectionRefused), "{outcome:?}");
                Ok(Some(()))
            })?;
            let outcome = cluster.outside.netns.within(|| {
                let socket = UdpSocket::bind(SocketAddr::new(cluster.outside.address(family), 0)).context("bind")?;
                socket.set_read_timeout(Some(Duration::from_secs(10))).context("SO_RCVTIMEO")?;
                socket.connect(at).context("connect")?;
                socket.send(b"who").context("send")?;
                Ok(socket.recv(&mut [0; 8]).map_err(|error| error.kind()))
            })?;
            ensure!(outcome == Err(ErrorKind::ConnectionRefused), "{at}: a datagram's sender is told {outcome:?}");
        }
    }
    ensure!(node.agent.drops("no_backend")? > 0, "the refusals are not counted");
    Ok(())
}

fn affinity(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let pods: Vec<Pod> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| cluster.pod("payments", name, usize::from(*name > "b")))
        .collect::<Result<_>>()?;
    let all: Vec<&Pod> = pods.iter().collect();
    cluster.wait_known(&all)?;
    let servers: Vec<Server> = pods.iter().map(Server::start).collect::<Result<_>>()?;
    put_service(&cluster, "web", 10, &everywhere(&json!({"sessionAffinity": "ClientIP"})))?;
    put_backends(&cluster, "web", &all)?;
    let client = &cluster.outside;
    for family in Family::ALL {
        let at = node_port(&cluster.nodes[0], family);
        let kept = eventually("a client to reach a backend", || backend_of(&client.netns, at).map(Some))?;
        let again = spread(&client.netns, at, 20)?;
        ensure!(again.keys().eq([&kept]), "{family}: the client had {kept} and got {again:?}");
        let others: Vec<&Pod> = pods.iter().filter(|pod| pod.name != kept).take(1).collect();
        put_backends(&cluster, "web", &others)?;
        wait_spread(client, at, &[&others[0].name])?;
        put_backends(&cluster, "web", &all)?;
    }
    for server in servers {
        server.stop()?;
    }
    Ok(())
}

/// Connection tracking sees no packet of a translated connection, or all of them.
fn strict(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = playground(context, host_routing)?;
    let pods = [cluster.pod("payments", "near", 0)?, cluster.pod("public", "far", 1)?];
    cluster.wait_known(&[&pods[0], &pods[1]])?;
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    for node in &cluster.nodes {
        node.netns.nft(
            "table inet strict {
                    chain input {
                        type filter hook input priority filter; policy accept;
                        ct state invalid drop
                    }
                    chain forward {
                        type filter hook forward priority filter; policy accept;
                        ct state invalid drop
                    }
                }",
        )?;
    }
    for pod in &pods {
        put_backends(&cluster, "web", &[pod])?;
        for (node, family) in cluster.nodes.iter().flat_map(|node| Family::ALL.map(|family| (node, family))) {
            let one = Exchange::new(Protocol::Tcp, family, &cluster.outside, pod).via(node_port(node, family), TARGET);
            wait_answered(&one)?;
        }
    }
    Ok(())
}

fn outlive(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let pods = [cluster.pod("payments", "far", 1)?, cluster.pod("payments", "near", 0)?];
    cluster.wait_known(&[&pods[0], &pods[1]])?;
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    let echoes: Vec<Echo> = pods.iter().map(Echo::start).collect::<Result<_>>()?;
    let node = &cluster.nodes[0];
    let at = node_port(node, Family::V4);
    let mut held = Vec::new();
    for pod in &pods {
        put_backends(&cluster, "web", &[pod])?;
        let name = pod.name.clone();
        held.push(eventually(format!("a connection to {name}"), || {
            let mut stream = cluster.outside.netns.within(|| connect(at).context("connect"))?;
            let reached = say(&mut stream, "who")?;
            ensure!(reached == name, "it reached {reached}");
            Ok(Some(stream))
        })?);
    }
    let mut goes_on = |when: &str, which: &[Pod]| -> Result<()> {
        let those = held.iter_mut().zip(&pods).filter(|(_, pod)| which.iter().any(|one| one.name == pod.name));
        for (stream, pod) in those {
            let reached = say(stream, "who").with_context(|| format!("{when}: the connection to {}", pod.name))?;
            ensure!(reached == pod.name, "{when}: {reached} answers for {}", pod.name);
        }
        Ok(())
    };
    goes_on("at first", &pods)?;
    node.agent.kill()?;
    // The tunnel ends with the agent. What stays on the node goes on, and begins.
    goes_on("without the agent", &pods[1..])?;
    let mut fresh = cluster.outside.netns.within(|| connect(at).context("connect without the agent"))?;
    ensure!(say(&mut fresh, "who")? == "near", "a new connection without the agent");
    drop(fresh);
    node.start_agent()?;
    node.agent.wait_ready()?;
    goes_on("with the next agent", &pods)?;
    node.agent.terminate()?;
    cluster.manifests.remove("service", "web")?;
    let text = std::fs::read_to_string(node.config()).context("read the configuration")?;
    ensure!(text.contains("outside: true"), "{text}");
    std::fs::write(node.config(), text.replace("outside: true", "outside: false")).context("write it")?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    goes_on("without the service and the setting", &pods)?;
    eventually("new connections to be left alone", || {
        let outcome = cluster.outside.netns.within(|| Ok(connect(at).map(drop).map_err(|error| error.kind())))?;
        ensure!(outcome == Err(ErrorKind::ConnectionRefused), "{outcome:?}");
        Ok(Some(()))
    })?;
    goes_on("and after that", &pods)?;
    drop(held);
    for echo in echoes {
        echo.stop()?;
    }
    cluster.assert_no_cleartext(&[&pods[0], &pods[1]], Moment::START)
}

/// A server that answers each line with its name, as long as its client likes.
struct Echo {
    stop: std::sync::Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Echo {
    fn start(pod: &Pod) -> Result<Echo> {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (netns, at, name) = (pod.netns.clone(), SocketAddr::new(pod.address(Family::V4), TARGET), pod.name.clone());
        let listener = netns.within(|| std::net::TcpListener::bind(at).with_context(|| format!("listen at {at}")))?;
        listener.set_nonblocking(true).context("O_NONBLOCK")?;
        let over = stop.clone();
        let thread = thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        stream.set_nonblocking(false).context("O_NONBLOCK")?;
                        let name = name.clone();
                        // It ends with its client.
                        thread::spawn(move || {
                            let mut line = [0; 3];
                            while stream.read_exact(&mut line).is_ok()
                                && stream.write_all(format!("{name:8}").as_bytes()).is_ok()
                            {
                            }
                        });
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(2)),
                    Err(error) => return Err(error).context("accept"),
                }
            }
            Ok(())
        });
        Ok(Echo { stop, thread })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or_else(|_| bail!("an echo server panicked"))
    }
}

fn say(stream: &mut TcpStream, line: &str) -> Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(30))).context("SO_RCVTIMEO")?;
    stream.write_all(line.as_bytes()).context("write")?;
    let mut name = [0; 8];
    stream.read_exact(&mut name).context("read")?;
    Ok(String::from_utf8_lossy(&name).trim().to_owned())
}

fn churn(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let names = ["a", "b", "c", "d"];
    let pods: Vec<Pod> =
        names.iter().map(|name| cluster.pod("payments", name, usize::from(*name > "b"))).collect::<Result<_>>()?;
    let known: Vec<&Pod> = pods.iter().collect();
    cluster.wait_known(&known)?;
    let servers: Vec<Server> = pods.iter().map(Server::start).collect::<Result<_>>()?;
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    put_backends(&cluster, "web", &[&pods[0], &pods[2]])?;
    let client = &cluster.outside;
    let at = node_port(&cluster.nodes[0], Family::V4);
    wait_spread(client, at, &["a", "c"])?;
    let over = AtomicBool::new(false);
    let (count, seen) = thread::scope(|scope| {
        let client = scope.spawn(|| -> Result<(usize, BTreeSet<String>)> {
            let (mut count, mut seen) = (0, BTreeSet::new());
            while !over.load(Ordering::SeqCst) {
                let name = backend_of(&client.netns, at).with_context(|| format!("after {count} connections"))?;
                ensure!(names.contains(&name.as_str()), "an answer of {name:?}");
                seen.insert(name);
                count += 1;
            }
            Ok((count, seen))
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
    println!("{count} connections to {seen:?} while the backends changed 400 times");
    put_backends(&cluster, "web", &[&pods[3]])?;
    wait_spread(client, at, &["d"])?;
    // Datagrams of one client move when their backend is gone.
    client.netns.within(|| {
        let socket = UdpSocket::bind(SocketAddr::new(client.v4.into(), 0)).context("bind")?;
        socket.set_read_timeout(Some(Duration::from_millis(500))).context("SO_RCVTIMEO")?;
        ensure!(ask(&socket, at)? == "d", "the datagram's backend");
        put_backends(&cluster, "web", &[&pods[1]])?;
        eventually("a client's datagrams to reach the backend that is left", || {
            let now = ask(&socket, at)?;
            ensure!(now == "b", "they reach {now}");
            Ok(Some(()))
        })
    })?;
    for server in servers {
        server.stop()?;
    }
    cluster.assert_no_cleartext(&known, Moment::START)
}

/// The tunnel takes smaller packets than the client's network.
fn large(context: &Context) -> Result<()> {
    let cluster = playground(context, HostRouting::Bpf)?;
    let server = cluster.pod("payments", "server", 1)?;
    cluster.wait_known(&[&server])?;
    put_service(&cluster, "web", 10, &everywhere(&json!({})))?;
    put_backends(&cluster, "web", &[&server])?;
    for node in &cluster.nodes {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let mut one =
                    Exchange::new(protocol, family, &cluster.outside, &server).via(node_port(node, family), TARGET);
                one.bytes = if protocol == Protocol::Tcp { 200_000 } else { 1_440 };
                wait_answered(&one).with_context(|| format!("{} bytes by {}", one.bytes, node.name))?;
            }
        }
    }
    cluster.assert_no_cleartext(&[&server], Moment::START)
}
