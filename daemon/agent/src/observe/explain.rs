//! `hauberk explain`: the datapath's own rules applied to two parties, in words.

use hauberk_abi::address::Address;
use hauberk_abi::judge::{self, Need, Place};
use hauberk_abi::layout::{self, flag};
use hauberk_abi::reason::{DropReason, Encryption, Why};
use hauberk_core::api::Explanation;
use hauberk_core::explain::{ResolveError, Resolved, resolve_pair};
use hauberk_core::model::NodeNumber;

use super::{Eyes, drops, flows};
use crate::host::netfilter::firewall::Way;
use crate::world::{Shared, World, key_status};

/// The AEAD of every WireGuard packet (whitepaper, section 5.4).
const CIPHER: &str = "WireGuard (Noise IKpsk2, ChaCha20-Poly1305)";

/// What happens to packets from `source` to `destination`, each a pod, a node or an address.
///
/// # Errors
/// [`ResolveError`] if nobody, or more than one party, has that name.
pub fn explain(world: &Shared, eyes: &Eyes, source: &str, destination: &str) -> Result<Explanation, ResolveError> {
    let settings = eyes.maps().settings().unwrap_or_default();
    let world = world.read();
    let (from, to) = resolve_pair(&world.model, &world.policy, &world.desired, source, destination)?;
    let here = world.model.own_number();
    // The sender's node decides; where that is another one, the same rules apply there.
    let sender = if from.identity.node == 0 { here.0 } else { from.identity.node };
    let place = Place { node: sender, stack: settings.flags & flag::STACK != 0, carries_protected: false };
    let need = judge::need(&from.identity, &to.identity, &place);
    let other = if sender == here.0 { to.identity.node } else { from.identity.node };
    let peer = peer_of(&world, here, NodeNumber(if other == here.0 { sender } else { other }));
    let verdict = if matches!(need, Need::World) && from.identity.is_world() {
        // Nobody here sends it: the node of the other end says what becomes of it.
        let direct = settings.flags & flag::WORLD_DIRECT != 0;
        judge::arriving_in_clear(need, &from.identity, &to.identity, to.identity.node, direct)
    } else {
        judge::outgoing(need, &to.identity, &peer.entry)
    };
    let seen = last_proven(eyes, &from, &to, verdict.encryption);
    let encrypted = verdict.encryption == Encryption::Encrypted;
    let drop = verdict.is_refused().then_some(verdict.drop);
    let way = if sender != here.0 {
        Some(if encrypted_way(need) { Way::Opened } else { Way::Plain }).filter(|_| !to.identity.is_node())
    } else {
        (!from.identity.is_node() && to.identity.node != here.0).then_some(Way::Out)
    };
    let in_the_way = way.and_then(|way| Some(world.running.as_ref()?.firewalls.on(way))).unwrap_or_default();
    Ok(Explanation {
        sentence: sentence(&from, &to, verdict.encryption, verdict.why, drop, peer.name.as_deref()),
        encryption: verdict.encryption.as_str().into(),
        why: verdict.why.as_str().into(),
        drop: drop.map(|reason| reason.as_str().into()),
        peer: if matches!(need, Need::Local | Need::World) { None } else { peer.name.clone() },
        peer_key: if encrypted { peer.key } else { None },
        cipher: encrypted.then(|| CIPHER.to_owned()),
        would_drop: in_the_way.into_iter().chain(would_drop(need, peer.name.as_deref())).collect(),
        last_proven: seen,
        source: from.party,
        destination: to.party,
    })
}

/// Whether it comes out of the tunnel at its receiver.
fn encrypted_way(need: Need) -> bool {
    matches!(need, Need::Encrypt(_) | Need::Prefer | Need::Shelter)
}

struct PeerInWords {
    entry: layout::Peer,
    name: Option<String>,
    key: Option<hauberk_core::api::KeyStatus>,
}

fn peer_of(world: &World, here: NodeNumber, number: NodeNumber) -> PeerInWords {
    let name = (number != here).then(|| world.model.node_name(number).map(str::to_owned)).flatten();
    let entry = world.desired.peer_entries.get(&number).copied().unwrap_or_default();
    let key = world.desired.peers.get(&number).and_then(|peer| key_status(&peer.keys).into_iter().next());
    PeerInWords { entry, name, key }
}

fn last_proven(eyes: &Eyes, from: &Resolved, to: &Resolved, expected: Encryption) -> Option<jiff::Timestamp> {
    let source = Address::from(from.party.address);
    let destination = Address::from(to.party.address);
    let seen = flows::last_seen(eyes, source, destination).into_iter();
    seen.filter(|(_, encryption)| *encryption == expected).map(|(time, _)| time).max()
}

fn sentence(
    from: &Resolved,
    to: &Resolved,
    encryption: Encryption,
    why: Why,
    drop: Option<DropReason>,
    peer: Option<&str>,
) -> String {
    let name = |party: &hauberk_core::api::Party| party.name.clone().unwrap_or_else(|| party.address.to_string());
    let (from, to) = (name(&from.party), name(&to.party));
    let peer = peer.unwrap_or("the other node");
    match (encryption, drop) {
        (Encryption::Encrypted, _) => format!("{from} to {to} is encrypted to {peer}: {}.", reason_in_words(why)),
        (Encryption::Plain, _) => format!("{from} to {to} crosses the wire in the clear: {}.", reason_in_words(why)),
        (Encryption::Local, _) => format!("{from} to {to} stays on one node and never crosses the wire."),
        (Encryption::World, _) => format!("{from} to {to} leaves or enters the cluster: not hauberk's to encrypt."),
        (Encryption::Refused, drop) => {
            let reason = drop.unwrap_or(DropReason::Unspecified);
            format!("{from} to {to} is dropped ({reason}): {}.", drops::advice(reason))
        }
    }
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

fn would_drop(need: Need, peer: Option<&str>) -> Vec<String> {
    let peer = peer.unwrap_or("the other node");
    match need {
        Need::Encrypt(_) => vec![
            format!("{peer} stops publishing a usable key (no_peer)"),
            format!("{peer} does not answer handshakes (handshake_failed, after 90 s)"),
            "this node's tunnel device is removed (plaintext_leaving)".into(),
            format!(
                "plaintext between the two arrives from the wire at either node (plaintext_to_protected, plaintext_from_protected)"
            ),
        ],
        Need::Prefer => vec!["nothing because of encryption: permissive falls back to plaintext".into()],
        Need::Shelter => vec![format!("{peer} does not answer handshakes (handshake_failed, after 90 s)")],
        Need::Local => vec!["the pod sends from an address that is not its own (spoofed_source)".into()],
        Need::World => vec!["the objects have not all been read (not_ready), if the pod is opted in".into()],
        Need::Clear => vec!["either end is opted in before the peer has a key (no_peer)".into()],
    }
}
