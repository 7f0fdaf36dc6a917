//! The cluster as the agent last read it. Changes go in one by one, whatever source they come from.
//!
//! The model keeps objects as they are; [`crate::desired`] decides how they relate to each other.
//! Two decisions depend on history and are made here: which keys and addresses a node had before it
//! published a broken annotation, and which node had a key first.

mod claims;
mod departed;
mod messages;
mod nodes;
mod pods;
mod services;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hauberk_abi::address::Address;

use crate::attachment::{Attachment, NamedPod};
use crate::events::NewEvent;
use crate::model::claims::Claims;
use crate::model::departed::Departed;
use crate::model::messages::unknown_label;
use crate::model::nodes::Node;
use crate::model::pods::Pods;
use crate::model::services::Services;
use crate::names::{AttachmentKey, NodeNumber, PodName, ServiceName};
use crate::numbers::Numbers;
use crate::objects::{EndpointSliceObject, NamespaceObject, NodeObject, PodObject, ServiceObject};
use crate::reserved;

pub(crate) use claims::Claimant;
pub use departed::MAX as MOST_DEPARTED;
pub(crate) use nodes::Held;
pub use pods::Pod;
pub(crate) use services::Service;

/// A change reported by the source, the CNI plugin or the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node's present state.
    Node(NodeObject),
    /// The node of this name is gone.
    NodeGone(String),
    /// A namespace's present state.
    Namespace(NamespaceObject),
    /// The namespace of this name is gone.
    NamespaceGone(String),
    /// A pod's present state.
    Pod(PodObject),
    /// This pod is gone.
    PodGone(PodName),
    /// A service's present state.
    Service(ServiceObject),
    /// This service is gone.
    ServiceGone(ServiceName),
    /// The present state of some of a service's endpoints. They may come before the service.
    EndpointSlice(EndpointSliceObject),
    /// The slice of this name is gone, or belongs to no service any more.
    EndpointSliceGone(ServiceName),
    /// A pod's interface on this node is reserved or attached.
    Attachment(Attachment),
    /// A pod's interface on this node is gone.
    AttachmentGone(AttachmentKey),
    /// Whether the tunnel to a node can encrypt.
    PeerReady {
        /// The node's name.
        node: String,
        /// Whether a handshake has succeeded and has not failed since.
        ready: bool,
    },
    /// A node had the address before this agent started; no object read since names its owner.
    AddressDeparted {
        /// The address.
        address: IpAddr,
        /// The node's name.
        node: String,
    },
    /// An address that a node had, and that no node has had since, is free again.
    AddressForgotten(IpAddr),
    /// The source has reported every existing object once.
    Synced,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[must_use]
pub struct Applied {
    /// Whether anything is different now; if not, nothing needs to be computed.
    pub changed: bool,
    /// Events about this one object. [`crate::desired::Desired::events`] has those about how
    /// objects relate to each other.
    pub events: Vec<NewEvent>,
}

/// The pod of an interface on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodOf<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// Its uid, where known.
    pub uid: Option<&'a str>,
}

impl PodOf<'_> {
    /// Its full name.
    pub fn full_name(&self) -> PodName {
        PodName { namespace: self.namespace.to_owned(), name: self.name.to_owned() }
    }
}

/// The cluster as one node last read it.
#[derive(Debug)]
pub struct Model {
    node: String,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) namespaces: BTreeMap<String, NamespaceObject>,
    pub(crate) pods: Pods,
    pub(crate) attachments: BTreeMap<Arc<AttachmentKey>, Attachment>,
    pub(crate) claims: Claims,
    pub(crate) services: Services,
    pub(crate) ready: BTreeSet<String>,
    pub(crate) departed: Departed,
    pub(crate) synced: bool,
    touched: Touched,
    numbers: Numbers,
    arrivals: u64,
    generation: u64,
}

/// What changes have touched since the last [`Model::take_touched`].
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Nodes came or went.
    pub(crate) node_set: bool,
    /// Some node changed in a way that can matter to other nodes.
    pub(crate) nodes: bool,
    /// Nodes whose tunnel became ready, or is no longer ready.
    pub(crate) ready: BTreeSet<String>,
    /// Namespaces: their labels, or any of their pods.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    /// Pods, by namespace and name.
    pub(crate) pods: BTreeSet<(Arc<str>, Box<str>)>,
    /// Interfaces on this node, or the pods behind them.
    pub(crate) attachments: BTreeSet<Arc<AttachmentKey>>,
    /// Addresses that a pod or an interface claims, or claimed.
    pub(crate) addresses: BTreeSet<Address>,
    /// Services, or the endpoints behind them.
    pub(crate) services: BTreeSet<ServiceName>,
}

impl Model {
    /// An empty model on the node of this name.
    pub fn new(node: &str) -> Model {
        // SETTINGS holds this node's number from the start, so it must not depend on the object.
        let mut numbers = Numbers::default();
        numbers.assign(node);
        Model {
            node: node.to_owned(),
            nodes: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            pods: Pods::default(),
            attachments: BTreeMap::new(),
            claims: Claims::default(),
            services: Services::default(),
            ready: BTreeSet::new(),
            departed: Departed::default(),
            synced: false,
            touched: Touched::default(),
            numbers,
            arrivals: 0,
            generation: 0,
        }
    }

    /// Applies one change. The valid parts of an invalid object are used; events report the rest.
    pub fn apply(&mut self, change: Change) -> Applied {
        let mut events = Vec::new();
        let changed = match change {
            Change::Node(object) => self.put_node(object, &mut events),
            Change::NodeGone(name) => {
                let was_ready = self.ready.remove(&name);
                if name != self.node {
                    self.numbers.release(&name);
                }
                let node = self.nodes.remove(&name);
                let changed = node.is_some() || was_ready;
                self.touched.node_set |= changed;
                if let Some(node) = node {
                    self.note_addresses(&name, &node.addresses(), &BTreeSet::new());
                }
                changed
            }
            Change::Namespace(object) => {
                let changed = self.namespaces.get(&object.name) != Some(&object);
                if changed {
                    events.extend(unknown_label(
                        "Namespace",
                        &object.name,
                        object.encryption.as_deref(),
                        &object.origin,
                    ));
                    self.touch_namespace(&object.name);
                    self.namespaces.insert(object.name.clone(), object);
                }
                changed
            }
            Change::NamespaceGone(name) => {
                let changed = self.namespaces.remove(&name).is_some();
                if changed {
                    self.touch_namespace(&name);
                }
                changed
            }
            Change::Pod(object) => self.put_pod(object, &mut events),
            Change::PodGone(name) => match self.pods.remove(&name) {
                Some(pod) => {
                    self.withdraw(&pod);
                    self.touch_pod(&pod);
                    true
                }
                None => false,
            },
            Change::Service(object) => {
                let changed = self.services.put(object);
                self.touch_services(changed)
            }
            Change::ServiceGone(name) => {
                let changed = self.services.remove(&name).then_some(name);
                self.touch_services(changed)
            }
            Change::EndpointSlice(object) => {
                let changed = self.services.put_slice(object);
                self.touch_services(changed)
            }
            Change::EndpointSliceGone(name) => {
                let changed = self.services.remove_slice(&name);
                self.touch_services(changed)
            }
            Change::Attachment(attachment) => self.put_attachment(attachment),
            Change::AttachmentGone(key) => self.remove_attachment(&key),
            Change::PeerReady { node, ready } => {
                let changed = if ready { self.ready.insert(node.clone()) } else { self.ready.remove(&node) };
                if changed {
                    self.touched.ready.insert(node);
                }
                changed
            }
            Change::AddressDeparted { address, node } => {
                let is_had = self.nodes.values().any(|node| node.addresses().contains(&address));
                let changed = !is_had && node != self.node && self.departed.put(address, node);
                self.touched.nodes |= changed;
                changed
            }
            Change::AddressForgotten(address) => {
                let changed = self.departed.forget(address);
                self.touched.nodes |= changed;
                changed
            }
            Change::Synced => !std::mem::replace(&mut self.synced, true),
        };
        self.generation += u64::from(changed);
        Applied { changed, events }
    }

    /// Another number after every change, for a reader that need not look at the same again.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the source has reported every existing object once.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The name of the node this model is on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// This node's number.
    pub fn own_number(&self) -> NodeNumber {
        self.numbers.number(&self.node).unwrap_or_default()
    }

    /// The nodes that have an object.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeObject> {
        self.nodes.values().map(|node| &node.object)
    }

    /// The namespace of this name.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceObject> {
        self.namespaces.get(name)
    }

    /// The node of this name.
    pub fn node_object(&self, name: &str) -> Option<&NodeObject> {
        self.nodes.get(name).map(|node| &node.object)
    }

    /// The pod of this name.
    pub fn pod(&self, name: &PodName) -> Option<&Pod> {
        self.pods.find(&name.namespace, &name.name).map(|pod| &**pod)
    }

    /// The pods, in the order of their names.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().map(|pod| &**pod)
    }

    /// The services, in the order of their names.
    pub fn services(&self) -> impl Iterator<Item = &ServiceObject> {
        self.services.iter().map(|(_, object, _)| &**object)
    }

    /// The pods' interfaces on this node.
    pub fn attachments(&self) -> impl Iterator<Item = (&AttachmentKey, &Attachment)> {
        self.attachments.iter().map(|(key, attachment)| (&**key, attachment))
    }

    /// The zone that this node is in, if its object says so.
    pub(crate) fn zone(&self) -> Option<&str> {
        self.node_object(&self.node)?.zone.as_deref()
    }

    /// The addresses of other nodes, from their objects and their devices, with the node's name.
    pub fn node_addresses(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        let others = self.nodes.iter().filter(|(name, _)| **name != self.node);
        others.flat_map(|(name, node)| node.addresses().into_iter().map(|address| (address, name.as_str())))
    }

    /// Addresses that a node had and that are not free yet, with that node's name.
    pub fn departed(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.departed.iter()
    }

    /// The pod of an interface on this node, as the runtime named it. For a recovered interface, it
    /// is the only pod on this node that has any of its addresses.
    pub fn pod_of<'a>(&'a self, attachment: &'a Attachment) -> Option<PodOf<'a>> {
        if let Some(NamedPod { name: PodName { namespace, name }, uid }) = &attachment.pod {
            return Some(PodOf { namespace, name, uid: uid.as_deref() });
        }
        let addresses: &[IpAddr] = if attachment.recovered { &attachment.addresses } else { &[] };
        let mut found: Option<&Pod> = None;
        for claimant in possible(addresses).flat_map(|address| self.claims.of(address)) {
            let Claimant::Pod(pod) = claimant else { continue };
            if pod.node.as_deref() != Some(self.node()) {
                continue;
            }
            if found.is_some_and(|other| (&other.namespace, &other.name) != (&pod.namespace, &pod.name)) {
                return None;
            }
            found = Some(pod);
        }
        found.map(|pod| PodOf { namespace: &pod.namespace, name: &pod.name, uid: pod.uid.as_deref() })
    }

    /// Returns what changes have touched since the last call.
    pub(crate) fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// The name of the node with this number.
    pub fn node_name(&self, number: NodeNumber) -> Option<&str> {
        self.numbers.name(number)
    }

    /// The number of the node of this name: of this node, or of one that has an object.
    pub fn node_number(&self, name: &str) -> Option<NodeNumber> {
        self.numbers.number(name)
    }

    /// Returns whether there are any.
    fn touch_services(&mut self, changed: impl IntoIterator<Item = ServiceName>) -> bool {
        let mut changed = changed.into_iter().peekable();
        let any = changed.peek().is_some();
        self.touched.services.extend(changed);
        any
    }

    fn put_pod(&mut self, object: PodObject, events: &mut Vec<NewEvent>) -> bool {
        let Some((before, pod)) = self.pods.put(object) else { return false };
        if before.as_ref().is_none_or(|before| before.encryption != pod.encryption) {
            let label = pod.encryption.as_deref();
            events.extend(unknown_label("Pod", &pod.full_name().to_string(), label, &pod.origin));
        }
        if let Some(before) = &before {
            self.withdraw(before);
        }
        for address in possible(pod.own_addresses()) {
            self.claims.insert(address, Claimant::Pod(Arc::clone(&pod)));
            self.touch_address(address);
        }
        self.touch_pod(&pod);
        true
    }

    /// Removes the pod's claims.
    fn withdraw(&mut self, pod: &Arc<Pod>) {
        for address in possible(pod.own_addresses()) {
            self.claims.remove(address, Claimant::Pod(Arc::clone(pod)));
            self.touch_address(address);
        }
    }

    fn put_attachment(&mut self, attachment: Attachment) -> bool {
        if self.attachments.get(&attachment.key) == Some(&attachment) {
            return false;
        }
        self.remove_attachment(&attachment.key);
        let key = Arc::new(attachment.key.clone());
        for address in possible(&attachment.addresses) {
            self.claims.insert(address, Claimant::Attachment(Arc::clone(&key)));
            self.touched.addresses.insert(address);
        }
        self.touched.attachments.insert(Arc::clone(&key));
        self.attachments.insert(key, attachment);
        true
    }

    fn remove_attachment(&mut self, key: &AttachmentKey) -> bool {
        let Some((key, attachment)) = self.attachments.remove_entry(key) else { return false };
        for address in possible(&attachment.addresses) {
            self.claims.remove(address, Claimant::Attachment(Arc::clone(&key)));
            self.touched.addresses.insert(address);
        }
        self.touched.attachments.insert(key);
        true
    }

    /// Touches the pod, its namespace, and the interfaces whose request names the pod.
    fn touch_pod(&mut self, pod: &Pod) {
        self.touched.pods.insert((Arc::clone(&pod.namespace), pod.name.clone()));
        self.touched.namespaces.insert(Arc::clone(&pod.namespace));
        self.touch_attachments(|named| *named.name == *pod.name && *named.namespace == *pod.namespace);
    }

    /// Touches the namespace, and every pod in it.
    fn touch_namespace(&mut self, name: &str) {
        self.touched.namespaces.insert(name.into());
        let mut addresses = BTreeSet::new();
        for pod in self.pods.of_namespace(name) {
            self.touched.pods.insert((Arc::clone(&pod.namespace), pod.name.clone()));
            addresses.extend(possible(pod.own_addresses()));
        }
        for address in addresses {
            self.touch_address(address);
        }
        self.touch_attachments(|named| named.namespace == name);
    }

    /// Touches a pod's address, and all addresses of a recovered interface that has this address.
    fn touch_address(&mut self, address: Address) {
        self.touched.addresses.insert(address);
        for claimant in self.claims.of(address) {
            let Claimant::Attachment(key) = claimant else { continue };
            if let Some(attachment) = self.attachments.get(key).filter(|attachment| attachment.recovered) {
                self.touched.attachments.insert(Arc::clone(key));
                self.touched.addresses.extend(possible(&attachment.addresses));
            }
        }
    }

    fn touch_attachments(&mut self, of_pod: impl Fn(&PodName) -> bool) {
        for (key, attachment) in &self.attachments {
            if attachment.pod.as_ref().is_some_and(|pod| of_pod(&pod.name)) {
                self.touched.attachments.insert(Arc::clone(key));
                self.touched.addresses.extend(possible(&attachment.addresses));
            }
        }
    }
}

/// The addresses that a pod can have.
fn possible(addresses: &[IpAddr]) -> impl Iterator<Item = Address> {
    addresses.iter().filter(|address| reserved::address(**address).is_none()).map(|address| Address::from(*address))
}

#[cfg(test)]
mod tests {
    use crate::model::Change;
    use crate::testing::{World, pod, pod_name};

    #[test]
    fn a_generation_ends_with_each_change_and_with_nothing_else() {
        let mut world = World::three_nodes();
        let mut generations = vec![world.model.generation()];
        for change in [
            Change::Pod(pod("open/a", 2, &["10.0.2.5"])),
            Change::PeerReady { node: "n2".into(), ready: true },
            Change::PodGone(pod_name("open/a")),
        ] {
            assert!(world.apply(change.clone()));
            generations.push(world.model.generation());
            assert!(!world.apply(change), "once");
            assert_eq!(generations.last(), Some(&world.model.generation()));
        }
        generations.dedup();
        assert_eq!(generations.len(), 4);
    }
}
