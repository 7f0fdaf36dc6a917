//! The table of flows: one row per pair of groups and place, or every single exchange.

use hauberk_api::Encryption;

use crate::rows::{Outcome, Place};
use crate::screen::{self, BAD, BOLD, DIM, GOOD};

const HEADINGS: [&str; 6] =
    ["traffic", "delivered", "payload on the wire", "in clear", "encrypted", "why (hauberk explain)"];

/// Prints the table.
pub fn print(outcomes: &[Outcome], verbose: bool) {
    let cells: Vec<[String; 6]> = outcomes.iter().map(cells).collect();
    let mut widths = HEADINGS.map(|heading| heading.chars().count());
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    screen::line("");
    screen::line(format!("     {}", screen::styled(BOLD, joined(&HEADINGS.map(str::to_owned), &widths))));
    for (place, title) in [
        (Place::BetweenNodes, "between nodes"),
        (Place::SameNode, "within one node (never reaches the wire)"),
        (Place::OutOfCluster, "leaving the cluster (not hauberk's to encrypt)"),
    ] {
        let of_place: Vec<_> = outcomes.iter().zip(&cells).filter(|(outcome, _)| outcome.place == place).collect();
        if of_place.is_empty() {
            continue;
        }
        screen::line(format!("   {}", screen::styled(DIM, title)));
        for (outcome, row) in of_place {
            let right = outcome.wire_is_right() && outcome.all_delivered() && outcome.is_told_truly();
            screen::line(format!("   {} {}", screen::mark(right), coloured(outcome, row, &widths)));
            explain_trouble(outcome);
            if verbose {
                print_exchanges(outcome);
            }
        }
    }
}

fn cells(outcome: &Outcome) -> [String; 6] {
    let (seen, total) = (outcome.seen(), outcome.said.len());
    let payload = match seen {
        0 => "never".to_owned(),
        _ if seen == total => format!("{seen} of {total}, readable"),
        _ => format!("{seen} of {total}"),
    };
    let why = match &outcome.explanation {
        Ok(explanation) => format!("{}: {}", explanation.encryption, explanation.why),
        Err(_) => "(no explanation)".to_owned(),
    };
    [
        outcome.name.clone(),
        format!("{}/{total}", outcome.delivered()),
        payload,
        outcome.window.clear.to_string(),
        outcome.window.encrypted.to_string(),
        why,
    ]
}

fn joined(cells: &[String; 6], widths: &[usize; 6]) -> String {
    let padded: Vec<String> =
        cells.iter().zip(widths).enumerate().map(|(at, (cell, width))| pad(at, cell, *width)).collect();
    padded.join("  ").trim_end().to_owned()
}

/// Aligns figures to the right and words to the left.
fn pad(column: usize, cell: &str, width: usize) -> String {
    let space = " ".repeat(width.saturating_sub(cell.chars().count()));
    if matches!(column, 1 | 3 | 4) { format!("{space}{cell}") } else { format!("{cell}{space}") }
}

fn coloured(outcome: &Outcome, cells: &[String; 6], widths: &[usize; 6]) -> String {
    let padded: Vec<String> = (0..6)
        .map(|at| {
            let cell = pad(at, &cells[at], widths[at]);
            match at {
                1 if !outcome.all_delivered() => screen::styled(BAD, cell),
                2 | 3 if !outcome.wire_is_right() => screen::styled(BAD, cell),
                2 | 3 if outcome.expected == Encryption::Encrypted => screen::styled(GOOD, cell),
                _ => cell,
            }
        })
        .collect();
    padded.join("  ").trim_end().to_owned()
}

/// Prints the first failures of a row.
fn explain_trouble(outcome: &Outcome) {
    let mut troubles: Vec<String> = outcome
        .said
        .iter()
        .filter(|said| !said.delivered)
        .take(3)
        .map(|said| format!("{} {} {} → {}: {}", said.protocol, said.family, said.client, said.server, said.trouble))
        .collect();
    match &outcome.explanation {
        Ok(explanation) if explanation.encryption != outcome.expected => {
            troubles.push(format!(
                "explain says {}, expected {}: {}",
                explanation.encryption, outcome.expected, explanation.sentence
            ));
        }
        Ok(_) => {}
        Err(error) => troubles.push(format!("explain: {error:#}")),
    }
    if !outcome.records_agree() {
        troubles.push(format!("flow records should all say {}: {:?}", outcome.expected, outcome.recorded));
    }
    for trouble in troubles {
        screen::line(format!("       {}", screen::styled(BAD, trouble)));
    }
}

fn print_exchanges(outcome: &Outcome) {
    for said in &outcome.said {
        let seen = if said.markers.is_disjoint(&outcome.window.seen) { "unseen" } else { "readable" };
        let delivered = if said.delivered { "delivered" } else { "lost" };
        let ends = format!("{} → {}", said.client, said.server);
        let text = format!("{ends:<40} {:<8} {}  {delivered}, payload {seen}", said.protocol.to_string(), said.family);
        screen::line(format!("       {}", screen::styled(DIM, text)));
    }
}
