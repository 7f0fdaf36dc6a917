//! Every pair of parties, every protocol, both families, both values of `hostRouting`, directly and
//! through a service address that netfilter translates.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use hauberk_netns::analysis::{self, Kind};
use hauberk_netns::capture::Frame;
use hauberk_netns::traffic::{Exchange, Outcome, Protocol, exchange, exchange_all};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Marker, Party, Pod, Setup, Test, eventually, nat};

pub const TESTS: &[Test] = &[
    Test::new("matrix::bpf_every_pair_every_protocol", |context| every_pair(context, HostRouting::Bpf)),
    Test::new("matrix::stack_every_pair_every_protocol", |context| every_pair(context, HostRouting::Stack)),
    Test::new("matrix::bpf_every_pair_through_a_service", |context| through_service(context, HostRouting::Bpf)),
    Test::new("matrix::stack_every_pair_through_a_service", |context| through_service(context, HostRouting::Stack)),
    Test::new("matrix::stack_masqueraded_services_are_encrypted_both_ways", masqueraded_service),
    Test::new("matrix::bpf_same_node_never_touches_the_wire", |context| same_node(context, HostRouting::Bpf)),
    Test::new("matrix::stack_same_node_never_touches_the_wire", |context| same_node(context, HostRouting::Stack)),
    Test::new("matrix::bpf_pods_reach_the_world_through_their_node", |context| world(context, HostRouting::Bpf)),
    Test::new("matrix::stack_pods_reach_the_world_through_their_node", |context| world(context, HostRouting::Stack)),
];

/// The role of a party in the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Protected,
    Plain,
    Permissive,
    Node,
}

impl Role {
    const ALL: [Role; 4] = [Role::Protected, Role::Plain, Role::Permissive, Role::Node];

    fn namespace(self) -> &'static str {
        match self {
            Role::Protected => "payments",
            Role::Permissive => "migrating",
            Role::Plain | Role::Node => "public",
        }
    }
}

/// A cluster with a pod of every role on every node.
struct Cast {
    cluster: Cluster,
    parties: BTreeMap<(Role, usize), Party>,
    pods: Vec<(Role, Pod)>,
}

impl Cast {
    fn build(context: &Context, host_routing: HostRouting) -> Result<Cast> {
        let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
        cluster.namespace("payments", Some("enabled"))?;
        cluster.namespace("migrating", Some("permissive"))?;
        cluster.namespace("public", None)?;
        let mut parties = BTreeMap::new();
        let mut pods = Vec::new();
        for (index, node) in cluster.nodes.iter().enumerate() {
            parties.insert((Role::Node, index), node.party.clone());
            for role in [Role::Protected, Role::Plain, Role::Permissive] {
                let pod = cluster.pod(role.namespace(), &format!("{}{index}", role.namespace()), index)?;
                parties.insert((role, index), pod.party.clone());
                pods.push((role, pod));
            }
        }
        cluster.wait_known(&pods.iter().map(|(_, pod)| pod).collect::<Vec<_>>())?;
        let cast = Cast { cluster, parties, pods };
        cast.warm_up()?;
        Ok(cast)
    }

    /// Waits until permissive traffic is encrypted both ways: from then on the peers count as
    /// ready.
    fn warm_up(&self) -> Result<()> {
        for (from, to) in [(0, 1), (1, 0)] {
            eventually("permissive traffic to be encrypted", || {
                let one = Exchange::new(
                    Protocol::Udp,
                    Family::V4,
                    &self.parties[&(Role::Permissive, from)],
                    &self.parties[&(Role::Permissive, to)],
                );
                let since = self.cluster.capture.sync()?;
                let outcome = exchange(&one)?;
                ensure!(outcome.answered, "{one}: {outcome:?}");
                let seen = analysis::markers(&self.cluster.capture.since(since)?);
                ensure!(!seen.contains_key(&outcome.request), "the request is in the clear");
                ensure!(!seen.contains_key(&outcome.reply), "the reply is in the clear");
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// Both directions of every pair of roles on two nodes.
    fn pairs(&self) -> Vec<[(Role, &Party); 2]> {
        let mut pairs = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            for client in Role::ALL {
                for server in Role::ALL {
                    let ends = [(client, from), (server, to)];
                    pairs.push(ends.map(|end| (end.0, &self.parties[&end])));
                }
            }
        }
        pairs
    }

    /// Fails if a packet of an opted-in pod crossed the wire in the clear since the start of the
    /// test.
    fn assert_protected(&self) -> Result<()> {
        let protected: Vec<&Pod> =
            self.pods.iter().filter(|(role, _)| *role == Role::Protected).map(|(_, pod)| pod).collect();
        self.cluster.assert_no_cleartext(&protected, hauberk_netns::capture::Moment::START)
    }
}

/// Whether the policy wants a pair's packets sealed, once the peers are ready.
fn is_sealed(client: Role, server: Role, host_routing: HostRouting) -> bool {
    use Role::{Node, Permissive, Plain, Protected};
    match (client, server) {
        (Protected | Permissive, _) | (_, Protected | Permissive) => true,
        // A node's address may stand for a protected pod whose address netfilter replaced.
        (Node, Plain) | (Plain, Node) => host_routing == HostRouting::Stack,
        (Node, Node) | (Plain, Plain) => false,
    }
}

/// Adds one line per exchange that is not as it should be.
fn judge(
    exchange: &Exchange<'_>,
    outcome: &Outcome,
    sealed: bool,
    seen: &BTreeMap<Marker, Arc<Frame>>,
    wrong: &mut Vec<String>,
) {
    if !outcome.delivered || !outcome.answered {
        wrong.push(format!(
            "{exchange}: delivered {}, answered {}: {}",
            outcome.delivered, outcome.answered, outcome.said
        ));
    }
    let expected_client = exchange.client.address(exchange.family);
    if outcome.seen_client.is_some_and(|client| client != expected_client) {
        wrong.push(format!("{exchange}: the server saw {:?} instead of {expected_client}", outcome.seen_client));
    }
    for (marker, word) in [(outcome.request, "request"), (outcome.reply, "reply")] {
        match (sealed, seen.contains_key(&marker)) {
            (true, true) => wrong.push(format!("{exchange}: the {word} is on the wire in the clear")),
            (false, false) if outcome.answered => {
                wrong.push(format!("{exchange}: the {word} is not on the wire in the clear as it should be"));
            }
            _ => {}
        }
    }
}

fn verdict(wrong: &[String], cells: usize) -> Result<()> {
    println!("{cells} cells, {} wrong", wrong.len());
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{} of {cells} cells are wrong:\n  {}", wrong.len(), wrong.join("\n  "))
}

fn every_pair(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cast = Cast::build(context, host_routing)?;
    let mut exchanges = Vec::new();
    let mut sealed = Vec::new();
    for [(client_role, client), (server_role, server)] in cast.pairs() {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                exchanges.push(Exchange::new(protocol, family, client, server));
                sealed.push(is_sealed(client_role, server_role, host_routing));
            }
        }
    }
    let since = cast.cluster.capture.sync()?;
    let outcomes = exchange_all(&exchanges)?;
    let frames = cast.cluster.capture.since(since)?;
    let seen = analysis::markers(&frames);
    let mut wrong = Vec::new();
    for ((exchange, outcome), sealed) in exchanges.iter().zip(&outcomes).zip(sealed) {
        judge(exchange, outcome, sealed, &seen, &mut wrong);
    }
    verdict(&wrong, exchanges.len())?;
    cast.assert_protected()?;
    println!("{:?}", analysis::count(&frames));
    ensure!(!analysis::of_kind(&frames, Kind::Tunnel).is_empty(), "nothing went through the tunnel");
    let mut protected = cast.pods.iter().filter(|(role, _)| *role == Role::Protected).map(|(_, pod)| pod);
    let (Some(here), Some(there)) = (protected.next(), protected.next()) else { bail!("no protected pods") };
    crate::leaks::accuse_no_one(&cast.cluster)?;
    crate::leaks::sees_nothing_but_one(&cast.cluster, here, there)
}

/// Ports of services: after translation the port is all that identifies a packet.
const FIRST_PORT: u16 = 21000;

fn through_service(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cast = Cast::build(context, host_routing)?;
    let mut exchanges = Vec::new();
    let mut sealed = Vec::new();
    for (number, ((role, backend_node), backend)) in cast.parties.iter().enumerate() {
        for family in Family::ALL {
            let service = nat::service_address(family, number as u8 + 1);
            for node in &cast.cluster.nodes {
                nat::add_service(node, service, backend.address(family))?;
            }
            for ((client_role, _), client) in cast.parties.iter().filter(|((_, node), _)| node != backend_node) {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let port = FIRST_PORT + exchanges.len() as u16;
                    let one = Exchange::new(protocol, family, client, backend);
                    exchanges.push(one.via(SocketAddr::new(service, port), port));
                    sealed.push(is_sealed(*client_role, *role, host_routing));
                }
            }
        }
    }
    let since = cast.cluster.capture.sync()?;
    let outcomes = exchange_all(&exchanges)?;
    let frames = cast.cluster.capture.since(since)?;
    let seen = analysis::markers(&frames);
    let mut wrong = Vec::new();
    for ((exchange, outcome), sealed) in exchanges.iter().zip(&outcomes).zip(&sealed) {
        judge(exchange, outcome, *sealed, &seen, &mut wrong);
        // SYN and FIN have no payload: the port shows whether they were seen.
        if *sealed && let Some(sighting) = analysis::clear_port(&frames, exchange.port).first() {
            wrong.push(format!("{exchange}: {sighting}"));
        }
    }
    verdict(&wrong, exchanges.len())?;
    cast.assert_protected()
}

/// Masqueraded as by kube-proxy: the backend sees the client's node. Neither request nor reply may
/// be visible.
fn masqueraded_service(context: &Context) -> Result<()> {
    let cast = Cast::build(context, HostRouting::Stack)?;
    let mut exchanges = Vec::new();
    for (number, ((role, node), backend)) in cast.parties.iter().enumerate() {
        if *role == Role::Node {
            continue;
        }
        for family in Family::ALL {
            let service = nat::service_address(family, number as u8 + 1);
            let client_node = 1 - *node;
            nat::add_service(&cast.cluster.nodes[client_node], service, backend.address(family))?;
            nat::masquerade_to(&cast.cluster.nodes[client_node], backend.address(family))?;
            for client_role in [Role::Protected, Role::Plain, Role::Permissive] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let port = FIRST_PORT + exchanges.len() as u16;
                    let client = &cast.parties[&(client_role, client_node)];
                    let one = Exchange::new(protocol, family, client, backend);
                    exchanges.push((client_node, one.via(SocketAddr::new(service, port), port)));
                }
            }
        }
    }
    let since = cast.cluster.capture.sync()?;
    let only: Vec<Exchange<'_>> = exchanges.iter().map(|(_, exchange)| exchange.clone()).collect();
    let outcomes = exchange_all(&only)?;
    let frames = cast.cluster.capture.since(since)?;
    let seen = analysis::markers(&frames);
    let mut wrong = Vec::new();
    for ((client_node, exchange), outcome) in exchanges.iter().zip(&outcomes) {
        if !outcome.answered {
            wrong.push(format!("{exchange}: no answer: {}", outcome.said));
        }
        let node_address = cast.cluster.nodes[*client_node].address(exchange.family);
        if outcome.seen_client != Some(node_address) {
            wrong.push(format!("{exchange}: the backend saw {:?} instead of {node_address}", outcome.seen_client));
        }
        for marker in [outcome.request, outcome.reply] {
            if seen.contains_key(&marker) {
                wrong.push(format!("{exchange}: payload {marker} is on the wire in the clear"));
            }
        }
        if let Some(sighting) = analysis::clear_port(&frames, exchange.port).first() {
            wrong.push(format!("{exchange}: {sighting}"));
        }
    }
    verdict(&wrong, exchanges.len())?;
    cast.assert_protected()
}

fn same_node(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 1, host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let pods = [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 0)?, cluster.pod("public", "c", 0)?];
    cluster.wait_known(&pods.each_ref())?;
    let node = cluster.nodes[0].party.clone();
    let mut parties: Vec<&Party> = pods.iter().map(|pod| &pod.party).collect();
    parties.push(&node);
    let mut exchanges = Vec::new();
    for client in &parties {
        for server in parties.iter().filter(|server| server.name != client.name) {
            for family in Family::ALL {
                exchanges.extend(Protocol::ALL.map(|protocol| Exchange::new(protocol, family, client, server)));
            }
        }
    }
    let outcomes = exchange_all(&exchanges)?;
    let frames = cluster.capture.all()?;
    let seen = analysis::markers(&frames);
    let mut wrong = Vec::new();
    for (exchange, outcome) in exchanges.iter().zip(&outcomes) {
        judge(exchange, outcome, true, &seen, &mut wrong);
    }
    verdict(&wrong, exchanges.len())?;
    cluster.assert_no_cleartext(&pods.each_ref(), hauberk_netns::capture::Moment::START)?;
    let (a, b) = (pods[0].address(Family::V4), pods[1].address(Family::V4));
    let flows = cluster.nodes[0].agent.flows()?;
    let local = flows.iter().find(|flow| flow.source == a && flow.destination == b);
    ensure!(
        local.is_some_and(|flow| flow.encryption == hauberk_api::Encryption::Local),
        "the flow {a} -> {b} does not say local: {local:?}"
    );
    Ok(())
}

/// Pods behind their node's address: their packets to the outside are in the clear, and the flow
/// says `world`.
fn world(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cast = Cast::build(context, host_routing)?;
    let outside = &cast.cluster.outside;
    let mut exchanges = Vec::new();
    for (_, pod) in &cast.pods {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Fragments] {
                exchanges.push((pod, Exchange::new(protocol, family, pod, outside)));
            }
        }
    }
    let only: Vec<Exchange<'_>> = exchanges.iter().map(|(_, exchange)| exchange.clone()).collect();
    let outcomes = exchange_all(&only)?;
    let mut wrong = Vec::new();
    for ((pod, exchange), outcome) in exchanges.iter().zip(&outcomes) {
        if !outcome.answered {
            wrong.push(format!("{exchange}: no answer: {}", outcome.said));
        }
        let expected = pod.node.address(exchange.family);
        if exchange.protocol != Protocol::Icmp && outcome.seen_client != Some(expected) {
            wrong.push(format!("{exchange}: the world saw {:?} instead of {expected}", outcome.seen_client));
        }
    }
    for (_, pod) in &cast.pods {
        let flows = pod.node.agent.flows()?;
        for family in Family::ALL {
            let (source, destination) = (pod.address(family), outside.address(family));
            let said = flows.iter().find(|flow| flow.source == source && flow.destination == destination);
            if said.is_none_or(|flow| flow.encryption != hauberk_api::Encryption::World) {
                wrong.push(format!("the flow {source} -> {destination} does not say world: {said:?}"));
            }
        }
    }
    verdict(&wrong, exchanges.len())?;
    cast.assert_protected()
}
