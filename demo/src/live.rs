//! A namespace is opted in while its pods talk.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use hauberk_api::Protection;
use hauberk_netns::traffic::TcpStreamer;
use hauberk_netns::{Family, Marker, analysis};

use crate::conversation::Effort;
use crate::playground::{Group, Playground};
use crate::rows::{self, Outcome};
use crate::story::Notes;
use crate::{screen, shown, table, wire};

/// Labels `public`, waits until every node enforces it, and checks the wire from then on.
///
/// # Errors
/// The nodes never converged, or the playground broke.
pub fn enable(playground: &Playground, notes: &mut Notes<'_>) -> Result<()> {
    let cluster = &playground.cluster;
    let connections = open_connections(playground)?;
    screen::note(format!("{} TCP connections between `public` pods are open and busy", connections.len()));
    let echoed = |connections: &[TcpStreamer]| connections.iter().map(TcpStreamer::echoed).sum::<u64>();

    let labelled = Instant::now();
    cluster.manifests.label("namespace", "public", Some("enabled"))?;
    cluster.wait_converged("public", Protection::Enabled)?;
    let converged = labelled.elapsed();
    // From here on every frame counts.
    let since = cluster.capture.sync()?;
    let echoed_before = echoed(&connections);
    let manifest = shown(&cluster.manifests.path("namespace", "public"));
    screen::done(labelled, format!("label set in {manifest}; `hauberk status`: converged 3/3 nodes"));

    for connection in &connections {
        // A connection that does not go on is counted below.
        connection.wait_flowing().ok();
    }
    let echoed_after = echoed(&connections);
    let markers: BTreeSet<Marker> = connections.iter().map(|connection| connection.marker).collect();
    let opened = connections.len();
    let survived = connections.into_iter().filter_map(|connection| connection.stop().ok()).count();
    screen::note(format!(
        "connections open across the change: {survived} of {opened} went on, {} more answers",
        echoed_after - echoed_before
    ));
    let outcomes = talk_again(playground)?;
    table::print(&outcomes, notes.options.verbose);

    let addresses: Vec<IpAddr> = playground.addresses(&[Group::Payments, Group::Public]).into_iter().collect();
    let markers = markers.into_iter().chain(rows::markers(&outcomes, |_| true)).collect();
    let leaks = wire::leaks(&cluster.capture, since, &addresses, &markers)?;
    if !leaks.is_empty() {
        screen::note(screen::styled(screen::BAD, analysis::list(&leaks)));
    }
    let said: usize = outcomes.iter().map(|outcome| outcome.said.len()).sum();
    let delivered: usize = outcomes.iter().map(Outcome::delivered).sum();
    let encrypted: usize = outcomes.iter().map(|outcome| outcome.window.encrypted).sum();
    notes.summary.cleartext_after_live_enable = leaks.len();
    notes.summary.live_enable_converged_ms = converged.as_millis();
    notes.summary.live_enable_connections = opened;
    notes.summary.live_enable_connections_survived = survived;
    let claims = &mut notes.claims;
    claims.make(
        "live_enable_never_in_clear",
        leaks.is_empty() && encrypted > 0 && outcomes.iter().all(Outcome::wire_is_right),
        format!(
            "`public`, opted in live: converged on 3/3 nodes in {}; from then on {} packets in clear, {encrypted} encrypted",
            screen::seconds(converged),
            leaks.len()
        ),
    );
    claims.make(
        "live_enable_delivered",
        delivered == said && said > 0 && outcomes.iter().all(Outcome::is_told_truly),
        format!("all of it arrived: {delivered} of {said} exchanges"),
    );
    claims.make(
        "live_enable_connections_survived",
        survived == opened && echoed_after > echoed_before,
        format!("connections open across the change: {survived} of {opened} went on"),
    );
    Ok(())
}

/// Connections of both families between different nodes, opened before the change.
fn open_connections(playground: &Playground) -> Result<Vec<TcpStreamer>> {
    let ends = [("public/web@n1", "public/shop@n2", Family::V4), ("public/docs@n3", "public/web@n1", Family::V6)];
    let mut connections = Vec::new();
    for (from, to, family) in ends {
        let (from, to) = (playground.talker(from)?, playground.talker(to)?);
        let connection = TcpStreamer::start(from, to, family, 400, Duration::from_millis(2))?;
        connection.wait_flowing()?;
        connections.push(connection);
    }
    Ok(connections)
}

fn talk_again(playground: &Playground) -> Result<Vec<Outcome>> {
    let pairs = [
        (Group::Public, Group::Public),
        (Group::Public, Group::Payments),
        (Group::Public, Group::Nodes),
        (Group::Nodes, Group::Public),
    ];
    let protected = [Group::Payments, Group::Public];
    let rows = rows::rows(playground, &pairs);
    let between = rows.iter().filter(|row| row.place == rows::Place::BetweenNodes);
    between.map(|row| rows::send(playground, row, &protected, Effort::LIGHT)).collect()
}
