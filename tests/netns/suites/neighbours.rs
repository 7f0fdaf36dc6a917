//! Other programs on a node that the operator must be told about, because only the operator can
//! correct them.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::{Problem, Severity};
use hauberk_netns::capture::Moment;
use hauberk_netns::netns::Netns;
use hauberk_netns::traffic::{Exchange, Protocol, assert_answered, exchange};
use hauberk_netns::{Cluster, Context, Family, HostRouting, Node, Party, Pod, Setup, Test, analysis, eventually, wire};

use crate::leaks;

pub const TESTS: &[Test] = &[
    Test::new("neighbours::a_firewall_that_drops_what_is_forwarded_is_named", |context| {
        firewall(context, "FORWARD", "forward")
    }),
    Test::new("neighbours::a_firewall_that_drops_what_is_delivered_is_named", |context| {
        firewall(context, "INPUT", "input")
    }),
    Test::new("neighbours::a_firewall_between_pods_and_uplinks_is_told_with_what_cures_it", forward_policy),
    Test::new("neighbours::bpf_containers_of_the_node_answer_its_pods", |context| {
        containers(context, HostRouting::Bpf)
    }),
    Test::new("neighbours::stack_containers_of_the_node_answer_its_pods", |context| {
        containers(context, HostRouting::Stack)
    }),
    Test::new("neighbours::a_queue_that_is_shared_by_pods_loses_nothing", shared_queue),
    Test::new("neighbours::bpf_a_bridge_above_the_uplink_is_no_leak", |context| {
        bridge_above_uplink(context, HostRouting::Bpf)
    }),
    Test::new("neighbours::stack_a_bridge_above_the_uplink_is_no_leak", |context| {
        bridge_above_uplink(context, HostRouting::Stack)
    }),
    Test::new("neighbours::a_mirror_of_the_tunnel_device_shows_nothing", mirror),
    Test::new("neighbours::a_port_of_another_node_that_leads_to_a_protected_pod_is_told", port_of_another_node),
    Test::new("neighbours::bpf_a_masqueraded_port_lets_nothing_in", |context| {
        masqueraded_port(context, HostRouting::Bpf)
    }),
    Test::new("neighbours::stack_a_masqueraded_port_lets_nothing_in", |context| {
        masqueraded_port(context, HostRouting::Stack)
    }),
];

/// Two nodes, a protected and a plain pod on the first, a protected one on the second.
fn three_pods(context: &Context, host_routing: HostRouting, prepare: &str) -> Result<(Cluster, [Pod; 3])> {
    let cluster = Cluster::build(context, Setup { host_routing, start: false, ..Setup::default() })?;
    cluster.nodes[0].netns.ip(prepare)?;
    cluster.start()?;
    cluster.wait_ready()?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let pods = [cluster.pod("payments", "a", 0)?, cluster.pod("public", "c", 0)?, cluster.pod("payments", "b", 1)?];
    cluster.wait_known(&pods.each_ref())?;
    Ok((cluster, pods))
}

fn all_answer(pairs: &[(&Party, &Party)]) -> Result<()> {
    pairs.iter().try_for_each(|(from, to)| assert_answered(from, to, &[Protocol::Tcp, Protocol::Udp]))
}

/// As with Docker and libvirt: the node has another bridge, whose containers do not know any pod's
/// address.
fn containers(context: &Context, host_routing: HostRouting) -> Result<()> {
    let (cluster, [a, c, b]) = three_pods(
        context,
        host_routing,
        "link add docker0 type bridge
             addr add 172.17.0.1/16 dev docker0
             addr add fd00:17::1/64 dev docker0 nodad
             link set docker0 up
             link add port type veth peer name inside
             link set port master docker0
             link set port up",
    )?;
    let container = Netns::create("container")?;
    wire::move_link(&cluster.nodes[0].netns, "inside", &container, "eth0")?;
    container.ip("addr add 172.17.0.2/16 dev eth0
             addr add fd00:17::2/64 dev eth0 nodad
             link set lo up
             link set eth0 up")?;
    let addresses = ["172.17.0.2".parse()?, "fd00:17::2".parse()?];
    let container = Party::new("container".into(), container, &addresses)?;
    all_answer(&[(&a, &container), (&c, &container)])?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    leaks::accuse_no_one(&cluster)?;
    Ok(())
}

/// As the CNI project's plugin `bandwidth` limits the traffic that a pod sends: with an `ifb`
/// device.
fn shared_queue(context: &Context) -> Result<()> {
    let (cluster, [a, c, b]) = three_pods(context, HostRouting::Stack, "link add queue0 type ifb\nlink set queue0 up")?;
    let node = &cluster.nodes[0];
    node.run("tc", &["qdisc", "add", "dev", "queue0", "root", "pfifo"])?;
    for name in node.netns.interfaces()?.iter().filter(|name| name.starts_with("hbk")) {
        node.run("tc", &["qdisc", "add", "dev", name, "ingress"])?;
        let redirect = "protocol all u32 match u32 0 0 action mirred egress redirect dev queue0";
        let arguments = format!("filter add dev {name} parent ffff: {redirect}");
        node.run("tc", &arguments.split(' ').collect::<Vec<_>>())?;
    }
    // "Sent BYTES bytes PACKETS pkt (...)": some neighbour discovery packets may have passed
    // already.
    let queued = || -> Result<u64> {
        let text = node.run("tc", &["-s", "qdisc", "show", "dev", "queue0"])?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let packets = words.windows(2).find(|pair| pair[1] == "pkt").context("no count of packets")?;
        Ok(packets[0].parse()?)
    };
    let before = queued()?;
    all_answer(&[(&a, &c), (&c, &a), (&a, &b), (&b, &a), (&a, &node.party), (&c, &node.party)])?;
    ensure!(queued()? > before + 50, "hardly anything passed the queue: {} packets", queued()? - before);
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    leaks::accuse_no_one(&cluster)
}

/// As on hosts of virtual machines: the network card is a port of a bridge, and the bridge has the
/// node's addresses.
fn bridge_above_uplink(context: &Context, host_routing: HostRouting) -> Result<()> {
    let (cluster, [a, c, b]) = three_pods(
        context,
        host_routing,
        "link add br0 type bridge
             addr flush dev eth0
             link set eth0 master br0
             addr add 172.18.0.11/24 dev br0
             addr add fd00:18::b/64 dev br0 nodad
             link set br0 up
             route replace default via 172.18.0.250
             route replace default via fd00:18::250",
    )?;
    let host: &Party = &cluster.nodes[0].party;
    all_answer(&[(&a, &b), (&b, &a), (&c, &b), (host, &b), (&b, host)])?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    leaks::accuse_no_one(&cluster)?;
    ensure!(cluster.nodes[0].agent.status()?.ready, "not ready");
    Ok(())
}

/// As traffic is copied to a collector: packets on the tunnel device are in the clear and have no
/// Ethernet header.
fn mirror(context: &Context) -> Result<()> {
    let (cluster, [a, _, b]) = three_pods(context, HostRouting::Stack, "link show")?;
    for node in &cluster.nodes {
        node.run("tc", &["qdisc", "replace", "dev", "hauberk0", "clsact"])?;
        for direction in ["ingress", "egress"] {
            let copy = "protocol all pref 7 u32 match u32 0 0 action mirred egress mirror dev eth0";
            let arguments = format!("filter add dev hauberk0 {direction} {copy}");
            node.run("tc", &arguments.split(' ').collect::<Vec<_>>())?;
        }
    }
    let mut markers = Vec::new();
    for (from, to) in [(&a.party, &b.party), (&b.party, &a.party), (&cluster.nodes[0].party, &b.party)] {
        for family in Family::ALL {
            let outcome = exchange(&Exchange::new(Protocol::Udp, family, from, to).patience(Duration::from_secs(60)))?;
            ensure!(outcome.answered, "{outcome:?}");
            markers.extend([outcome.request, outcome.reply]);
        }
    }
    let seen = analysis::markers(&cluster.capture.all()?);
    let leaked = markers.iter().filter(|marker| seen.contains_key(marker)).count();
    ensure!(leaked == 0, "{leaked} of {} payloads are on the wire", markers.len());
    let dropped = cluster.nodes[0].agent.all_drops()?;
    ensure!(format!("{dropped:?}").contains("plaintext_leaving"), "nothing was mirrored: {dropped:?}");
    Ok(())
}

/// A node sends to a port of another node that is translated to a protected pod there. The sender
/// cannot know that before the packet arrives.
fn port_of_another_node(context: &Context) -> Result<()> {
    let (cluster, [_, _, b]) = three_pods(context, HostRouting::Stack, "link show")?;
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    n2.netns.nft(&format!(
        "table ip ports {{
           chain prerouting {{ type nat hook prerouting priority dstnat
             udp dport 30080 dnat to {}:7000
           }}
         }}",
        b.address(Family::V4)
    ))?;
    let asking = n1.netns.within(|| UdpSocket::bind("0.0.0.0:0").context("bind"))?;
    let told = |node: &Node, other: &str, words: &str| {
        eventually(format!("{} to say so of {other}", node.name), || {
            asking.send_to(b"question", (n2.address(Family::V4), 30080)).context("ask")?;
            let problems = node.agent.status()?.problems.into_iter();
            let object = format!("node/{other}");
            Ok(problems.map(|p| (p.object, p.message)).find(|(o, m)| *o == object && m.contains(words)))
        })
    };
    told(n2, "n1", "sends in the clear")?;
    told(n1, "n2", "saw plaintext from this node")?;
    Ok(())
}

/// As kube-proxy makes a nodePort for all clients: the backend sees the address of the node that
/// received the request.
fn masqueraded_port(context: &Context, host_routing: HostRouting) -> Result<()> {
    let (cluster, [_, c, b]) = three_pods(context, host_routing, "link show")?;
    let [n1, n2] = [&cluster.nodes[0], &cluster.nodes[1]];
    let plain = cluster.pod("public", "d", 1)?;
    cluster.wait_known(&[&plain])?;
    for (table, family) in [("ip", Family::V4), ("ip6", Family::V6)] {
        n2.netns.nft(&format!(
            "table {table} ports {{
               chain prerouting {{ type nat hook prerouting priority dstnat
                 meta l4proto {{ tcp, udp }} th dport 30080 dnat to {0}
                 meta l4proto {{ tcp, udp }} th dport 30081 dnat to {1}
               }}
               chain postrouting {{ type nat hook postrouting priority srcnat; ct status dnat masquerade; }}
             }}",
            b.address(family),
            plain.address(family)
        ))?;
    }
    let since = cluster.capture.sync()?;
    let mut outcomes = Vec::new();
    for family in Family::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ask = |from: &Party, to: &Party, port: u16, seconds: u64| {
                let service = SocketAddr::new(n2.address(family), port);
                let patience = Duration::from_secs(seconds);
                exchange(&Exchange::new(protocol, family, from, to).via(service, port).patience(patience))
            };
            // The rules work: the plain pod answers.
            let answered = ask(&n1.party, &plain, 30081, 20)?;
            ensure!(answered.answered, "{protocol:?} {family:?}: {answered:?}");
            for from in [&n1.party, &c.party] {
                let outcome = ask(from, &b, 30080, 3)?;
                // A pod's request is sealed if the stack carries it.
                let sealed = from.name == c.party.name && host_routing == HostRouting::Stack;
                ensure!(outcome.answered == sealed, "{} {protocol:?} {family:?}: {outcome:?}", from.name);
                ensure!(sealed || !outcome.delivered, "{} {protocol:?} {family:?}: {outcome:?}", from.name);
                outcomes.push((sealed, outcome));
            }
        }
    }
    let seen = analysis::markers(&cluster.capture.since(since)?);
    for (sealed, outcome) in &outcomes {
        ensure!(!seen.contains_key(&outcome.reply), "the reply is in the clear: {outcome:?}");
        ensure!(!sealed || !seen.contains_key(&outcome.request), "the request is in the clear: {outcome:?}");
    }
    eventually("the node to tell of it", || {
        exchange(
            &Exchange::new(Protocol::Udp, Family::V4, &n1.party, &b)
                .via(SocketAddr::new(n2.address(Family::V4), 30080), 30080)
                .patience(Duration::from_millis(500)),
        )?;
        let problems = n2.agent.status()?.problems.into_iter();
        Ok(problems.map(|problem| problem.message).find(|message| message.contains("at a port of this node")))
    })?;
    Ok(())
}

/// The problems in the status that concern netfilter.
fn problems(node: &Node) -> Result<Vec<Problem>> {
    Ok(node.agent.status()?.problems.into_iter().filter(|problem| problem.object == "netfilter").collect())
}

/// The output of `hauberkd check`.
fn check(node: &Node) -> Result<String> {
    let hauberkd = hauberk_netns::programs::ours("hauberkd")?;
    let check = node.command(hauberkd).arg("--config").arg(node.config()).arg("check").output()?;
    Ok(String::from_utf8_lossy(&check.stdout).into_owned())
}

/// As Docker, ufw and firewalld configure a node: packets that no rule accepts are dropped.
fn firewall(context: &Context, chain: &str, hook: &str) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Stack, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let node = &cluster.nodes[1];
    let server: &Party = if hook == "forward" { &b.party } else { &node.party };
    let talk = |patience| -> Result<bool> {
        Ok(exchange(&Exchange::new(Protocol::Udp, Family::V4, &a, server).patience(patience))?.answered)
    };
    ensure!(talk(Duration::from_secs(20))?, "no answer without a firewall");
    ensure!(problems(node)?.is_empty(), "{:?}", problems(node)?);
    // The tunnel's own packets are accepted, as every guide recommends.
    node.netns.nft(&format!(
        "table ip filter {{
           chain {chain} {{ type filter hook {hook} priority 0; policy drop; iifname \"eth0\" udp dport 51840 accept
             iifname \"lo\" accept
           }}
         }}"
    ))?;
    eventually("the status to name the chain", || {
        ensure!(!talk(Duration::from_millis(300))?, "answered through a firewall that drops it");
        let found = problems(node)?;
        let named = found.iter().any(|problem| {
            problem.severity == Severity::Critical && problem.message.contains(&format!("ip filter {chain} ({hook})"))
        });
        ensure!(named, "{found:?}");
        Ok(Some(()))
    })?;
    let said = check(node)?;
    ensure!(said.contains(&format!("ip filter {chain}")), "`hauberkd check` does not name it: {said}");
    ensure!(said.contains("the kernel takes all 7 programs"), "`hauberkd check` does not try the programs: {said}");
    let left = node.run("find", &["/sys/fs/bpf", "-name", "hauberk-check-*"])?;
    ensure!(left.is_empty(), "`hauberkd check` left {left}");
    node.netns.nft("delete table ip filter")?;
    eventually("the pods to talk, and the status to be without it", || {
        ensure!(talk(Duration::from_secs(5))?, "no answer");
        let found = problems(node)?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(Some(()))
    })?;
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

/// As Docker and ufw configure a node: a drop policy, and packets of existing connections are
/// accepted.
fn forward_policy(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Stack, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let [a, b] = [cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?];
    let [c, d] = [cluster.pod("public", "c", 0)?, cluster.pod("public", "d", 1)?];
    cluster.wait_known(&[&a, &b, &c, &d])?;
    let pairs = [(&a.party, &b.party), (&c.party, &d.party), (&a.party, &d.party)];
    all_answer(&pairs)?;
    for node in &cluster.nodes {
        for tool in ["iptables", "ip6tables"] {
            node.run(tool, &["-P", "FORWARD", "DROP"])?;
            let established = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";
            node.run(tool, &established.split(' ').collect::<Vec<_>>())?;
        }
    }
    let told = |node: &Node, words: &str| -> Result<Option<()>> {
        let found = problems(node)?;
        ensure!(found.iter().any(|problem| problem.message.contains(words)), "{words:?} is not in {found:?}");
        Ok(Some(()))
    };
    let forward = "ip filter FORWARD (forward) of another program drops what this node's pods send to other nodes";
    for node in &cluster.nodes {
        eventually("the status to name the chain", || told(node, forward))?;
    }
    let outcome = exchange(&Exchange::new(Protocol::Udp, Family::V4, &a, &b).patience(Duration::from_millis(300)))?;
    ensure!(!outcome.answered, "answered through a firewall that drops it");
    let node = &cluster.nodes[0];
    // Half of the rules is not enough: the status drops that half and still names the other.
    node.run("iptables", &["-I", "FORWARD", "-i", "hauberk0", "-j", "ACCEPT"])?;
    eventually("the status to be without that half", || {
        let half = problems(node)?.iter().any(|problem| {
            problem.message.contains("ip filter FORWARD") && problem.message.contains("comes decrypted out of hauberk0")
        });
        Ok((!half).then_some(()))
    })?;
    told(node, forward)?;
    let said = check(node)?;
    ensure!(said.contains("iptables -I FORWARD -i hbk+ -j ACCEPT"), "`hauberkd check` does not give the rule: {said}");
    for node in &cluster.nodes {
        let found = problems(node)?;
        for advice in found.iter().filter_map(|problem| problem.message.split("run: ").nth(1)) {
            node.run("sh", &["-ec", advice])?;
        }
    }
    all_answer(&pairs)?;
    for node in &cluster.nodes {
        eventually("the status to be without it", || {
            let found = problems(node)?;
            ensure!(found.is_empty(), "{found:?}");
            Ok(Some(()))
        })?;
    }
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}
