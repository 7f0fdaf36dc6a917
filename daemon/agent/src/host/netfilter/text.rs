//! The rules as `nft` reads them. Pure: what is in force and what should be goes in, one transaction's text comes out.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use hauberk_abi::layout::mark;
use ipnet::IpNet;

use super::{Beside, Counters, Ruleset};

/// The name of both tables.
pub(super) const TABLE: &str = "hauberk";
/// A chain of the kind the guard needs, on a device that always exists.
pub(crate) const EGRESS_PROBE: &str =
    "table netdev hauberk_probe {\n  chain probe {\n    type filter hook egress device \"lo\" priority 0;\n  }\n}\n";

/// Replaces both tables by what they should be, in one transaction.
pub(super) fn whole(ruleset: &Ruleset, counters: Counters, with_guard: bool) -> String {
    let mut text = remove_stack().to_owned();
    stack_table(ruleset, counters, &mut text);
    if with_guard {
        text.push_str(remove_guard());
        guard_table(ruleset, counters, &mut text);
    }
    text
}

/// Removes `inet hauberk`; adding it first makes that right when it is not there.
pub(super) fn remove_stack() -> &'static str {
    "add table inet hauberk\ndelete table inet hauberk\n"
}

/// Removes `netdev hauberk`, likewise.
pub(super) fn remove_guard() -> &'static str {
    "add table netdev hauberk\ndelete table netdev hauberk\n"
}

/// What changes the sets (and the rules made from one) from `before` to `after`; empty if nothing does.
pub(super) fn difference(before: &Ruleset, after: &Ruleset, with_guard: bool) -> String {
    let mut text = String::new();
    set_difference("inet", "local", &before.local, &after.local, &mut text);
    set_difference("inet", "untranslated", &before.untranslated, &after.untranslated, &mut text);
    if after.chained.is_some() {
        set_difference("inet", "pods", &before.guarded, &after.guarded, &mut text);
    }
    if with_guard {
        set_difference("netdev", "guarded", &before.guarded, &after.guarded, &mut text);
        if tagged_rules(&before.guarded) != tagged_rules(&after.guarded) {
            let _ = writeln!(text, "flush chain netdev {TABLE} tagged");
            for rule in tagged_rules(&after.guarded) {
                let _ = writeln!(text, "add rule netdev {TABLE} tagged {rule}");
            }
        }
    }
    text
}

fn stack_table(ruleset: &Ruleset, counters: Counters, text: &mut String) {
    let stack = mark::STACK << ruleset.mark_shift;
    let uplinks = ruleset.uplinks.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let _ = writeln!(text, "table inet {TABLE} {{");
    sets("local", &ruleset.local, text);
    sets("untranslated", &ruleset.untranslated, text);
    // Before source translation (100), so that what a translation rule accepts is marked too.
    let _ = writeln!(
        text,
        "  chain mark_stack {{\n    type filter hook postrouting priority srcnat - 10; policy accept;\n    meta mark set meta mark | {stack:#x}\n  }}"
    );
    let _ = writeln!(text, "  chain to_world {{\n    type nat hook postrouting priority srcnat; policy accept;");
    if !uplinks.is_empty() {
        for (protocol, suffix) in [("ip", 4), ("ip6", 6)] {
            let _ = writeln!(
                text,
                "    oifname {{ {uplinks} }} {protocol} saddr @local{suffix} {protocol} daddr != @untranslated{suffix} masquerade"
            );
        }
    }
    text.push_str("  }\n");
    if let Some(beside) = &ruleset.chained {
        beside_chains(ruleset, beside, counters, &uplinks, text);
    }
    text.push_str("}\n");
}

/// Headers of a TCP segment without options, bytes (RFC 9293 section 3.7.1), by family.
const TCP_HEADERS: [(&str, u8, u32); 2] = [("ip", 4, 40), ("ip6", 6, 60)];
/// Devices that put packets into packets (rtnetlink's names).
const OVERLAYS: &str =
    r#"{ "vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "ipip", "sit", "ip6tnl", "gre", "ip6gre" }"#;

/// What is needed beside another plugin's network.
fn beside_chains(ruleset: &Ruleset, beside: &Beside, counters: Counters, uplinks: &str, text: &mut String) {
    sets("pods", &ruleset.guarded, text);
    // An overlay that was made anew has no guard for a moment.
    let guarded = beside.guarded.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let unguarded = if guarded.is_empty() { String::new() } else { format!("oif != {{ {guarded} }} ") };
    let _ = writeln!(text, "  counter unguarded_overlay {{ packets {} bytes 0; }}", counters.unguarded_overlay);
    text.push_str("  chain unguarded {\n    type filter hook postrouting priority raw; policy accept;\n");
    for (protocol, suffix, _) in TCP_HEADERS {
        for end in ["saddr", "daddr"] {
            let _ = writeln!(
                text,
                "    meta oifkind {OVERLAYS} {unguarded}{protocol} {end} @pods{suffix} counter name unguarded_overlay drop"
            );
        }
    }
    text.push_str("  }\n");
    // Translated to what it was: later rules for sources are passed over then. What was sent to a service may need its
    // source translated so that the reply comes back here.
    let (protected, decrypted) = (mark::PROTECTED << ruleset.mark_shift, mark::DECRYPTED << ruleset.mark_shift);
    text.push_str("  chain keep_source {\n    type nat hook postrouting priority srcnat - 5; policy accept;\n");
    for (protocol, suffix, _) in TCP_HEADERS {
        let kept = format!("ct status & dnat == 0 snat {protocol} to {protocol} saddr");
        if !uplinks.is_empty() {
            let _ = writeln!(
                text,
                "    oifname {{ {uplinks} }} meta mark & {protected:#x} != 0 {protocol} saddr @pods{suffix} \
                 {protocol} daddr @untranslated{suffix} {kept}"
            );
        }
        let _ = writeln!(text, "    meta mark & {decrypted:#x} != 0 {protocol} daddr @untranslated{suffix} {kept}");
    }
    text.push_str("  }\n");
    text.push_str("  chain segment_size {\n    type filter hook postrouting priority mangle; policy accept;\n");
    for (protocol, suffix, headers) in TCP_HEADERS {
        let size = beside.tunnel_mtu.saturating_sub(headers);
        for (source, destination) in [("pods", "untranslated"), ("untranslated", "pods")] {
            if !uplinks.is_empty() {
                let _ = writeln!(
                    text,
                    "    oifname {{ {uplinks} }} tcp flags & (syn | rst) == syn {protocol} saddr @{source}{suffix} \
                     {protocol} daddr @{destination}{suffix} tcp option maxseg size set {size}"
                );
            }
        }
    }
    text.push_str("  }\n");
}

fn guard_table(ruleset: &Ruleset, counters: Counters, text: &mut String) {
    let expected = (mark::STACK | mark::SEEN) << ruleset.mark_shift;
    let _ = writeln!(text, "table netdev {TABLE} {{");
    let _ = writeln!(text, "  counter packet_socket {{ packets {} bytes 0; }}", counters.packet_socket);
    sets("guarded", &ruleset.guarded, text);
    text.push_str("  chain tagged {\n");
    for rule in tagged_rules(&ruleset.guarded) {
        let _ = writeln!(text, "    {rule}");
    }
    text.push_str("  }\n");
    for (number, uplink) in ruleset.uplinks.iter().enumerate() {
        let _ = writeln!(
            text,
            "  chain egress_{number} {{\n    type filter hook egress device \"{uplink}\" priority 0; policy accept;\n    \
             meta mark & {expected:#x} != 0 accept"
        );
        for (protocol, suffix) in [("ip", 4), ("ip6", 6)] {
            for end in ["saddr", "daddr"] {
                let _ = writeln!(text, "    {protocol} {end} @guarded{suffix} counter name packet_socket drop");
            }
        }
        text.push_str("    meta protocol { 0x8100, 0x88a8 } jump tagged\n  }\n");
    }
    text.push_str("}\n");
}

/// Rules for frames that carry their VLAN tag in the frame (one that the device inserts is not there yet, and the frame is
/// matched as if it had none). A set cannot be asked for raw bytes in every nftables that is about, hence a rule each.
fn tagged_rules(ranges: &BTreeSet<IpNet>) -> Vec<String> {
    // Bits from the start of the frame: two MAC addresses, the tag's type and value, then the type of what it carries.
    const INNER_TYPE: usize = 16 * 8;
    const INNER: usize = 18 * 8;
    let mut rules = Vec::new();
    for range in minimal(ranges) {
        let bits = usize::from(range.prefix_len());
        let (ether_type, source, destination) = match range {
            IpNet::V4(_) => ("0x0800", INNER + 12 * 8, INNER + 16 * 8),
            IpNet::V6(_) => ("0x86dd", INNER + 8 * 8, INNER + 24 * 8),
        };
        for end in [source, destination] {
            let value = significant(&range);
            rules.push(format!(
                "@ll,{INNER_TYPE},16 {ether_type} @ll,{end},{bits} {value} counter name packet_socket drop"
            ));
        }
    }
    rules
}

/// A prefix's bits as a number of that many bits.
fn significant(range: &IpNet) -> String {
    let bits = u32::from(range.prefix_len());
    match range.network() {
        IpAddr::V4(v4) => format!("{:#x}", u32::from(v4).checked_shr(32 - bits).unwrap_or(0)),
        IpAddr::V6(v6) => format!("{:#x}", u128::from(v6).checked_shr(128 - bits).unwrap_or(0)),
    }
}

fn sets(name: &str, ranges: &BTreeSet<IpNet>, text: &mut String) {
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
            // Kernels differ in what they think of an interval that replaces one it overlaps. All anew is atomic as well.
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

/// Both families' shares, without what others cover: a set has no overlapping intervals.
fn families(ranges: &BTreeSet<IpNet>) -> [(u8, &'static str, BTreeSet<IpNet>); 2] {
    let (v4, v6) = minimal(ranges).into_iter().partition(|range| range.addr().is_ipv4());
    [(4, "ipv4_addr", v4), (6, "ipv6_addr", v6)]
}

/// The ranges that no other covers. Neighbours are not joined, so that adding one changes no other.
fn minimal(ranges: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    // Sorted by network, then by length: what covers a range comes before it, and only the last one kept can.
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

    #[test]
    fn a_new_node_is_one_element_and_nothing_is_emptied() {
        let before = Ruleset { untranslated: ranges(&["10.0.0.0/8", "192.168.0.1/32"]), ..Ruleset::default() };
        let after =
            Ruleset { untranslated: ranges(&["10.0.0.0/8", "192.168.0.1/32", "192.168.0.2/32"]), ..Ruleset::default() };
        assert_eq!(difference(&before, &after, true), "add element inet hauberk untranslated4 { 192.168.0.2/32 }\n");
        assert_eq!(difference(&after, &before, true), "delete element inet hauberk untranslated4 { 192.168.0.2/32 }\n");
        assert_eq!(difference(&after, &after, true), "");
    }

    #[test]
    fn an_overlapping_change_replaces_the_set_in_the_transaction() {
        let before = Ruleset { guarded: ranges(&["10.0.0.0/8"]), ..Ruleset::default() };
        let after = Ruleset { guarded: ranges(&["10.0.0.0/16"]), ..Ruleset::default() };
        let text = difference(&before, &after, true);
        assert!(
            text.starts_with(
                "flush set netdev hauberk guarded4\nadd element netdev hauberk guarded4 { 10.0.0.0/16 }\n"
            ),
            "{text}"
        );
        assert!(text.contains("flush chain netdev hauberk tagged\nadd rule"), "{text}");
        assert_eq!(difference(&before, &after, false), "");
    }

    #[test]
    fn a_tagged_frame_is_matched_by_the_prefix_bits() {
        let rules = tagged_rules(&ranges(&["10.64.0.0/10", "fd00:10:244::/48"]));
        assert_eq!(rules[0], "@ll,128,16 0x0800 @ll,240,10 0x29 counter name packet_socket drop");
        assert_eq!(rules[1], "@ll,128,16 0x0800 @ll,272,10 0x29 counter name packet_socket drop");
        assert_eq!(rules[2], "@ll,128,16 0x86dd @ll,208,48 0xfd0000100244 counter name packet_socket drop");
        assert_eq!(rules[3], "@ll,128,16 0x86dd @ll,336,48 0xfd0000100244 counter name packet_socket drop");
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
            let (before, after) = (Ruleset { local: before, ..Ruleset::default() }, Ruleset { local: after, ..Ruleset::default() });
            prop_assert_eq!(difference(&before, &after, true).is_empty(), same);
        }
    }
}
