//! Other programs change a node's network while the agent runs: it recovers by itself, without a
//! restart.

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_api::{Problem, Protection, Severity};
use hauberk_netns::capture::{Capture, Moment};
use hauberk_netns::netns::Netns;
use hauberk_netns::traffic::{Exchange, Protocol, exchange, wait_answered};
use hauberk_netns::{
    Cluster, Context, Family, HostRouting, Node, Party, Pod, Setup, Test, analysis, eventually, manifests, wire,
};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("outages::an_uplinks_address_that_went_and_came", address),
    Test::new("outages::an_uplink_that_went_down_and_up", link_down),
    Test::new("outages::an_uplink_that_was_taken_away_and_came_back", taken_away),
    Test::new("outages::routes_that_somebody_flushed", flushed),
    Test::new("outages::kernel_settings_that_somebody_changed", settings),
    Test::new("outages::a_node_address_that_no_device_has", address_on_no_device),
    Test::new("outages::a_peer_without_a_way_holds_up_nothing", peer_without_a_way),
    Test::new("outages::a_node_address_that_nobody_answers_for_is_told", silent_address),
    Test::new("outages::a_node_without_an_object_is_told", node_object_gone),
    Test::new("outages::bpf_a_network_of_two_that_dies", |context| dead_network(context, HostRouting::Bpf)),
    Test::new("outages::stack_a_network_of_two_that_dies", |context| dead_network(context, HostRouting::Stack)),
    Test::new("outages::a_pods_interface_that_went_without_a_word", interface_gone),
    Test::new("outages::a_full_disk_is_told_until_there_is_room", full_disk),
];

/// Two nodes with a protected and a plain pod on each.
struct Field {
    cluster: Cluster,
    pods: [Pod; 4],
}

impl Field {
    fn build(context: &Context) -> Result<Field> {
        Field::with(context, Setup::default())
    }

    fn with(context: &Context, setup: Setup) -> Result<Field> {
        Field::on(Cluster::build(context, setup)?)
    }

    fn on(cluster: Cluster) -> Result<Field> {
        let pods = pods(&cluster)?;
        let field = Field { cluster, pods };
        field.wait_talking()?;
        Ok(field)
    }

    /// Waits until protected and plain pods talk across nodes, and the first node talks with its
    /// own pods, in both families.
    fn wait_talking(&self) -> Result<()> {
        let [a, b, c, d] = &self.pods;
        let host: &Party = &self.cluster.nodes[0];
        for family in Family::ALL {
            for (from, to) in [(&a.party, &b.party), (&b.party, &a.party), (&c.party, &d.party), (host, &c.party)] {
                wait_answered(&Exchange::new(Protocol::Tcp, family, from, to))?;
            }
        }
        self.cluster.assert_no_cleartext(&[a, b], Moment::START)
    }
}

/// A protected and a plain pod on each of two nodes; the protected ones come first.
pub(crate) fn pods(cluster: &Cluster) -> Result<[Pod; 4]> {
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let pods = [
        cluster.pod("payments", "a", 0)?,
        cluster.pod("payments", "b", 1)?,
        cluster.pod("public", "c", 0)?,
        cluster.pod("public", "d", 1)?,
    ];
    cluster.wait_known(&pods.each_ref())?;
    Ok(pods)
}

/// Restores on the first node what an administrator or a daemon would restore.
fn give_back(node: &Node) -> Result<()> {
    node.netns.ip(&format!(
        "addr replace {}/24 dev eth0
         addr replace {}/64 dev eth0 nodad
         route replace default via 172.18.0.250
         route replace default via fd00:18::250",
        node.v4, node.v6
    ))
}

fn address(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let node = &field.cluster.nodes[0];
    node.netns.ip(&format!("addr del {}/24 dev eth0\naddr del {}/64 dev eth0", node.v4, node.v6))?;
    eventually("its pods' routes to be without the address", || {
        let routes = node.run("ip", &["route", "show", "proto", "72"])?;
        Ok((!routes.contains(&node.v4.to_string())).then_some(()))
    })?;
    give_back(node)?;
    eventually("its pods to see it by its address again", || {
        let routes = node.run("ip", &["route", "show", "proto", "72"])?;
        let mut to_pods = routes.lines().filter(|route| route.contains("dev hbk"));
        ensure!(to_pods.all(|route| route.contains(&format!("src {}", node.v4))), "{routes}");
        Ok(Some(()))
    })?;
    field.wait_talking()
}

fn link_down(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let node = &field.cluster.nodes[0];
    node.netns.ip("link set eth0 down")?;
    eventually("the status to say so", || {
        let problems = node.agent.status()?.problems;
        Ok(problems.iter().any(|problem| problem.object == "device/eth0").then_some(()))
    })?;
    node.netns.ip("link set eth0 up")?;
    give_back(node)?;
    field.wait_talking()?;
    node.agent.wait_ready()
}

/// As with a network card that is unplugged, or given to a container for a moment.
fn taken_away(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let node = &field.cluster.nodes[0];
    let sizes = || -> Result<Vec<String>> {
        let routes = ["-4", "-6"].map(|family| node.run("ip", &[family, "route", "show", "proto", "72"]));
        let routes = routes.into_iter().collect::<Result<String>>()?;
        let words: Vec<&str> = routes.split_whitespace().collect();
        let sizes = words.windows(2).filter(|pair| pair[0] == "mtu").map(|pair| pair[1].to_owned()).collect();
        Ok(sizes)
    };
    let before = sizes()?;
    ensure!(!before.is_empty(), "routes without an MTU");
    let elsewhere = Netns::create("elsewhere")?;
    wire::move_link(&node.netns, "eth0", &elsewhere, "eth0")?;
    eventually("the uplink to be missed", || {
        let problems = node.agent.status()?.problems;
        Ok(problems.iter().any(|problem| problem.object == "uplinks").then_some(()))
    })?;
    wire::move_link(&elsewhere, "eth0", &node.netns, "eth0")?;
    node.netns.ip("link set eth0 up")?;
    give_back(node)?;
    field.wait_talking()?;
    eventually("routes as large as before", || Ok((sizes()?.first() == before.first()).then_some(())))
}

fn flushed(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let node = &field.cluster.nodes[0];
    let routes = || -> Result<String> {
        Ok(node.run("ip", &["route", "show", "proto", "72"])?
            + &node.run("ip", &["-6", "route", "show", "proto", "72"])?)
    };
    let before = routes()?;
    node.run("ip", &["route", "flush", "proto", "72"])?;
    node.run("ip", &["-6", "route", "flush", "proto", "72"])?;
    eventually("all routes to be back", || {
        let now = routes()?;
        let missing: Vec<&str> = before.lines().filter(|line| !now.contains(line.trim())).collect();
        ensure!(missing.is_empty(), "{missing:?}");
        Ok(Some(()))
    })?;
    field.wait_talking()
}

fn settings(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let node = &field.cluster.nodes[0];
    let interfaces = node.netns.interfaces()?;
    let pod = interfaces.iter().find(|name| name.starts_with("hbk")).context("no pod's interface")?;
    let changes = [
        ("net/ipv4/ip_forward".to_owned(), "0", "1"),
        ("net/ipv4/conf/eth0/forwarding".to_owned(), "0", "1"),
        ("net/ipv6/conf/all/forwarding".to_owned(), "0", "1"),
        ("net/ipv4/conf/hauberk0/rp_filter".to_owned(), "1", "2"),
        (format!("net/ipv6/conf/{pod}/disable_ipv6"), "1", "0"),
    ];
    for (name, changed, _) in &changes {
        node.netns.sysctl(&name.replace('/', "."), changed)?;
    }
    for (name, _, wanted) in &changes {
        eventually(format!("{name} to be {wanted}"), || {
            let path = format!("/proc/sys/{name}");
            let value = node.netns.within(|| fs::read_to_string(&path).context("read"))?;
            ensure!(value.trim() == *wanted, "{value}");
            Ok(Some(()))
        })?;
    }
    // `ip_forward` sets this one too. So it is also changed alone.
    node.netns.sysctl("net.ipv4.conf.eth0.forwarding", "0")?;
    let before = node.run("cat", &[&format!("/sys/class/net/{pod}/address")])?;
    node.netns.ip(&format!("link set {pod} address 02:11:22:33:44:55"))?;
    eventually("both to be as they were", || {
        let forwards = node.run("cat", &["/proc/sys/net/ipv4/conf/eth0/forwarding"])?;
        let mac = node.run("cat", &[&format!("/sys/class/net/{pod}/address")])?;
        ensure!(forwards.trim() == "1" && mac == before, "{forwards}{mac}");
        Ok(Some(()))
    })?;
    field.wait_talking()?;
    let events = node.agent.events()?;
    ensure!(events.iter().any(|event| event.reason == "Restored"), "{events:?}");
    Ok(())
}

fn address_on_no_device(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 1, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let node = &cluster.nodes[0];
    cluster.pod("payments", "before", 0)?;
    // As behind a cloud's address translation: the node is known by an address that it does not
    // have.
    cluster.manifests.change("node", &node.name, |object| {
        object["status"]["addresses"] = json!([{"type": "InternalIP", "address": "198.51.100.77"}]);
    })?;
    let pod = cluster.pod("payments", "after", 0)?;
    node.agent.terminate()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    cluster.pod("payments", "later", 0)?;
    let one = Exchange::new(Protocol::Tcp, Family::V4, node, &pod);
    let outcome = exchange(&one)?;
    ensure!(outcome.answered, "{one}: {outcome:?}");
    Ok(())
}

fn peer_without_a_way(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { start: false, ..Setup::default() })?;
    for node in &cluster.nodes {
        node.netns.ip("route del default")?;
        node.run("ip", &["-6", "route", "del", "default"])?;
    }
    let far = manifests::node("far", &["198.51.100.9".parse()?], &["10.244.99.0/24".to_owned()]);
    cluster.manifests.put("node", "far", &far)?;
    cluster.manifests.change("node", "far", |object| {
        let key = "x".repeat(42) + "A=";
        object["metadata"]["annotations"][manifests::KEYS] = json!(manifests::keys(&key));
    })?;
    cluster.namespace("payments", Some("enabled"))?;
    for node in &cluster.nodes {
        node.start_agent()?;
        node.agent.wait_ready()?;
    }
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let n1 = &cluster.nodes[0];
    eventually("the status to name the route", || {
        let problems = n1.agent.status()?.problems;
        ensure!(problems.iter().any(|problem| problem.object.starts_with("route/10.244.99.0")), "{problems:?}");
        Ok(Some(()))
    })?;
    // The far node has no agent; the two others have acknowledged.
    eventually("only the far node to be waited for", || {
        let status = n1.agent.status()?;
        let found = status.namespaces.iter().find(|entry| entry.name == "payments").context("no namespace")?;
        ensure!(found.waiting_for == ["far"] && found.protection == Protection::Enabled, "{found:?}");
        Ok(Some(()))
    })?;
    let one = Exchange::new(Protocol::Tcp, Family::V4, &a, &b);
    let outcome = exchange(&one)?;
    ensure!(outcome.answered, "{one}: {outcome:?}");
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

fn node_object_gone(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let (gone, here) = (&field.cluster.nodes[0], &field.cluster.nodes[1]);
    let object = field.cluster.manifests.read("node", &gone.name)?;
    field.cluster.manifests.remove("node", &gone.name)?;
    let told = || -> Result<Option<Problem>> {
        let problems = here.agent.status()?.problems;
        Ok(problems.into_iter().find(|problem| problem.object == format!("node/{}", gone.name)))
    };
    let problem = eventually("a problem that names the node", told)?;
    let message = &problem.message;
    ensure!(problem.severity == Severity::Critical, "{problem:?}");
    ensure!(message.contains("no Node object") && message.contains("payments/a"), "{message}");
    ensure!(here.cli(&["status"])?.0 == 2, "`hauberk status` is content");
    let events = here.agent.events()?;
    let named = |event: &&hauberk_api::Event| event.objects == [format!("Node/{}", gone.name)];
    ensure!(events.iter().filter(named).any(|event| event.reason == "NodeMissing"), "{events:?}");
    field.cluster.manifests.put("node", &gone.name, &object)?;
    eventually("no problem with the node", || Ok(told()?.is_none().then_some(())))?;
    field.wait_talking()
}

fn interface_gone(context: &Context) -> Result<()> {
    let field = Field::build(context)?;
    let node = &field.cluster.nodes[0];
    let lost = field.cluster.pod("payments", "lost", 0)?;
    let routes = node.run("ip", &["route", "show", &lost.v4.to_string()])?;
    let device = routes.split_whitespace().skip_while(|word| *word != "dev").nth(1).context("no route to the pod")?;
    node.netns.ip(&format!("link del {device}"))?;
    field.cluster.manifests.label("namespace", "payments", Some("permissive"))?;
    field.cluster.wait_converged("payments", Protection::Permissive)?;
    field.cluster.manifests.label("namespace", "payments", Some("enabled"))?;
    field.cluster.wait_converged("payments", Protection::Enabled)?;
    let about = |pod: &Pod| -> Result<Vec<Problem>> {
        let problems = node.agent.status()?.problems.into_iter();
        Ok(problems.filter(|problem| problem.object == format!("pod/{}", pod.party.name)).collect())
    };
    let problems = node.agent.status()?.problems;
    let steps = problems.iter().filter(|problem| problem.severity == Severity::Critical);
    let steps: Vec<_> = steps.filter(|problem| !problem.object.starts_with("pod/")).collect();
    ensure!(steps.is_empty(), "it holds up other work: {steps:?}");

    let told = |word: &str| {
        eventually(format!("a problem that names the pod and says {word:?}"), || {
            let told = about(&lost)?;
            let is_it = |one: &Problem| one.severity == Severity::Critical && one.message.contains(word);
            ensure!(told.len() == 1 && told.iter().all(is_it), "{told:?}");
            Ok(Some(()))
        })
    };
    told(device)?;
    ensure!(node.cli(&["status"])?.0 == 2, "`hauberk status` is content");
    let [a, b, ..] = &field.pods;
    for (from, to) in [(&lost, b), (b, &lost), (a, &lost)] {
        let explained = node.agent.explain(from.v6.into(), to.v6.into())?;
        let is_now = |cause: &String| cause.contains("payments/lost has no interface on this node");
        ensure!(explained.would_drop.first().is_some_and(is_now), "{explained:?}");
    }
    for pod in [a, &field.pods[2]] {
        ensure!(about(pod)?.is_empty(), "{:?}", about(pod)?);
    }
    let explained = node.agent.explain(a.v4.into(), b.v4.into())?;
    ensure!(!explained.would_drop.iter().any(|cause| cause.contains("no interface")), "{explained:?}");
    field.wait_talking()?;
    node.agent.terminate()?;
    node.start_agent()?;
    field.cluster.wait_ready()?;
    told("while no agent ran")?;
    lost.delete(&field.cluster.manifests)?;
    eventually("no problem with the pod", || Ok(about(&lost)?.is_empty().then_some(())))?;
    field.wait_talking()
}

/// Of the disk that `paths.state` is on.
fn full_disk(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup { nodes: 1, start: false, ..Setup::default() })?;
    let node = &cluster.nodes[0];
    fs::create_dir_all(&node.state).context("make the state folder")?;
    let state = node.state.to_str().context("a path")?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", state]).status();
    ensure!(mounted.context("mount")?.success(), "no small disk");
    cluster.start()?;
    cluster.namespace("payments", Some("enabled"))?;
    let first = cluster.pod("payments", "first", 0)?;
    let told = || -> Result<bool> {
        let problems = node.agent.status()?.problems;
        Ok(problems.iter().any(|one| one.object == "attachments store" && one.message.contains("cannot write")))
    };
    ensure!(!told()?, "{:?}", node.agent.status()?.problems);

    // With other names for them, files that are removed leave no room.
    let records = node.state.join("attachments");
    for entry in fs::read_dir(&records).context("list the attachments")? {
        let path = entry.context("an entry")?.path();
        let name = path.file_name().context("a name")?.to_owned();
        fs::hard_link(&path, node.state.join(name)).context("link")?;
    }
    let filler = node.state.join("filler");
    let mut file = fs::File::create(&filler).context("fill the disk")?;
    while file.write_all(&[0; 4_096]).is_ok() {}
    ensure!(cluster.pod("payments", "second", 0).is_err(), "on record on a full disk");
    eventually("the status to say so", || Ok(told()?.then_some(())))?;
    let answer = node.plugin.run("STATUS", None, &node.plugin.config)?;
    ensure!(answer.output["code"] == 50, "STATUS says that pods can start: {}", answer.output);
    first.delete(&cluster.manifests)?;
    node.agent.terminate()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    eventually("the status to say so after DEL and a start", || Ok(told()?.then_some(())))?;
    drop(file);
    fs::remove_file(&filler).context("make room")?;
    eventually("the status to be content with the disk", || Ok((!told()?).then_some(())))?;
    cluster.pod("payments", "third", 0)?;
    node.plugin.run("STATUS", None, &node.plugin.config)?.into_result().context("STATUS")?;
    Ok(())
}

/// As with a stale Node object: the tunnel finds the peer at the address it sends from, and the
/// routes to its pods follow.
fn silent_address(context: &Context) -> Result<()> {
    let field = Field::with(context, Setup { host_routing: HostRouting::Stack, ..Setup::default() })?;
    let [n1, n2] = [&field.cluster.nodes[0], &field.cluster.nodes[1]];
    let [a, b, ..] = &field.pods;
    let named = || -> Result<bool> {
        let problems = n2.agent.status()?.problems;
        let is = |problem: &Problem| {
            problem.object == format!("node/{}", n1.name) && problem.message.contains("does not answer on eth0")
        };
        Ok(problems.iter().any(is))
    };
    ensure!(!named()?, "told of a peer that answers");
    let object = field.cluster.manifests.read("node", &n1.name)?;
    field.cluster.manifests.change("node", &n1.name, |object| {
        object["status"]["addresses"] = json!([
            {"type": "InternalIP", "address": "172.18.0.77"},
            {"type": "InternalIP", "address": "fd00:18::77"},
        ]);
    })?;
    eventually("the status to name the address", || {
        let lost = Exchange::new(Protocol::Udp, Family::V4, b, a).patience(Duration::from_millis(200));
        exchange(&lost)?;
        let problems = n2.agent.status()?.problems;
        ensure!(named()?, "{problems:?}");
        Ok(Some(()))
    })?;
    // For the other family neither the object nor the tunnel has a working address.
    wait_answered(&Exchange::new(Protocol::Tcp, Family::V4, b, a))?;
    ensure!(named()?, "the address is not told of any more, though nobody answers there");
    field.cluster.manifests.change("node", &n1.name, |changed| {
        changed["status"]["addresses"] = object["status"]["addresses"].clone();
    })?;
    field.wait_talking()?;
    eventually("the status to be without it", || Ok((!named()?).then_some(())))
}

/// Nodes on two networks. The switch of the first network stops forwarding, but its links stay up.
fn dead_network(context: &Context, host_routing: HostRouting) -> Result<()> {
    let mut cluster = Cluster::build(context, Setup { start: false, host_routing, ..Setup::default() })?;
    cluster.wire.add_segment(1)?;
    for (number, node) in cluster.nodes.iter().enumerate() {
        cluster.wire.plug(&node.netns, "eth1", 1, 1500)?;
        let (v4, v6) = (format!("172.19.0.{}", 11 + number), format!("fd00:19::{}", 11 + number));
        node.netns.ip(&format!("addr add {v4}/24 dev eth1\naddr add {v6}/64 dev eth1 nodad"))?;
        cluster.manifests.change("node", &node.name, |object| {
            if let Some(addresses) = object["status"]["addresses"].as_array_mut() {
                addresses.extend([v4, v6].map(|address| json!({"type": "InternalIP", "address": address})));
            }
        })?;
    }
    let (second, first): (Vec<_>, Vec<_>) =
        cluster.wire.ports().iter().cloned().partition(|(_, port)| port.ends_with("-eth1"));
    let second = Capture::start(&second)?;
    cluster.start()?;
    let field = Field::on(cluster)?;
    let [n1, n2] = [&field.cluster.nodes[0], &field.cluster.nodes[1]];
    let leads_by = |address: &str| {
        eventually(format!("the routes of {} to lead by {address}", n1.name), || {
            let routes = n1.run("ip", &["route", "show", "proto", "72"])?;
            ensure!(routes.contains(&format!(" via {address} ")), "{routes}");
            Ok(Some(()))
        })
    };
    leads_by(&n2.v4.to_string())?;
    let carries = |how: &str| -> Result<()> {
        for (netns, port) in &first {
            netns.ip(&format!("link set {port} {how}"))?;
        }
        Ok(())
    };
    carries("nomaster")?;
    // Otherwise the kernel would consider its neighbours reachable for up to a minute.
    for node in [n1, n2] {
        node.run("ip", &["neigh", "flush", "dev", "eth0"])?;
        node.run("ip", &["-6", "neigh", "flush", "dev", "eth0"])?;
    }
    field.wait_talking()?;
    leads_by("172.19.0.12")?;
    let problems = n1.agent.status()?.problems;
    let told = problems.iter().find(|problem| problem.object == format!("node/{}", n2.name));
    ensure!(told.is_some_and(|told| told.message.contains("does not answer on eth0")), "{problems:?}");
    carries("master wire0")?;
    leads_by(&n2.v4.to_string())?;
    field.wait_talking()?;
    let [a, b, ..] = &field.pods;
    let addresses: Vec<_> = [a, b].iter().flat_map(|pod| pod.addresses()).collect();
    let shown = analysis::cleartext_of(&second.all()?, &addresses);
    ensure!(shown.is_empty(), "in the clear on the second network: {}", analysis::list(&shown));
    Ok(())
}
