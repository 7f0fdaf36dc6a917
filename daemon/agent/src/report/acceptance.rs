//! HauberkConfig's status: each node's answer to the object.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::cluster_config::{Acceptance, Condition, HauberkConfigStatus, NodeAcceptance};

/// The condition's type.
const ACCEPTED: &str = "Accepted";
/// The most names in a message; the others are counted.
const NAMED: usize = 5;

/// The status of the object's `generation`. `nodes` has the published answer of each node that runs
/// an agent, if there is one. `before` is the earlier status, for the time of the last change.
pub fn status(
    generation: i64,
    nodes: &BTreeMap<String, Option<Acceptance>>,
    before: &HauberkConfigStatus,
    now: Timestamp,
) -> HauberkConfigStatus {
    let told: Vec<NodeAcceptance> = nodes
        .iter()
        .filter_map(|(name, acceptance)| {
            let acceptance = acceptance.as_ref()?;
            Some(NodeAcceptance {
                name: name.clone(),
                generation: acceptance.generation,
                accepted: acceptance.accepted,
                message: acceptance.message.clone(),
            })
        })
        .collect();
    let accepts = |node: &&NodeAcceptance| node.accepted && node.generation == generation;
    let refuses = |node: &&NodeAcceptance| !node.accepted && node.generation == generation;
    let accepted_nodes = told.iter().filter(accepts).count();
    let refusing: Vec<&str> = told.iter().filter(refuses).map(|node| node.name.as_str()).collect();
    let silent: Vec<&str> = nodes
        .keys()
        .map(String::as_str)
        .filter(|name| !told.iter().any(|node| node.name == *name && node.generation == generation))
        .collect();
    let (status, reason, message) = if !refusing.is_empty() {
        (
            "False",
            "Refused",
            format!("refused by {}; the last accepted generation stays in force there", names(&refusing)),
        )
    } else if !silent.is_empty() {
        ("Unknown", "Progressing", format!("waiting for {}", names(&silent)))
    } else {
        ("True", "Accepted", format!("in force on {accepted_nodes} nodes"))
    };
    let held = before.conditions.iter().find(|condition| condition.type_ == ACCEPTED && condition.status == status);
    let condition = Condition {
        type_: ACCEPTED.into(),
        status: status.into(),
        observed_generation: generation,
        last_transition_time: held.map_or(now, |condition| condition.last_transition_time),
        reason: reason.into(),
        message,
    };
    HauberkConfigStatus { accepted_nodes, nodes: told, conditions: vec![condition] }
}

fn names(names: &[&str]) -> String {
    let named = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
