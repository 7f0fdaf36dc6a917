//! Turns a document into the model's objects: which object it is, and what the model keeps of it
//! ([`crate::kinds`]).

use std::fmt;

use hauberk_core::model::Change;
use serde_json::Value;

use crate::kinds::{KindId, Node};

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: KindId,
    /// Its namespace; empty for nodes and namespaces.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The key of a Node.
    pub(super) fn of_node(name: &str) -> Key {
        Key { kind: KindId::of::<Node>(), namespace: String::new(), name: name.to_owned() }
    }
}

/// An object that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which object, if that much could be read.
    pub key: Option<Key>,
    /// The line, counted from 1 at the document's beginning.
    pub line: usize,
    /// Why.
    pub cause: String,
}

/// The objects of one document, as changes for the model; each item of a list is an object of its
/// own. A kind that the model does not hold yet has no change. Kinds that hauberk does not read are
/// left out.
pub fn objects(document: Value, origin: &str) -> Vec<Result<(Key, Option<Change>), Rejection>> {
    let kind = field(&document, "kind").to_owned();
    if let Some(kind_of_items) = kind.strip_suffix("List") {
        let version = field(&document, "apiVersion").to_owned();
        if let Value::Object(mut fields) = document
            && let Some(Value::Array(items)) = fields.remove("items")
        {
            return items
                .into_iter()
                .filter_map(|item| object(with_type(item, kind_of_items, &version), origin).transpose())
                .collect();
        }
        return vec![Err(rejection(None, format!("a {kind} without items")))];
    }
    object(document, origin).transpose().into_iter().collect()
}

/// Items of a `PodList` need not say that they are Pods; items of a `List` must.
fn with_type(mut item: Value, kind: &str, version: &str) -> Value {
    if let Value::Object(fields) = &mut item
        && !kind.is_empty()
        && !fields.contains_key("kind")
    {
        fields.insert("kind".into(), kind.into());
        fields.insert("apiVersion".into(), version.into());
    }
    item
}

fn object(document: Value, origin: &str) -> Result<Option<(Key, Option<Change>)>, Rejection> {
    if !document.is_object() {
        return Err(rejection(None, "not an object but a list or a single value".into()));
    }
    let (version, kind) = (field(&document, "apiVersion"), field(&document, "kind"));
    if kind.is_empty() || version.is_empty() {
        return Err(rejection(None, "it has no `apiVersion` or no `kind`; is the file complete?".into()));
    }
    let Some(kind) = KindId::find(version, kind) else {
        tracing::debug!(origin, version, kind, "not a kind that hauberk reads");
        return Ok(None);
    };
    let key = key(kind, &document)?;
    match kind.read(&document, &key.namespace, &key.name, origin) {
        Ok(change) => Ok(Some((key, change))),
        Err(cause) => Err(rejection(Some(key), cause)),
    }
}

fn key(kind: KindId, document: &Value) -> Result<Key, Rejection> {
    let metadata = &document["metadata"];
    let name = field(metadata, "name");
    if !is_name(name) {
        let cause =
            format!("`metadata.name` is {name:?}: lower-case letters, digits, '-' and '.' are needed, at most 253");
        return Err(rejection(None, cause));
    }
    let namespace = match &metadata["namespace"] {
        _ if !kind.is_namespaced() => "",
        Value::Null => "default",
        given => given
            .as_str()
            .filter(|namespace| is_name(namespace))
            .ok_or_else(|| rejection(None, format!("`metadata.namespace` is {given}, which no namespace is called")))?,
    };
    Ok(Key { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn rejection(key: Option<Key>, cause: String) -> Rejection {
    Rejection { key, line: 1, cause }
}

/// The characters of Kubernetes names (RFC 1123 subdomains). Names end up in logs, file names and
/// page addresses.
fn is_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_namespaced() {
            write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
        } else {
            write!(f, "{}/{}", self.kind, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::document::{Format, read};
    use super::*;

    fn one(text: &str) -> Result<(Key, Option<Change>), Rejection> {
        objects(read(text, Format::Yaml).unwrap(), "f").pop().unwrap()
    }

    #[test]
    fn the_three_kinds_are_read_with_all_that_matters() {
        let text = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations: {hauberk.io/keys: K, hauberk.io/enforced: E}\n\
            spec: {podCIDRs: [10.244.1.0/24, 'fd00:1::/64']}\nstatus:\n  addresses:\n  - {type: InternalIP, address: 192.168.0.1}\n  \
            - {type: Hostname, address: n1}\n  - {type: ExternalIP, address: '2001:db8::1'}\n";
        let Ok((key, Some(Change::Node(node)))) = one(text) else { panic!() };
        assert_eq!(key.to_string(), "Node/n1");
        assert_eq!(node.pod_ranges.len(), 2);
        assert_eq!(node.addresses.iter().map(|a| a.internal).collect::<Vec<_>>(), [true, false]);
        assert_eq!((node.keys.as_deref(), node.enforced.as_deref(), node.origin.as_str()), (Some("K"), Some("E"), "f"));

        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: ns, uid: u, deletionTimestamp: '2026-01-01T00:00:00Z',\n  \
            labels: {hauberk.io/encryption: enabled}}\nspec: {nodeName: n1, hostNetwork: true, containers: [{name: c}]}\n\
            status: {phase: Failed, podIPs: [{ip: 10.244.1.5}, {ip: 'fd00:1::5'}]}\n";
        let Ok((key, Some(Change::Pod(pod)))) = one(text) else { panic!() };
        assert_eq!(key.to_string(), "Pod/ns/p");
        assert!(pod.terminating && pod.finished && pod.host_network);
        assert_eq!(
            (pod.encryption.as_deref(), pod.node.as_deref(), pod.addresses.len()),
            (Some("enabled"), Some("n1"), 2)
        );

        let Ok((key, Some(Change::Pod(pod)))) =
            one("{apiVersion: v1, kind: Pod, metadata: {name: p}, status: {podIP: 10.0.0.1}}")
        else {
            panic!()
        };
        assert_eq!((key.namespace.as_str(), pod.addresses.len(), pod.node), ("default", 1, None));

        let Ok((_, Some(Change::Namespace(namespace)))) =
            one("{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {hauberk.io/encryption: permissive}}}")
        else {
            panic!()
        };
        assert_eq!(namespace.encryption.as_deref(), Some("permissive"));
    }

    #[test]
    fn lists_are_taken_apart_and_reject_item_by_item() {
        let text = "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: a}}, {kind: Pod},\
            {apiVersion: v1, kind: Secret, metadata: {name: s}}, {apiVersion: v1, kind: Service, metadata: {name: s}}]}";
        let all = objects(read(text, Format::Yaml).unwrap(), "f");
        assert_eq!(all.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        let all = objects(
            read("{apiVersion: v1, kind: PodList, items: [{metadata: {name: a}}]}", Format::Yaml).unwrap(),
            "f",
        );
        assert!(matches!(&all[..], [Ok((key, _))] if key.to_string() == "Pod/default/a"));
        assert!(one("{apiVersion: v1, kind: List}").is_err());
        let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: a}},\
            addressType: IPv4, endpoints: []}";
        assert!(
            matches!(one(slice), Ok((key, Some(Change::EndpointSlice(_)))) if key.to_string() == "EndpointSlice/default/s")
        );
    }

    #[test]
    fn what_cannot_be_used_is_rejected_by_name_with_the_cause() {
        for (text, key, cause) in [
            ("[1]", None, "not an object"),
            ("{kind: Pod}", None, "apiVersion"),
            ("{apiVersion: v1, kind: Pod, metadata: {name: A B}}", None, "metadata.name"),
            ("{apiVersion: v1, kind: Pod, metadata: {}}", None, "metadata.name"),
            ("{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: 7}}", None, "metadata.namespace"),
            (
                "{apiVersion: v1, kind: Pod, metadata: {name: p}, status: {podIPs: [{ip: x}]}}",
                Some("Pod/default/p"),
                "podIPs",
            ),
            (
                "{apiVersion: v1, kind: Namespace, metadata: {name: n, labels: {hauberk.io/encryption: true}}}",
                Some("Namespace/n"),
                "metadata.labels",
            ),
            ("{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDRs: [x]}}", Some("Node/n"), "podCIDRs"),
            (
                "{apiVersion: v1, kind: Node, metadata: {name: n}, status: {addresses: [{type: InternalIP, address: x}]}}",
                Some("Node/n"),
                "status.addresses",
            ),
            (
                "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {externalIPs: [x]}}",
                Some("Service/default/s"),
                "externalIPs",
            ),
            (
                "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}, addressType: x}",
                Some("EndpointSlice/default/s"),
                "addressType",
            ),
        ] {
            let rejection = one(text).unwrap_err();
            assert_eq!(rejection.key.map(|key| key.to_string()).as_deref(), key, "{text}");
            assert!(rejection.cause.contains(cause), "{text}: {}", rejection.cause);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(apiVersion: v1|kind: |Pod|Node|List|items: |metadata: |name: |spec|status: |podIPs: |\\[|\\]|\\{|\\}|, |\n|  |- |null|1){0,40}") {
            if let Ok(value) = read(&text, Format::Yaml) {
                let _ = objects(value, "f");
            }
        }
    }
}
