//! Ownership of addresses: every address on a device of a node belongs to the node, and an address
//! that several nodes claim belongs to none.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use hauberk_api::{Maps, Problem, Severity};
use hauberk_netns::capture::{Capture, Moment};
use hauberk_netns::traffic::{Exchange, Protocol, exchange, wait_answered};
use hauberk_netns::{
    Cluster, Context, Family, HostRouting, Node, Party, Pod, Setup, Test, analysis, eventually, manifests, nat,
};
use serde_json::json;

use crate::interop::{Stranger, WIREGUARD_GO};

pub const TESTS: &[Test] = &[
    Test::new("addresses::bpf_a_node_speaks_by_an_address_its_object_does_not_name", |context| {
        the_node_itself(context, HostRouting::Bpf)
    }),
    Test::new("addresses::stack_a_node_speaks_by_an_address_its_object_does_not_name", |context| {
        the_node_itself(context, HostRouting::Stack)
    }),
    Test::new("addresses::stack_translation_to_an_address_the_nodes_object_does_not_name", translated),
    Test::new("addresses::a_pod_object_moves_no_address_out_of_its_range", pod_in_foreign_range),
    Test::new("addresses::what_two_nodes_claim_is_nobodys", two_nodes_one_address),
    Test::new("addresses::what_two_nodes_claim_is_told_when_it_costs_something", contested_and_asked_for),
    Test::new("addresses::bpf_what_a_node_had_a_moment_ago_is_nobodys", |context| departed(context, HostRouting::Bpf)),
    Test::new("addresses::stack_what_a_node_had_a_moment_ago_is_nobodys", |context| {
        departed(context, HostRouting::Stack)
    }),
    Test::new("addresses::what_a_node_had_stays_closed_over_restarts", departed_over_restarts),
];

/// Addresses on the wire's segment that no Node object names.
const MORE: [&str; 2] = ["172.18.0.77", "fd00:18::77"];

struct Cast {
    cluster: Cluster,
    /// Protected pods on the first and the second node.
    protected: [Pod; 2],
    /// A plain pod on the second node.
    plain: Pod,
}

impl Cast {
    fn build(context: &Context, host_routing: HostRouting) -> Result<Cast> {
        let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
        cluster.namespace("payments", Some("enabled"))?;
        cluster.namespace("public", None)?;
        let protected = [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?];
        let plain = cluster.pod("public", "c", 1)?;
        cluster.wait_known(&[&protected[0], &protected[1], &plain])?;
        Ok(Cast { cluster, protected, plain })
    }

    /// The first node under the addresses that its object does not name, once every node knows
    /// them.
    fn first_node_by_more(&self) -> Result<Party> {
        let node = &self.cluster.nodes[0];
        let [v4, v6] = MORE;
        node.netns.ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"))?;
        self.wait_endpoints(true)?;
        Ok(Party { name: "n1 by its second address".into(), v4: v4.parse()?, v6: v6.parse()?, ..node.party.clone() })
    }

    /// The host outside the cluster under those addresses.
    fn outside_by(&self, by: &Party) -> Party {
        Party { name: "the address outside".into(), netns: self.cluster.outside.netns.clone(), ..by.clone() }
    }

    /// Moves the addresses from the first node to a host that is no node.
    fn move_outside(&self) -> Result<()> {
        let [v4, v6] = MORE;
        self.cluster.nodes[0].netns.ip(&format!("addr del {v4}/24 dev eth0\naddr del {v6}/64 dev eth0"))?;
        self.cluster.outside.netns.ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"))
    }

    /// Expects an answer if `seconds` are enough for one, else none. A protected pod's packets are
    /// never in the clear.
    fn ask(&self, from: &Party, server: &Party, seconds: u64) -> Result<()> {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let patience = Duration::from_secs(seconds);
                let outcome = exchange(&Exchange::new(protocol, family, from, server).patience(patience))?;
                let expected = seconds > 5;
                ensure!(outcome.answered == expected, "{protocol:?} {family:?} to {}: {outcome:?}", server.name);
                let seen = analysis::markers(&self.cluster.capture.all()?);
                let clear = seen.contains_key(&outcome.request) && from.name == self.protected[1].party.name;
                ensure!(!clear, "{protocol:?} {family:?} to {}: the request is in the clear", server.name);
            }
        }
        Ok(())
    }

    fn wait_endpoints(&self, there: bool) -> Result<()> {
        for node in &self.cluster.nodes {
            for address in MORE {
                eventually(format!("{} to {} {address}", node.name, if there { "know" } else { "forget" }), || {
                    // On other nodes the address stays closed for a while.
                    let of_node = endpoint(node, address)?.is_some_and(|value| !value.contains("unknown node"));
                    Ok((of_node == there).then_some(()))
                })?;
            }
        }
        Ok(())
    }
}

/// The entry for an address in a node's map.
fn endpoint(node: &Node, address: &str) -> Result<Option<String>> {
    let maps: Maps = node.agent.ask("/v1/maps")?;
    let endpoints = maps.maps.iter().find(|map| map.name == "ENDPOINTS");
    Ok(endpoints.and_then(|map| map.rows.iter().find(|(key, _)| key == address)).map(|(_, value)| format!("{value:?}")))
}

fn the_node_itself(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cast = Cast::build(context, host_routing)?;
    let client = cast.first_node_by_more()?;
    for family in Family::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            let one = Exchange::new(protocol, family, &client, &cast.protected[1]);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
            let seen = analysis::markers(&cast.cluster.capture.all()?);
            for marker in [outcome.request, outcome.reply] {
                ensure!(!seen.contains_key(&marker), "{one}: payload {marker} is on the wire in the clear");
            }
        }
    }
    cast.cluster.assert_no_cleartext(&[&cast.protected[1]], Moment::START)?;
    let published =
        cast.cluster.manifests.read("node", "n1")?["metadata"]["annotations"]["hauberk.io/addresses"].clone();
    ensure!(MORE.iter().all(|address| published.as_str().is_some_and(|text| text.contains(address))), "{published}");
    // Addresses that are removed from the device are withdrawn.
    let [v4, v6] = MORE;
    cast.cluster.nodes[0].netns.ip(&format!("addr del {v4}/24 dev eth0\naddr del {v6}/64 dev eth0"))?;
    cast.wait_endpoints(false)
}

/// A virtual address that a second node takes while the first still has it.
fn contested_and_asked_for(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 3, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let client = cluster.pod("payments", "a", 2)?;
    cluster.wait_known(&[&client])?;
    let [v4, v6] = MORE;
    for node in &cluster.nodes[..2] {
        node.netns.ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"))?;
    }
    let here = &cluster.nodes[2];
    wait_event(here, "AddressShared", &["Node/n1", "Node/n2"])?;
    let of_addresses = || -> Result<Vec<Problem>> {
        let problems = here.agent.status()?.problems.into_iter();
        Ok(problems.filter(|problem| problem.object.starts_with("address/")).collect())
    };
    ensure!(of_addresses()?.is_empty(), "told before anything is lost: {:?}", of_addresses()?);
    let server =
        Party { name: "the address".into(), v4: v4.parse()?, v6: v6.parse()?, ..cluster.nodes[0].party.clone() };
    for family in Family::ALL {
        let one = Exchange::new(Protocol::Udp, family, &client, &server).patience(Duration::from_millis(500));
        let outcome = exchange(&one)?;
        ensure!(!outcome.answered, "{one}: {outcome:?}");
        let seen = analysis::markers(&cluster.capture.all()?);
        ensure!(!seen.contains_key(&outcome.request), "{one}: the request is on the wire in the clear");
    }
    let problems = eventually("problems that name both addresses", || {
        let problems = of_addresses()?;
        Ok((problems.len() == 2).then_some(problems))
    })?;
    let named = |problem: &Problem| problem.severity == Severity::Critical && problem.message.contains("n1 and n2");
    ensure!(problems.iter().all(named), "{problems:?}");
    let explained = here.agent.explain(client.v4.into(), server.v4.into())?.sentence;
    ensure!(explained.contains("n1 and n2 have"), "{explained}");
    // The second node gives the address up.
    cluster.nodes[1].netns.ip(&format!("addr del {v4}/24 dev eth0\naddr del {v6}/64 dev eth0"))?;
    eventually("no problem", || Ok(of_addresses()?.is_empty().then_some(())))?;
    here.netns.ip("neigh flush dev eth0")?;
    for family in Family::ALL {
        wait_answered(&Exchange::new(Protocol::Udp, family, &client, &server))?;
    }
    cluster.assert_no_cleartext(&[&client], Moment::START)
}

/// A virtual address moves to a host that no node knows, and a node's object is deleted while the
/// node runs.
fn departed(context: &Context, host_routing: HostRouting) -> Result<()> {
    let cast = Cast::build(context, host_routing)?;
    let Cast { cluster, protected: [_, client], plain } = &cast;
    let by = cast.first_node_by_more()?;
    let outside = cast.outside_by(&by);
    let ask = |from: &Party, server: &Party, seconds: u64| cast.ask(from, server, seconds);
    ask(client, &by, 20)?;
    cast.move_outside()?;
    cast.wait_endpoints(false)?;
    cluster.nodes[1].netns.ip("neigh flush dev eth0")?;
    ask(client, &outside, 2)?;
    // Plain pods may reach it.
    ask(plain, &outside, 20)?;
    let node = &cluster.nodes[0];
    ask(client, &node.party, 20)?;
    cluster.manifests.remove("node", &node.name)?;
    eventually("the node to be forgotten", || {
        let value = endpoint(&cluster.nodes[1], &node.v4.to_string())?;
        Ok(value.is_none_or(|value| value.contains("unknown node")).then_some(()))
    })?;
    ask(client, &node.party, 2)
}

/// The second node's agent is restarted, and is not running when the first node's addresses move to
/// a host that no node knows.
fn departed_over_restarts(context: &Context) -> Result<()> {
    let cast = Cast::build(context, HostRouting::Bpf)?;
    let Cast { cluster, protected: [_, client], plain } = &cast;
    let by = cast.first_node_by_more()?;
    let outside = cast.outside_by(&by);
    cast.ask(client, &by, 20)?;
    let node = &cluster.nodes[1];
    let restart = || -> Result<()> {
        node.agent.kill()?;
        node.start_agent()?;
        node.agent.wait_ready()?;
        node.netns.ip("neigh flush dev eth0")
    };
    let kept = node.state.join("node-addresses.json");
    eventually("the addresses to be kept", || Ok(fs::read_to_string(&kept)?.contains(MORE[0]).then_some(())))?;
    node.agent.kill()?;
    cast.move_outside()?;
    eventually("the first node to withdraw them", || {
        let object = cluster.manifests.read("node", "n1")?;
        let published = object["metadata"]["annotations"]["hauberk.io/addresses"].to_string();
        Ok((!MORE.iter().any(|address| published.contains(address))).then_some(()))
    })?;
    restart()?;
    cast.ask(client, &outside, 2)?;
    cast.ask(plain, &outside, 20)?;
    eventually("it to be kept that they went", || {
        let text = fs::read_to_string(&kept)?;
        let addresses: serde_json::Value = serde_json::from_str(&text)?;
        Ok(MORE.iter().all(|address| addresses["addresses"][address]["gone"].is_string()).then_some(()))
    })?;
    restart()?;
    cast.ask(client, &outside, 2)?;
    // A damaged file loses only its own entry.
    node.agent.kill()?;
    fs::write(&kept, "{")?;
    restart()?;
    wait_event(node, "DepartedLost", &["Node/n2"])?;
    cast.ask(client, &cluster.nodes[0].party, 20)
}

/// An address translator may have several addresses to choose from.
fn translated(context: &Context) -> Result<()> {
    let cast = Cast::build(context, HostRouting::Stack)?;
    let by = cast.first_node_by_more()?;
    let (client, backend) = (&cast.protected[0], &cast.plain);
    for (number, family) in Family::ALL.into_iter().enumerate() {
        let service = nat::service_address(family, number as u8 + 1);
        let node = &cast.cluster.nodes[0];
        nat::add_service(node, service, backend.address(family))?;
        let (word, to) = if family == Family::V4 { ("ip", by.address(family)) } else { ("ip6", by.address(family)) };
        node.netns.nft(&format!(
            "table {word} translation {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat - 10; policy accept;
                    {word} daddr {} snat to {to}
                }}
            }}",
            backend.address(family)
        ))?;
        for (count, protocol) in [Protocol::Tcp, Protocol::Udp].into_iter().enumerate() {
            let port = 21000 + (2 * number + count) as u16;
            let one = Exchange::new(protocol, family, client, backend).via(SocketAddr::new(service, port), port);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
            ensure!(outcome.seen_client == Some(to), "{one}: the backend saw {:?}", outcome.seen_client);
            let frames = cast.cluster.capture.all()?;
            let seen = analysis::markers(&frames);
            for marker in [outcome.request, outcome.reply] {
                ensure!(!seen.contains_key(&marker), "{one}: payload {marker} is on the wire in the clear");
            }
            let clear = analysis::clear_port(&frames, port);
            ensure!(clear.is_empty(), "{one}: {}", analysis::list(&clear));
        }
    }
    cast.cluster.assert_no_cleartext(&[client], Moment::START)
}

/// Waits for an event with this reason that names all of these objects.
fn wait_event(node: &Node, reason: &str, objects: &[&str]) -> Result<()> {
    eventually(format!("{} to tell {reason} of {objects:?}", node.name), || {
        let events = node.agent.events()?;
        let named = |event: &hauberk_api::Event| {
            event.reason == reason && objects.iter().all(|object| event.objects.iter().any(|other| other == object))
        };
        Ok(events.iter().any(named).then_some(()))
    })
}

/// Fails if a packet that a stranger with a valid key seals under another party's address is
/// delivered.
fn refuses(stranger: &Stranger, claimed: &Party, victim: &Pod) -> Result<()> {
    let inside = Capture::start(&[(victim.netns.clone(), "eth0".into())])?;
    stranger.claim(claimed)?;
    let liar = Party {
        name: format!("{} as {}", stranger.party.name, claimed.name),
        netns: stranger.party.netns.clone(),
        ..claimed.clone()
    };
    for family in Family::ALL {
        for protocol in [Protocol::Udp, Protocol::Icmp] {
            let one = Exchange::new(protocol, family, &liar, victim).patience(Duration::from_millis(500));
            let outcome = exchange(&one)?;
            let arrived = analysis::markers(&inside.all()?).contains_key(&outcome.request);
            ensure!(!outcome.delivered && !arrived, "delivered, although sealed by another node: {one}");
        }
    }
    stranger.disclaim(claimed)
}

/// Fails unless the protected pods still talk, encrypted.
fn go_on(cast: &Cast) -> Result<()> {
    let [a, b] = &cast.protected;
    for (from, to) in [(a, b), (b, a)] {
        for family in Family::ALL {
            let one = Exchange::new(Protocol::Udp, family, from, to);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
        }
    }
    cast.cluster.assert_no_cleartext(&[a, b], Moment::START)
}

fn pod_in_foreign_range(context: &Context) -> Result<()> {
    let cast = Cast::build(context, HostRouting::Bpf)?;
    let [a, b] = &cast.protected;
    let stranger = Stranger::join(context, &cast.cluster, &WIREGUARD_GO)?;
    stranger.works_with(a)?;
    let mut object = manifests::pod("payments", "liar", "stranger");
    manifests::set_addresses(&mut object, &b.addresses());
    cast.cluster.manifests.put("pod", "payments-liar", &object)?;
    wait_event(&cast.cluster.nodes[0], "PodInForeignRange", &["Pod/payments/liar", "Node/n2"])?;
    go_on(&cast)?;
    refuses(&stranger, &b.party, a)?;
    go_on(&cast)
}

fn two_nodes_one_address(context: &Context) -> Result<()> {
    let cast = Cast::build(context, HostRouting::Bpf)?;
    let a = &cast.protected[0];
    let other = &cast.cluster.nodes[1];
    let stranger = Stranger::join(context, &cast.cluster, &WIREGUARD_GO)?;
    stranger.works_with(a)?;
    let one = Exchange::new(Protocol::Udp, Family::V4, a, &other.party);
    ensure!(exchange(&one)?.answered, "{one}: not answered while the address is one node's");
    let stolen: Vec<IpAddr> = other.addresses().to_vec();
    cast.cluster.manifests.change("node", "stranger", |object| {
        if let Some(addresses) = object["status"]["addresses"].as_array_mut() {
            addresses.extend(stolen.iter().map(|it| json!({"type": "InternalIP", "address": it.to_string()})));
        }
    })?;
    wait_event(&cast.cluster.nodes[0], "AddressConflict", &["Node/n2", "Node/stranger"])?;
    // The address is closed, and the tunnel of its node still works.
    for family in Family::ALL {
        let one = Exchange::new(Protocol::Udp, family, a, &other.party).patience(Duration::from_millis(500));
        let outcome = exchange(&one)?;
        ensure!(!outcome.delivered, "delivered to an address that two nodes claim: {one}");
        let seen = analysis::markers(&cast.cluster.capture.all()?);
        ensure!(!seen.contains_key(&outcome.request), "{one}: the request is on the wire in the clear");
    }
    go_on(&cast)?;
    refuses(&stranger, &other.party, a)?;
    go_on(&cast)
}
