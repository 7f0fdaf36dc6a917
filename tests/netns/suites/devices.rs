//! Every device of a node has a guard or is shut, whether or not it is an uplink, and the guard is
//! read back from the kernel. The second cable between the nodes is not listed as an uplink: each
//! test sends pods' packets through it and captures there.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::{AttachMethod, Severity};
use hauberk_netns::capture::{Capture, Moment};
use hauberk_netns::traffic::{Exchange, Outcome, Protocol, UdpStreamer, exchange};
use hauberk_netns::{
    Cluster, Context, Family, HostRouting, Node, Pod, Setup, Test, analysis, eventually, programs, wire,
};

use crate::chained::{Playground, Plugin, Underlay};

pub const TESTS: &[Test] = &[
    Test::new("devices::a_peer_behind_a_card_that_no_list_names", peer_by_another_card),
    Test::new("devices::policy_routing_by_a_card_that_came_later", policy_routing),
    Test::new("devices::a_tunnel_of_others_with_a_default_route_holds_up_nothing", tun_with_default_route),
    Test::new("devices::a_bridge_with_a_port_to_another_node", bridge_with_a_port),
    Test::new("devices::programs_that_were_detached_come_back", detached),
    Test::new("devices::uninstalling_under_a_running_agent_is_refused", uninstall_refused),
    Test::new("devices::a_card_that_came_while_no_agent_ran", while_no_agent_ran),
    Test::new("devices::a_renamed_card_keeps_its_guard", renamed),
    Test::new("devices::ours_that_were_renamed_or_removed_come_back", ours_taken),
    Test::new("devices::programs_that_were_pinned_elsewhere_are_named", pinned_elsewhere),
];

/// Two nodes, a protected pod on each, and a second cable between the nodes.
struct Field {
    cluster: Cluster,
    a: Pod,
    b: Pod,
    cable: Capture,
}

const CABLE: &str = "eth1";

impl Field {
    /// Builds it with `hostRouting: stack`, where the host's routes choose the device by which a
    /// pod's packet leaves.
    fn build(context: &Context) -> Result<Field> {
        let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Stack, ..Setup::default() })?;
        let cable = plug(&cluster, CABLE)?;
        Field::with(cluster, cable)
    }

    fn with(cluster: Cluster, cable: Capture) -> Result<Field> {
        cluster.namespace("payments", Some("enabled"))?;
        let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
        cluster.wait_known(&[&a, &b])?;
        Ok(Field { cluster, a, b, cable })
    }

    /// Tries exchanges both ways in both families. Fails if a packet of the pods crosses either
    /// wire in the clear.
    fn talk(&self, patience: Duration) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for family in Family::ALL {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                for (from, to) in [(&self.a, &self.b), (&self.b, &self.a)] {
                    outcomes.push(exchange(&Exchange::new(protocol, family, from, to).patience(patience))?);
                }
            }
        }
        self.assert_sealed()?;
        Ok(outcomes)
    }

    fn assert_answered(&self) -> Result<()> {
        let outcomes = self.talk(Duration::from_secs(20))?;
        ensure!(outcomes.iter().all(|outcome| outcome.answered), "{outcomes:?}");
        Ok(())
    }

    fn assert_sealed(&self) -> Result<()> {
        self.cluster.assert_no_cleartext(&[&self.a, &self.b], Moment::START)?;
        let addresses: Vec<IpAddr> = [&self.a, &self.b].iter().flat_map(|pod| pod.addresses()).collect();
        let seen = analysis::cleartext_of(&self.cable.all()?, &addresses);
        ensure!(seen.is_empty(), "in the clear by {CABLE}: {}", analysis::list(&seen));
        Ok(())
    }
}

/// A cable between the first two nodes, and a capture on both of its ends.
fn plug(cluster: &Cluster, name: &str) -> Result<Capture> {
    let (n1, n2) = (&cluster.nodes[0], &cluster.nodes[1]);
    n1.netns.ip(&format!("link add {name} type veth peer name cable"))?;
    wire::move_link(&n1.netns, "cable", &n2.netns, name)?;
    for (node, last) in [(n1, 1), (n2, 2)] {
        node.netns.ip(&format!(
            "addr add 172.30.0.{last}/24 dev {name}
             addr add fd00:30::{last}/64 dev {name} nodad
             link set {name} up"
        ))?;
    }
    // A packet socket sees an arriving frame before any program drops it.
    Capture::start(&[(n1.netns.clone(), name.to_owned()), (n2.netns.clone(), name.to_owned())])
}

/// Routes each node's packets for the other's pods through the second cable. `lines` returns `ip`
/// lines for a range and a next hop.
fn by_the_cable(cluster: &Cluster, lines: impl Fn(&str, &str) -> String) -> Result<()> {
    for (here, there, last) in [(0, 1, 2), (1, 0, 1)] {
        let hops = [format!("172.30.0.{last}"), format!("fd00:30::{last}")];
        for (range, hop) in cluster.nodes[there].pod_ranges.iter().zip(&hops) {
            cluster.nodes[here].netns.ip(&lines(range, hop))?;
        }
    }
    Ok(())
}

/// Waits until the agent has the guard on a device.
fn wait_guarded(node: &Node, device: &str) -> Result<()> {
    eventually(format!("{device} of {} to be guarded", node.name), || {
        let pins = pins(node)?;
        let hooks = ["to_wire", "from_wire"];
        ensure!(hooks.iter().all(|hook| pins.contains(&format!("/{hook}@{device}\n"))), "{pins}");
        Ok(Some(()))
    })
}

fn pins(node: &Node) -> Result<String> {
    node.run("find", &[&format!("/sys/fs/bpf/{}", node.name), "-mindepth", "1"])
}

fn peer_by_another_card(context: &Context) -> Result<()> {
    let setup = Setup { host_routing: HostRouting::Stack, start: false, ..Setup::default() };
    let cluster = Cluster::build(context, setup)?;
    let cable = plug(&cluster, CABLE)?;
    // eth0 has the nodes' addresses and the default routes. The cable to the other node has
    // neither.
    for (here, there, last) in [(0, 1, 2), (1, 0, 1)] {
        let (v4, v6) = (cluster.nodes[there].v4, cluster.nodes[there].v6);
        cluster.nodes[here].netns.ip(&format!(
            "route add {v4}/32 via 172.30.0.{last}
             route add {v6}/128 via fd00:30::{last}"
        ))?;
    }
    cluster.start()?;
    let field = Field::with(cluster, cable)?;
    field.assert_answered()
}

fn policy_routing(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    for node in &field.cluster.nodes {
        for (family, range) in [("-4", &node.pod_ranges[0]), ("-6", &node.pod_ranges[1])] {
            node.run("ip", &[family, "rule", "add", "from", range, "table", "77"])?;
        }
    }
    by_the_cable(&field.cluster, |range, hop| format!("route add {range} via {hop} dev {CABLE} table 77"))?;
    field.talk(Duration::from_millis(500))?;
    for node in &field.cluster.nodes {
        wait_guarded(node, CABLE)?;
    }
    field.assert_answered()
}

fn tun_with_default_route(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Stack, ..Setup::default() })?;
    for node in &cluster.nodes {
        node.netns.ip("tuntap add tun0 mode tun
             addr add 10.99.0.1/24 dev tun0
             link set tun0 up
             route add default dev tun0 metric 900")?;
        wait_guarded(node, "tun0")?;
        eventually("the leak detector to be there too", || {
            let (_, metrics) = node.agent.get("/metrics")?;
            Ok(metrics.contains("hauberk_leaked_packets_total{device=\"tun0\"}").then_some(()))
        })?;
        node.agent.wait_ready()?;
    }
    let cable = plug(&cluster, CABLE)?;
    for node in &cluster.nodes {
        wait_guarded(node, CABLE)?;
    }
    let field = Field::with(cluster, cable)?;
    field.assert_answered()?;
    by_the_cable(&field.cluster, |range, hop| format!("route add {range} via {hop} dev {CABLE} metric 10"))?;
    for node in &field.cluster.nodes {
        node.netns.ip("link set eth0 down")?;
    }
    field.talk(Duration::from_millis(500))?;
    for node in &field.cluster.nodes {
        eventually(format!("{} to say that eth0 is down", node.name), || {
            let problems = node.agent.status()?.problems;
            Ok(problems.iter().any(|problem| problem.object == "device/eth0").then_some(()))
        })?;
        node.netns.ip("link set eth0 up")?;
        node.agent.terminate()?;
        node.start_agent()?;
    }
    field.cluster.wait_ready()?;
    for node in &field.cluster.nodes {
        let (v4, v6) = ("172.18.0.250", "fd00:18::250");
        node.netns.ip(&format!("addr replace {}/64 dev eth0 nodad", node.v6))?;
        node.netns.ip(&format!("route replace default via {v4}\nroute replace default via {v6}"))?;
    }
    field.assert_answered()
}

fn bridge_with_a_port(context: &Context) -> Result<()> {
    let playground = Playground::build(context, Plugin::Bridge, Underlay::Routes, false)?;
    playground.start()?;
    let (a, b) = (playground.pod("payments", "a", 0)?, playground.pod("payments", "b", 1)?);
    playground.wait_adopted([1, 1])?;
    let cluster = playground.cluster;
    cluster.wait_known(&[&a, &b])?;
    let cable = plug(&cluster, CABLE)?;
    for (here, there) in [(0, 1), (1, 0)] {
        let node = &cluster.nodes[here];
        node.netns.ip(&format!("addr flush dev {CABLE}\nlink set {CABLE} master cni0"))?;
        // Makes the other node's pods neighbours on the bridge.
        for range in &cluster.nodes[there].pod_ranges {
            node.netns.ip(&format!("route replace {range} dev cni0 metric 1"))?;
        }
        wait_guarded(node, CABLE)?;
    }
    let field = Field { cluster, a, b, cable };
    field.talk(Duration::from_secs(2))?;
    Ok(())
}

fn detached(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup::default())?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let stream = UdpStreamer::start(&a, &b, Family::V4, 200, Duration::from_millis(5))?;
    stream.wait_flowing()?;
    let node = &cluster.nodes[0];
    let interfaces = node.netns.interfaces()?;
    let pod = interfaces.iter().find(|name| name.starts_with("hbk")).context("no pod's interface")?;
    for (pin, object) in [
        ("to_wire@eth0".to_owned(), "device/eth0".to_owned()),
        ("from_wire@eth0".to_owned(), "device/eth0".to_owned()),
        (format!("to_pod@{pod}"), format!("pod interface/{pod}")),
        (format!("from_pod@{pod}"), format!("pod interface/{pod}")),
        ("from_tunnel@hauberk0".to_owned(), "device/hauberk0".to_owned()),
    ] {
        let before = pins(node)?;
        node.detach_program(&pin)?;
        wait_told(node, &object)?;
        wait_back(node, &before)?;
        stream.wait_flowing()?;
    }
    // If only one of them is removed, the others still block packets.
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    for folder in ["links", "maps"] {
        let before = pins(node)?;
        node.run("sh", &["-c", &format!("rm -r /sys/fs/bpf/{}/v*/{folder}", node.name)])?;
        if folder == "links" {
            // Removing the only handle of a link detaches it. The agent holds its own handles for
            // the guards of devices.
            wait_told(node, &format!("pod interface/{pod}"))?;
        }
        wait_back(node, &before)?;
    }
    node.run("sh", &["-c", &format!("rm /sys/fs/bpf/{}/v1/links/to_wire@eth0", node.name)])?;
    eventually("what was removed to be pinned again", || Ok(pins(node)?.contains("/to_wire@eth0\n").then_some(())))?;
    let events = node.agent.events()?;
    ensure!(events.iter().any(|event| event.objects.iter().any(|named| named == "pins")), "{events:?}");
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;
    let since = cluster.capture.sync()?;
    node.netns.nft("flush ruleset")?;
    wait_told(node, "netfilter")?;
    node.agent.wait_ready()?;
    ensure!(node.run("nft", &["list", "ruleset"])?.contains("table inet hauberk"), "the rules are not back");
    let events = node.agent.events()?;
    let restored = events.iter().filter(|event| event.reason == "Restored").count();
    ensure!(restored >= 5, "{events:?}");
    stream.wait_flowing()?;
    stream.stop()?;
    node.agent.terminate()?;
    node.start_agent()?;
    cluster.wait_ready()?;
    let one = Exchange::new(Protocol::Tcp, Family::V6, &a, &b);
    let outcome = exchange(&one)?;
    ensure!(outcome.answered, "{one}: {outcome:?}");
    cluster.assert_no_cleartext(&[&a, &b], since)
}

/// Waits until everything is pinned again as before, and the node is ready.
fn wait_back(node: &Node, before: &str) -> Result<()> {
    eventually("what was removed to be back", || {
        let after = pins(node)?;
        let missing: Vec<&str> = before.lines().filter(|line| !after.contains(line)).collect();
        ensure!(missing.is_empty(), "missing: {missing:?}");
        Ok(Some(()))
    })?;
    node.agent.wait_ready()
}

/// Waits until the node is not ready because of this object.
fn wait_told(node: &Node, object: &str) -> Result<()> {
    eventually(format!("{} to say that {object} is not as it should be", node.name), || {
        let status = node.agent.status()?;
        let told = status.problems.iter().any(|one| one.severity == Severity::Critical && one.object == object);
        ensure!(told && !status.ready, "{:?}", status.problems);
        Ok(Some(()))
    })
}

fn uninstall_refused(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 1, ..Setup::default() })?;
    let node = &cluster.nodes[0];
    let before = pins(node)?;
    let uninstall = |program: &Path| {
        let mut command = node.command(program);
        command.arg("--config").arg(node.config()).arg("uninstall");
        command.output().context("hauberkd uninstall")
    };
    let program = programs::ours("hauberkd")?;
    let output = uninstall(&program)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("stop it first"), "{said}");
    // The agent runs although its socket does not answer.
    fs::remove_file(node.socket()).context("remove the agent's socket")?;
    let output = uninstall(&program)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("stop it first"), "{said}");
    let _ = fs::remove_file(node.socket());
    let output = node.command(&program).arg("--config").arg(node.config()).output().context("hauberkd")?;
    ensure!(!output.status.success(), "two agents: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(pins(node)? == before, "it took something away");
    node.agent.wait_ready()?;
    node.agent.terminate()?;
    let output = uninstall(&program)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn while_no_agent_ran(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing: HostRouting::Stack, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    for node in &cluster.nodes {
        node.agent.terminate()?;
    }
    let cable = plug(&cluster, CABLE)?;
    for node in &cluster.nodes {
        node.start_agent()?;
    }
    cluster.wait_ready()?;
    for node in &cluster.nodes {
        wait_guarded(node, CABLE)?;
    }
    by_the_cable(&cluster, |range, hop| format!("route add {range} via {hop} dev {CABLE} metric 10"))?;
    Field { cluster, a, b, cable }.assert_answered()
}

fn renamed(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let node = &field.cluster.nodes[0];
    wait_guarded(node, CABLE)?;
    let other = &field.cluster.nodes[1];
    wait_guarded(other, CABLE)?;
    for (running, name) in [(true, "wan0"), (false, "wan1")] {
        if !running {
            node.agent.terminate()?;
        }
        let now = if running { CABLE } else { "wan0" };
        node.netns.ip(&format!(
            "link set {now} down
             link set {now} name {name}
             link set {name} up
             addr replace fd00:30::1/64 dev {name} nodad"
        ))?;
        if !running {
            node.start_agent()?;
            field.cluster.wait_ready()?;
        }
        wait_guarded(node, name)?;
        let pins = pins(node)?;
        ensure!(!pins.contains(&format!("@{now}\n")), "{pins}");
    }
    for (range, hop) in other.pod_ranges.iter().zip(["172.30.0.2", "fd00:30::2"]) {
        node.netns.ip(&format!("route add {range} via {hop} metric 10"))?;
    }
    field.assert_answered()
}

fn ours_taken(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let node = &field.cluster.nodes[0];
    field.assert_answered()?;
    let elsewhere = hauberk_netns::Netns::create("elsewhere")?;
    let index = |device: &str| node.run("cat", &[&format!("/sys/class/net/{device}/ifindex")]);
    let links = node.run("ls", &["/sys/class/net"])?;
    let pod = links.split_whitespace().find(|link| link.starts_with("hbk")).context("a pod's interface")?;
    for device in ["hauberk0", pod] {
        let before = index(device)?;
        node.netns.ip(&format!("link set {device} down\nlink set {device} name other\nlink set other up"))?;
        let now = eventually(format!("{device} to have its name again"), || index(device).map(Some))?;
        ensure!(now == before, "it is another one");
        field.cluster.wait_ready()?;
        field.assert_answered()?;
    }
    let before = index("hauberk0")?;
    node.netns.ip("link delete hauberk0")?;
    eventually("another tunnel's device", || Ok((index("hauberk0")? != before).then_some(())))?;
    field.cluster.wait_ready()?;
    field.assert_answered()?;
    wire::move_link(&node.netns, "hauberk0", &elsewhere, "hauberk0")?;
    eventually("another tunnel's device", || index("hauberk0").map(Some))?;
    field.cluster.wait_ready()?;
    field.assert_answered()
}

/// `paths.pins` is another one by now, and nothing was uninstalled: the earlier programs run beside
/// the new ones.
fn pinned_elsewhere(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup::default())?;
    let node = &cluster.nodes[0];
    if node.agent.status()?.attach == AttachMethod::Clsact {
        // There the new programs take the earlier ones' place.
        return Ok(());
    }
    let earlier = node.config().with_extension("earlier.yaml");
    fs::copy(node.config(), &earlier).context("keep the configuration")?;
    let (before, after) = (format!("/sys/fs/bpf/{}", node.name), format!("/sys/fs/bpf/{}-moved", node.name));
    let text = fs::read_to_string(node.config()).context("read the configuration")?;
    ensure!(text.contains(&before), "{text}");
    fs::write(node.config(), text.replace(&before, &after)).context("write the configuration")?;
    node.agent.terminate()?;
    node.start_agent()?;
    eventually("the status to name the earlier programs' place", || {
        let status = node.agent.status()?;
        let named = status.problems.iter().find(|problem| {
            let message = &problem.message;
            message.contains(&format!("pinned in {before})")) && message.contains("hauberkd uninstall")
        });
        ensure!(named.is_some_and(|named| named.severity == Severity::Critical), "{:?}", status.problems);
        ensure!(!status.ready, "ready all the same");
        Ok(Some(()))
    })?;
    node.agent.terminate()?;
    let mut command = node.command(programs::ours("hauberkd")?);
    let output = command.arg("--config").arg(&earlier).arg("uninstall").output().context("hauberkd uninstall")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.start_agent()?;
    cluster.wait_ready()
}
