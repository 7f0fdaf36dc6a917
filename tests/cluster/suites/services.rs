//! The real kube-proxy provides services, and their traffic is encrypted both ways although
//! netfilter translates its addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::{Cluster, Context, Test};
use hauberk_netns::traffic::{Exchange, Outcome, Protocol, exchange_all};
use hauberk_netns::{Family, Party, analysis};
use serde_json::{Value, json};

pub const TESTS: &[Test] = &[
    Test::new("services::cluster_addresses_are_encrypted_both_ways", cluster_addresses),
    Test::new("services::node_ports_are_encrypted_both_ways", node_ports),
];

const PORT: u16 = 8080;

/// A protected client on n1, a plain one on n3, a protected backend on n2 and one on n1, and a
/// Service for each backend.
struct Shop {
    clients: Vec<Party>,
    backends: Vec<(Party, Value)>,
}

fn open_shop(cluster: &Cluster) -> Result<Shop> {
    cluster.namespace("shop", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let clients = vec![cluster.pod("shop", "client", "n1")?, cluster.pod("public", "client", "n3")?];
    let mut backends = Vec::new();
    for (name, node) in [("near", "n1"), ("far", "n2")] {
        let pod = cluster.pod("shop", name, node)?;
        let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "port": PORT, "protocol": protocol});
        cluster.kubectl().apply(
            &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": {
                "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": name},
                "ports": [port("TCP"), port("UDP")]}})
            .to_string(),
        )?;
        let service = cluster.kubectl().get(&["service", "-n", "shop", name])?;
        backends.push((pod, service));
    }
    Ok(Shop { clients, backends })
}

fn close_shop(cluster: &Cluster) -> Result<()> {
    cluster.delete_namespace("shop")?;
    cluster.delete_namespace("public")
}

/// The Service's address in a family.
fn cluster_address(service: &Value, family: Family) -> Result<IpAddr> {
    let addresses = service["spec"]["clusterIPs"].as_array().context("no clusterIPs")?;
    let parsed = addresses.iter().filter_map(|address| address.as_str()?.parse().ok());
    parsed.into_iter().find(|address| Family::of(*address) == family).with_context(|| format!("no {family} address"))
}

fn node_port(service: &Value, protocol: Protocol) -> Result<u16> {
    let wanted = protocol.to_string();
    let ports = service["spec"]["ports"].as_array().context("no ports")?;
    let port = ports.iter().find(|port| port["protocol"] == wanted.as_str()).context("no such port")?;
    port["nodePort"].as_u64().and_then(|port| port.try_into().ok()).context("no nodePort")
}

fn cluster_addresses(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    let start = cluster.capture.sync()?;
    let shop = open_shop(cluster)?;
    let mut exchanges = Vec::new();
    for client in &shop.clients {
        for (backend, service) in &shop.backends {
            for family in Family::ALL {
                let address = SocketAddr::new(cluster_address(service, family)?, PORT);
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    exchanges.push(Exchange::new(protocol, family, client, backend).via(address, PORT));
                }
            }
        }
    }
    check(cluster, &exchanges, &shop, start)?;
    close_shop(cluster)
}

/// Through every node: the backend's, the client's own, and a third that forwards.
fn node_ports(context: &Context) -> Result<()> {
    let cluster = context.cluster()?;
    let start = cluster.capture.sync()?;
    let shop = open_shop(cluster)?;
    let mut exchanges = Vec::new();
    for client in &shop.clients {
        for (backend, service) in &shop.backends {
            for node in &cluster.nodes {
                for family in Family::ALL {
                    for protocol in [Protocol::Tcp, Protocol::Udp] {
                        let address = node.machine.party.address(family);
                        let target = SocketAddr::new(address, node_port(service, protocol)?);
                        exchanges.push(Exchange::new(protocol, family, client, backend).via(target, PORT));
                    }
                }
            }
        }
    }
    check(cluster, &exchanges, &shop, start)?;
    close_shop(cluster)
}

/// Fails unless all exchanges get through, and neither their payload nor a packet of a protected
/// pod is on the wire in the clear.
fn check(
    cluster: &Cluster,
    exchanges: &[Exchange<'_>],
    shop: &Shop,
    start: hauberk_netns::capture::Moment,
) -> Result<()> {
    // One after the other, because they share the backends' ports.
    let mut outcomes: Vec<Outcome> = Vec::new();
    for exchange in exchanges {
        outcomes.extend(exchange_all(std::slice::from_ref(exchange))?);
    }
    let failed: Vec<String> = exchanges
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| !outcome.delivered || !outcome.answered)
        .map(|(exchange, outcome)| format!("{exchange}: delivered {}, {}", outcome.delivered, outcome.said))
        .collect();
    ensure!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), exchanges.len(), failed.join("\n"));
    let markers: BTreeSet<_> = outcomes.iter().flat_map(|outcome| [outcome.request, outcome.reply]).collect();
    let leaked = analysis::payload_of(&cluster.capture.since(start)?, &markers);
    ensure!(leaked.is_empty(), "payload in the clear: {}", analysis::list(&leaked));
    let protected: Vec<&Party> = shop
        .backends
        .iter()
        .map(|(pod, _)| pod)
        .chain(shop.clients.iter().filter(|pod| pod.name.starts_with("shop")))
        .collect();
    cluster.assert_no_cleartext(&protected, start)
}
