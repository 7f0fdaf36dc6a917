//! Turns a batch of changes into the configuration that each touched peer should have, or refuses
//! all of it.
//!
//! Pure: reads the installed peers and changes nothing. Two peers never have one prefix or key at
//! the same time, not even while a plan is carried out, so a batch may move either from one peer to
//! another.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use ipnet::IpNet;
use x25519_dalek::PublicKey;

use super::identity::Identity;
use crate::allowed::AllowedIps;
use crate::config::{PeerChange, PeerConfig, PeerId, PeerKey};
use crate::error::Error;

/// The configuration that each touched peer should have; `None` removes the peer.
pub(crate) type Plan = BTreeMap<PeerId, Option<PeerConfig>>;

/// What is installed now.
pub(super) struct Installed<'a> {
    pub(super) config: &'a dyn Fn(PeerId) -> Option<&'a PeerConfig>,
    pub(super) allowed: &'a AllowedIps,
    pub(super) by_key: &'a HashMap<[u8; 32], PeerId>,
    pub(super) identities: &'a [Arc<Identity>],
}

/// Makes the plan, or says which change is impossible.
pub(super) fn plan(changes: Vec<PeerChange>, installed: &Installed<'_>) -> Result<Plan, Error> {
    let mut plan = Plan::new();
    for change in changes {
        match change {
            PeerChange::Put(config) => {
                let config = normalize(config, installed.identities)?;
                plan.insert(config.id, Some(config));
            }
            PeerChange::Remove(id) => {
                plan.insert(id, None);
            }
            PeerChange::Allowed { id, add, remove } => {
                let config = planned(&mut plan, installed, id)?;
                let gone: Vec<_> = remove.iter().map(IpNet::trunc).collect();
                config.allowed.retain(|prefix| !gone.contains(prefix));
                config.allowed.extend(add);
                canonicalize(&mut config.allowed);
            }
            PeerChange::Endpoint { id, endpoint } => planned(&mut plan, installed, id)?.endpoint = endpoint,
        }
    }
    let conflict = |id: PeerId| match plan.get(&id) {
        Some(Some(config)) => config.name.clone(),
        _ => (installed.config)(id).map_or_else(|| id.to_string(), |config| config.name.clone()),
    };
    let prefixes = |config: &PeerConfig| config.allowed.clone();
    if let Some((prefix, owner, claimant)) = first_conflict(&plan, prefixes, |prefix| installed.allowed.owner(*prefix))
    {
        return Err(Error::PrefixConflict { prefix, owner: conflict(owner), claimant: conflict(claimant) });
    }
    let keys = |config: &PeerConfig| config.keys.iter().map(|key| key.public).collect();
    if let Some((_, owner, claimant)) = first_conflict(&plan, keys, |key| installed.by_key.get(key).copied()) {
        return Err(Error::KeyConflict { owner: conflict(owner), claimant: conflict(claimant) });
    }
    Ok(plan)
}

/// The peer's configuration as planned so far.
fn planned<'p>(plan: &'p mut Plan, installed: &Installed<'_>, id: PeerId) -> Result<&'p mut PeerConfig, Error> {
    plan.entry(id).or_insert_with(|| (installed.config)(id).cloned()).as_mut().ok_or(Error::UnknownPeer { id })
}

/// The first thing that two peers would have, with the peer that has it and the one that also
/// claims it.
fn first_conflict<T: Copy + Eq + Hash>(
    plan: &Plan,
    things: impl Fn(&PeerConfig) -> Vec<T>,
    owner: impl Fn(&T) -> Option<PeerId>,
) -> Option<(T, PeerId, PeerId)> {
    let mut claimed = HashMap::new();
    for (id, config) in plan {
        for thing in config.iter().flat_map(&things) {
            if let Some(first) = claimed.insert(thing, *id)
                && first != *id
            {
                return Some((thing, first, *id));
            }
            // If the owner is also in the plan, it has given the thing up, or claims it above.
            if let Some(owner) = owner(&thing)
                && owner != *id
                && !plan.contains_key(&owner)
            {
                return Some((thing, owner, *id));
            }
        }
    }
    None
}

fn normalize(mut config: PeerConfig, identities: &[Arc<Identity>]) -> Result<PeerConfig, Error> {
    config.keys.sort_by_key(|key| std::cmp::Reverse(key.epoch));
    if let Some(reason) = unusable_keys(&config.keys, identities) {
        return Err(Error::PeerKeys { id: config.id, name: config.name, reason });
    }
    canonicalize(&mut config.allowed);
    Ok(config)
}

/// Why these keys cannot be a peer's; none if they can.
pub(super) fn unusable_keys(keys: &[PeerKey], identities: &[Arc<Identity>]) -> Option<&'static str> {
    match keys {
        [] => return Some("it has no key: has its agent published one?"),
        [_] => {}
        [first, second] if first.epoch == second.epoch => return Some("both of its keys have the same epoch"),
        [first, second] if first.public == second.public => return Some("both of its keys are the same"),
        [_, _] => {}
        _ => return Some("it has more than two keys"),
    }
    for key in keys {
        let public = PublicKey::from(key.public);
        if identities.iter().any(|identity| identity.public == public) {
            return Some("its public key is our own: one node copied the other's state directory");
        }
        if identities.iter().any(|identity| !identity.secret.diffie_hellman(&public).was_contributory()) {
            return Some("its public key is of small order, which no honest key is");
        }
    }
    None
}

/// Brings a set of prefixes into one form: host bits cleared, sorted, without duplicates.
fn canonicalize(prefixes: &mut Vec<IpNet>) {
    for prefix in prefixes.iter_mut() {
        *prefix = prefix.trunc();
    }
    prefixes.sort();
    prefixes.dedup();
}
