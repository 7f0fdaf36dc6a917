//! The tables that look at frames: `netdev hauberk` at the egress of each device, `bridge hauberk`
//! at the ports of bridges.
//!
//! The rules read a frame's own bytes to see whether it has a guarded address. The kernel's note of
//! a frame's protocol cannot be trusted: a packet socket can set it to anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use hauberk_abi::layout::mark;
use ipnet::IpNet;

use super::text::{LINK_SCOPE, TABLE, index_set, minimal, sets};
use super::{Abilities, Counters, Device, Ruleset};

/// Writes `netdev hauberk`.
pub(super) fn guard_table(
    ruleset: &Ruleset,
    devices: &BTreeMap<String, Device>,
    counters: Counters,
    abilities: Abilities,
    text: &mut String,
) {
    let _ = writeln!(text, "table netdev {TABLE} {{");
    let _ = writeln!(text, "  counter packet_socket {{ packets {} bytes 0; }}", counters.packet_socket);
    for (chain, rules) in address_chains(&ruleset.guarded, "packet_socket") {
        write_chain(chain, &rules, text);
    }
    write_chain("unreadable", &UNREADABLE.map(str::to_owned), text);
    for (name, device) in devices {
        let hook = egress_hook(name);
        let _ = writeln!(text, "  chain {} {{\n    {hook}", egress_chain(name));
        for rule in egress_rules(ruleset.mark_shift, *device, abilities) {
            let _ = writeln!(text, "    {rule}");
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
}

/// Writes `bridge hauberk`. A bridge may carry pods' frames; its ports may only if they are
/// guarded.
pub(super) fn bridge_table(ruleset: &Ruleset, passable: &BTreeSet<u32>, text: &mut String) {
    let (stack, protected) = (mark::STACK << ruleset.mark_shift, mark::PROTECTED << ruleset.mark_shift);
    let _ = writeln!(text, "table bridge {TABLE} {{");
    text.push_str("  counter unguarded_device { packets 0 bytes 0; }\n");
    index_set("passable", passable, text);
    sets("pods", &ruleset.guarded, text);
    for (chain, rules) in address_chains(&ruleset.guarded, "unguarded_device").into_iter().skip(1) {
        write_chain(chain, &rules, text);
    }
    // A frame that arrived by a port is not from a packet socket of this node: the guard at the
    // port it leaves by passes it on to eBPF.
    let _ = writeln!(
        text,
        "  chain mark_forwarded {{\n    type filter hook forward priority 0; policy accept;\n    meta mark set meta mark | {stack:#x}\n  }}"
    );
    text.push_str("  chain unguarded {\n    type filter hook postrouting priority -300; policy accept;\n");
    text.push_str("    oif @passable accept\n");
    text.push_str(LINK_SCOPE);
    let _ = writeln!(text, "    meta mark & {protected:#x} != 0 counter name unguarded_device drop");
    for (protocol, suffix) in [("ip", 4), ("ip6", 6)] {
        for end in ["saddr", "daddr"] {
            let _ = writeln!(text, "    {protocol} {end} @pods{suffix} counter name unguarded_device drop");
        }
    }
    for rule in jumps(TYPE, "tagged") {
        let _ = writeln!(text, "    {rule}");
    }
    text.push_str("  }\n}\n");
}

/// Adds a device's chain, or refills the one that exists.
pub(super) fn put_device(ruleset: &Ruleset, name: &str, device: Device, abilities: Abilities, text: &mut String) {
    let chain = egress_chain(name);
    let _ = writeln!(text, "add chain netdev {TABLE} {chain} {{ {} }}", egress_hook(name));
    let _ = writeln!(text, "flush chain netdev {TABLE} {chain}");
    for rule in egress_rules(ruleset.mark_shift, device, abilities) {
        let _ = writeln!(text, "add rule netdev {TABLE} {chain} {rule}");
    }
}

/// Removes the chain of a device that still exists.
pub(super) fn remove_device(name: &str, text: &mut String) {
    let chain = egress_chain(name);
    let _ = writeln!(text, "flush chain netdev {TABLE} {chain}");
    let _ = writeln!(text, "delete chain netdev {TABLE} {chain}");
}

/// Refills the chains that look for addresses.
pub(super) fn address_difference(
    family: &str,
    before: &BTreeSet<IpNet>,
    after: &BTreeSet<IpNet>,
    counter: &str,
    text: &mut String,
) {
    // For frames without a tag, a bridge has sets instead of this chain.
    let skipped = usize::from(family == "bridge");
    let chains = address_chains(after, counter);
    if chains == address_chains(before, counter) {
        return;
    }
    for (chain, rules) in chains.iter().skip(skipped) {
        let _ = writeln!(text, "flush chain {family} {TABLE} {chain}");
        for rule in rules {
            let _ = writeln!(text, "add rule {family} {TABLE} {chain} {rule}");
        }
    }
}

/// The name of a device's chain. Characters that nftables does not allow in names are written as
/// numbers.
pub(super) fn egress_chain(device: &str) -> String {
    let mut chain = String::from("egress_");
    for byte in device.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.') {
            chain.push(char::from(byte));
        } else {
            let _ = write!(chain, "_{byte:02x}");
        }
    }
    chain
}

fn egress_hook(device: &str) -> String {
    format!("type filter hook egress device \"{device}\" priority 0; policy accept;")
}

/// What the IP stack sends has a routing entry, which no packet socket can set on its frame. A
/// frame without one that belongs to a socket of this network namespace is from a packet socket,
/// whatever its mark. The other frames were redirected or bridged; their mark tells.
fn egress_rules(mark_shift: u32, device: Device, abilities: Abilities) -> Vec<String> {
    let expected = (mark::STACK | mark::SEEN) << mark_shift;
    let mut rules = Vec::new();
    if abilities.routing {
        rules.push("meta rtclassid 0-4294967295 accept".to_owned());
        if device.keeps_routes {
            rules.push("meta skuid 0-4294967294 jump addressed".to_owned());
        }
        if device.ethernet {
            rules.push("meta skuid 0-4294967294 jump unreadable".to_owned());
        }
    }
    rules.push(format!("meta mark & {expected:#x} != 0 accept"));
    rules.push("jump addressed".to_owned());
    rules
}

/// A frame that bypasses queueing, and whose socket claims a type for it, has no known beginning
/// for the kernel, which then shows nftables no byte of its header.
const UNREADABLE: [&str; 2] = ["@ll,0,8 0x00-0xff return", "counter name packet_socket drop"];

fn write_chain(name: &str, rules: &[String], text: &mut String) {
    let _ = writeln!(text, "  chain {name} {{");
    for rule in rules {
        let _ = writeln!(text, "    {rule}");
    }
    text.push_str("  }\n");
}

/// Bits from the start of a frame to its type: two MAC addresses.
const TYPE: usize = 12 * 8;
/// Bits of a VLAN tag: a type and a value.
const TAG: usize = 4 * 8;
/// Types of VLAN tags (IEEE 802.1Q).
const TAGS: [&str; 2] = ["0x8100", "0x88a8"];

/// Chains that drop frames with an address in `ranges`: without a tag, behind one, behind two. Not
/// every nftables in use can look up raw bytes in a set, so each range has a rule.
fn address_chains(ranges: &BTreeSet<IpNet>, counter: &str) -> Vec<(&'static str, Vec<String>)> {
    let ranges = minimal(ranges);
    let behind = |tags: usize| ranges.iter().flat_map(move |range| framed(range, TYPE + tags * TAG, counter));
    let mut addressed: Vec<String> = ranges.iter().flat_map(|range| bare(range, counter)).collect();
    addressed.extend(behind(0));
    addressed.extend(jumps(TYPE, "tagged"));
    let mut tagged: Vec<String> = behind(1).collect();
    tagged.extend(jumps(TYPE + TAG, "tagged_twice"));
    // A frame with three tags is dropped without a look inside.
    let mut twice: Vec<String> = behind(2).collect();
    twice.extend(TAGS.map(|tag| format!("@ll,{},16 {tag} counter name {counter} drop", TYPE + 2 * TAG)));
    vec![("addressed", addressed), ("tagged", tagged), ("tagged_twice", twice)]
}

fn jumps(at: usize, chain: &str) -> Vec<String> {
    TAGS.map(|tag| format!("@ll,{at},16 {tag} jump {chain}")).into()
}

/// Rules for a frame whose type is at bit `at`.
fn framed(range: &IpNet, at: usize, counter: &str) -> [String; 2] {
    let packet = at + 16;
    let (ether_type, source, destination) = match range {
        IpNet::V4(_) => ("0x0800", packet + 12 * 8, packet + 16 * 8),
        IpNet::V6(_) => ("0x86dd", packet + 8 * 8, packet + 24 * 8),
    };
    [source, destination].map(|end| {
        let address = address_at("ll", end, range);
        format!("@ll,{at},16 {ether_type} {address}counter name {counter} drop")
    })
}

/// Rules for a packet at the kernel's network header: some devices have frames without a link
/// header.
fn bare(range: &IpNet, counter: &str) -> [String; 2] {
    let (version, source, destination) = match range {
        IpNet::V4(_) => ("0x4", 12 * 8, 16 * 8),
        IpNet::V6(_) => ("0x6", 8 * 8, 24 * 8),
    };
    [source, destination].map(|end| {
        let address = address_at("nh", end, range);
        format!("@nh,0,4 {version} {address}counter name {counter} drop")
    })
}

/// A match of the bits at `bit` with the prefix; empty if the range is everything.
fn address_at(base: &str, bit: usize, range: &IpNet) -> String {
    match range.prefix_len() {
        0 => String::new(),
        bits => format!("@{base},{bit},{bits} {} ", significant(range)),
    }
}

/// The prefix's bits as a number of that many bits.
fn significant(range: &IpNet) -> String {
    let bits = u32::from(range.prefix_len());
    match range.network() {
        IpAddr::V4(v4) => format!("{:#x}", u32::from(v4).checked_shr(32 - bits).unwrap_or(0)),
        IpAddr::V6(v6) => format!("{:#x}", u128::from(v6).checked_shr(128 - bits).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_matched_by_the_prefix_bits_behind_up_to_two_tags() {
        let ranges = ["10.64.0.0/10", "fd00:10:244::/48"].map(|range| range.parse().unwrap()).into();
        let chains: BTreeMap<_, _> = address_chains(&ranges, "c").into_iter().collect();
        let has = |chain: &str, rule: &str| {
            assert!(chains[chain].iter().any(|one| one == rule), "{rule} is not in {:#?}", chains[chain]);
        };
        has("addressed", "@nh,0,4 0x4 @nh,96,10 0x29 counter name c drop");
        has("addressed", "@nh,0,4 0x6 @nh,192,48 0xfd0000100244 counter name c drop");
        has("addressed", "@ll,96,16 0x0800 @ll,208,10 0x29 counter name c drop");
        has("addressed", "@ll,96,16 0x8100 jump tagged");
        has("tagged", "@ll,128,16 0x0800 @ll,240,10 0x29 counter name c drop");
        has("tagged", "@ll,128,16 0x0800 @ll,272,10 0x29 counter name c drop");
        has("tagged", "@ll,128,16 0x86dd @ll,208,48 0xfd0000100244 counter name c drop");
        has("tagged", "@ll,128,16 0x86dd @ll,336,48 0xfd0000100244 counter name c drop");
        has("tagged", "@ll,128,16 0x88a8 jump tagged_twice");
        has("tagged_twice", "@ll,160,16 0x0800 @ll,272,10 0x29 counter name c drop");
        has("tagged_twice", "@ll,160,16 0x86dd @ll,368,48 0xfd0000100244 counter name c drop");
        has("tagged_twice", "@ll,160,16 0x8100 counter name c drop");
    }

    #[test]
    fn a_range_of_everything_needs_no_bits() {
        let ranges = ["0.0.0.0/0"].map(|range| range.parse().unwrap()).into();
        let chains = address_chains(&ranges, "c");
        assert!(chains[0].1.contains(&"@ll,96,16 0x0800 counter name c drop".to_owned()), "{chains:?}");
    }

    #[test]
    fn chains_are_named_after_devices_and_never_alike() {
        let names = ["eth0", "eth0.5", "a_b", "a:b", "br-1f", "a_3ab", "ä"];
        let chains: BTreeSet<String> = names.iter().map(|name| egress_chain(name)).collect();
        assert_eq!(chains.len(), names.len());
        assert!(chains.contains("egress_eth0.5") && chains.contains("egress_a_3ab"), "{chains:?}");
    }

    #[test]
    fn only_where_routes_are_kept_a_socket_is_told_by_having_none() {
        let rules = |routing, keeps_routes| {
            let abilities = Abilities { egress: true, routing, bridge: true };
            egress_rules(0, Device { index: 1, keeps_routes, ethernet: true }, abilities)
        };
        assert_eq!(rules(true, true).len(), 5);
        assert!(!rules(true, false).iter().any(|rule| rule.contains("skuid") && rule.contains("addressed")));
        assert_eq!(rules(false, true), ["meta mark & 0x9 != 0 accept", "jump addressed"]);
    }
}
