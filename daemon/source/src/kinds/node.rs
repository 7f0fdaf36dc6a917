//! v1 Node.

use hauberk_core::model::Change;
use hauberk_core::objects::{NodeAddress, NodeObject};
use ipnet::IpNet;
use serde::Deserialize;

use super::{Followed, Kind, Metadata};

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Node {
    metadata: Option<Metadata>,
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeStatus {
    addresses: Option<Vec<GivenAddress>>,
}

#[derive(Clone, Debug, Deserialize)]
struct GivenAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl Kind for Node {
    const NAME: &'static str = "Node";
    const VERSION: &'static str = "v1";
    const NAMESPACED: bool = false;

    fn change(self, _: &str, name: &str, origin: &str) -> Result<Option<Change>, String> {
        self.object(name, origin).map(|object| Some(Change::Node(object)))
    }

    fn gone(_: &str, name: &str) -> Option<Change> {
        Some(Change::NodeGone(name.to_owned()))
    }
}

impl Followed for Node {
    const PATH: &'static str = "/api/v1/nodes";

    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Node {
    /// What the model keeps.
    fn object(self, name: &str, origin: &str) -> Result<NodeObject, String> {
        let spec = self.spec.unwrap_or_default();
        let ranges = match (spec.pod_cidrs, spec.pod_cidr) {
            (Some(ranges), _) if !ranges.is_empty() => ranges,
            (_, single) => single.into_iter().filter(|range| !range.is_empty()).collect(),
        };
        let pod_ranges = ranges
            .iter()
            .map(|range| {
                range
                    .parse::<IpNet>()
                    .map_err(|_| format!("`spec.podCIDRs` has {range:?}, which is no range of addresses"))
            })
            .collect::<Result<_, _>>()?;
        let mut addresses = Vec::new();
        for given in self.status.and_then(|status| status.addresses).unwrap_or_default() {
            let internal = given.kind == "InternalIP";
            if internal || given.kind == "ExternalIP" {
                let address = given.address.parse().map_err(|_| {
                    format!("`status.addresses` has {:?} as {}, which is no address", given.address, given.kind)
                })?;
                addresses.push(NodeAddress { address, internal });
            }
        }
        let metadata = self.metadata.unwrap_or_default();
        let annotations = metadata.annotations.unwrap_or_default();
        Ok(NodeObject {
            addresses,
            pod_ranges,
            zone: metadata.labels.unwrap_or_default().zone.filter(|zone| !zone.is_empty()),
            keys: annotations.keys,
            published_addresses: annotations.addresses,
            enforced: annotations.enforced,
            plaintext_seen: annotations.plaintext_seen,
            name: name.to_owned(),
            origin: origin.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use hauberk_core::annotations::{ADDRESSES_ANNOTATION, ENFORCED_ANNOTATION, KEYS_ANNOTATION, PLAINTEXT_ANNOTATION};
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_have_the_names_that_are_written() {
        let annotations = json!({KEYS_ANNOTATION: "K", ADDRESSES_ANNOTATION: "A", ENFORCED_ANNOTATION: "E", PLAINTEXT_ANNOTATION: "P", "other": "x"});
        let given: Node = serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap();
        let object = given.object("n", "").unwrap();
        assert_eq!((object.keys.as_deref(), object.enforced.as_deref()), (Some("K"), Some("E")));
        assert_eq!(object.published_addresses.as_deref(), Some("A"));
        assert_eq!(object.plaintext_seen.as_deref(), Some("P"));
    }

    #[test]
    fn the_zone_is_its_label() {
        for (labels, zone) in [(json!({"topology.kubernetes.io/zone": "a"}), Some("a")), (json!(null), None)] {
            let given: Node = serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap();
            assert_eq!(given.object("n", "").unwrap().zone.as_deref(), zone);
        }
    }
}
