//! The rules in `nft` syntax. Pure: takes the installed and the wanted state, and returns the text
//! of one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use ipnet::IpNet;

use super::{Abilities, Counters, Device, Ruleset, frames, stack};

/// The name of all tables.
pub(super) const TABLE: &str = "hauberk";

/// Probes a chain at a device's egress, on a device that always exists.
pub const EGRESS_PROBE: &str =
    "table netdev hauberk_probe {\n  chain probe {\n    type filter hook egress device \"lo\" priority 0;\n  }\n}\n";
/// Probes the matches that tell packets of the IP stack from those of packet sockets.
pub const ROUTING_PROBE: &str = "table netdev hauberk_probe {\n  chain probe {\n    type filter hook egress device \"lo\" priority 0;\n    \
     meta rtclassid 0-4294967295 accept\n    meta skuid 0-4294967294 drop\n  }\n}\n";
/// Probes chains at the ports of bridges.
pub const BRIDGE_PROBE: &str =
    "table bridge hauberk_probe {\n  chain probe {\n    type filter hook postrouting priority -300;\n  }\n}\n";

/// Accepts what stays on its link because no router forwards it: multicast of link scope and
/// neighbour discovery.
pub(super) const LINK_SCOPE: &str = "    ip daddr 224.0.0.0/24 accept\n    ip6 daddr { fe80::/10, ff01::/16, ff02::/16 } accept\n    \
     ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n";

/// Everything that the tables are built from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Tables {
    /// The ruleset as requested.
    pub(super) ruleset: Ruleset,
    /// The devices by which pods' packets may leave, as far as this kernel can guard them.
    pub(super) passable: BTreeSet<u32>,
    /// Devices that get a chain, by name.
    pub(super) devices: BTreeMap<String, Device>,
}

impl Tables {
    /// Whether only the sets and the devices' chains differ.
    pub(super) fn differs_in_sets_alone(&self, other: &Tables) -> bool {
        let (a, b) = (&self.ruleset, &other.ruleset);
        (a.mark_shift, &a.tunnel, &a.outward, &a.chained) == (b.mark_shift, &b.tunnel, &b.outward, &b.chained)
    }
}

/// Replaces all tables by the wanted ones, in one transaction.
pub(super) fn whole(tables: &Tables, counters: Counters, abilities: Abilities) -> String {
    let mut text = remove(abilities);
    stack::table(&tables.ruleset, &tables.passable, counters, &mut text);
    if abilities.egress {
        frames::guard_table(&tables.ruleset, &tables.devices, counters, abilities, &mut text);
    }
    if abilities.bridge {
        frames::bridge_table(&tables.ruleset, &tables.passable, &mut text);
    }
    text
}

/// Removes all tables. Each is added first, because deleting a missing table is an error.
pub(super) fn remove(abilities: Abilities) -> String {
    let mut text = String::new();
    for family in abilities.families() {
        let _ = writeln!(text, "add table {family} {TABLE}\ndelete table {family} {TABLE}");
    }
    text
}

/// The commands that change the sets, and the chains made from them, from `before` to `after`;
/// empty if there is no difference. `exists` says whether a device that is to be removed still
/// exists, and so its chain.
pub(super) fn difference(
    before: &Tables,
    after: &Tables,
    abilities: Abilities,
    exists: impl Fn(&str) -> bool,
) -> String {
    let mut text = String::new();
    let (old, new) = (&before.ruleset, &after.ruleset);
    set_difference("inet", "local", &old.local, &new.local, &mut text);
    set_difference("inet", "untranslated", &old.untranslated, &new.untranslated, &mut text);
    set_difference("inet", "pods", &old.guarded, &new.guarded, &mut text);
    if abilities.egress {
        frames::address_difference("netdev", &old.guarded, &new.guarded, "packet_socket", &mut text);
        for (name, device) in &after.devices {
            if before.devices.get(name) != Some(device) {
                frames::put_device(new, name, *device, abilities, &mut text);
            }
        }
    }
    if abilities.bridge {
        set_difference("bridge", "pods", &old.guarded, &new.guarded, &mut text);
        frames::address_difference("bridge", &old.guarded, &new.guarded, "unguarded_device", &mut text);
        index_difference("bridge", &before.passable, &after.passable, &mut text);
    }
    index_difference("inet", &before.passable, &after.passable, &mut text);
    if abilities.egress {
        let gone = before.devices.keys().filter(|name| !after.devices.contains_key(*name));
        for name in gone.filter(|name| exists(name)) {
            frames::remove_device(name, &mut text);
        }
    }
    text
}

/// Writes a set of interface indices.
pub(super) fn index_set(name: &str, indices: &BTreeSet<u32>, text: &mut String) {
    let _ = write!(text, "  set {name} {{\n    type iface_index;\n");
    if !indices.is_empty() {
        let _ = writeln!(text, "    elements = {{ {} }}", index_list(indices.iter()));
    }
    text.push_str("  }\n");
}

fn index_difference(family: &str, before: &BTreeSet<u32>, after: &BTreeSet<u32>, text: &mut String) {
    let set = format!("{family} {TABLE} passable");
    let (new, gone) = (index_list(after.difference(before)), index_list(before.difference(after)));
    if !new.is_empty() {
        let _ = writeln!(text, "add element {set} {{ {new} }}");
    }
    if !gone.is_empty() {
        let _ = writeln!(text, "delete element {set} {{ {gone} }}");
    }
}

fn index_list<'a>(indices: impl Iterator<Item = &'a u32>) -> String {
    indices.map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// Writes a set of ranges, one for each family.
pub(super) fn sets(name: &str, ranges: &BTreeSet<IpNet>, text: &mut String) {
    for (suffix, kind, ranges) in families(ranges) {
        let _ = write!(text, "  set {name}{suffix} {{\n    type {kind}; flags interval;\n");
        if !ranges.is_empty() {
            let _ = writeln!(text, "    elements = {{ {} }}", list(&ranges));
        }
        text.push_str("  }\n");
    }
}

fn set_difference(family: &str, name: &str, before: &BTreeSet<IpNet>, after: &BTreeSet<IpNet>, text: &mut String) {
    for ((suffix, _, before), (_, _, after)) in families(before).into_iter().zip(families(after)) {
        let gone: BTreeSet<IpNet> = before.difference(&after).copied().collect();
        let new: BTreeSet<IpNet> = after.difference(&before).copied().collect();
        if gone.is_empty() && new.is_empty() {
            continue;
        }
        let set = format!("{family} {TABLE} {name}{suffix}");
        let overlap = gone.iter().any(|g| new.iter().any(|n| g.contains(n) || n.contains(g)));
        if overlap {
            // Kernels differ in how they treat an interval that replaces an overlapping one.
            // Refilling the whole set is atomic as well.
            let _ = writeln!(text, "flush set {set}");
            let _ = writeln!(text, "add element {set} {{ {} }}", list(&after));
            continue;
        }
        if !new.is_empty() {
            let _ = writeln!(text, "add element {set} {{ {} }}", list(&new));
        }
        if !gone.is_empty() {
            let _ = writeln!(text, "delete element {set} {{ {} }}", list(&gone));
        }
    }
}

/// The ranges of each family, minimal: a set has no overlapping intervals.
fn families(ranges: &BTreeSet<IpNet>) -> [(u8, &'static str, BTreeSet<IpNet>); 2] {
    let (v4, v6) = minimal(ranges).into_iter().partition(|range| range.addr().is_ipv4());
    [(4, "ipv4_addr", v4), (6, "ipv6_addr", v6)]
}

/// The ranges that no other range covers. Adjacent ranges are not merged, so that adding one
/// changes no other.
pub(super) fn minimal(ranges: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    // Sorted by network, then by length: a covering range comes before the covered one, and only
    // the last kept range can be it.
    let mut sorted: Vec<IpNet> = ranges.iter().map(IpNet::trunc).collect();
    sorted.sort_by_key(|range| (range.network(), range.prefix_len()));
    let mut kept: Vec<IpNet> = Vec::new();
    for range in sorted {
        if !kept.last().is_some_and(|last| last.contains(&range)) {
            kept.push(range);
        }
    }
    kept.into_iter().collect()
}

fn list(ranges: &BTreeSet<IpNet>) -> String {
    ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn ranges(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|range| range.parse().unwrap()).collect()
    }

    #[test]
    fn covered_ranges_are_left_out() {
        let all = ranges(&["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/24", "11.0.0.0/8", "fd00::/48", "fd00::1/128"]);
        assert_eq!(minimal(&all), ranges(&["10.0.0.0/8", "11.0.0.0/8", "fd00::/48"]));
    }

    const ALL: Abilities = Abilities { egress: true, routing: true, bridge: true };

    fn tables(ruleset: Ruleset) -> Tables {
        Tables { ruleset, ..Tables::default() }
    }

    fn change(before: &Tables, after: &Tables) -> String {
        difference(before, after, ALL, |_| true)
    }

    #[test]
    fn a_new_node_is_one_element_and_nothing_is_emptied() {
        let all = ["10.0.0.0/8", "192.168.0.1/32", "192.168.0.2/32"];
        let before = tables(Ruleset { untranslated: ranges(&all[..2]), ..Ruleset::default() });
        let after = tables(Ruleset { untranslated: ranges(&all), ..Ruleset::default() });
        assert_eq!(change(&before, &after), "add element inet hauberk untranslated4 { 192.168.0.2/32 }\n");
        assert_eq!(change(&after, &before), "delete element inet hauberk untranslated4 { 192.168.0.2/32 }\n");
        assert_eq!(change(&after, &after), "");
    }

    #[test]
    fn an_overlapping_change_replaces_the_set_in_the_transaction() {
        let before = tables(Ruleset { guarded: ranges(&["10.0.0.0/8"]), ..Ruleset::default() });
        let after = tables(Ruleset { guarded: ranges(&["10.0.0.0/16"]), ..Ruleset::default() });
        let text = change(&before, &after);
        assert!(
            text.starts_with("flush set inet hauberk pods4\nadd element inet hauberk pods4 { 10.0.0.0/16 }\n"),
            "{text}"
        );
        assert!(text.contains("flush chain netdev hauberk tagged\nadd rule"), "{text}");
        assert!(text.contains("flush chain bridge hauberk tagged\nadd rule"), "{text}");
        let bare = Abilities { egress: false, routing: false, bridge: false };
        let text = difference(&before, &after, bare, |_| true);
        assert!(!text.contains("netdev") && !text.contains("bridge"), "{text}");
    }

    #[test]
    fn a_device_gets_its_chain_before_packets_may_leave_by_it_and_no_table_is_replaced() {
        let device = Device { index: 7, keeps_routes: true, ethernet: true };
        let without = Tables::default();
        let with = Tables { passable: [7].into(), devices: [("eth1".to_owned(), device)].into(), ..Tables::default() };
        let text = change(&without, &with);
        let chain = text.find("add chain netdev hauberk egress_eth1").unwrap();
        assert!(chain < text.find("add element inet hauberk passable { 7 }").unwrap(), "{text}");
        assert!(chain < text.find("add element bridge hauberk passable { 7 }").unwrap(), "{text}");
        let text = change(&with, &without);
        let shut = text.find("delete element inet hauberk passable { 7 }").unwrap();
        assert!(shut < text.find("delete chain netdev hauberk egress_eth1").unwrap(), "{text}");
        assert!(!difference(&with, &without, ALL, |_| false).contains("chain"), "its chain went with it");
        // Another device of the same name.
        let again = Device { index: 9, ..device };
        let again = Tables { passable: [9].into(), devices: [("eth1".to_owned(), again)].into(), ..Tables::default() };
        let text = change(&with, &again);
        assert!(text.contains("flush chain netdev hauberk egress_eth1\nadd rule"), "{text}");
        assert!(!text.contains("delete chain"), "{text}");
    }

    fn any_ranges() -> impl Strategy<Value = BTreeSet<IpNet>> {
        let range = (any::<u8>(), 4u8..=32)
            .prop_map(|(a, length)| IpNet::new(IpAddr::V4([10, a & 3, a, 0].into()), length).unwrap());
        proptest::collection::btree_set(range, 0..12)
    }

    proptest! {
        #[test]
        fn minimal_ranges_cover_the_same_and_do_not_overlap(all in any_ranges()) {
            let kept = minimal(&all);
            prop_assert!(all.iter().all(|range| kept.iter().any(|k| k.contains(range))));
            prop_assert!(kept.iter().all(|a| kept.iter().all(|b| a == b || !a.contains(b))));
        }

        #[test]
        fn a_difference_is_empty_only_if_the_sets_cover_the_same(before in any_ranges(), after in any_ranges()) {
            let same = minimal(&before) == minimal(&after);
            let of = |local| tables(Ruleset { local, ..Ruleset::default() });
            prop_assert_eq!(change(&of(before), &of(after)).is_empty(), same);
        }
    }
}
