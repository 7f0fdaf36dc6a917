//! Other WireGuard implementations talk to a hauberk node, and the stock `wg` tool reads its
//! tunnel.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::netns::feed;
use hauberk_netns::traffic::{Exchange, Protocol, bulk_tcp, exchange, exchange_all};
use hauberk_netns::{
    Cluster, Context, Family, HostRouting, Netns, Party, Pod, Setup, Test, eventually, manifests, programs,
};
use serde_json::json;

pub const TESTS: &[Test] = &[
    Test::new("interop::bpf_wireguard_go_peer_talks_through_the_tunnel", |context| {
        foreign_peer(context, HostRouting::Bpf, &WIREGUARD_GO)
    }),
    Test::new("interop::stack_wireguard_go_peer_talks_through_the_tunnel", |context| {
        foreign_peer(context, HostRouting::Stack, &WIREGUARD_GO)
    }),
    Test::new("interop::bpf_boringtun_cli_peer_talks_through_the_tunnel", |context| {
        foreign_peer(context, HostRouting::Bpf, &BORINGTUN_CLI)
    }),
    Test::new("interop::stock_wg_reads_and_may_not_write", stock_wg),
];

/// Another WireGuard implementation in user space, which makes the device `wg0`.
pub struct Implementation {
    program: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

/// The reference implementation.
pub const WIREGUARD_GO: Implementation = Implementation {
    program: "wireguard-go",
    arguments: &["--foreground", "wg0"],
    environment: &[("LOG_LEVEL", "verbose"), ("WG_PROCESS_FOREGROUND", "1")],
};

/// The implementation whose library also checks MACs and cookies in hauberk's tunnel. It does not
/// drop its privileges, because the user for that does not exist here.
pub const BORINGTUN_CLI: Implementation = Implementation {
    program: "boringtun-cli",
    arguments: &["--foreground", "--disable-drop-privileges", "--verbosity", "debug", "wg0"],
    environment: &[],
};

/// A machine that runs another implementation. It is configured by hand with `wg`, and has a Node
/// object and a pod range.
pub struct Stranger {
    /// Its namespace, with a pod's addresses.
    pub party: Party,
}

/// The machine's number among the nodes.
const NUMBER: u8 = 9;
/// The port of all tunnels here. `wg set` would take any other, but the capture recognises tunnels
/// by this port.
const PORT: u16 = 51840;

impl Stranger {
    /// Connects the machine to the wire and to the cluster.
    pub fn join(context: &Context, cluster: &Cluster, implementation: &Implementation) -> Result<Stranger> {
        let netns = Netns::create("stranger")?;
        let mut wire = cluster.wire.clone();
        wire.plug(&netns, "eth0", 0, cluster.setup.uplink_mtu)?;
        netns.ip(&format!("addr add 172.18.0.{NUMBER}/24 dev eth0\naddr add fd00:18::{NUMBER}/64 dev eth0 nodad"))?;
        let Implementation { program, arguments, environment } = *implementation;
        let log = std::fs::File::create(context.directory.join(format!("{program}.log"))).context("create log")?;
        let mut command = netns.command(programs::tool(program)?);
        command.args(arguments).envs(environment.iter().copied());
        command.stdout(log.try_clone().context("clone log")?).stderr(log);
        command.spawn().with_context(|| format!("start {program}"))?;
        eventually(format!("{program}'s device"), || Ok(netns.interface("wg0").ok()))?;
        let run = |arguments: &[&str], input: &str| -> Result<String> {
            let mut command = netns.command("wg");
            command.args(arguments);
            Ok(feed(command, input)?.trim().to_owned())
        };
        let private = run(&["genkey"], "")?;
        let public = run(&["pubkey"], &private)?;
        let key_file = context.directory.join("stranger.key");
        let mut file = std::fs::File::create(&key_file).context("create key file")?;
        file.write_all(private.as_bytes()).context("write key file")?;
        eventually(format!("{program} to take its key"), || {
            run(&["set", "wg0", "listen-port", &PORT.to_string(), "private-key", &key_file.to_string_lossy()], "")
                .map(Some)
        })?;
        for node in &cluster.nodes {
            let status = node.agent.status()?;
            let key = &status.tunnel.keys.first().context("no key in the status")?.public_key;
            let allowed = [node.pod_ranges.join(","), format!("{}/32,{}/128", node.v4, node.v6)].join(",");
            let endpoint = format!("{}:{PORT}", node.v4);
            run(&["set", "wg0", "peer", key, "endpoint", &endpoint, "allowed-ips", &allowed], "")?;
        }
        let (v4, v6) = (format!("10.244.{NUMBER}.2"), format!("fd00:10:244:{NUMBER}::2"));
        netns.ip(&format!(
            "link set wg0 mtu 1420 up
             addr add {v4}/32 dev wg0
             addr add {v6}/128 dev wg0 nodad
             route add 10.244.0.0/16 dev wg0
             route add fd00:10:244::/48 dev wg0"
        ))?;
        let addresses: [IpAddr; 2] = [format!("172.18.0.{NUMBER}").parse()?, format!("fd00:18::{NUMBER}").parse()?];
        let ranges = [format!("10.244.{NUMBER}.0/24"), format!("fd00:10:244:{NUMBER}::/64")];
        let mut node = manifests::node("stranger", &addresses, &ranges);
        node["metadata"]["annotations"] = json!({manifests::KEYS: manifests::keys(&public)});
        cluster.manifests.put("node", "stranger", &node)?;
        for node in &cluster.nodes {
            eventually(format!("{} to have the stranger as a peer", node.name), || {
                let status = node.agent.status()?;
                Ok(status.peers.iter().any(|peer| peer.node == "stranger" && !peer.keys.is_empty()).then_some(()))
            })?;
        }
        let party = Party { name: "stranger".into(), netns, v4: v4.parse()?, v6: v6.parse()? };
        Ok(Stranger { party })
    }

    /// Fails unless it can talk with a pod under its own address.
    pub fn works_with(&self, pod: &Pod) -> Result<()> {
        for family in Family::ALL {
            let one = Exchange::new(Protocol::Udp, family, &self.party, pod);
            let outcome = exchange(&one)?;
            ensure!(outcome.answered, "{one}: {outcome:?}");
        }
        Ok(())
    }

    /// Adds another party's addresses to itself.
    pub fn claim(&self, other: &Party) -> Result<()> {
        let netns = &self.party.netns;
        netns.ip(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad", other.v4, other.v6))
    }

    /// Removes them again.
    pub fn disclaim(&self, other: &Party) -> Result<()> {
        self.party.netns.ip(&format!("addr del {}/32 dev lo\naddr del {}/128 dev lo", other.v4, other.v6))
    }
}

fn foreign_peer(context: &Context, host_routing: HostRouting, implementation: &Implementation) -> Result<()> {
    let cluster = Cluster::build(context, Setup { host_routing, ..Setup::default() })?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let stranger = Stranger::join(context, &cluster, implementation)?;
    let mut exchanges = Vec::new();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            for pod in [&a, &b] {
                exchanges.push(Exchange::new(protocol, family, &stranger.party, pod));
                exchanges.push(Exchange::new(protocol, family, pod, &stranger.party));
            }
        }
    }
    for (exchange, outcome) in exchanges.iter().zip(exchange_all(&exchanges)?) {
        ensure!(outcome.answered, "{exchange}: {outcome:?}");
    }
    for family in Family::ALL {
        // Both ways at the same time.
        std::thread::scope(|scope| {
            let ways = [(&a.party, &stranger.party), (&stranger.party, &a.party)];
            let transfers = ways.map(|(from, to)| scope.spawn(move || bulk_tcp(from, to, family, 16 << 20)));
            for ((from, to), transfer) in ways.iter().zip(transfers) {
                let report = transfer.join().map_err(|_| anyhow!("a transfer panicked"))??;
                println!("{} -> {} {family}: {:?}", from.name, to.name, report.duration);
            }
            Ok::<_, anyhow::Error>(())
        })?;
    }
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)
}

fn stock_wg(context: &Context) -> Result<()> {
    let cluster = Cluster::build(context, Setup::default())?;
    cluster.namespace("payments", Some("enabled"))?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    cluster.wait_known(&[&a, &b])?;
    let one = Exchange::new(Protocol::Tcp, Family::V4, &a, &b).patience(Duration::from_secs(30));
    let outcome = exchange(&one)?;
    ensure!(outcome.answered, "{one}: {outcome:?}");
    let node = &cluster.nodes[0];
    let peer = cluster.nodes[1].agent.status()?.tunnel.keys.first().context("no key")?.public_key.clone();
    let shown = node.run("wg", &["show", "hauberk0"])?;
    for expected in [peer.as_str(), "listening port: 51840", "10.244.2.0/24", "latest handshake"] {
        ensure!(shown.contains(expected), "`wg show hauberk0` does not say {expected:?}:\n{shown}");
    }
    let dump = node.run("wg", &["show", "hauberk0", "dump"])?;
    ensure!(dump.lines().count() == 2, "`wg show hauberk0 dump`: {dump}");
    let private = dump.split('\t').next().unwrap_or_default();
    ensure!(private == "(none)", "the private key is shown");
    let transfer = node.run("wg", &["show", "hauberk0", "transfer"])?;
    let fields: Vec<&str> = transfer.split_whitespace().collect();
    ensure!(fields.len() == 3 && fields[1] != "0" && fields[2] != "0", "`wg show hauberk0 transfer`: {transfer}");
    let handshakes = node.run("wg", &["show", "hauberk0", "latest-handshakes"])?;
    ensure!(!handshakes.trim().ends_with("\t0"), "`wg show hauberk0 latest-handshakes`: {handshakes}");
    let refused = node.run("wg", &["set", "hauberk0", "peer", &peer, "remove"]);
    ensure!(refused.is_err(), "`wg set` was allowed to remove a peer");
    ensure!(node.run("wg", &["show", "hauberk0", "peers"])?.contains(&peer), "the peer is gone");
    println!("{shown}");
    println!("wg set: {:#}", refused.err().context("refused")?);
    Ok(())
}
