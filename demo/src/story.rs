//! The story, chapter by chapter.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use hauberk_api::Encryption;
use hauberk_netns::capture::Moment;
use hauberk_netns::{Context, analysis, runner};

use crate::claims::Claims;
use crate::conversation::Effort;
use crate::playground::{Group, Playground};
use crate::rows::{self, Outcome, Place};
use crate::summary::{self, Summary};
use crate::{keep, live, outage, screen, shown, table, wire};

/// The user's options.
pub struct Options {
    /// Show every exchange, not only the rows.
    pub verbose: bool,
    /// Leave the playground up.
    pub keep: bool,
}

/// What is collected on the way.
pub struct Notes<'a> {
    /// The user's options.
    pub options: &'a Options,
    /// The claims so far.
    pub claims: Claims,
    /// The figures.
    pub summary: Summary,
}

/// The groups that talk with each other.
const ALL_PAIRS: [(Group, Group); 11] = {
    use Group::{Nodes, Payments, Public, World};
    [
        (Payments, Payments),
        (Payments, Public),
        (Public, Payments),
        (Payments, Nodes),
        (Nodes, Payments),
        (Public, Public),
        (Public, Nodes),
        (Nodes, Public),
        (Nodes, Nodes),
        (Payments, World),
        (Public, World),
    ]
};

/// Tells the story and returns whether every claim held. Call it while the process has one thread.
///
/// # Errors
/// The sandbox cannot be made. A later failure is printed, and the result is false.
pub fn tell(directory: &Path, options: &Options) -> Result<bool> {
    let started = Instant::now();
    introduce();
    let context = runner::sandboxed(directory)?;
    let mut notes = Notes { options, claims: Claims::default(), summary: Summary::default() };
    let mut playground = None;
    let result = chapters(&context, &mut notes, &mut playground);
    if let Err(error) = &result {
        notes.summary.error = Some(format!("{error:#}"));
    }
    let held = result.is_ok() && notes.claims.all_held();
    notes.summary.all_claims_held = held;
    notes.summary.claims = notes.claims.by_name();
    notes.summary.duration_seconds = started.elapsed().as_secs_f64();
    notes.summary.write(directory)?;
    conclude(directory, &notes, playground.as_ref(), &result);
    if let (true, Some(playground)) = (options.keep, &playground) {
        keep::wait(playground)?;
    }
    Ok(held)
}

fn introduce() {
    screen::line(screen::styled(screen::BOLD, "hauberk: pod traffic between nodes is encrypted, or it does not leave"));
    screen::line(
        "
   Three nodes, each with its own agent (hauberkd), and pods of two namespaces. `payments` is labelled
   hauberk.io/encryption=enabled, `public` is not. Every frame on the wire between them is captured.

             n1                      n2                      n3
      payments/api  /cache     payments/db             payments/ledger
      public/web               public/shop  /blog      public/docs
             └───────────────────────┴───────────────────────┘
                              the wire",
    );
}

fn chapters(context: &Context, notes: &mut Notes<'_>, kept: &mut Option<Playground>) -> Result<()> {
    screen::chapter(1, "Build it");
    let playground = kept.insert(Playground::build(context)?);

    screen::chapter(
        2,
        "Everybody talks to everybody: HTTP, a TCP bulk transfer, UDP and ICMP echo, over IPv4 and IPv6",
    );
    let outcomes = talk(playground)?;

    screen::chapter(3, "What the wire shows");
    table::print(&outcomes, notes.options.verbose);
    judge(playground, &outcomes, notes)?;

    screen::chapter(4, "What the operator sees");
    ask_product(playground, notes)?;

    screen::chapter(5, "Opt `public` in while it is talking: one label, no restart");
    live::enable(playground, notes)?;

    screen::chapter(6, "SIGKILL the agent of n2 under traffic");
    outage::kill_and_recover(playground, notes)?;
    notes.summary.captured_frames = playground.cluster.capture.all()?.len();
    Ok(())
}

/// Sends all traffic, row by row.
fn talk(playground: &Playground) -> Result<Vec<Outcome>> {
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for row in rows::rows(playground, &ALL_PAIRS) {
        outcomes.push(rows::send(playground, &row, &[Group::Payments], Effort::FULL)?);
    }
    let exchanges: usize = outcomes.iter().map(|outcome| outcome.said.len()).sum();
    let frames = playground.cluster.capture.all()?.len();
    screen::done(
        started,
        format!("{exchanges} exchanges, every payload with a mark of its own; {frames} frames captured"),
    );
    Ok(outcomes)
}

/// Claims about the first round.
fn judge(playground: &Playground, outcomes: &[Outcome], notes: &mut Notes<'_>) -> Result<()> {
    let protected: Vec<_> = playground.addresses(&[Group::Payments]).into_iter().collect();
    let markers =
        rows::markers(outcomes, |outcome| matches!(outcome.expected, Encryption::Encrypted | Encryption::Local));
    let leaks = wire::leaks(&playground.cluster.capture, Moment::START, &protected, &markers)?;
    if !leaks.is_empty() {
        screen::note(screen::styled(screen::BAD, analysis::list(&leaks)));
    }
    let of = |expected: Encryption| outcomes.iter().filter(move |outcome| outcome.expected == expected);
    let summary = &mut notes.summary;
    summary.protected_cleartext_packets = leaks.len();
    summary.protected_encrypted_packets = of(Encryption::Encrypted).map(|outcome| outcome.window.encrypted).sum();
    summary.plain_cleartext_packets = of(Encryption::Plain).map(|outcome| outcome.window.clear).sum();
    summary.protected_exchanges = of(Encryption::Encrypted).map(|outcome| outcome.said.len()).sum();
    summary.protected_delivered = of(Encryption::Encrypted).map(Outcome::delivered).sum();
    summary.plain_exchanges = of(Encryption::Plain).map(|outcome| outcome.said.len()).sum();
    summary.plain_delivered = of(Encryption::Plain).map(Outcome::delivered).sum();
    let (clear, encrypted) = (summary.protected_cleartext_packets, summary.protected_encrypted_packets);
    let claims = &mut notes.claims;
    claims.make(
        "protected_never_in_clear",
        clear == 0 && of(Encryption::Encrypted).all(Outcome::wire_is_right) && encrypted > 0,
        format!("`payments` on the wire: {clear} packets in clear, {encrypted} encrypted"),
    );
    claims.make(
        "protected_delivered",
        summary.protected_delivered == summary.protected_exchanges && summary.protected_delivered > 0,
        format!("all of it arrived: {} of {} exchanges", summary.protected_delivered, summary.protected_exchanges),
    );
    claims.make(
        "capture_sees_cleartext",
        of(Encryption::Plain).all(Outcome::wire_is_right) && summary.plain_cleartext_packets > 0,
        format!(
            "the capture can see: {} packets of parties that are not opted in, every payload readable",
            summary.plain_cleartext_packets
        ),
    );
    claims.make(
        "plain_delivered",
        summary.plain_delivered == summary.plain_exchanges && summary.plain_delivered > 0,
        format!("those arrived as well: {} of {} exchanges", summary.plain_delivered, summary.plain_exchanges),
    );
    let local = outcomes.iter().filter(|outcome| outcome.place == Place::SameNode);
    claims.make(
        "same_node_never_on_the_wire",
        local.clone().all(|outcome| outcome.wire_is_right() && outcome.all_delivered()),
        format!(
            "traffic within a node arrived and never reached the wire: {} exchanges",
            local.map(|o| o.said.len()).sum::<usize>()
        ),
    );
    claims.make(
        "world_reachable",
        of(Encryption::World).all(|outcome| outcome.wire_is_right() && outcome.all_delivered()),
        "pods of both namespaces reach the world beyond the cluster, and its flows say so",
    );
    let records: usize = outcomes.iter().flat_map(|outcome| outcome.recorded.values()).sum();
    claims.make(
        "records_agree_with_the_wire",
        outcomes.iter().all(Outcome::is_told_truly),
        format!("`hauberk explain` and {records} flow records say what the wire says"),
    );
    Ok(())
}

/// Shows the real output of the command line.
fn ask_product(playground: &Playground, notes: &mut Notes<'_>) -> Result<()> {
    let (code, text) = playground.hauberk(0, &["status"])?;
    screen::command("n1# hauberk status", &text);
    notes.claims.make("status_is_healthy", code == 0, "`hauberk status` reports no problem (exit code 0)");
    for (from, to) in [("payments/api", "public/shop"), ("public/web", "public/shop")] {
        let (_, text) = playground.hauberk(0, &["explain", from, to])?;
        screen::command(&format!("n1# hauberk explain {from} {to}"), &text);
    }
    Ok(())
}

fn conclude(directory: &Path, notes: &Notes<'_>, playground: Option<&Playground>, result: &Result<()>) {
    screen::chapter(7, "Verdict");
    notes.claims.print();
    let (held, made) = notes.claims.count();
    let complete = result.is_ok() && held == made;
    let verdict = match result {
        Err(error) => format!("the demo broke down after {made} claims: {error:#}"),
        Ok(()) => format!("{held} of {made} claims held"),
    };
    screen::line("");
    screen::note(format!("{} {}", screen::mark(complete), screen::styled(screen::BOLD, verdict)));
    screen::note(screen::styled(
        screen::DIM,
        format!("{:.0} s; figures in {}", notes.summary.duration_seconds, shown(&directory.join(summary::FILE))),
    ));
    let Some(playground) = playground.filter(|_| !complete) else { return };
    let path = directory.join("wire.pcap");
    match playground.cluster.capture.write(&path) {
        Ok(()) => screen::note(format!("what crossed the wire: {}; agents' logs beside it", shown(&path))),
        Err(error) => screen::note(format!("the capture could not be written: {error:#}")),
    }
}
