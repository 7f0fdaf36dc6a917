//! Small objects for tests: nodes `n1`.. with address 192.0.2.N, pod range 10.0.N.0/24 and key N.

use std::net::IpAddr;

use hauberk_abi::packet::protocol;
use hauberk_keyring::published::{self, PublicKey, Published};
use ipnet::IpNet;

use crate::attachment::{Attachment, NamedPod, VethPair};
use crate::desired::{Desired, Followed, Incremental, desired};
use crate::events::NewEvent;
use crate::local_node::{LocalNode, Settings};
use crate::model::{Change, Model};
use crate::names::{AttachmentKey, PodName, ServiceName};
use crate::objects::{
    Endpoint, EndpointPort, EndpointSliceObject, NamespaceObject, NodeAddress, NodeObject, PodObject, ServiceObject,
    ServicePort,
};
use crate::plan::{plan, plan_within};
use crate::state::{Scope, State, Step};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A usable public key, different for each number.
pub(crate) fn key(number: u8) -> [u8; 32] {
    let mut key = [0x11; 32];
    key[0] = number;
    key
}

pub(crate) fn public_key(epoch: u32, number: u8) -> PublicKey {
    PublicKey { epoch, bytes: key(number) }
}

pub(crate) fn keys(epochs: &[(u32, u8)]) -> String {
    let keys = epochs.iter().map(|(epoch, number)| public_key(*epoch, *number)).collect();
    published::render(&Published { port: 51840, keys })
}

pub(crate) fn node(number: u8) -> NodeObject {
    NodeObject {
        name: format!("n{number}"),
        addresses: vec![NodeAddress { address: IpAddr::from([192, 0, 2, number]), internal: true }],
        pod_ranges: vec![net(&format!("10.0.{number}.0/24"))],
        zone: None,
        keys: Some(keys(&[(1, number)])),
        published_addresses: None,
        enforced: None,
        plaintext_seen: None,
        origin: format!("nodes/n{number}.yaml"),
    }
}

pub(crate) fn namespace(name: &str, encryption: Option<&str>) -> Change {
    Change::Namespace(NamespaceObject {
        name: name.into(),
        encryption: encryption.map(str::to_owned),
        origin: format!("namespaces/{name}.yaml"),
    })
}

/// A pod `namespace/name` on node `n{node}` with these addresses.
pub(crate) fn pod(name: &str, node: u8, addresses: &[&str]) -> PodObject {
    let (namespace, name) = name.split_once('/').unwrap();
    PodObject {
        namespace: namespace.into(),
        name: name.into(),
        node: Some(format!("n{node}")),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        origin: format!("pods/{namespace}-{name}.yaml"),
        ..PodObject::default()
    }
}

/// A service `namespace/name` with this cluster address and the port `web` 80/TCP.
pub(crate) fn service(name: &str, address: &str) -> ServiceObject {
    ServiceObject {
        name: service_name(name),
        cluster_addresses: vec![ip(address)],
        ports: vec![ServicePort { name: "web".into(), protocol: protocol::TCP, port: 80, node_port: None }],
        origin: format!("services/{}.yaml", name.replace('/', "-")),
        ..ServiceObject::default()
    }
}

/// A slice `namespace/name` of a service, with ready endpoints on node n2 whose port `web` is
/// 8080/TCP.
pub(crate) fn slice(name: &str, service: &str, addresses: &[&str]) -> EndpointSliceObject {
    EndpointSliceObject {
        name: service_name(name),
        service: service.into(),
        is_ipv4: addresses.first().is_none_or(|address| ip(address).is_ipv4()),
        ports: vec![EndpointPort { name: "web".into(), protocol: protocol::TCP, port: 8080 }],
        endpoints: addresses.iter().map(|address| endpoint(address, 2)).collect(),
        no_addresses: Vec::new(),
        origin: format!("slices/{}.yaml", name.replace('/', "-")),
    }
}

/// A ready endpoint on node `n{node}`.
pub(crate) fn endpoint(address: &str, node: u8) -> Endpoint {
    Endpoint {
        address: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("n{node}").into()),
        hints: None,
    }
}

pub(crate) fn service_name(name: &str) -> ServiceName {
    let (namespace, name) = name.split_once('/').unwrap();
    ServiceName::new(namespace, name)
}

pub(crate) fn pod_name(name: &str) -> PodName {
    let (namespace, name) = name.split_once('/').unwrap();
    PodName { namespace: namespace.into(), name: name.into() }
}

/// An attached interface of the container.
pub(crate) fn attachment(container: &str, pod: Option<&str>, addresses: &[&str]) -> Attachment {
    Attachment {
        key: AttachmentKey::new(container, "eth0"),
        pod: pod.map(|name| NamedPod { name: pod_name(name), uid: None }),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        host_interface: format!("hbk{container}"),
        pair: Some(VethPair { host_index: 7, host_mac: [2, 0, 0, 0, 0, 1].into(), pod_mac: [2, 0, 0, 0, 0, 2].into() }),
        adopted: false,
        recovered: false,
    }
}

pub(crate) fn local() -> LocalNode {
    LocalNode {
        name: "n1".into(),
        settings: Settings {
            cluster_ranges: vec![net("10.0.0.0/16"), net("fd00::/48")],
            node_ranges: vec![net("192.0.2.0/24")],
            ..Settings::default()
        },
        keys: vec![key(1)],
        route_mtu: Some(1420),
        ..LocalNode::default()
    }
}

/// A model of node `n1`, and the events of the changes so far.
pub(crate) struct World {
    pub(crate) model: Model,
    pub(crate) local: LocalNode,
    pub(crate) told: Vec<NewEvent>,
    pub(crate) incremental: Incremental,
}

impl World {
    pub(crate) fn new() -> World {
        World { model: Model::new("n1"), local: local(), told: Vec::new(), incremental: Incremental::default() }
    }

    /// Nodes n1 to n3, namespaces `secret` (enabled), `soft` (permissive) and `open` (no label),
    /// synced.
    pub(crate) fn three_nodes() -> World {
        let mut world = World::new();
        for number in 1..=3 {
            world.apply(Change::Node(node(number)));
        }
        world.apply(namespace("secret", Some("enabled")));
        world.apply(namespace("soft", Some("permissive")));
        world.apply(namespace("open", None));
        world.apply(Change::Synced);
        world
    }

    /// Applies the change, and compares the incremental state with one computed from scratch.
    pub(crate) fn apply(&mut self, change: Change) -> bool {
        let changed = self.hear(change);
        let _ = self.follow();
        assert_eq!(*self.incremental, self.desired());
        changed
    }

    /// Applies the change only.
    pub(crate) fn hear(&mut self, change: Change) -> bool {
        let applied = self.model.apply(change);
        self.told.extend(applied.events);
        applied.changed
    }

    /// Applies the changes. Asserts that what is kept in step is what is computed from scratch: the
    /// state, the news, and the plan from `actual`, which may differ within `pending` and what
    /// followed. Returns the desired state and that plan.
    pub(crate) fn turn(&mut self, changes: Vec<Change>, actual: &State, mut pending: Scope) -> (Desired, Vec<Step>) {
        let before = self.incremental.events.clone();
        for change in changes {
            self.hear(change);
        }
        let followed = self.follow();
        let desired = self.desired();
        assert_eq!(*self.incremental, desired);
        let news: Vec<NewEvent> = desired.events.difference(&before).cloned().collect();
        assert_eq!(followed.news, news);
        pending.extend(followed.scope);
        let steps = plan(actual, &desired);
        assert_eq!(plan_within(actual, &desired, &pending), steps);
        (desired, steps)
    }

    pub(crate) fn follow(&mut self) -> Followed {
        self.incremental.follow(&mut self.model, &self.local)
    }

    pub(crate) fn desired(&self) -> Desired {
        desired(&self.model, &self.local)
    }

    pub(crate) fn number(&self, node: u8) -> u32 {
        self.model.node_number(&format!("n{node}")).unwrap().0
    }

    /// The reasons and objects of the events, standing ones included.
    pub(crate) fn events(&self) -> Vec<(&'static str, Vec<String>)> {
        let standing = self.desired().events.into_iter();
        self.told.iter().cloned().chain(standing).map(|event| (event.reason, event.objects)).collect()
    }

    pub(crate) fn assert_event(&self, reason: &str, objects: &[&str]) {
        let events = self.events();
        assert!(events.iter().any(|(r, o)| *r == reason && o == objects), "no {reason} of {objects:?} in {events:?}");
    }
}
