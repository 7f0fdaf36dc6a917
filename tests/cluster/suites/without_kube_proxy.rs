//! A cluster in which kube-proxy never ran: hauberk leads connections to services to a backend,
//! those of pods and nodes and those of clients outside the cluster. The clients are processes of
//! their own, because programs at sockets tell nodes apart by their processes' cgroups.

mod clients;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::cluster::pod_manifest;
use hauberk_cluster::{Cluster, Context, Setup, Test, tools};
use hauberk_netns::analysis::{self, Kind, Sighting};
use hauberk_netns::{Family, Marker, Party, eventually};
use serde_json::{Value, json};

use clients::{Client, Load};

pub const TESTS: &[Test] = &[
    Test::new("without_kube_proxy::names_and_the_api_server_are_reached", names_and_the_api_server),
    Test::new("without_kube_proxy::a_service_is_reached_encrypted_from_other_nodes", from_other_nodes),
    Test::new("without_kube_proxy::a_rolling_update_fails_no_request", rolling_update),
    Test::new("without_kube_proxy::a_node_port_is_reached_from_outside_by_every_node", from_outside),
];

/// The API server's address as a service.
const API_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 443);
/// The port of services, and that of their backends.
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const REPLICAS: usize = 3;

fn setup() -> Setup {
    let values = [
        "cni.install=primary",
        "config.log.level=debug",
        "config.hostRouting=bpf",
        "config.services.sockets=true",
        "config.services.outside=true",
        // Agents start before anybody leads connections to services.
        "kubernetesApi.host=10.99.0.1",
    ];
    Setup { hauberk: Some(values.map(str::to_owned).to_vec()), proxy: false, ..Setup::default() }
}

/// The cluster, when hauberk leads connections to services on every node.
fn cluster(context: &Context) -> Result<&Cluster> {
    let cluster = context.cluster_of(&setup())?;
    for node in &cluster.nodes {
        let tables = node.run("nft", &["list", "tables"])?;
        ensure!(!tables.contains("kube-proxy"), "kube-proxy made rules on {}: {tables}", node.name());
        eventually(format!("the agent on {} to lead connections to services", node.name()), || {
            let status: Value = node.agent.ask("/v1/status")?;
            let problems = status["problems"].as_array().context("no problems")?;
            let ours: Vec<&Value> = problems.iter().filter(|problem| problem["object"] == "services").collect();
            ensure!(ours.is_empty(), "{ours:?}");
            ensure!(status["services"]["mode"] == "sockets and devices", "{}", status["services"]);
            Ok(Some(()))
        })?;
    }
    Ok(cluster)
}

fn names_and_the_api_server(context: &Context) -> Result<()> {
    let cluster = cluster(context)?;
    cluster.namespace("shop", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let kubectl = tools::built("kubectl")?.display().to_string();
    let (server, user) = (format!("https://{API_SERVER}"), cluster.kubectl().kubeconfig().display().to_string());
    for node in &cluster.nodes {
        let mut clients = vec![Client::Host(node)];
        for namespace in ["shop", "public"] {
            let name = format!("on-{}", node.name());
            cluster.pod(namespace, &name, node.name())?;
            let pod = format!("{namespace}/{name}");
            for (host, address) in [("kubernetes.default", "10.96.0.1"), ("kube-dns.kube-system", "10.96.0.10")] {
                let found = eventually(format!("{pod} to resolve {host}"), || {
                    cluster.kubectl().exec(&pod, &["getent", "ahostsv4", host]).map(Some)
                })?;
                ensure!(found.contains(address), "{pod} resolves {host} to {found}");
            }
            clients.push(Client::Pod(cluster, pod));
        }
        for client in &clients {
            // What only a server of TLS says.
            let answer = client.wait_answered(API_SERVER)?;
            ensure!(answer.contains("HTTP request to an HTTPS server"), "{client}: {answer}");
        }
        let ready = node.run(&kubectl, &["--kubeconfig", &user, "--server", &server, "get", "--raw", "/readyz"])?;
        ensure!(ready.trim() == "ok", "the API server says {ready} to a process on {}", node.name());
    }
    cluster.delete_namespace("shop")?;
    cluster.delete_namespace("public")
}

fn from_other_nodes(context: &Context) -> Result<()> {
    let cluster = cluster(context)?;
    let start = cluster.capture.sync()?;
    cluster.namespace("shop", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let server = serving_pod(cluster, "server", "n2")?;
    let own = cluster.pod("shop", "client", "n1")?;
    cluster.pod("public", "client", "n3")?;
    let addresses = cluster_addresses(&make_service(cluster, "server", "ClusterIP")?)?;
    let services = addresses.map(|address| SocketAddr::new(address, PORT));
    let clients = [
        Client::Pod(cluster, "shop/client".into()),
        Client::Pod(cluster, "public/client".into()),
        Client::Host(cluster.node("n1")?),
        Client::Host(cluster.node("n3")?),
    ];
    wait_led(cluster, "server", 1)?;
    let known = cluster.capture.sync()?;
    for client in &clients {
        services.iter().try_for_each(|service| client.wait_answered(*service).map(drop))?;
    }
    let mut markers = BTreeSet::new();
    for client in &clients {
        for service in services {
            for protocol in ["tcp", "udp"] {
                let marker = Marker::unique();
                let answer = client.ask(protocol, service, &marker.to_string())?;
                let expected = format!("server {marker}");
                ensure!(answer.contains(&expected), "{client} asked {service} over {protocol}: {answer}");
                markers.insert(marker);
            }
        }
    }
    cluster.assert_no_cleartext(&[&server, &own], start)?;
    let frames = cluster.capture.since(known)?;
    let leaked = analysis::payload_of(&frames, &markers);
    ensure!(leaked.is_empty(), "payload in the clear: {}", analysis::list(&leaked));
    let sealed = analysis::of_kind(&frames, Kind::Tunnel).len();
    ensure!(sealed >= 2 * markers.len(), "{} requests and answers, and {sealed} encrypted packets", markers.len());
    let untranslated = analysis::cleartext_of(&frames, &addresses);
    ensure!(untranslated.is_empty(), "packets with the service's address: {}", analysis::list(&untranslated));
    cluster.delete_namespace("shop")?;
    cluster.delete_namespace("public")
}

fn rolling_update(context: &Context) -> Result<()> {
    let cluster = cluster(context)?;
    let start = cluster.capture.sync()?;
    cluster.namespace("shop", Some("enabled"))?;
    cluster.kubectl().apply(&deployment("web").to_string())?;
    let pod = cluster.pod("shop", "client", "n1")?;
    let service = make_service(cluster, "web", "ClusterIP")?;
    let [v4, v6] = cluster_addresses(&service)?.map(|address| SocketAddr::new(address, PORT));
    cluster.wait_available("shop", "web")?;
    wait_led(cluster, "web", REPLICAS)?;
    let before = pods_of(cluster, "web")?;
    ensure!(before.len() == REPLICAS, "{before:?}");
    let client = Client::Pod(cluster, "shop/client".into());
    let asked = [(&client, v4), (&client, v6), (&Client::Host(cluster.node("n3")?), v4)];
    let mut loads = Vec::new();
    for (client, service) in asked {
        client.wait_answered(service)?;
        loads.push(Load::start(client, service)?);
    }
    wait_answered_by(&loads, &before)?;
    cluster.kubectl().run(&["rollout", "restart", "deployment/web", "-n", "shop"])?;
    cluster.kubectl().run(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=240s"])?;
    let after = eventually("the old pods to be gone", || {
        let now = pods_of(cluster, "web")?;
        ensure!(now.len() == REPLICAS && now.keys().all(|pod| !before.contains_key(pod)), "{:?}", now.keys());
        Ok(Some(now))
    })?;
    wait_answered_by(&loads, &after)?;
    for load in loads {
        let name = load.name.clone();
        println!("requests of {name}: {}", load.stop()?);
    }
    let backends: Vec<IpAddr> = before.values().chain(after.values()).flatten().copied().collect();
    let seen = analysis::cleartext_of(&cluster.capture.since(start)?, &backends);
    ensure!(seen.is_empty(), "packets of protected pods in the clear: {}", analysis::list(&seen));
    cluster.assert_no_cleartext(&[&pod], start)?;
    cluster.delete_namespace("shop")
}

/// A client on a machine that is no node asks each node; the only backend is on one of them.
fn from_outside(context: &Context) -> Result<()> {
    let cluster = cluster(context)?;
    let start = cluster.capture.sync()?;
    cluster.namespace("shop", Some("enabled"))?;
    let server = serving_pod(cluster, "server", "n2")?;
    let service = make_service(cluster, "server", "NodePort")?;
    wait_led(cluster, "server", 1)?;
    let machine = &cluster.control_plane.party;
    let client = Client::Outside(machine);
    let mut markers = BTreeSet::new();
    for (node, family) in cluster.nodes.iter().flat_map(|node| Family::ALL.map(|family| (node, family))) {
        for protocol in ["tcp", "udp"] {
            let address = SocketAddr::new(node.machine.party.address(family), node_port(&service, protocol)?);
            let marker = Marker::unique();
            let answer = client.ask(protocol, address, &marker.to_string())?;
            let expected = format!("server {marker}");
            ensure!(answer.contains(&expected), "{client} asked {address} over {protocol}: {answer}");
            markers.insert(marker);
        }
    }
    cluster.assert_no_cleartext(&[&server], start)?;
    let frames = cluster.capture.since(start)?;
    let is_clients = |sighting: &Sighting| {
        let packet = analysis::dissect(&sighting.frame.bytes).1;
        packet.is_some_and(|packet| {
            machine.addresses().iter().any(|own| [packet.source, packet.destination].contains(own))
        })
    };
    let (own, leaked): (Vec<_>, Vec<_>) = analysis::payload_of(&frames, &markers).into_iter().partition(is_clients);
    ensure!(!own.is_empty(), "the client's own packets were not seen");
    ensure!(leaked.is_empty(), "payload in the clear between nodes: {}", analysis::list(&leaked));
    let sealed = analysis::of_kind(&frames, Kind::Tunnel).len();
    // By two of the three nodes, a request and its answer.
    ensure!(sealed >= markers.len() * 2 / 3 * 2, "{} requests, and {sealed} encrypted packets", markers.len());
    cluster.delete_namespace("shop")
}

fn wait_answered_by(loads: &[Load], pods: &BTreeMap<String, Vec<IpAddr>>) -> Result<()> {
    let names: Vec<&str> = pods.keys().map(String::as_str).collect();
    loads.iter().try_for_each(|load| load.wait_answered_by(&names))
}

/// A pod of `shop` that serves.
fn serving_pod(cluster: &Cluster, name: &str, node: &str) -> Result<Party> {
    let mut manifest = pod_manifest("shop", name, node);
    manifest["spec"]["containers"][0]["args"] = json!(["serve", TARGET.to_string()]);
    cluster.kubectl().apply(&manifest.to_string())?;
    cluster.party("shop", name)
}

/// A Deployment in `shop` whose pods end as real ones do: they still serve until all nodes know
/// that they are about to end.
fn deployment(name: &str) -> Value {
    let mut pod = pod_manifest("shop", name, "")["spec"].take();
    if let Some(spec) = pod.as_object_mut() {
        spec.remove("nodeSelector");
        spec.insert("terminationGracePeriodSeconds".into(), json!(20));
    }
    let container = &mut pod["containers"][0];
    container["args"] = json!(["serve", TARGET.to_string()]);
    container["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": TARGET}, "periodSeconds": 1});
    container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"}, "spec": {
        "replicas": REPLICAS,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
    }})
}

/// Makes a service of a type in `shop`, for the pods with the label `app: <name>`.
fn make_service(cluster: &Cluster, name: &str, kind: &str) -> Result<Value> {
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "port": PORT, "targetPort": TARGET, "protocol": protocol});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": kind, "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "selector": {"app": name}, "ports": [port("TCP"), port("UDP")]}});
    cluster.kubectl().apply(&service.to_string())?;
    cluster.kubectl().get(&["service", "-n", "shop", name])
}

/// The service's addresses, of IPv4 and of IPv6.
fn cluster_addresses(service: &Value) -> Result<[IpAddr; 2]> {
    let address = |index: usize| {
        let text = service["spec"]["clusterIPs"][index].as_str().context("no address")?;
        text.parse().with_context(|| format!("the service's address {text}"))
    };
    Ok([address(0)?, address(1)?])
}

fn node_port(service: &Value, protocol: &str) -> Result<u16> {
    let mut ports = service["spec"]["ports"].as_array().context("no ports")?.iter();
    let port = ports.find(|port| port["name"] == protocol).with_context(|| format!("no port for {protocol}"))?;
    port["nodePort"].as_u64().and_then(|port| port.try_into().ok()).with_context(|| format!("no node port: {port}"))
}

/// Waits until every node leads connections to a service of `shop` to this many backends. Until
/// then, packets have the service's address.
fn wait_led(cluster: &Cluster, name: &str, backends: usize) -> Result<()> {
    for node in &cluster.nodes {
        eventually(format!("{} to lead connections to {backends} backends of {name}", node.name()), || {
            let services: Value = node.agent.ask(&format!("/v1/services?namespace=shop&name={name}"))?;
            let frontends = services[0]["frontends"].as_array().with_context(|| format!("no frontends: {services}"))?;
            let led = |frontend: &Value| frontend["usable"] == backends && frontend["left_out"].is_null();
            ensure!(!frontends.is_empty() && frontends.iter().all(led), "{frontends:?}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

/// The pods of `shop` with the label `app: <name>`, also those that are ending, and their
/// addresses.
fn pods_of(cluster: &Cluster, name: &str) -> Result<BTreeMap<String, Vec<IpAddr>>> {
    let pods: Value = cluster.kubectl().get(&["pods", "-n", "shop", "-l", &format!("app={name}")])?;
    let mut found = BTreeMap::new();
    for pod in pods["items"].as_array().context("no list of pods")? {
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        found.insert(name.to_owned(), addresses.filter_map(|one| one["ip"].as_str()?.parse().ok()).collect());
    }
    Ok(found)
}
