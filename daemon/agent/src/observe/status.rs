//! `hauberk status`: the state of the node and its problems, the worst first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use hauberk_api::{ConfigurationStatus, PeerState, PeerStatus, Problem, Severity, Status, TunnelStatus};
use hauberk_backend::{PeerStats, Progress, Stats};
use hauberk_core::convergence::convergence;
use hauberk_datapath::How;
use hauberk_datapath::tables::identities;
use hauberk_host::netfilter::PacketSocketGuard;
use hauberk_keyring::PublicKey;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{MapReader, attach_method, contests, losses, services};
use crate::config::{Config, HostRouting};
use crate::state::{AgentState, Running, key_status};

/// What does not change while the agent runs.
pub struct Facts {
    /// When it started.
    pub started: Timestamp,
    /// Its configuration.
    pub config: std::sync::Arc<Config>,
    /// Its public keys, newest epoch first.
    pub keys: Vec<PublicKey>,
    /// How programs are attached.
    pub attach: How,
    /// Problems found at the start that only a restart can change.
    pub lasting: Vec<Problem>,
    /// What a cluster adds; none if the source has no cluster behind it.
    pub cluster: Option<ClusterFacts>,
}

/// What a cluster adds to the status.
pub struct ClusterFacts {
    /// The state of the cluster's own configuration.
    pub configuration: watch::Receiver<ConfigurationStatus>,
    /// Since when namespaces have been enforced everywhere.
    pub since: watch::Receiver<BTreeMap<String, Timestamp>>,
}

/// This many handshakes in a row without an answer, 5 s apart, mean that the peer is gone. Fewer
/// are an ordinary renewal, or a lost packet. A session alone proves nothing: it outlives its peer
/// by up to 180 s.
const MUTE: u32 = 3;

/// The status now.
pub fn status(agent: &AgentState, map_reader: &MapReader, facts: &Facts) -> Status {
    let stats = agent.running.as_ref().map(|running| running.backend.stats());
    let (stats, silent) = match stats {
        Some(Ok(stats)) => (stats, None),
        Some(Err(error)) => (Stats::default(), Some(error.to_string())),
        None => (Stats::default(), None),
    };
    let mute = mute_nodes(agent, &stats);
    let peers = peers(agent, &stats, &mute);
    let mut namespaces = convergence(&agent.model, &agent.local);
    if let Some(cluster) = &facts.cluster {
        let since = cluster.since.borrow();
        for namespace in namespaces.iter_mut().filter(|namespace| namespace.waiting_for.is_empty()) {
            namespace.since = since.get(&namespace.name).copied();
        }
    }
    let mut problems = facts.lasting.clone();
    problems.extend(agent.failures.values().cloned());
    problems.extend(agent.cni.clone());
    problems.extend(no_pod_range(agent));
    problems.extend(not_running(agent, silent, &stats, &facts.config.tunnel.device));
    let any_protected = namespaces.iter().any(|namespace| namespace.protected_pods > 0);
    // Without a datapath here, that alone explains why peers are silent.
    if agent.running.is_some() && any_protected {
        let publishes = |node: &str| agent.model.node_object(node).is_some_and(|object| object.keys.is_some());
        let permissive = agent.desired.permissive_endpoints > 0;
        problems.extend(peer_problems(&peers, &mute, publishes, permissive));
    }
    problems.extend(full_maps(agent, map_reader));
    problems.extend(agent.leaks.problems());
    problems.extend(agent.plaintext.problems(agent.model.node()));
    problems.extend(agent.missing.iter().cloned());
    problems.extend(agent.unconnected.problems(Instant::now()));
    problems.extend(agent.failed_adds.problems(&agent.model, &agent.local, Instant::now()));
    problems.extend(contests::problems(agent, &mute));
    problems.extend(agent.health_checks.iter().cloned());
    problems.extend(namespaces.iter().filter(|namespace| namespace.converged_nodes < namespace.nodes).map(
        |namespace| Problem {
            severity: Severity::Warning,
            object: format!("namespace/{}", namespace.name),
            message: format!(
                "enforced by {} of {} nodes; waiting for {}",
                namespace.converged_nodes,
                namespace.nodes,
                namespace.waiting_for.join(", ")
            ),
        },
    ));
    problems.extend(agent.desired.events.iter().filter(|event| event.warning).map(|event| Problem {
        severity: Severity::Warning,
        object: event.objects.join(" and "),
        message: event.message.clone(),
    }));
    let configuration = facts.cluster.as_ref().map(|cluster| cluster.configuration.borrow().clone());
    problems.extend(
        configuration.as_ref().and_then(|configuration| configuration.message.clone()).map(|message| Problem {
            severity: Severity::Warning,
            object: "configuration".into(),
            message,
        }),
    );
    problems.sort_by(|a, b| (a.severity, &a.object, &a.message).cmp(&(b.severity, &b.object, &b.message)));
    problems.dedup();
    Status {
        node: agent.local.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        started: facts.started,
        now: Timestamp::now(),
        ready: agent.is_ready(),
        problems,
        tunnel: tunnel(agent, &stats, facts),
        host_routing: match facts.config.host_routing {
            HostRouting::Bpf => hauberk_api::HostRouting::Bpf,
            HostRouting::Stack => hauberk_api::HostRouting::Stack,
        }
        .into(),
        attach: attach_method(facts.attach).into(),
        uplinks: agent.running.as_ref().map(|running| running.uplinks.clone()).unwrap_or_default(),
        peers,
        namespaces,
        attachments: agent.model.attachments().filter(|(_, attachment)| attachment.pair.is_some()).count(),
        source: agent.source.clone(),
        configuration,
        services: Some(services::status(agent, map_reader, &facts.config)),
    }
}

fn tunnel(agent: &AgentState, stats: &Stats, facts: &Facts) -> TunnelStatus {
    TunnelStatus {
        backend: facts.config.tunnel.backend.mechanism().name().into(),
        backend_reason: facts.config.tunnel.backend.reason().into(),
        device: facts.config.tunnel.device.clone(),
        port: facts.config.tunnel.port,
        mtu: agent.running.as_ref().map_or(0, |running: &Running| running.mtu),
        keys: key_status(&facts.keys),
        offloads: stats.offloads.clone(),
        cipher: stats.cipher.clone(),
        threads: stats.threads,
        handed_over: stats.handed_over,
    }
}

fn peers(agent: &AgentState, stats: &Stats, mute: &BTreeSet<String>) -> Vec<PeerStatus> {
    let by_number: BTreeMap<_, &PeerStats> = stats.peers.iter().map(|peer| (peer.number, peer)).collect();
    let own = agent.model.node();
    let mut peers: Vec<PeerStatus> = agent
        .model
        .nodes()
        .filter(|node| node.name != own)
        .map(|node| {
            let number = agent.model.node_number(&node.name);
            let wanted = number.and_then(|number| agent.desired.state.tunnels.peers.get(&number));
            let seen = number.and_then(|number| by_number.get(&number));
            PeerStatus {
                node: node.name.clone(),
                state: match (wanted, seen.map(|seen| seen.state)) {
                    (None, _) => PeerState::NoKey,
                    (_, Some(Progress::Established)) if !mute.contains(&node.name) => PeerState::Established,
                    (_, Some(Progress::Established | Progress::Handshaking)) => PeerState::Handshaking,
                    (_, Some(Progress::Failed)) => PeerState::Failed,
                    (_, Some(Progress::Idle) | None) => PeerState::Idle,
                },
                keys: wanted.map(|peer| key_status(&peer.keys)).unwrap_or_default(),
                endpoint: seen.and_then(|seen| seen.endpoint).or(wanted.and_then(|peer| peer.endpoint)),
                allowed_ips: wanted.map(|peer| peer.allowed.iter().copied().collect()).unwrap_or_default(),
                latest_handshake: seen.and_then(|seen| Timestamp::try_from(seen.latest_handshake?).ok()),
                received_bytes: seen.map_or(0, |seen| seen.received),
                sent_bytes: seen.map_or(0, |seen| seen.sent),
                thread: seen.map(|seen| seen.thread),
            }
        })
        .collect();
    peers.sort_by(|a, b| a.node.cmp(&b.node));
    peers
}

/// Nodes that do not answer handshakes.
fn mute_nodes(agent: &AgentState, stats: &Stats) -> BTreeSet<String> {
    let mute = stats.peers.iter().filter(|peer| peer.unanswered >= MUTE);
    mute.filter_map(|peer| agent.model.node_name(peer.number)).map(str::to_owned).collect()
}

/// The problem that pods which hauberk-cni connects have no range to get an address from.
fn no_pod_range(agent: &AgentState) -> Option<Problem> {
    let node = agent.model.node_object(agent.model.node())?;
    if agent.local.settings.chained || !node.pod_ranges.is_empty() {
        return None;
    }
    let message = format!(
        "has no spec.podCIDRs: new pods get no network until it has; does the cluster give out pod ranges \
         (kube-controller-manager --allocate-node-cidrs)? What runs is not concerned; read from {}",
        agent.source.location
    );
    Some(Problem { severity: Severity::Warning, object: format!("node/{}", node.name), message })
}

/// Why protected pods cannot get what they ask for.
fn not_running(agent: &AgentState, silent: Option<String>, stats: &Stats, tunnel: &str) -> Vec<Problem> {
    let critical =
        |object: &str, message: String| Problem { severity: Severity::Critical, object: object.into(), message };
    let mut problems = Vec::new();
    if let Some(reason) = silent.or_else(|| stats.stopped.clone()) {
        let message = format!(
            "the tunnel has stopped: {reason}; protected pods reach no other node until the agent is restarted"
        );
        problems.push(critical("tunnel", message));
    }
    let why = agent.source.unavailable_because.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    if !agent.source.synced {
        let message = format!(
            "the objects in {} have not all been read yet{why}; opted-in pods cannot reach the world, and nothing is removed",
            agent.source.location
        );
        problems.push(critical("source", message));
    } else if let Some(since) = agent.source.unavailable_since {
        let message = format!(
            "{} has been unusable since {since}{why}; what was known is kept, changes are not seen",
            agent.source.location
        );
        problems.push(Problem { severity: Severity::Warning, object: "source".into(), message });
    }
    if agent.source.rejected > 0 {
        let message = format!(
            "{} objects are rejected, their last good version (if any) is used; see `hauberk events`",
            agent.source.rejected
        );
        problems.push(Problem { severity: Severity::Warning, object: "source".into(), message });
    }
    match agent.self_test.outcome() {
        _ if agent.running.is_none() => {
            // The reason of a failed start is reported already.
            let why = agent.not_up().filter(|_| !agent.failures.contains_key("datapath"));
            problems.extend(why.map(|why| critical("datapath", why)));
        }
        Some(Err(reason)) => problems.push(critical("datapath", format!("the self-test failed: {reason}"))),
        None => problems.push(critical("datapath", "the self-test has not run yet".into())),
        Some(Ok(())) => {}
    }
    problems.extend(agent.running.iter().flat_map(lacks_of_nftables));
    let lost = agent.running.iter().filter_map(|running| running.losses.as_ref());
    problems.extend(lost.map(|(losses, neighbours)| losses::problem(losses, neighbours, tunnel)));
    problems.extend(agent.running.iter().flat_map(|running| running.firewalls.problems()));
    problems
}

/// What this kernel's nftables cannot do.
fn lacks_of_nftables(running: &Running) -> Vec<Problem> {
    let warning =
        |message: &str| Problem { severity: Severity::Warning, object: "netfilter".into(), message: message.into() };
    let sockets = match running.packet_socket_guard {
        PacketSocketGuard::Whole => None,
        PacketSocketGuard::None => Some(
            "this kernel has no netfilter egress hook (5.16): a packet socket on the node that bypasses queueing could send as a pod unseen",
        ),
        PacketSocketGuard::ByMark => Some(
            "this kernel's nftables cannot match routing entries (CONFIG_IP_ROUTE_CLASSID): a packet socket on the node that sets \
             hauberk's mark bits and bypasses queueing could send as a pod unseen",
        ),
    };
    let bridges = (!running.guards_bridges).then_some(
        "this kernel's nftables cannot guard ports of bridges (CONFIG_NF_TABLES_BRIDGE): pods' packets do not leave by a bridge",
    );
    sockets.into_iter().chain(bridges).map(warning).collect()
}

fn peer_problems(
    peers: &[PeerStatus],
    mute: &BTreeSet<String>,
    publishes: impl Fn(&str) -> bool,
    permissive: bool,
) -> Vec<Problem> {
    let cut_off = if permissive {
        "so pods of `enabled` cannot talk with it (dropped, not in the clear), and what pods of `permissive` send it goes in the clear, \
         or does so after some minutes"
    } else {
        "so opted-in pods cannot talk with it (dropped, not in the clear)"
    };
    let problem = |peer: &PeerStatus, message: String| Problem {
        severity: Severity::Critical,
        object: format!("node/{}", peer.node),
        message,
    };
    peers
        .iter()
        .filter_map(|peer| match peer.state {
            PeerState::NoKey if publishes(&peer.node) => {
                Some(problem(peer, format!("publishes keys that are refused, {cut_off}; `hauberk events` says why")))
            }
            PeerState::NoKey => {
                Some(problem(peer, format!("has published no key, {cut_off}; is the agent running there, and ready?")))
            }
            _ if mute.contains(&peer.node) || peer.state == PeerState::Failed => Some(problem(
                peer,
                format!("does not answer handshakes, {cut_off}; is its agent running, and its UDP port reachable?"),
            )),
            _ => None,
        })
        .collect()
}

/// What does not fit is unknown, hence treated as opted-in: safe, but not what its owner asked for.
fn full_maps(agent: &AgentState, map_reader: &MapReader) -> Vec<Problem> {
    let maps = map_reader.maps();
    let known = &agent.desired.state.identities;
    let wanted = [(&identities::ENDPOINTS, known.endpoints.len()), (&identities::RANGES, known.ranges.len())];
    wanted
        .into_iter()
        .filter_map(|(table, wanted)| {
            let (name, setting) = (table.name(), table.setting()?);
            let capacity = maps.capacity(table)? as usize;
            (wanted > capacity).then(|| Problem {
                severity: Severity::Critical,
                object: format!("map/{name}"),
                message: format!("{wanted} entries are wanted, {capacity} fit; the rest is treated as unknown, hence opted-in; raise {setting}, then `hauberkd uninstall` and start"),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: &str, state: PeerState) -> PeerStatus {
        PeerStatus {
            node: node.into(),
            state,
            keys: Vec::new(),
            endpoint: None,
            allowed_ips: Vec::new(),
            latest_handshake: None,
            received_bytes: 0,
            sent_bytes: 0,
            thread: None,
        }
    }

    #[test]
    fn a_peer_that_cannot_be_talked_with_is_critical_and_says_why() {
        let peers = [
            peer("dead", PeerState::Handshaking),
            peer("given-up", PeerState::Failed),
            peer("keyless", PeerState::NoKey),
            peer("refused", PeerState::NoKey),
            peer("renewing", PeerState::Handshaking),
            peer("well", PeerState::Established),
        ];
        let mute = BTreeSet::from(["dead".to_owned()]);
        let problems = peer_problems(&peers, &mute, |node| node == "refused", false);
        let told: Vec<(&str, &str)> = problems
            .iter()
            .map(|problem| (problem.object.as_str(), problem.message.split(',').next().unwrap_or_default()))
            .collect();
        assert_eq!(
            told,
            [
                ("node/dead", "does not answer handshakes"),
                ("node/given-up", "does not answer handshakes"),
                ("node/keyless", "has published no key"),
                ("node/refused", "publishes keys that are refused"),
            ]
        );
        assert!(problems.iter().all(|problem| problem.severity == Severity::Critical));
        assert!(problems.iter().all(|problem| problem.message.contains("opted-in pods cannot talk with it")));
        let with_permissive = peer_problems(&peers, &mute, |node| node == "refused", true);
        assert_eq!(with_permissive.len(), problems.len());
        for problem in with_permissive {
            let message = problem.message;
            assert!(
                message.contains("`enabled` cannot talk with it") && message.contains("in the clear, or"),
                "{message}"
            );
            assert!(!message.contains("opted-in pods cannot"), "permissive ones talk in the clear: {message}");
        }
    }
}
