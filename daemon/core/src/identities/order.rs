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
use std::collections::BTreeMap;

use hauberk_abi::address::Prefix;
use hauberk_abi::identity::Identity;

use crate::identities::{Identities, IdentityStep, Scope, strictness};
use crate::lookup::{Ranges, truncate};
use crate::order::Order;

/// The steps from one pair of maps to the other.
pub(crate) fn order(actual: &Identities, desired: &Identities, scope: &Scope) -> Order<IdentityStep> {
    let mut order = Order::default();
    let mut ranges = Cow::Borrowed(&actual.ranges);
    let mut late_ranges = Vec::new();
    if scope.ranges {
        late_ranges = put_strict_ranges(desired, ranges.to_mut(), &mut order.stricter);
    }
    let lookup = Ranges::new(&ranges);
    let mut late_endpoints = Vec::new();
    for (address, identity) in scope.endpoints.of(&desired.endpoints) {
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
    let gone = scope.endpoints.of(&actual.endpoints).filter(|(address, _)| !desired.endpoints.contains_key(*address));
    for (address, identity) in gone {
        let step = IdentityStep::RemoveEndpoint(*address);
        // When an unprotected pod is gone, its address becomes unknown and is therefore protected.
        if desired.synced && strictness(lookup.identity(*address)) > strictness(*identity) {
            order.stricter.push(step);
        } else {
            late_removals.push(step);
        }
    }
    order.weaker.extend(late_endpoints);
    order.weaker.extend(late_ranges.into_iter().map(|(prefix, identity)| IdentityStep::PutRange(prefix, identity)));
    if scope.ranges {
        // Prefixes sort by length first, so shorter ones are removed first.
        let gone = actual.ranges.keys().filter(|prefix| !desired.ranges.contains_key(prefix));
        order.weaker.extend(gone.copied().map(IdentityStep::RemoveRange));
    }
    order.weaker.extend(late_removals);
    if scope.untranslated {
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
    desired: &Identities,
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
