//! A node's agent is killed under traffic: nothing leaks, the operator sees it, and traffic
//! recovers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hauberk_netns::traffic::{self, Exchange, Protocol, TcpStreamer, UdpStreamer};
use hauberk_netns::{Family, Marker, Party, analysis, wait};

use crate::conversation::{self, Effort};
use crate::playground::{Group, Playground};
use crate::story::Notes;
use crate::{screen, wire};

/// The node whose agent is killed, counted from 0.
const VICTIM: usize = 1;
/// The node from which the operator looks.
const WITNESS: usize = 0;
/// WireGuard begins a handshake after 15 s without an answer (whitepaper, section 6.5) and repeats
/// it every 5 s.
const NOTICED: Duration = Duration::from_secs(60);

/// Kills the agent of n2, checks, starts it again, checks.
///
/// # Errors
/// The playground broke, or the agent did not start again.
pub fn kill_and_recover(playground: &Playground, notes: &mut Notes<'_>) -> Result<()> {
    let cluster = &playground.cluster;
    let victim = &cluster.nodes[VICTIM];
    let streams = Streams::start(playground)?;
    screen::note("UDP streams and a TCP connection to and from pods on n2 are flowing");

    let since = cluster.capture.sync()?;
    let killed = Instant::now();
    let before = streams.sent();
    victim.agent.kill()?;
    let mut markers = streams.markers();
    markers.extend(try_everything(playground)?);
    let (local_delivered, local) = talk_within_node(playground)?;
    screen::note(format!("traffic between pods within n2 goes on: {local_delivered} of {local} exchanges"));
    let noticed = operator_sees(playground)?;
    // More time under traffic, in which nothing may leak.
    sleep(Duration::from_millis(500));
    notes.summary.sent_during_outage = streams.sent() - before;
    screen::line("");
    screen::done(killed, format!("no agent on n2; {} datagrams were sent meanwhile", notes.summary.sent_during_outage));

    let restarted = Instant::now();
    victim.start_agent()?;
    victim.agent.wait_ready()?;
    let recovered = streams.wait_flowing();
    let took = restarted.elapsed();
    if let Err(error) = &recovered {
        screen::note(screen::styled(screen::BAD, format!("{error:#}")));
    }
    let said = conversation::all(&pairs(playground)?, Effort::LIGHT)?;
    markers.extend(said.iter().flat_map(|said| said.markers.iter().copied()));
    let delivered = said.iter().filter(|said| said.delivered).count();
    for lost in said.iter().filter(|said| !said.delivered).take(3) {
        let text = format!("{} {} {} → {}: {}", lost.protocol, lost.family, lost.client, lost.server, lost.trouble);
        screen::note(screen::styled(screen::BAD, text));
    }
    let tcp_survived = streams.stop()?;
    screen::done(restarted, "agent started again, traffic flows again");

    let addresses: Vec<IpAddr> = playground.addresses(&[Group::Payments, Group::Public]).into_iter().collect();
    let leaks = wire::leaks(&cluster.capture, since, &addresses, &markers)?;
    if !leaks.is_empty() {
        screen::note(screen::styled(screen::BAD, analysis::list(&leaks)));
    }
    let capture_sees = capture_still_sees(playground)?;
    notes.summary.cleartext_after_kill = leaks.len();
    notes.summary.recovered_ms = took.as_millis();
    let claims = &mut notes.claims;
    claims.make(
        "kill_never_in_clear",
        leaks.is_empty() && notes.summary.sent_during_outage > 0 && capture_sees,
        format!("agent killed under traffic: {} packets in clear, before, during and after its absence", leaks.len()),
    );
    claims.make(
        "kill_spares_local_traffic",
        local_delivered == local && local > 0,
        format!(
            "its datapath outlived it: pods within the node went on talking, {local_delivered} of {local} exchanges"
        ),
    );
    claims.make("kill_is_visible", noticed, "the operator sees it: on the other nodes and on the node itself");
    claims.make(
        "kill_recovers",
        recovered.is_ok() && delivered == said.len() && tcp_survived,
        format!(
            "started again: everything flows after {}, {delivered} of {} exchanges delivered, the open TCP connection went on",
            screen::seconds(took),
            said.len()
        ),
    );
    Ok(())
}

/// Traffic that flows all the time.
struct Streams {
    udp: Vec<UdpStreamer>,
    tcp: TcpStreamer,
}

impl Streams {
    fn start(playground: &Playground) -> Result<Streams> {
        let pace = Duration::from_millis(5);
        let ends = [
            ("payments/api@n1", "payments/db@n2", Family::V4),
            ("payments/db@n2", "payments/ledger@n3", Family::V6),
            ("public/web@n1", "payments/db@n2", Family::V6),
            ("payments/db@n2", "n3", Family::V4),
        ];
        let mut udp = Vec::new();
        for (from, to, family) in ends {
            let stream = UdpStreamer::start(playground.talker(from)?, playground.talker(to)?, family, 300, pace)?;
            stream.wait_flowing()?;
            udp.push(stream);
        }
        let (from, to) = (playground.talker("payments/ledger@n3")?, playground.talker("payments/db@n2")?);
        let tcp = TcpStreamer::start(from, to, Family::V4, 300, pace)?;
        tcp.wait_flowing()?;
        Ok(Streams { udp, tcp })
    }

    fn sent(&self) -> u64 {
        self.udp.iter().map(UdpStreamer::sent).sum()
    }

    fn markers(&self) -> BTreeSet<Marker> {
        self.udp.iter().map(|stream| stream.marker).chain([self.tcp.marker]).collect()
    }

    fn wait_flowing(&self) -> Result<()> {
        for stream in &self.udp {
            stream.wait_flowing()?;
        }
        self.tcp.wait_flowing()
    }

    /// Stops the streams; whether the TCP connection survived.
    fn stop(self) -> Result<bool> {
        for stream in self.udp {
            stream.stop()?;
        }
        Ok(self.tcp.stop().is_ok())
    }
}

/// Pairs with one end on the killed agent's node.
fn pairs(playground: &Playground) -> Result<Vec<(&Party, &Party)>> {
    let names = [
        ("payments/api@n1", "payments/db@n2"),
        ("payments/db@n2", "payments/ledger@n3"),
        ("public/web@n1", "payments/db@n2"),
        ("payments/db@n2", "public/docs@n3"),
        ("n1", "payments/db@n2"),
        ("payments/db@n2", "n3"),
    ];
    names.iter().map(|(from, to)| Ok((playground.talker(from)?, playground.talker(to)?))).collect()
}

/// Tries new exchanges of every kind while no agent runs. Few will get through, and none may be
/// readable.
fn try_everything(playground: &Playground) -> Result<BTreeSet<Marker>> {
    let pairs = pairs(playground)?;
    let mut exchanges = Vec::new();
    for (from, to) in pairs {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                exchanges.push(Exchange::new(protocol, family, from, to).patience(Duration::from_millis(500)));
            }
        }
    }
    let outcomes = traffic::exchange_all(&exchanges)?;
    let through = outcomes.iter().filter(|outcome| outcome.delivered).count();
    screen::note(format!(
        "{} new exchanges tried with n2: {through} got through (the tunnel needs the agent)",
        outcomes.len()
    ));
    Ok(outcomes.iter().flat_map(|outcome| [outcome.request, outcome.reply]).collect())
}

/// Exchanges between two pods of the node without an agent: how many got through, and how many
/// there were.
fn talk_within_node(playground: &Playground) -> Result<(usize, usize)> {
    let (db, shop) = (playground.talker("payments/db@n2")?, playground.talker("public/shop@n2")?);
    let said = conversation::all(&[(db, shop), (shop, db)], Effort::LIGHT)?;
    Ok((said.iter().filter(|said| said.delivered).count(), said.len()))
}

/// Whether the capture still sees plaintext: traffic between nodes, which by now is the only
/// traffic in the clear.
fn capture_still_sees(playground: &Playground) -> Result<bool> {
    let said = conversation::all(&[(playground.talker("n1")?, playground.talker("n3")?)], Effort::LIGHT)?;
    let seen = analysis::markers(&playground.cluster.capture.all()?);
    Ok(said.iter().all(|said| said.markers.iter().any(|marker| seen.contains_key(marker))))
}

/// Shows `hauberk status` on another node and on the node itself. Returns whether both report that
/// something is wrong.
fn operator_sees(playground: &Playground) -> Result<bool> {
    let witness = &playground.cluster.nodes[WITNESS];
    let victim = &playground.cluster.nodes[VICTIM].name;
    let told = wait::within(NOTICED, format!("{} to notice that {victim} does not answer", witness.name), || {
        let status = witness.agent.status()?;
        let problem = status.problems.iter().any(|problem| problem.object == format!("node/{victim}"));
        ensure!(problem, "no problem with {victim} is reported");
        Ok(Some(()))
    });
    if let Err(error) = &told {
        screen::note(screen::styled(screen::BAD, format!("{error:#}")));
    }
    let (_, text) = playground.hauberk(WITNESS, &["status"])?;
    screen::command("n1# hauberk status", &text);
    let (code, text) = playground.hauberk(VICTIM, &["status"])?;
    screen::command("n2# hauberk status", &text);
    Ok(told.is_ok() && code != 0)
}
