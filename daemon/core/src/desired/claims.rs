//! Who has which address: nodes, pods by their objects, and pods by their interfaces on this node.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::address::Address;
use hauberk_abi::identity::{Identity, Kind, Protection};
use ipnet::IpNet;

use crate::desired::{Owner, Policy};
use crate::events::{Collector, reason};
use crate::model::{AttachmentKey, ENCRYPTION_LABEL, Model, NodeObject, PodName, PodObject, read_from};
use crate::protection::{self, Rule, Ruling};
use crate::reserved;

/// Every address that somebody is known to have.
pub(super) struct Parties<'a> {
    nodes: BTreeMap<IpAddr, &'a NodeObject>,
    pods: BTreeMap<IpAddr, PodClaim<'a>>,
}

/// A pod's claim to an address, or what became of several.
pub(super) struct PodClaim<'a> {
    /// The strictest of all who claim the address.
    pub(super) protection: Protection,
    /// The node the pod is on, if it is known.
    pub(super) node: Option<&'a str>,
    /// The interface on this node that has the address.
    pub(super) attachment: Option<&'a AttachmentKey>,
    owner: Owner,
    terminating: bool,
    origin: &'a str,
}

impl<'a> Parties<'a> {
    /// What the objects and interfaces claim, less what they cannot have.
    pub(super) fn claimed(model: &'a Model, policy: &Policy, events: &mut Collector) -> Parties<'a> {
        let mut parties = Parties { nodes: node_addresses(model, events), pods: BTreeMap::new() };
        parties.claim_attached(model, policy, events);
        parties.claim_pods(model, policy, events);
        parties.settle_pods_with_nodes(model, policy, events);
        parties
    }

    /// Every address.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.keys().chain(self.pods.keys()).copied()
    }

    /// The node's own addresses, internal ones first, each kind in its object's order.
    pub(super) fn of_node(&self, node: &'a NodeObject) -> impl Iterator<Item = IpAddr> {
        let of_kind = |internal| node.addresses.iter().filter(move |address| address.internal == internal);
        of_kind(true)
            .chain(of_kind(false))
            .map(|address| address.address)
            .filter(|address| self.nodes.get(address).is_some_and(|owner| owner.name == node.name))
    }

    /// The pods' addresses.
    pub(super) fn pods(&self) -> impl Iterator<Item = (IpAddr, &PodClaim<'a>)> {
        self.pods.iter().map(|(address, claim)| (*address, claim))
    }

    /// Who of the pods has the address.
    pub(super) fn pod(&self, address: IpAddr) -> Option<&PodClaim<'a>> {
        self.pods.get(&address)
    }

    /// ENDPOINTS.
    pub(super) fn endpoints(&self, model: &Model) -> BTreeMap<Address, Identity> {
        let number = |node: &str| model.node_number(node).unwrap_or_default().0;
        let nodes = self.nodes.iter().map(|(address, node)| {
            (Address::from(*address), Identity::new(Kind::Node, Protection::None, number(&node.name)))
        });
        let pods = self.pods.iter().map(|(address, claim)| {
            (Address::from(*address), Identity::new(Kind::Pod, claim.protection, claim.node.map_or(0, number)))
        });
        nodes.chain(pods).collect()
    }

    /// Who has each endpoint.
    pub(super) fn owners(&self) -> BTreeMap<Address, Owner> {
        let nodes = self.nodes.iter().map(|(address, node)| ((*address).into(), Owner::Node(node.name.clone())));
        let pods = self.pods.iter().map(|(address, claim)| ((*address).into(), claim.owner.clone()));
        nodes.chain(pods).collect()
    }

    /// The addresses reserved for interfaces on this node. They count before the pod's object says so.
    fn claim_attached(&mut self, model: &'a Model, policy: &Policy, events: &mut Collector) {
        for (key, attachment) in model.attachments() {
            let pod = attachment.request.pod.as_ref().map(|pod| (PodName::from(pod), pod.uid.as_deref()));
            let ruling = protection::of_attached(model, policy, pod.as_ref().map(|(name, uid)| (name, *uid)));
            let owner = match pod {
                Some((name, _)) => Owner::Pod(name),
                None => Owner::Attachment(key.clone()),
            };
            for address in attachment.reservation.addresses.iter().map(IpNet::addr) {
                let claim = PodClaim {
                    protection: ruling.protection,
                    node: Some(model.node()),
                    attachment: Some(key),
                    owner: owner.clone(),
                    terminating: false,
                    origin: "",
                };
                self.claim(address, claim, events);
            }
        }
    }

    fn claim_pods(&mut self, model: &'a Model, policy: &Policy, events: &mut Collector) {
        let mut unknown_namespaces = BTreeSet::new();
        for (name, pod) in &model.pods {
            if pod.host_network || pod.finished {
                continue;
            }
            let ruling = protection::of_pod(model, policy, pod);
            tell_ruling(model, name, pod, ruling, &mut unknown_namespaces, events);
            let known_node = |node: &&str| *node == model.node() || model.nodes.contains_key(*node);
            for address in &pod.addresses {
                let claim = PodClaim {
                    protection: ruling.protection,
                    node: pod.node.as_deref().filter(known_node),
                    attachment: None,
                    owner: Owner::Pod(name.clone()),
                    terminating: pod.terminating,
                    origin: &pod.origin,
                };
                self.claim(*address, claim, events);
            }
        }
    }

    fn claim(&mut self, address: IpAddr, claim: PodClaim<'a>, events: &mut Collector) {
        if let Some(what) = reserved::address(address) {
            events.warn(reason::ADDRESS_REFUSED, [claim.owner.object()], || {
                format!("{claim}: address {address} is refused: it is {what} and no pod's; correct status.podIPs")
            });
            return;
        }
        match self.pods.entry(address) {
            Entry::Vacant(vacant) => {
                vacant.insert(claim);
            }
            Entry::Occupied(mut occupied) => {
                let holder = occupied.get_mut();
                if holder.owner != claim.owner {
                    events.warn(reason::ADDRESS_CONFLICT, [holder.owner.object(), claim.owner.object()], || {
                        conflict(address, holder, &claim)
                    });
                }
                holder.join(claim);
            }
        }
    }

    /// One address, a pod and a node. In the cluster's pod ranges, and on an interface of this node, it is the pod's: no
    /// node may take a pod's traffic by claiming its address. Elsewhere it is the node's: no pod may cut off a node.
    fn settle_pods_with_nodes(&mut self, model: &Model, policy: &Policy, events: &mut Collector) {
        let Parties { nodes, pods } = self;
        nodes.retain(|address, node| {
            let Some(claim) = pods.get(address) else { return true };
            let attached_here = claim.attachment.is_some() && node.name != model.node();
            let pod_keeps = attached_here || policy.in_cluster(IpNet::from(*address));
            events.warn(reason::ADDRESS_CONFLICT, [object(node), claim.owner.object()], || {
                let (keeper, why) = if pod_keeps {
                    ("the pod keeps it", "it is a pod's by clusterRanges or by its interface here")
                } else {
                    ("the node keeps it", "it is outside clusterRanges")
                };
                format!(
                    "Node {}{} and {claim} both claim {address}: {keeper}, because {why}; correct the other's status",
                    node.name,
                    read_from(&node.origin)
                )
            });
            if !pod_keeps {
                pods.remove(address);
            }
            !pod_keeps
        });
    }
}

impl<'a> PodClaim<'a> {
    /// Two pods, one address: the stricter protection of both, and the place of the one more likely to be there.
    fn join(&mut self, other: PodClaim<'a>) {
        let protection = self.protection.max(other.protection);
        if other.likelihood() > self.likelihood() {
            *self = other;
        }
        self.protection = protection;
    }

    /// An interface here is certain; a pod on a known node is more likely than one on none, a pod that stays than one
    /// that goes. Then the stricter one, and then any order will do as long as it is always the same.
    fn likelihood(&self) -> impl Ord {
        let order = std::cmp::Reverse((self.owner.clone(), self.attachment.cloned()));
        (self.attachment.is_some(), self.node.is_some(), !self.terminating, self.protection, order)
    }
}

impl std::fmt::Display for PodClaim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.owner {
            Owner::Pod(name) => write!(f, "Pod {name}{}", read_from(self.origin)),
            Owner::Attachment(key) => write!(f, "interface {key} on this node"),
            Owner::Node(name) => write!(f, "Node {name}"),
        }
    }
}

impl Owner {
    /// As events name it.
    pub(super) fn object(&self) -> String {
        match self {
            Owner::Pod(name) => format!("Pod/{name}"),
            Owner::Attachment(key) => format!("Attachment/{key}"),
            Owner::Node(name) => format!("Node/{name}"),
        }
    }
}

/// The nodes' addresses. Where two claim one, this node keeps its own, and else the first by name: a node's own address
/// must be somebody's, or nothing reaches it.
fn node_addresses<'a>(model: &'a Model, events: &mut Collector) -> BTreeMap<IpAddr, &'a NodeObject> {
    let mut owners: BTreeMap<IpAddr, &NodeObject> = BTreeMap::new();
    let own = model.nodes().filter(|node| node.name == model.node());
    let others = model.nodes().filter(|node| node.name != model.node());
    for node in own.chain(others) {
        for address in node.addresses.iter().map(|address| address.address) {
            if let Some(what) = reserved::address(address) {
                events.warn(reason::ADDRESS_REFUSED, [object(node)], || {
                    let origin = read_from(&node.origin);
                    format!(
                        "Node {}{origin}: address {address} is refused: it is {what}; correct status.addresses",
                        node.name
                    )
                });
                continue;
            }
            let owner = *owners.entry(address).or_insert(node);
            if owner.name != node.name {
                events.warn(reason::ADDRESS_CONFLICT, [object(owner), object(node)], || {
                    format!(
                        "Node {}{} and Node {}{} both claim {address}: {} keeps it (this node before others, then by \
                         name); correct status.addresses of one",
                        owner.name,
                        read_from(&owner.origin),
                        node.name,
                        read_from(&node.origin),
                        owner.name
                    )
                });
            }
        }
    }
    owners
}

fn tell_ruling<'a>(
    model: &Model,
    name: &PodName,
    pod: &'a PodObject,
    ruling: Ruling,
    unknown_namespaces: &mut BTreeSet<&'a str>,
    events: &mut Collector,
) {
    match ruling.rule {
        Rule::PodOptOutRefused => events.warn(reason::POD_OPT_OUT_REFUSED, [format!("Pod/{name}")], || {
            format!(
                "Pod {name}{}: label {ENCRYPTION_LABEL}={} would weaken its namespace's {} and is refused; take the label \
                 away, or set allowPodOptOut on every node",
                read_from(&pod.origin),
                pod.encryption.as_deref().unwrap_or_default(),
                protection::label_value(ruling.protection)
            )
        }),
        // While the source is still being read this is no news: the namespace may come with the next object.
        Rule::NamespaceUnknown if model.synced() && unknown_namespaces.insert(&pod.namespace) => {
            events.warn(reason::NAMESPACE_UNKNOWN, [format!("Namespace/{}", pod.namespace)], || {
                format!(
                    "Namespace {} has pods (Pod {name}{} is one) but no object: they are treated as enabled; add the \
                     Namespace object",
                    pod.namespace,
                    read_from(&pod.origin)
                )
            });
        }
        _ => {}
    }
}

fn conflict(address: IpAddr, one: &PodClaim<'_>, other: &PodClaim<'_>) -> String {
    let keeper = if other.likelihood() > one.likelihood() { other } else { one };
    format!(
        "{one} and {other} both claim {address}: it is treated as {}, the stricter of the two, and as where {keeper} is; \
         delete or correct the other",
        protection::label_value(one.protection.max(other.protection))
    )
}

fn object(node: &NodeObject) -> String {
    format!("Node/{}", node.name)
}
