//! `hauberk status`: problems, this node, its peers, the namespaces.

use hauberk_api::{
    ConfigurationOrigin, ConfigurationStatus, KeyStatus, NamespaceStatus, PeerState, PeerStatus, Problem, Protection,
    Severity, SourceStatus, Status,
};
use jiff::Timestamp;

use crate::render::page::{self, Page, painted};
use crate::render::services;
use crate::render::words::{ago, bytes, counted, key, protection, shortened};

/// How many ranges or names are shown in a line, so that it stays readable.
const SHORT: usize = 4;

/// The whole answer; `verbose` leaves out nothing.
pub(crate) fn page(status: &Status, verbose: bool) -> String {
    let limit = if verbose { usize::MAX } else { SHORT };
    let mut page = Page::default();
    problems(&mut page, &status.problems);
    node(&mut page, status, verbose);
    for peer in &status.peers {
        one_peer(&mut page, peer, status.now, verbose, limit);
    }
    if status.peers.is_empty() {
        page.heading(page::PEER, "peers", "none: no other node is known");
    }
    for namespace in &status.namespaces {
        one_namespace(&mut page, namespace, limit);
    }
    if status.namespaces.is_empty() {
        page.heading(page::NAMESPACE, "namespaces", "none is opted in (label hauberk.io/encryption=enabled)");
    }
    page.into_text()
}

fn problems(page: &mut Page, problems: &[Problem]) {
    if problems.is_empty() {
        page.line(format_args!("{}: none", painted(page::GOOD, "problems")));
    }
    for problem in problems {
        let word = match problem.severity {
            Severity::Critical => painted(page::BAD, "critical"),
            Severity::Warning => painted(page::DOUBTFUL, "warning"),
        };
        page.line(format_args!("{word}: {}: {}", problem.object, problem.message));
    }
}

fn node(page: &mut Page, status: &Status, verbose: bool) {
    let tunnel = &status.tunnel;
    page.heading(page::NODE, "node", painted(page::NODE, &status.node));
    page.field(
        "ready",
        match status.ready {
            true => painted(page::GOOD, "yes (the datapath is attached, and a packet proved it)"),
            false => painted(page::BAD, "no (the datapath is not attached, or not proven)"),
        },
    );
    page.field("backend", format_args!("{} ({})", tunnel.backend, tunnel.backend_reason));
    keys(page, &tunnel.keys, verbose);
    page.field("listening port", tunnel.port);
    page.field("device", format_args!("{}, mtu {}", tunnel.device, tunnel.mtu));
    page.field("host routing", &status.host_routing);
    page.field("programs", format_args!("attached with {} to {}", status.attach, words_of(&status.uplinks)));
    page.field("pods attached", status.attachments);
    if let Some(state) = &status.services {
        page.field("services", if verbose { services::mode(state) } else { services::summary(state) });
    }
    page.field("source", source(&status.source, status.now));
    if let Some(state) = &status.configuration {
        page.field("configuration", configuration(state));
    }
    page.field("agent", format_args!("version {}, started {}", status.version, ago(status.started, status.now)));
    if verbose {
        if let Some((state, figures)) =
            status.services.as_ref().and_then(|state| Some((state, services::figures(state)?)))
        {
            page.field("services in figures", format_args!("{}, {figures}", counted(state.services as u64, "service")));
        }
        page.field("started at", status.started);
        page.field("offloads", words_of(&tunnel.offloads));
        page.field("cipher", &tunnel.cipher);
        page.field(
            "threads",
            format_args!("{}, {} packets handed over between them", tunnel.threads, tunnel.handed_over),
        );
    }
}

fn one_peer(page: &mut Page, peer: &PeerStatus, now: Timestamp, verbose: bool, limit: usize) {
    page.heading(page::PEER, "peer", painted(page::PEER, &peer.node));
    page.field("state", state(peer.state));
    keys(page, &peer.keys, verbose);
    match &peer.endpoint {
        Some(endpoint) => page.field("endpoint", endpoint),
        None if peer.state == PeerState::NoKey => page.field("endpoint", "none without a key"),
        None => page.field("endpoint", "unknown (the Node object names no address)"),
    }
    let ranges: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    page.field("allowed ips", shortened(&ranges, limit));
    match peer.latest_handshake {
        Some(time) if verbose => page.field("latest handshake", format_args!("{} ({time})", ago(time, now))),
        Some(time) => page.field("latest handshake", ago(time, now)),
        None => page.field("latest handshake", "never since the agent started"),
    }
    let (received, sent) = (bytes(peer.received_bytes), bytes(peer.sent_bytes));
    page.field("transfer", format_args!("{received} received, {sent} sent"));
    if let Some(thread) = peer.thread.filter(|_| verbose) {
        page.field("thread", format_args!("hauberk-tun-{thread}"));
    }
}

fn one_namespace(page: &mut Page, namespace: &NamespaceStatus, limit: usize) {
    page.heading(page::NAMESPACE, "namespace", painted(page::NAMESPACE, &namespace.name));
    page.field("encryption", protection(namespace.protection));
    page.field("pods", format_args!("{}, of which {} opted in", namespace.pods, namespace.protected_pods));
    if !namespace.host_network.is_empty() {
        let pods = painted(page::DOUBTFUL, shortened(&namespace.host_network, limit));
        page.field("not protected", format_args!("{pods}: on the node's network (hostNetwork), as the node itself"));
    }
    let (converged, nodes) = (namespace.converged_nodes, namespace.nodes);
    if converged >= nodes {
        let since = namespace.since.map(|since| format!(", since {since}")).unwrap_or_default();
        page.field(
            "converged",
            format_args!("{}{since}", painted(page::GOOD, format_args!("{converged}/{nodes} nodes"))),
        );
    } else {
        let waiting = shortened(&namespace.waiting_for, limit);
        let style = if namespace.protection == Protection::None { page::NEUTRAL } else { page::DOUBTFUL };
        page.field(
            "converged",
            format_args!("{}, waiting for {waiting}", painted(style, format_args!("{converged}/{nodes} nodes"))),
        );
    }
}

fn keys(page: &mut Page, keys: &[KeyStatus], verbose: bool) {
    match keys {
        [] => page.field("public key", painted(page::BAD, "none published")),
        [newest, older @ ..] => {
            page.field("epoch", newest.epoch);
            page.field("public key", &newest.public_key);
            match older {
                [] => {}
                _ if verbose => older.iter().for_each(|older| page.field("older key", key(older))),
                _ => page.field("older keys", format_args!("{} (--verbose)", older.len())),
            }
        }
    }
}

fn state(state: PeerState) -> String {
    match state {
        PeerState::Established => painted(page::GOOD, "established"),
        PeerState::Idle => painted(page::NEUTRAL, "idle (nothing was sent lately)"),
        PeerState::Handshaking => painted(page::DOUBTFUL, "handshaking"),
        PeerState::Failed => painted(page::BAD, "failed (handshakes go unanswered or are refused)"),
        PeerState::NoKey => painted(page::BAD, "no key (the node has published none that is usable)"),
    }
}

fn source(source: &SourceStatus, now: Timestamp) -> String {
    let state = match (source.unavailable_since, source.synced) {
        (Some(since), _) => painted(page::DOUBTFUL, format_args!("unreadable since {}", ago(since, now))),
        (None, true) => "in sync".to_string(),
        (None, false) => painted(page::DOUBTFUL, "not read completely yet"),
    };
    let rejected = match source.rejected {
        0 => String::new(),
        count => format!(", {} (hauberk events)", painted(page::DOUBTFUL, counted(count as u64, "rejected object"))),
    };
    format!("{} {}, {state}{rejected}", source.kind, source.location)
}

/// If something is wrong with it, the problems say so.
fn configuration(state: &ConfigurationStatus) -> String {
    let generation = state.generation.map(|generation| format!(" generation {generation}")).unwrap_or_default();
    let origin = match state.origin.known() {
        Some(ConfigurationOrigin::Object) => format!("HauberkConfig cluster,{generation}"),
        Some(ConfigurationOrigin::Copy) => format!("this node's copy of HauberkConfig cluster,{generation}"),
        Some(ConfigurationOrigin::File) => "this node's file alone".to_string(),
        None => format!("{}{generation}", state.origin),
    };
    match state.refused {
        Some(refused) => format!("{origin}; {}", painted(page::BAD, format_args!("generation {refused} is refused"))),
        None => origin,
    }
}

fn words_of(items: &[String]) -> String {
    if items.is_empty() { "none".to_string() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use hauberk_api::Word;

    use super::*;
    use crate::outcome::Outcome;
    use crate::render::samples::{golden, status};

    #[test]
    fn a_healthy_node() {
        let mut healthy = status();
        healthy.problems.clear();
        assert_eq!(Outcome::of_status(&healthy), Outcome::Fine);
        golden("status", &page(&healthy, false));
    }

    #[test]
    fn a_node_in_trouble_says_so_first() {
        let mut troubled = status();
        troubled.ready = false;
        troubled.source.unavailable_since = Some("2026-11-22T09:00:00Z".parse().unwrap());
        troubled.peers[0].keys.clear();
        troubled.peers[0].state = PeerState::NoKey;
        troubled.peers[0].endpoint = None;
        troubled.peers[0].allowed_ips.clear();
        troubled.peers[0].latest_handshake = None;
        assert_eq!(Outcome::of_status(&troubled), Outcome::Unprotected);
        golden("status-troubled-verbose", &page(&troubled, true));
    }

    #[test]
    fn an_endpoint_is_missing_for_want_of_a_key_or_of_an_address() {
        let mut status = status();
        status.peers.truncate(1);
        status.peers[0].endpoint = None;
        assert!(page(&status, false).contains("unknown (the Node object names no address)"));
        status.peers[0].state = PeerState::NoKey;
        let text = page(&status, false);
        assert!(text.contains("none without a key") && !text.contains("names no address"), "{text}");
    }

    #[test]
    fn the_cluster_s_configuration_is_named_with_what_is_refused() {
        let words = |origin: Word<ConfigurationOrigin>, generation, refused| {
            let state = ConfigurationStatus { origin, generation, refused, message: None };
            anstream::adapter::strip_str(&configuration(&state)).to_string()
        };
        assert_eq!(words(ConfigurationOrigin::Object.into(), Some(3), None), "HauberkConfig cluster, generation 3");
        assert_eq!(
            words(ConfigurationOrigin::Copy.into(), Some(3), Some(4)),
            "this node's copy of HauberkConfig cluster, generation 3; generation 4 is refused"
        );
        assert_eq!(words(ConfigurationOrigin::File.into(), None, None), "this node's file alone");
        assert_eq!(words(Word::Other("mirror".to_string()), Some(3), None), "mirror generation 3", "of a newer agent");
        let mut status = status();
        status.configuration = Some(ConfigurationStatus {
            origin: ConfigurationOrigin::Object.into(),
            generation: Some(3),
            refused: Some(4),
            message: Some("generation 4 of HauberkConfig cluster is refused: `tunnel.port` is 0".to_string()),
        });
        golden("status-cluster", &page(&status, false));
    }

    #[test]
    fn a_node_alone() {
        let mut alone = status();
        alone.problems.truncate(0);
        alone.peers.clear();
        alone.namespaces.clear();
        golden("status-alone", &page(&alone, false));
    }

    #[test]
    fn warnings_do_not_fail_a_probe_but_critical_problems_and_unreadiness_do() {
        let mut status = status();
        assert_eq!(Outcome::of_status(&status), Outcome::Unprotected);
        status.problems.retain(|problem| problem.severity == Severity::Warning);
        assert_eq!(Outcome::of_status(&status), Outcome::Fine);
        status.ready = false;
        assert_eq!(Outcome::of_status(&status), Outcome::Unprotected);
    }

    #[test]
    fn colours_carry_nothing_that_the_words_do_not() {
        let coloured = page(&status(), false);
        assert!(coloured.contains("\u{1b}["));
        assert!(!anstream::adapter::strip_str(&coloured).to_string().contains('\u{1b}'));
    }
}
