//! `inet hauberk`: packets that went through the IP stack.

use std::collections::BTreeSet;
use std::fmt::Write;

use hauberk_abi::layout::mark;

use super::super::INTERFACE_PREFIX;
use super::text::{LINK_SCOPE, TABLE, index_set, sets};
use super::{Beside, Counters, Ruleset};

/// Writes the table.
pub(super) fn table(ruleset: &Ruleset, passable: &BTreeSet<u32>, counters: Counters, text: &mut String) {
    let stack = mark::STACK << ruleset.mark_shift;
    let names = ruleset.outward.iter().filter(|name| super::can_be_quoted(name));
    let uplinks = names.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let _ = writeln!(text, "table inet {TABLE} {{");
    sets("local", &ruleset.local, text);
    sets("untranslated", &ruleset.untranslated, text);
    sets("pods", &ruleset.guarded, text);
    index_set("passable", passable, text);
    // Before source translation (100), so that packets accepted by a translation rule are marked
    // too.
    let _ = writeln!(
        text,
        "  chain mark_stack {{\n    type filter hook postrouting priority srcnat - 10; policy accept;\n    meta mark set meta mark | {stack:#x}\n  }}"
    );
    unguarded_chain(ruleset, counters, text);
    counting_chains(ruleset, counters, text);
    let _ = writeln!(text, "  chain to_world {{\n    type nat hook postrouting priority srcnat; policy accept;");
    // On every device: a bridge of containers or virtual machines on this node, a VPN and a second
    // network card also lead to hosts that do not know pods' addresses.
    for (protocol, suffix) in [("ip", 4), ("ip6", 6)] {
        let _ = writeln!(
            text,
            "    oifname != \"{INTERFACE_PREFIX}*\" {protocol} saddr @local{suffix} {protocol} daddr != @untranslated{suffix} masquerade"
        );
    }
    text.push_str("  }\n");
    if let Some(beside) = &ruleset.chained {
        beside_chains(ruleset, beside, &uplinks, text);
    }
    text.push_str("}\n");
}

/// Drops a pod's packets, and packets that carry a protected pod's traffic, if they would leave by
/// a device that is not guarded.
fn unguarded_chain(ruleset: &Ruleset, counters: Counters, text: &mut String) {
    let protected = mark::PROTECTED << ruleset.mark_shift;
    let _ = writeln!(text, "  counter unguarded_device {{ packets {} bytes 0; }}", counters.unguarded_device);
    text.push_str("  chain unguarded {\n    type filter hook postrouting priority raw; policy accept;\n");
    let _ = writeln!(text, "    oif @passable accept\n    oifname \"{INTERFACE_PREFIX}*\" accept");
    text.push_str(LINK_SCOPE);
    let _ = writeln!(text, "    meta mark & {protected:#x} != 0 counter name unguarded_device drop");
    for (protocol, suffix) in [("ip", 4), ("ip6", 6)] {
        for end in ["saddr", "daddr"] {
            let _ = writeln!(text, "    {protocol} {end} @pods{suffix} counter name unguarded_device drop");
        }
    }
    text.push_str("  }\n");
}

/// Counts what the tunnel gave to the stack, and what of it the stack was about to forward or
/// deliver. Other programs' rules that drop packets run in between: their chains have no later
/// priority.
fn counting_chains(ruleset: &Ruleset, counters: Counters, text: &mut String) {
    let tunnel = &ruleset.tunnel;
    if tunnel.is_empty() || !super::can_be_quoted(tunnel) {
        return;
    }
    let _ = writeln!(text, "  counter decrypted {{ packets {} bytes 0; }}", counters.decrypted);
    let _ = writeln!(text, "  counter carried_on {{ packets {} bytes 0; }}", counters.carried_on);
    for (chain, hook, priority, counter) in [
        ("count_decrypted", "prerouting", -300, "decrypted"),
        ("count_forwarded", "forward", 10_000, "carried_on"),
        ("count_delivered", "input", 10_000, "carried_on"),
    ] {
        let _ = writeln!(
            text,
            "  chain {chain} {{\n    type filter hook {hook} priority {priority}; policy accept;\n    iifname \"{tunnel}\" counter name {counter}\n  }}"
        );
    }
}

/// Headers of a TCP segment without options, bytes (RFC 9293 section 3.7.1), by family.
const TCP_HEADERS: [(&str, u8, u32); 2] = [("ip", 4, 40), ("ip6", 6, 60)];

/// The chains that are needed beside another plugin's network.
fn beside_chains(ruleset: &Ruleset, beside: &Beside, uplinks: &str, text: &mut String) {
    // Translates the source to itself, so that later source translation rules skip the packet.
    // Packets to a service are excluded: they may need source translation so that the reply returns
    // here.
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
