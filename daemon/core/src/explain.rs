//! Resolves a name or an address to a party and describes it in words. `hauberk_abi::judge` gives
//! the verdict on two parties.

use std::net::IpAddr;

use hauberk_abi::address::Address;
use hauberk_abi::identity::{Identity, Kind};
use hauberk_api::{Party, Protection};

use crate::desired::Desired;
use crate::identities::Owner;
use crate::label::label_value;
use crate::local_node::LocalNode;
use crate::model::{Model, Pod};
use crate::names::PodName;
use crate::protection;
use crate::words::{prefix_in_words, read_from};

/// A party: in words, and as the identity that the datapath uses.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// In words.
    pub party: Party,
    /// The identity in the datapath once the plan is carried out.
    pub identity: Identity,
}

/// Why a party could not be resolved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// It is neither an address nor the name of a known pod or node.
    #[error("{asked:?} is no address, and no pod or node of that name is known; name a pod as namespace/name")]
    NotFound {
        /// As asked.
        asked: String,
    },
    /// Several parties have the name.
    #[error("{asked:?} could be {}; name a pod as namespace/name", candidates.join(" or "))]
    Ambiguous {
        /// As asked.
        asked: String,
        /// The parties it could mean.
        candidates: Vec<String>,
    },
    /// The party has no address yet.
    #[error("{asked:?} has no address: it has not been started, or it has finished")]
    NoAddress {
        /// As asked.
        asked: String,
    },
    /// The parties have no addresses of the same family.
    #[error("{from:?} and {to:?} have no addresses of the same family: no packet goes between them")]
    NoCommonFamily {
        /// The source, as asked.
        from: String,
        /// The destination, as asked.
        to: String,
    },
}

/// Both ends of a flow, with addresses of one family. Each end is asked for as a pod
/// (`namespace/name`, or the bare name if no other pod or node has it), a node, or an address.
pub fn resolve_pair(
    model: &Model,
    local: &LocalNode,
    desired: &Desired,
    source: &str,
    destination: &str,
) -> Result<(Resolved, Resolved), ResolveError> {
    let sources = addresses(model, source)?;
    let destinations = addresses(model, destination)?;
    let pair = sources
        .iter()
        .find_map(|s| destinations.iter().find(|d| d.is_ipv4() == s.is_ipv4()).map(|d| (*s, *d)))
        .ok_or_else(|| ResolveError::NoCommonFamily { from: source.to_owned(), to: destination.to_owned() })?;
    Ok((party(model, local, desired, source, pair.0), party(model, local, desired, destination, pair.1)))
}

/// The party asked for, by its first address.
pub fn resolve(model: &Model, local: &LocalNode, desired: &Desired, asked: &str) -> Result<Resolved, ResolveError> {
    let first = addresses(model, asked)?.first().copied();
    let address = first.ok_or_else(|| ResolveError::NoAddress { asked: asked.to_owned() })?;
    Ok(party(model, local, desired, asked, address))
}

/// Every address of the party asked for; never empty.
fn addresses(model: &Model, asked: &str) -> Result<Vec<IpAddr>, ResolveError> {
    if let Ok(address) = asked.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    let found = match asked.split_once('/') {
        Some((namespace, name)) => {
            let name = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
            pod_addresses(model, &name)
        }
        None => by_bare_name(model, asked)?,
    };
    match found {
        None => Err(ResolveError::NotFound { asked: asked.to_owned() }),
        Some(addresses) if addresses.is_empty() => Err(ResolveError::NoAddress { asked: asked.to_owned() }),
        Some(addresses) => Ok(addresses),
    }
}

/// A node's addresses, or those of the only pod of this name.
fn by_bare_name(model: &Model, asked: &str) -> Result<Option<Vec<IpAddr>>, ResolveError> {
    let node = model.nodes.get(asked).map(|node| &node.object);
    let mut pods: Vec<PodName> = model.pods().filter(|pod| *pod.name == *asked).map(Pod::full_name).collect();
    let attached = model.attachments.values().filter_map(|attachment| attachment.pod.as_ref());
    pods.extend(attached.map(|pod| &pod.name).filter(|pod| pod.name == asked).cloned());
    pods.sort();
    pods.dedup();
    match (node, pods.as_slice()) {
        (Some(node), []) => Ok(Some(node.addresses.iter().map(|address| address.address).collect())),
        (None, [pod]) => Ok(pod_addresses(model, pod)),
        (None, []) => Ok(None),
        (node, pods) => {
            let node = node.map(|node| format!("Node/{}", node.name));
            let candidates = node.into_iter().chain(pods.iter().map(|pod| format!("Pod/{pod}"))).collect();
            Err(ResolveError::Ambiguous { asked: asked.to_owned(), candidates })
        }
    }
}

/// The pod's addresses: those of its interface on this node, else those of its object, else its
/// node's.
fn pod_addresses(model: &Model, name: &PodName) -> Option<Vec<IpAddr>> {
    let attached: Vec<IpAddr> = model
        .attachments
        .values()
        .filter(|attachment| attachment.pod.as_ref().is_some_and(|pod| pod.name == *name))
        .flat_map(|attachment| attachment.addresses.iter().copied())
        .collect();
    if !attached.is_empty() {
        return Some(attached);
    }
    let pod = model.pod(name)?;
    if pod.finished {
        return Some(Vec::new());
    }
    if pod.host_network && pod.addresses.is_empty() {
        let node = pod.node.as_deref().and_then(|node| model.node_object(node));
        return Some(node.into_iter().flat_map(|node| node.addresses.iter().map(|a| a.address)).collect());
    }
    Some(pod.addresses.to_vec())
}

fn party(model: &Model, local: &LocalNode, desired: &Desired, asked: &str, address: IpAddr) -> Resolved {
    let identity = desired.identity(address);
    let owner = desired.owner(model, local, Address::from(address));
    let (name, rule) = match owner {
        Some(Owner::Pod(name)) => (Some(name.to_string()), pod_rule(model, local, &name, identity.protection())),
        Some(Owner::Attachment(key)) => {
            (None, format!("interface {key} on this node: {}", protection::Rule::PodUnnamed))
        }
        Some(Owner::Node(name)) => {
            let origin = model.node_object(&name).map(|node| read_from(&node.origin)).unwrap_or_default();
            let rule = format!("an address of Node {name}{origin}: encrypted towards opted-in pods");
            (Some(name), rule)
        }
        None => (None, range_rule(model, desired, address, identity)),
    };
    let on_host = host_network_pod(model, asked);
    let (name, rule) = match on_host {
        Some(pod) => (Some(pod.full_name().to_string()), host_network_rule(model, local, pod, &rule)),
        None => (name, rule),
    };
    let asked_for = on_host.map(|pod| protection::of_pod(model, local, pod).protection);
    let node = model.node_name(crate::names::NodeNumber(identity.node)).map(str::to_owned);
    let party = Party {
        asked: asked.to_owned(),
        address,
        kind: identity.kind().into(),
        name,
        node,
        protection: identity.protection(),
        rule,
        unmet: asked_for.filter(|protection| *protection > Protection::None),
    };
    Resolved { party, identity }
}

/// The pod that was asked for by name, if it is on the host network.
fn host_network_pod<'a>(model: &'a Model, asked: &str) -> Option<&'a Pod> {
    let pod = match asked.split_once('/') {
        Some((namespace, name)) => model.pod(&PodName { namespace: namespace.to_owned(), name: name.to_owned() }),
        None if model.nodes.contains_key(asked) => None,
        None => model.pods().find(|pod| *pod.name == *asked),
    };
    pod.filter(|pod| pod.host_network && !pod.finished)
}

fn host_network_rule(model: &Model, local: &LocalNode, pod: &Pod, of_address: &str) -> String {
    let ruling = protection::of_pod(model, local, pod);
    let in_vain = match ruling.protection {
        Protection::None => String::new(),
        wanted => format!("; in vain it is {} by {}", label_value(wanted), ruling.rule),
    };
    format!(
        "Pod {}{} is on its node's network (hostNetwork) and counts as the node: {of_address}{in_vain}",
        pod.full_name(),
        read_from(&pod.origin)
    )
}

fn pod_rule(model: &Model, local: &LocalNode, name: &PodName, enforced: Protection) -> String {
    let object = model.pod(name);
    let ruling = match object {
        Some(pod) => protection::of_pod(model, local, pod),
        None => protection::of_attached(model, local, Some((name, None))),
    };
    let value = label_value(ruling.protection);
    let origin = object.map(|pod| read_from(&pod.origin)).unwrap_or_default();
    let mut text = format!("Pod {name}{origin} is {value}: {}", ruling.rule);
    if enforced > ruling.protection {
        text.push_str("; another pod claims the same address, and the stricter protection of the two holds");
    }
    text
}

fn range_rule(model: &Model, desired: &Desired, address: IpAddr, identity: Identity) -> String {
    if let Some((_, node)) = model.departed().find(|(departed, _)| *departed == address) {
        return format!(
            "{address} was Node {node}'s until lately, and nobody's since: closed to protected pods for an hour"
        );
    }
    if let Some(contest) = desired.contest(address) {
        return format!(
            "{} have {address}, by their objects or their devices: it is nobody's, and closed to opted-in pods",
            contest.nodes_in_words()
        );
    }
    let Some(prefix) = desired.range_of(address) else {
        return format!("{address} is in no cluster range, pod range or node range: outside the cluster");
    };
    let range = prefix_in_words(prefix);
    match identity.kind() {
        Kind::UnknownNode => {
            format!(
                "no Node object has {address}, which lies in node range {range}: what opted-in pods send there or get from there is \
                 dropped, plain pods are not concerned"
            )
        }
        _ => format!("no Pod object has {address}, which lies in pod range {range}: unknown is protected"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Change;
    use crate::objects::{NodeAddress, PodObject};
    use crate::testing::{World, attachment, ip, node, pod};

    fn world() -> World {
        let mut world = World::three_nodes();
        world.apply(Change::Pod(pod("secret/a", 2, &["10.0.2.5", "fd00::2:5"])));
        world.apply(Change::Pod(pod("open/b", 3, &["10.0.3.5"])));
        world.apply(Change::Pod(pod("soft/twice", 3, &["10.0.3.6"])));
        world.apply(Change::Pod(pod("open/twice", 3, &["10.0.3.7"])));
        world.apply(Change::Pod(pod("open/six", 3, &["fd00::3:8"])));
        world.apply(Change::Pod(pod("open/pending", 3, &[])));
        world.apply(Change::Pod(PodObject { host_network: true, ..pod("open/host", 2, &[]) }));
        world.apply(Change::Pod(PodObject { host_network: true, ..pod("secret/host", 2, &["192.0.2.2"]) }));
        world.apply(Change::Attachment(attachment("c1", Some("open/fresh"), &["10.0.1.9"])));
        world.apply(Change::Attachment(attachment("c2", None, &["10.0.1.10"])));
        world
    }

    fn resolved(asked: &str) -> Result<Party, ResolveError> {
        let world = world();
        resolve(&world.model, &world.local, &world.desired(), asked).map(|resolved| resolved.party)
    }

    #[test]
    fn a_pod_is_found_by_either_name_and_by_address() {
        for asked in ["secret/a", "a", "10.0.2.5"] {
            let party = resolved(asked).unwrap();
            assert_eq!((party.asked.as_str(), party.address), (asked, ip("10.0.2.5")));
            assert_eq!((party.kind.as_str(), party.name.as_deref()), ("pod", Some("secret/a")));
            assert_eq!((party.node.as_deref(), party.protection), (Some("n2"), Protection::Enabled));
            assert!(party.rule.contains("its namespace's label hauberk.io/encryption"), "{}", party.rule);
            assert!(party.rule.contains("pods/secret-a.yaml"), "{}", party.rule);
        }
    }

    #[test]
    fn everybody_is_said_to_be_what_he_is_and_why() {
        let cases = [
            ("n2", "node", Some("n2"), Some("n2"), "an address of Node n2"),
            ("192.0.2.3", "node", Some("n3"), Some("n3"), "an address of Node n3"),
            ("open/host", "node", Some("open/host"), Some("n2"), "an address of Node n2"),
            ("secret/host", "node", Some("secret/host"), Some("n2"), "in vain it is enabled by its namespace's label"),
            ("open/b", "pod", Some("open/b"), Some("n3"), "neither its namespace nor the pod has the label"),
            ("open/fresh", "pod", Some("open/fresh"), Some("n1"), "its Pod object is not known yet"),
            ("10.0.1.10", "pod", None, Some("n1"), "did not name the pod"),
            ("10.0.2.200", "unknown_pod", None, Some("n2"), "lies in pod range 10.0.2.0/24"),
            ("10.0.200.1", "unknown_pod", None, None, "lies in pod range 10.0.0.0/16"),
            ("192.0.2.200", "unknown_node", None, None, "lies in node range 192.0.2.0/24"),
            ("198.51.100.1", "world", None, None, "outside the cluster"),
        ];
        for (asked, kind, name, node, rule) in cases {
            let party = resolved(asked).unwrap();
            assert_eq!(
                (party.kind.as_str(), party.name.as_deref(), party.node.as_deref()),
                (kind, name, node),
                "{asked}"
            );
            assert!(party.rule.contains(rule), "{asked}: {}", party.rule);
        }
    }

    #[test]
    fn who_cannot_be_found_is_said_to_be_missing_ambiguous_or_without_address() {
        assert!(matches!(resolved("nobody"), Err(ResolveError::NotFound { .. })));
        assert!(matches!(resolved("open/nobody"), Err(ResolveError::NotFound { .. })));
        assert!(matches!(resolved("10.0.2.5/32"), Err(ResolveError::NotFound { .. })));
        assert!(matches!(resolved("pending"), Err(ResolveError::NoAddress { .. })));
        let error = resolved("twice").unwrap_err().to_string();
        assert!(error.contains("Pod/open/twice or Pod/soft/twice"), "{error}");
    }

    #[test]
    fn what_a_label_asks_for_in_vain_is_told() {
        let host = resolved("secret/host").unwrap();
        assert_eq!((host.unmet, host.protection), (Some(Protection::Enabled), Protection::None));
        for other in ["open/host", "secret/a", "n2", "192.0.2.2"] {
            assert_eq!(resolved(other).unwrap().unmet, None, "{other}");
        }
    }

    #[test]
    fn an_address_that_two_nodes_have_names_both() {
        let mut world = world();
        for number in [2, 3] {
            let devices = std::collections::BTreeSet::from([ip("192.0.2.100")]);
            let published_addresses = Some(crate::annotations::addresses::render(&devices));
            world.apply(Change::Node(crate::objects::NodeObject { published_addresses, ..node(number) }));
        }
        let party = resolve(&world.model, &world.local, &world.desired(), "192.0.2.100").unwrap().party;
        assert!(party.rule.contains("n2 and n3"), "{}", party.rule);
        assert!(!party.rule.contains("no Node object"), "{}", party.rule);
        world.apply(Change::Node(node(3)));
        assert!(world.desired().contested.is_empty());
    }

    #[test]
    fn a_pair_is_of_one_family() {
        let world = world();
        let pair = |from, to| resolve_pair(&world.model, &world.local, &world.desired(), from, to);
        let (source, destination) = pair("secret/a", "open/six").unwrap();
        assert_eq!((source.party.address, destination.party.address), (ip("fd00::2:5"), ip("fd00::3:8")));
        assert!(matches!(pair("open/b", "open/six"), Err(ResolveError::NoCommonFamily { .. })));
    }

    #[test]
    fn a_contested_address_says_why_it_is_stricter_than_its_labels() {
        let mut world = world();
        world.apply(Change::Pod(pod("secret/z", 3, &["10.0.3.5"])));
        let open = resolve(&world.model, &world.local, &world.desired(), "open/b").unwrap().party;
        assert_eq!(open.protection, Protection::Enabled);
        let mut thief = node(3);
        thief.addresses.push(NodeAddress { address: ip("fd00::2:5"), internal: true });
        world.apply(Change::Node(thief));
        let stolen = resolve(&world.model, &world.local, &world.desired(), "fd00::2:5").unwrap().party;
        assert_eq!(stolen.name.as_deref(), Some("secret/a"));
    }
}
