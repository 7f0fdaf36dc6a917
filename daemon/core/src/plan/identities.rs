//! The order of changes to ENDPOINTS and RANGES.
//!
//! What an address resolves to depends on several entries at once, so an order by entry is not
//! enough:
//!
//! - First the stricter ones: only entries that make no address less strict than it is now.
//! - Then the others. Longer prefixes are put before shorter ones, and shorter ones are removed
//!   before longer ones, so that an entry that becomes visible for an address is also the one that
//!   decides in the end: each address changes once.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::Identity;
use ipnet::IpNet;

use crate::desired::Desired;
use crate::lookup::{Ranges, truncate};
use crate::plan::{Order, Scope};
use crate::words::{identity_in_words as in_words, prefix_in_words};

/// A change of what the datapath knows about addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityStep {
    /// ENDPOINTS: this address has that identity.
    PutEndpoint(Address, Identity),
    /// ENDPOINTS: no party is known to have this address any more; its range decides.
    RemoveEndpoint(Address),
    /// RANGES: an address in this range that is no endpoint has that identity.
    PutRange(Prefix, Identity),
    /// RANGES: remove the range.
    RemoveRange(Prefix),
    /// Destinations that netfilter must not masquerade.
    SetUntranslated(BTreeSet<IpNet>),
    /// SETTINGS: whether every source has been read once.
    SetSynced(bool),
}

impl IdentityStep {
    pub(super) fn object(&self) -> String {
        match self {
            IdentityStep::PutEndpoint(address, _) | IdentityStep::RemoveEndpoint(address) => {
                format!("address/{address}")
            }
            IdentityStep::PutRange(range, _) | IdentityStep::RemoveRange(range) => format!("range/{}", range.address),
            IdentityStep::SetUntranslated(_) => "netfilter".into(),
            IdentityStep::SetSynced(_) => "settings".into(),
        }
    }
}

impl fmt::Display for IdentityStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityStep::PutEndpoint(address, identity) => {
                write!(f, "put endpoint {address}: {}", in_words(*identity))
            }
            IdentityStep::RemoveEndpoint(address) => write!(f, "remove endpoint {address}"),
            IdentityStep::PutRange(prefix, identity) => {
                write!(f, "put range {}: {}", prefix_in_words(*prefix), in_words(*identity))
            }
            IdentityStep::RemoveRange(prefix) => write!(f, "remove range {}", prefix_in_words(*prefix)),
            IdentityStep::SetUntranslated(untranslated) => {
                write!(f, "exempt {} prefixes from translation", untranslated.len())
            }
            IdentityStep::SetSynced(synced) => write!(f, "set synced to {synced}"),
        }
    }
}

/// What the kernel holds about addresses.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Identities {
    /// ENDPOINTS.
    pub endpoints: BTreeMap<Address, Identity>,
    /// RANGES.
    pub ranges: BTreeMap<Prefix, Identity>,
    /// Destinations that netfilter does not masquerade.
    pub untranslated: BTreeSet<IpNet>,
    /// `flag::SYNCED` in SETTINGS.
    pub synced: bool,
}

impl Identities {
    /// The identity of an address, looked up as the datapath does.
    pub fn resolve(&self, address: Address) -> Identity {
        self.endpoints.get(&address).copied().unwrap_or_else(|| Ranges::new(&self.ranges).identity(address))
    }

    /// How strictly packets of the address are judged: the higher, the stricter.
    pub fn strictness(&self, address: Address) -> u8 {
        strictness(self.resolve(address))
    }

    pub(super) fn apply(&mut self, step: &IdentityStep) {
        match step {
            IdentityStep::PutEndpoint(address, identity) => {
                self.endpoints.insert(*address, *identity);
            }
            IdentityStep::RemoveEndpoint(address) => {
                self.endpoints.remove(address);
            }
            IdentityStep::PutRange(prefix, identity) => {
                self.ranges.insert(*prefix, *identity);
            }
            IdentityStep::RemoveRange(prefix) => {
                self.ranges.remove(prefix);
            }
            IdentityStep::SetUntranslated(untranslated) => self.untranslated.clone_from(untranslated),
            IdentityStep::SetSynced(synced) => self.synced = *synced,
        }
    }
}

/// How strictly packets of an address are judged: world, cluster, permissive, enabled or unknown,
/// in this order.
pub(crate) fn strictness(identity: Identity) -> u8 {
    if identity.is_world() { 0 } else { 1 + identity.protection() as u8 }
}

/// The steps from one pair of maps to the other.
pub(super) fn order(actual: &Identities, desired: &Desired, scope: &Scope) -> Order<IdentityStep> {
    let mut order = Order::default();
    let mut ranges = Cow::Borrowed(&actual.ranges);
    let mut late_ranges = Vec::new();
    if scope.is_everything() {
        late_ranges = put_strict_ranges(desired, ranges.to_mut(), &mut order.stricter);
    }
    let lookup = Ranges::new(&ranges);
    let mut late_endpoints = Vec::new();
    for (address, identity) in scope.endpoints_of(&desired.endpoints) {
        let now = actual.endpoints.get(address).copied();
        if now == Some(*identity) {
            continue;
        }
        let step = IdentityStep::PutEndpoint(*address, *identity);
        if strictness(*identity) >= strictness(now.unwrap_or_else(|| lookup.identity(*address))) {
            order.stricter.push(step);
        } else {
            late_endpoints.push(step);
        }
    }
    let mut late_removals = Vec::new();
    let gone = scope.endpoints_of(&actual.endpoints).filter(|(address, _)| !desired.endpoints.contains_key(*address));
    for (address, identity) in gone {
        let step = IdentityStep::RemoveEndpoint(*address);
        // When an unprotected pod is gone, its address becomes unknown and is therefore protected.
        if desired.prune && strictness(lookup.identity(*address)) > strictness(*identity) {
            order.stricter.push(step);
        } else {
            late_removals.push(step);
        }
    }
    order.weaker.extend(late_endpoints);
    order.weaker.extend(late_ranges.into_iter().map(|(prefix, identity)| IdentityStep::PutRange(prefix, identity)));
    if scope.is_everything() {
        // Prefixes sort by length first, so shorter ones are removed first.
        let gone = actual.ranges.keys().filter(|prefix| !desired.ranges.contains_key(prefix));
        order.weaker.extend(gone.copied().map(IdentityStep::RemoveRange));
    }
    order.weaker.extend(late_removals);
    if scope.is_everything() || scope.untranslated {
        if !desired.untranslated.is_subset(&actual.untranslated) {
            let both = actual.untranslated.union(&desired.untranslated).copied().collect();
            order.stricter.push(IdentityStep::SetUntranslated(both));
        }
        if !actual.untranslated.is_subset(&desired.untranslated) {
            order.weaker.push(IdentityStep::SetUntranslated(desired.untranslated.clone()));
        }
    }
    order
}

/// Puts every range that makes nothing less strict, and returns the others, longest first.
fn put_strict_ranges(
    desired: &Desired,
    ranges: &mut BTreeMap<Prefix, Identity>,
    steps: &mut Vec<IdentityStep>,
) -> Vec<(Prefix, Identity)> {
    let mut puts: Vec<(Prefix, Identity)> = desired
        .ranges
        .iter()
        .filter(|(prefix, identity)| ranges.get(prefix) != Some(identity))
        .map(|(prefix, identity)| (*prefix, *identity))
        .collect();
    // The strictest first, so that a later range that would open a hole in one of them is noticed;
    // then the longest.
    puts.sort_by_key(|(prefix, identity)| std::cmp::Reverse((strictness(*identity), *prefix)));
    let mut late = Vec::new();
    for (prefix, identity) in puts {
        let covering = (0..=prefix.length).filter_map(|length| ranges.get(&truncate(prefix.address, length)));
        if covering.map(|covering| strictness(*covering)).max() > Some(strictness(identity)) {
            late.push((prefix, identity));
        } else {
            steps.push(IdentityStep::PutRange(prefix, identity));
            ranges.insert(prefix, identity);
        }
    }
    late.sort_by_key(|(prefix, _)| std::cmp::Reverse(*prefix));
    late
}
