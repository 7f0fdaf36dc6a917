//! `hauberk explain`: the datapath's own rules applied to two parties, in words.

use std::time::Instant;

use hauberk_abi::address::Address;
use hauberk_abi::judge::{self, Need, Place};
use hauberk_abi::layout::{self, flag};
use hauberk_abi::reason::{DropReason, Encryption, Why};
use hauberk_api::{Explanation, Party, Word};
use hauberk_core::explain::{ResolveError, Resolved, resolve_pair};
use hauberk_core::names::NodeNumber;
use hauberk_host::netfilter::firewall::Way;

use super::{MapReader, drops, flows};
use crate::state::{AgentState, SharedState, key_status};

/// The AEAD of every WireGuard packet (whitepaper, section 5.4).
const CIPHER: &str = "WireGuard (Noise IKpsk2, ChaCha20-Poly1305)";

/// What happens to packets from `source` to `destination`, each a pod, a node or an address.
///
/// # Errors
/// [`ResolveError`] if no party, or more than one, has that name.
pub fn explain(
    agent: &SharedState,
    map_reader: &MapReader,
    source: &str,
    destination: &str,
) -> Result<Explanation, ResolveError> {
    let settings = map_reader.maps().settings().unwrap_or_default();
    let agent = agent.read();
    let (from, to) = resolve_pair(&agent.model, &agent.local, &agent.desired, source, destination)?;
    let here = agent.model.own_number();
    // The sender's node decides; the same rules apply if that is another node.
    let sender = if from.identity.node == 0 { here.0 } else { from.identity.node };
    let place = Place { node: sender, stack: settings.flags & flag::STACK != 0, carries_protected: false };
    let need = judge::need(&from.identity, &to.identity, &place);
    let receiver = to.identity.node;
    // What this node knows of the other end of the tunnel. If both ends are other nodes, this is
    // the receiver.
    let peer = peer_of(&agent, here, NodeNumber(if receiver == here.0 { sender } else { receiver }));
    let ends = Ends {
        side: match here.0 {
            here if here == sender => Side::Sender,
            here if here == receiver => Side::Receiver,
            _ => Side::Neither,
        },
        sender: node_in_words(&agent, sender),
        receiver: node_in_words(&agent, receiver),
    };
    let verdict = if matches!(need, Need::World) && from.identity.is_world() {
        // No node of the cluster sends it, so the receiver's node decides what happens to it.
        let direct = settings.flags & flag::WORLD_DIRECT != 0;
        judge::arriving_in_clear(need, &from.identity, &to.identity, to.identity.node, direct)
    } else {
        judge::outgoing(need, &to.identity, &peer.entry)
    };
    let seen = last_proven(map_reader, &from, &to, verdict.encryption);
    let encrypted = verdict.encryption == Encryption::Encrypted;
    let drop = verdict.is_refused().then_some(verdict.drop);
    let way = match ends.side {
        Side::Sender => (!from.identity.is_node() && receiver != here.0).then_some(Way::Out),
        Side::Receiver => {
            Some(if encrypted_way(need) { Way::Opened } else { Way::Plain }).filter(|_| !to.identity.is_node())
        }
        Side::Neither => None,
    };
    let in_the_way = way.and_then(|way| Some(agent.running.as_ref()?.firewalls.on(way))).unwrap_or_default();
    let unconnected = [&from, &to].into_iter().filter_map(|end| unconnected(&agent, here, end, Instant::now()));
    Ok(Explanation {
        sentence: sentence(&agent, &from, &to, verdict.encryption, verdict.why, drop, &ends),
        encryption: verdict.encryption.into(),
        why: verdict.why.into(),
        drop: drop.map(Word::Known),
        peer: if matches!(need, Need::Local | Need::World) { None } else { peer.name.clone() },
        peer_key: if encrypted { peer.key } else { None },
        cipher: encrypted.then(|| CIPHER.to_owned()),
        would_drop: unconnected.chain(in_the_way).chain(would_drop(need, &ends)).collect(),
        last_proven: seen,
        source: from.party,
        destination: to.party,
    })
}

/// Whether it arrives at its receiver through the tunnel.
fn encrypted_way(need: Need) -> bool {
    matches!(need, Need::Encrypt(_) | Need::Prefer | Need::Shelter)
}

struct PeerInWords {
    entry: layout::Peer,
    name: Option<String>,
    key: Option<hauberk_api::KeyStatus>,
}

fn peer_of(agent: &AgentState, here: NodeNumber, number: NodeNumber) -> PeerInWords {
    let name = (number != here).then(|| agent.model.node_name(number).map(str::to_owned)).flatten();
    let entry = agent.desired.state.tunnels.peer_entries.get(&number).copied().unwrap_or_default();
    let key = agent.desired.state.tunnels.peers.get(&number).and_then(|peer| key_status(&peer.keys).into_iter().next());
    PeerInWords { entry, name, key }
}

fn last_proven(
    map_reader: &MapReader,
    from: &Resolved,
    to: &Resolved,
    expected: Encryption,
) -> Option<jiff::Timestamp> {
    let source = Address::from(from.party.address);
    let destination = Address::from(to.party.address);
    let seen = flows::last_seen(map_reader, source, destination).into_iter();
    seen.filter(|(_, encryption)| *encryption == expected).map(|(time, _)| time).max()
}

/// The sender's and the receiver's node, in words, and which of them this node is.
struct Ends {
    side: Side,
    sender: String,
    receiver: String,
}

/// Which end this node is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
    Neither,
}

fn node_in_words(agent: &AgentState, number: u32) -> String {
    agent.model.node_name(NodeNumber(number)).map_or_else(|| "the other node".to_owned(), str::to_owned)
}

fn sentence(
    agent: &AgentState,
    from: &Resolved,
    to: &Resolved,
    encryption: Encryption,
    why: Why,
    drop: Option<DropReason>,
    ends: &Ends,
) -> String {
    let name = |party: &Party| party.name.clone().unwrap_or_else(|| party.address.to_string());
    let unmet = [&from.party, &to.party].into_iter().find(|party| party.unmet.is_some());
    let contested = [&from.party, &to.party].into_iter().find_map(|party| contest(agent, party));
    let (from, to) = (name(&from.party), name(&to.party));
    let Ends { sender, receiver, .. } = ends;
    match (encryption, drop) {
        (Encryption::Encrypted, _) => {
            format!("{from} to {to} is encrypted from {sender} to {receiver}: {}.", reason_in_words(why))
        }
        (Encryption::Plain, _) => {
            let reason = unmet.map(|party| {
                format!("{} is on its node's network (hostNetwork), where its label protects nothing", name(party))
            });
            let reason = reason.unwrap_or_else(|| reason_in_words(why).to_owned());
            format!("{from} to {to} crosses the wire in the clear: {reason}.")
        }
        (Encryption::Local, _) => format!("{from} to {to} stays on one node and never crosses the wire."),
        (Encryption::World, _) => format!("{from} to {to} leaves or enters the cluster: not hauberk's to encrypt."),
        (Encryption::Refused, drop) => {
            let reason = drop.unwrap_or(DropReason::Unspecified);
            let advice = contested.unwrap_or_else(|| drops::advice(reason).to_owned());
            // A question needs no full stop.
            let end = if advice.ends_with('?') { "" } else { "." };
            format!("{from} to {to} is dropped ({reason}): {advice}{end}")
        }
    }
}

/// Why nothing comes from or to an end that is a pod of this node, if no interface connects it.
fn unconnected(agent: &AgentState, here: NodeNumber, end: &Resolved, now: Instant) -> Option<String> {
    let party = &end.party;
    let why = agent.unconnected.of_address(party.address, now).filter(|_| end.identity.node == here.0)?;
    let name = party.name.clone().unwrap_or_else(|| party.address.to_string());
    Some(format!("packets are lost now: {name} {why}"))
}

/// The nodes that have the party's address, if there are several.
fn contest(agent: &AgentState, party: &Party) -> Option<String> {
    let nodes = agent.desired.contest(party.address)?.nodes_in_words();
    Some(format!("{nodes} have {}, so that it is nobody's; leave it to one node", party.address))
}

fn reason_in_words(why: Why) -> &'static str {
    match why {
        Why::SourceOptedIn => "the source is opted in",
        Why::DestinationOptedIn => "the destination is opted in",
        Why::UnknownIsProtected => "an end is not known, and unknown is treated as opted in",
        Why::PermissivePeerReady => "an end is permissive and the peer can encrypt",
        Why::PermissivePeerNotReady => "an end is permissive but the peer cannot encrypt yet",
        Why::NotOptedIn => "neither end is opted in",
        Why::Translated => "a node's address may stand for an opted-in pod where addresses are translated",
        Why::AnswersSealed => "it answers what came out of the tunnel",
        Why::SameNode | Why::OutsideCluster | Why::Dropped | Why::Decrypted | Why::Unspecified => "by its place",
    }
}

/// What would make this node drop it.
fn would_drop(need: Need, ends: &Ends) -> Vec<String> {
    let Ends { side, sender, receiver } = ends;
    let plaintext =
        "plaintext between the two arrives from the wire (plaintext_to_protected, plaintext_from_protected)";
    match (side, need) {
        (Side::Neither, Need::Local) => vec![format!("nothing of this node: ask on {sender}")],
        (Side::Neither, _) => vec![format!("nothing of this node: ask on {sender} and on {receiver}")],
        (Side::Sender, Need::Encrypt(_)) => vec![
            format!("{receiver} stops publishing a usable key (no_peer)"),
            format!("{receiver} does not answer handshakes (handshake_failed, after 90 s)"),
            "this node's tunnel device is removed (plaintext_leaving)".into(),
            plaintext.into(),
        ],
        (Side::Receiver, Need::Encrypt(_) | Need::Shelter) => vec![
            format!("{sender} seals with a key that its Node object does not publish (unknown_sender)"),
            format!("{sender} seals an address that is not its own by the objects read here (source_not_allowed)"),
            "the receiver is not on this node any more (not_local)".into(),
            plaintext.into(),
        ],
        (Side::Sender, Need::Prefer) => {
            vec!["nothing because of encryption: permissive falls back to plaintext".into()]
        }
        (Side::Receiver, Need::Prefer) => vec!["nothing because of encryption: permissive accepts plaintext".into()],
        (Side::Sender, Need::Shelter) => {
            vec![format!("{receiver} does not answer handshakes (handshake_failed, after 90 s)")]
        }
        (_, Need::Local) => vec!["the pod sends from an address that is not its own (spoofed_source)".into()],
        (_, Need::World) => vec!["the objects have not all been read (not_ready), if the pod is opted in".into()],
        (Side::Sender, Need::Clear) => vec!["either end is opted in before the peer has a key (no_peer)".into()],
        (Side::Receiver, Need::Clear) => vec![format!(
            "either end is opted in, and {sender} goes on in the clear (plaintext_to_protected, plaintext_from_protected)"
        )],
    }
}

#[cfg(test)]
mod tests {
    use hauberk_abi::identity::{Identity, Protection};
    use hauberk_api::PartyKind;
    use hauberk_core::model::Change;
    use hauberk_core::objects::{NodeAddress, NodeObject};

    use super::*;

    fn ends(side: Side) -> Ends {
        Ends { side, sender: "n1".into(), receiver: "n2".into() }
    }

    fn resolved(address: &str) -> Resolved {
        let party = Party {
            asked: address.into(),
            address: address.parse().unwrap(),
            kind: PartyKind::Pod.into(),
            name: None,
            node: None,
            protection: Protection::Enabled,
            rule: String::new(),
            unmet: None,
        };
        Resolved { party, identity: Identity::WORLD }
    }

    #[test]
    fn the_tunnel_has_the_same_ends_wherever_it_is_asked_for() {
        let agent = crate::testing::agent("n2");
        for side in [Side::Sender, Side::Receiver, Side::Neither] {
            let (from, to) = (resolved("10.0.1.5"), resolved("10.0.2.5"));
            let text = sentence(&agent, &from, &to, Encryption::Encrypted, Why::SourceOptedIn, None, &ends(side));
            assert!(text.starts_with("10.0.1.5 to 10.0.2.5 is encrypted from n1 to n2: "), "{text}");
        }
    }

    #[test]
    fn what_would_drop_it_is_this_nodes_own() {
        let list = |side| would_drop(Need::Encrypt(Why::SourceOptedIn), &ends(side)).join("; ");
        assert!(list(Side::Sender).contains("n2 stops publishing") && list(Side::Sender).contains("plaintext_leaving"));
        let receiver = list(Side::Receiver);
        assert!(receiver.contains("n1 seals") && !receiver.contains("plaintext_leaving"), "{receiver}");
        assert!(list(Side::Neither).contains("ask on n1 and on n2"));
    }

    #[test]
    fn a_drop_ends_as_a_sentence_and_names_who_shares_an_address() {
        let mut agent = crate::testing::agent("n1");
        let told = |agent: &AgentState| {
            let (from, to) = (resolved("10.0.1.5"), resolved("192.0.2.100"));
            let drop = Some(DropReason::UnknownDestination);
            sentence(agent, &from, &to, Encryption::Refused, Why::Dropped, drop, &ends(Side::Sender))
        };
        assert!(told(&agent).ends_with("too wide?"), "{}", told(&agent));
        for name in ["n2", "n3"] {
            let addresses = vec![NodeAddress { address: "192.0.2.100".parse().unwrap(), internal: true }];
            let node = NodeObject { name: name.into(), addresses, ..NodeObject::default() };
            let _ = agent.model.apply(Change::Node(node));
        }
        let AgentState { desired, model, local, .. } = &mut agent;
        let _ = desired.follow(model, local);
        assert!(told(&agent).contains("n2 and n3 have 192.0.2.100"), "{}", told(&agent));
    }

    #[test]
    fn a_label_that_protects_nothing_is_the_reason_of_plaintext() {
        let agent = crate::testing::agent("n1");
        let (mut from, to) = (resolved("192.0.2.2"), resolved("192.0.2.1"));
        (from.party.name, from.party.unmet) = (Some("payments/hn".into()), Some(Protection::Enabled));
        let text = sentence(&agent, &from, &to, Encryption::Plain, Why::NotOptedIn, None, &ends(Side::Sender));
        assert!(text.contains("payments/hn is on its node's network"), "{text}");
    }
}
