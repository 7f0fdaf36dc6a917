//! Parses what `nft -j` says of hauberk's tables (libnftables-json(5)). Entries that it does not
//! understand are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use nix::net::if_::if_nametoindex;
use serde_json::Value;

use super::Counters;

/// The elements of the tables' sets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sets {
    pub(super) local: BTreeSet<IpNet>,
    pub(super) untranslated: BTreeSet<IpNet>,
    pub(super) guarded: BTreeSet<IpNet>,
    pub(super) passable: BTreeSet<u32>,
    pub(super) bridge_guarded: BTreeSet<IpNet>,
    pub(super) bridge_passable: BTreeSet<u32>,
}

/// By family and name: the definition, and for a chain its rules in order.
pub(super) type Rules = BTreeMap<(String, String), Vec<String>>;

/// Reads the sets from one or several JSON documents, one per line.
pub(super) fn sets(json: &str) -> Sets {
    let mut sets = Sets::default();
    for set in objects(json, "set") {
        let elements = || set["elem"].as_array().into_iter().flatten();
        let (into, indices) = match set["family"].as_str() {
            Some("bridge") => (&mut sets.bridge_guarded, &mut sets.bridge_passable),
            // An earlier version used the name "guarded" for what is "pods" now.
            _ => (&mut sets.guarded, &mut sets.passable),
        };
        let into = match set["name"].as_str() {
            Some("local4" | "local6") => &mut sets.local,
            Some("untranslated4" | "untranslated6") => &mut sets.untranslated,
            Some("pods4" | "pods6" | "guarded4" | "guarded6") => into,
            Some("passable") => {
                indices.extend(elements().filter_map(interface));
                continue;
            }
            _ => continue,
        };
        into.extend(elements().flat_map(ranges));
    }
    sets
}

/// Reads the structure of the tables, without the sets' elements and the counters' values.
pub(super) fn rules(json: &str) -> Rules {
    let mut rules = Rules::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for kind in ["chain", "set", "counter", "rule"] {
        for mut object in objects(json, kind) {
            let name = if kind == "rule" { &object["chain"] } else { &object["name"] };
            let key = (text(&object["family"]), text(name));
            if let Some(object) = object.as_object_mut() {
                for varying in ["handle", "elem", "packets", "bytes"] {
                    object.remove(varying);
                }
            }
            sort_sets(&mut object);
            rules.entry(key).or_default().push(object.to_string());
        }
    }
    rules
}

/// Anonymous sets are listed in no fixed order.
fn sort_sets(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                sort_sets(value);
                if let (true, Value::Array(elements)) = (key == "set", value) {
                    elements.sort_by_key(Value::to_string);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(sort_sets),
        _ => {}
    }
}

/// Whether two lists of ranges hold the same addresses.
pub(super) fn covers_the_same(one: &BTreeSet<IpNet>, other: &BTreeSet<IpNet>) -> bool {
    let joined = |ranges: &BTreeSet<IpNet>| IpNet::aggregate(&ranges.iter().map(IpNet::trunc).collect::<Vec<_>>());
    joined(one) == joined(other)
}

/// Reads the counters. Counters of the same name in several tables are added up.
pub(super) fn counters(json: &str) -> Counters {
    let all = objects(json, "counter");
    let named = |name: &str| all.iter().filter(|c| c["name"] == name).filter_map(|c| c["packets"].as_u64()).sum();
    Counters {
        packet_socket: named("packet_socket"),
        unguarded_device: named("unguarded_device"),
        decrypted: named("decrypted"),
        carried_on: named("carried_on"),
    }
}

pub(super) fn objects(json: &str, kind: &str) -> Vec<Value> {
    let documents = serde_json::Deserializer::from_str(json).into_iter::<Value>().map_while(Result::ok);
    documents
        .flat_map(|document| match &document["nftables"] {
            Value::Array(items) => items.iter().map(|item| item[kind].clone()).filter(Value::is_object).collect(),
            _ => Vec::new(),
        })
        .collect()
}

/// An element is an interface's name if it has one, else its index.
fn interface(element: &Value) -> Option<u32> {
    let text = element.as_str()?;
    if_nametoindex(text).ok().or_else(|| text.parse().ok())
}

/// An element is an address, a prefix, or a range of addresses.
fn ranges(element: &Value) -> Vec<IpNet> {
    let address = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    if let Some(single) = address(element) {
        return vec![single.into()];
    }
    if let (Some(network), Some(length)) = (address(&element["prefix"]["addr"]), element["prefix"]["len"].as_u64()) {
        return u8::try_from(length).ok().and_then(|length| IpNet::new(network, length).ok()).into_iter().collect();
    }
    match (address(&element["range"][0]), address(&element["range"][1])) {
        (Some(IpAddr::V4(first)), Some(IpAddr::V4(last))) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (Some(IpAddr::V6(first)), Some(IpAddr::V6(last))) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_all_three_kinds_are_read() {
        let json = r#"{"nftables": [{"metainfo": {}}, {"set": {"name": "guarded4", "elem": ["10.0.0.1",
            {"prefix": {"addr": "10.1.0.0", "len": 16}}, {"range": ["10.2.0.0", "10.2.0.2"]}, {"strange": 1}]}}]}
            {"nftables": [{"set": {"name": "untranslated6", "elem": [{"prefix": {"addr": "fd00::", "len": 48}}]}}]}"#;
        let sets = sets(json);
        let expected = ["10.0.0.1/32", "10.1.0.0/16", "10.2.0.0/31", "10.2.0.2/32"];
        assert_eq!(sets.guarded, expected.iter().map(|range| range.parse().unwrap()).collect());
        assert_eq!(sets.untranslated, ["fd00::/48".parse().unwrap()].into());
    }

    #[test]
    fn counters_are_found_by_name_and_nonsense_is_nothing() {
        let json = r#"{"nftables": [{"counter": {"name": "packet_socket", "packets": 7, "bytes": 9}}]}"#;
        assert_eq!(counters(json).packet_socket, 7);
        let two = format!("{0}\n{0}", json.replace("packet_socket", "unguarded_device"));
        assert_eq!(counters(&two).unguarded_device, 14);
        for text in ["", "x", "[]", "{\"nftables\": 3}", "{\"nftables\": [{\"set\": {\"name\": 1, \"elem\": {}}}]}"] {
            assert_eq!(counters(text), Counters::default());
            assert_eq!(sets(text), Sets::default());
        }
    }

    #[test]
    fn rules_are_compared_without_what_varies() {
        let table = |handle: u32, packets: u32, first: &str, rule: &str| {
            format!(
                r#"{{"nftables": [{{"chain": {{"family": "inet", "name": "c", "handle": {handle}}}}},
                {{"counter": {{"family": "inet", "name": "n", "packets": {packets}, "bytes": {packets}}}}},
                {{"set": {{"family": "inet", "name": "s", "type": "ipv4_addr", "elem": ["10.0.0.{packets}"]}}}},
                {{"rule": {{"family": "inet", "chain": "c", "handle": {handle}, "expr": [{{"set": [{first}, "b"]}}, {rule}]}}}}]}}"#
            )
        };
        let is = |one: String, other: String| rules(&one) == rules(&other);
        assert!(is(table(1, 2, "\"a\"", "1"), table(3, 4, "\"a\"", "1")));
        assert!(!is(table(1, 2, "\"a\"", "1"), table(1, 2, "\"a\"", "2")));
        assert!(is(table(1, 2, "\"a\"", "1").replace(r#"["a", "b"]"#, r#"["b", "a"]"#), table(1, 2, "\"a\"", "1")));
        assert!(!is(table(1, 2, "\"a\"", "1"), String::new()));
    }

    #[test]
    fn ranges_are_compared_by_what_they_cover() {
        let ranges = |list: &[&str]| list.iter().map(|range| range.parse().unwrap()).collect::<BTreeSet<IpNet>>();
        assert!(covers_the_same(&ranges(&["10.0.0.0/25", "10.0.0.128/25"]), &ranges(&["10.0.0.0/24", "10.0.0.9/32"])));
        assert!(!covers_the_same(&ranges(&["10.0.0.0/25"]), &ranges(&["10.0.0.0/24"])));
    }

    #[test]
    fn a_device_that_is_gone_is_told_by_its_index() {
        let json =
            r#"{"nftables": [{"set": {"family": "bridge", "name": "passable", "elem": ["lo", "4711", "gone0"]}}]}"#;
        assert_eq!(sets(json).bridge_passable, [if_nametoindex("lo").unwrap(), 4711].into());
    }
}
