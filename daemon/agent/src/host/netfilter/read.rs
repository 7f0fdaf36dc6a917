//! Understands what `nft -j` says of hauberk's tables (libnftables-json(5)). What it does not understand it leaves out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde_json::Value;

use super::Counters;

/// What an earlier agent's sets hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sets {
    pub(super) untranslated: BTreeSet<IpNet>,
    pub(super) guarded: BTreeSet<IpNet>,
}

/// Reads the sets out of one or several JSON documents, one a line.
pub(super) fn sets(json: &str) -> Sets {
    let mut sets = Sets::default();
    for set in objects(json, "set") {
        let into = match set["name"].as_str() {
            Some("untranslated4" | "untranslated6") => &mut sets.untranslated,
            Some("guarded4" | "guarded6") => &mut sets.guarded,
            _ => continue,
        };
        for element in set["elem"].as_array().into_iter().flatten() {
            into.extend(ranges(element));
        }
    }
    sets
}

/// Reads the counters.
pub(super) fn counters(json: &str) -> Counters {
    let named =
        |name: &str| objects(json, "counter").iter().filter(|c| c["name"] == name).find_map(|c| c["packets"].as_u64());
    Counters {
        packet_socket: named("packet_socket").unwrap_or(0),
        unguarded_overlay: named("unguarded_overlay").unwrap_or(0),
    }
}

fn objects(json: &str, kind: &str) -> Vec<Value> {
    let documents = serde_json::Deserializer::from_str(json).into_iter::<Value>().map_while(Result::ok);
    documents
        .flat_map(|document| match &document["nftables"] {
            Value::Array(items) => items.iter().map(|item| item[kind].clone()).filter(Value::is_object).collect(),
            _ => Vec::new(),
        })
        .collect()
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
        for text in ["", "x", "[]", "{\"nftables\": 3}", "{\"nftables\": [{\"set\": {\"name\": 1, \"elem\": {}}}]}"] {
            assert_eq!(counters(text), Counters::default());
            assert_eq!(sets(text), Sets::default());
        }
    }
}
