//! `hauberk explain`: first the verdict, then the reasons.

use hauberk_api::{Explanation, Party, PartyKind, Protection};
use jiff::Timestamp;

use crate::render::page::{self, Page, painted};
use crate::render::words::{ago, encryption, key, protection};

/// The whole answer.
pub(crate) fn page(explanation: &Explanation, now: Timestamp) -> String {
    let mut page = Page::default();
    let (source, destination) = (label(&explanation.source), label(&explanation.destination));
    page.line(format_args!("{}: {source} -> {destination}", encryption(&explanation.encryption)));
    page.line(&explanation.sentence);

    party(&mut page, "source", &explanation.source);
    party(&mut page, "destination", &explanation.destination);

    page.heading(page::NODE, "verdict", encryption(&explanation.encryption));
    page.field("rule", &explanation.why);
    if let Some(reason) = &explanation.drop {
        page.field("dropped as", format_args!("{reason} (what to do: hauberk drops)"));
    }
    match &explanation.peer {
        Some(peer) => page.field("peer", peer),
        None => page.field("peer", "none: not through a tunnel"),
    }
    if let Some(peer_key) = &explanation.peer_key {
        page.field("peer key", key(peer_key));
    }
    if let Some(cipher) = &explanation.cipher {
        page.field("cipher", cipher);
    }
    match explanation.last_proven {
        Some(time) => page.field("last proven by traffic", format_args!("{} ({time})", ago(time, now))),
        None => page.field("last proven by traffic", "never: no such flow is in the table"),
    }
    if explanation.would_drop.is_empty() {
        page.field("would drop it", "nothing known");
    } else {
        page.list("would drop it");
        explanation.would_drop.iter().for_each(|cause| page.item(cause));
    }
    page.into_text()
}

fn party(page: &mut Page, role: &str, party: &Party) {
    page.heading(page::PEER, role, label(party));
    page.field("address", party.address);
    let kind = party.kind.as_str().replace('_', " ");
    match (&party.node, party.kind.known()) {
        (Some(node), Some(PartyKind::Pod | PartyKind::UnknownPod)) => {
            page.field("kind", format_args!("{kind} on node {node}"))
        }
        (None, Some(PartyKind::Pod)) => page.field("kind", format_args!("{kind} on a node that is not known")),
        _ => page.field("kind", kind),
    }
    match party.unmet {
        Some(Protection::Enabled) => {
            page.field("protection", painted(page::BAD, "none, though its label asks for enabled"))
        }
        Some(_) => page.field("protection", painted(page::DOUBTFUL, "none, though its label asks for permissive")),
        None => page.field("protection", protection(party.protection)),
    }
    page.field("because", &party.rule);
}

fn label(party: &Party) -> &str {
    party.name.as_deref().unwrap_or(&party.asked)
}

#[cfg(test)]
mod tests {
    use hauberk_api::{DropReason, Encryption, Why};

    use super::*;
    use crate::outcome::Outcome;
    use crate::render::samples::{explanation, golden, now};

    #[test]
    fn encrypted() {
        golden("explain-encrypted", &page(&explanation(), now()));
    }

    #[test]
    fn refused() {
        let mut refused = explanation();
        refused.encryption = Encryption::Refused.into();
        refused.why = Why::Dropped.into();
        refused.drop = Some(DropReason::NoPeer.into());
        refused.sentence = "packets are dropped: node n2 has published no usable key".to_string();
        (refused.peer, refused.peer_key, refused.cipher) = (None, None, None);
        refused.last_proven = None;
        refused.would_drop.clear();
        refused.destination.node = None;
        golden("explain-refused", &page(&refused, now()));
    }

    #[test]
    fn plaintext_of_an_opted_in_end_is_an_alarm() {
        let mut plain = explanation();
        assert_eq!(Outcome::of_explanation(&plain), Outcome::Fine);
        plain.encryption = Encryption::Plain.into();
        assert_eq!(Outcome::of_explanation(&plain), Outcome::Unprotected);
        plain.source.protection = Protection::None;
        plain.destination.protection = Protection::Permissive;
        assert_eq!(Outcome::of_explanation(&plain), Outcome::Fine);
        // The label of a host-network pod opts it in without effect.
        plain.source.unmet = Some(Protection::Permissive);
        assert_eq!(Outcome::of_explanation(&plain), Outcome::Fine);
        plain.source.unmet = Some(Protection::Enabled);
        assert_eq!(Outcome::of_explanation(&plain), Outcome::Unprotected);
        assert!(page(&plain, now()).contains("though its label asks for enabled"));
    }
}
