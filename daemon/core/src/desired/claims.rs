//! Who has which address: nodes, pods by their objects, and pods by their interfaces on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::address::Address;
use hauberk_abi::identity::Protection;
use ipnet::IpNet;

use crate::api::Attachment;
use crate::desired::{Owner, Policy};
use crate::events::{Collector, reason};
use crate::model::{AttachmentKey, Claimant, ENCRYPTION_LABEL, Model, NodeObject, Pod, PodName, read_from};
use crate::protection::{self, Rule};
use crate::reserved;

/// Who has an address.
pub(super) enum Party<'a> {
    Nobody,
    /// A node, by name.
    Node(&'a str),
    Pod(PodClaim<'a>),
}

/// A pod's claim to an address, or what became of several.
pub(super) struct PodClaim<'a> {
    /// The strictest of all who claim the address.
    pub(super) protection: Protection,
    /// The node the pod is on, if it is known.
    pub(super) node: Option<&'a str>,
    /// The interface on this node that has the address.
    pub(super) attachment: Option<&'a AttachmentKey>,
    holder: Holder<'a>,
    terminating: bool,
    origin: &'a str,
}

/// Whose claim it is. An interface whose pod is named is that pod's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holder<'a> {
    /// By namespace and name.
    Pod(&'a str, &'a str),
    Attachment(&'a AttachmentKey),
}

/// Who has the address.
///
/// One address, a pod and a node: in the cluster's pod ranges, and on an interface of this node, it is the pod's: no node
/// may take a pod's traffic by claiming its address. Elsewhere it is the node's: no pod may cut off a node.
pub(super) fn settle<'a>(
    model: &'a Model,
    policy: &Policy,
    nodes: &'a NodeAddresses,
    address: Address,
    events: &mut Collector,
) -> Party<'a> {
    let claim = match (pod_claim(model, policy, address, events), nodes.claimant(address)) {
        (None, None) => return Party::Nobody,
        (None, Some(node)) => return Party::Node(node),
        (Some(claim), None) => return Party::Pod(claim),
        (Some(claim), Some(node)) => (claim, node),
    };
    let (claim, node) = claim;
    let address = IpAddr::from(address);
    let attached_here = claim.attachment.is_some() && node != model.node();
    let pod_keeps = attached_here || policy.in_cluster(IpNet::from(address));
    events.warn(reason::ADDRESS_CONFLICT, [format!("Node/{node}"), claim.object()], || {
        let (keeper, why) = if pod_keeps {
            ("the pod keeps it", "it is a pod's by clusterRanges or by its interface here")
        } else {
            ("the node keeps it", "it is outside clusterRanges")
        };
        let origin = model.node_object(node).map(|node| read_from(&node.origin)).unwrap_or_default();
        format!(
            "Node {node}{origin} and {claim} both claim {address}: {keeper}, because {why}; correct the other's status"
        )
    });
    if pod_keeps { Party::Pod(claim) } else { Party::Node(node) }
}

/// What became of the claims of pods and interfaces to the address. The interfaces' count before the pod's object says so.
fn pod_claim<'a>(model: &'a Model, policy: &Policy, address: Address, events: &mut Collector) -> Option<PodClaim<'a>> {
    let mut claims = model.claims.of(address).filter_map(|claimant| match claimant {
        Claimant::Attachment(key) => Some(of_attachment(model, policy, key, model.attachments.get(key)?)),
        Claimant::Pod(pod) => Some(of_pod(model, policy, pod)),
    });
    let mut holder = claims.next()?;
    for claim in claims {
        if holder.holder != claim.holder {
            events.warn(reason::ADDRESS_CONFLICT, [holder.object(), claim.object()], || {
                conflict(address.into(), &holder, &claim)
            });
        }
        holder.join(claim);
    }
    Some(holder)
}

fn of_attachment<'a>(
    model: &'a Model,
    policy: &Policy,
    key: &'a AttachmentKey,
    attachment: &'a Attachment,
) -> PodClaim<'a> {
    let pod = attachment.request.pod.as_ref();
    PodClaim {
        protection: protection_of(model, policy, attachment),
        node: Some(model.node()),
        attachment: Some(key),
        holder: pod.map_or(Holder::Attachment(key), |pod| Holder::Pod(&pod.namespace, &pod.name)),
        terminating: false,
        origin: "",
    }
}

fn of_pod<'a>(model: &'a Model, policy: &Policy, pod: &'a Pod) -> PodClaim<'a> {
    let known = |node: &&str| *node == model.node() || model.nodes.contains_key(*node);
    PodClaim {
        protection: protection::of_pod(model, policy, pod).protection,
        node: pod.node.as_deref().filter(known),
        attachment: None,
        holder: Holder::Pod(&pod.namespace, &pod.name),
        terminating: pod.terminating,
        origin: &pod.origin,
    }
}

/// How the pod behind an interface on this node is protected.
pub(super) fn protection_of(model: &Model, policy: &Policy, attachment: &Attachment) -> Protection {
    let pod = attachment.request.pod.as_ref().map(|pod| (PodName::from(pod), pod.uid.as_deref()));
    protection::of_attached(model, policy, pod.as_ref().map(|(name, uid)| (name, *uid))).protection
}

/// Who has the address, for people; of several the likeliest.
pub(super) fn owner(model: &Model, policy: &Policy, address: Address) -> Option<Owner> {
    Some(match pod_claim(model, policy, address, &mut Collector::counting())?.holder {
        Holder::Pod(namespace, name) => Owner::Pod(PodName { namespace: namespace.to_owned(), name: name.to_owned() }),
        Holder::Attachment(key) => Owner::Attachment(key.clone()),
    })
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
        let order = std::cmp::Reverse((self.holder, self.attachment));
        (self.attachment.is_some(), self.node.is_some(), !self.terminating, self.protection, order)
    }

    /// As events name it.
    fn object(&self) -> String {
        match self.holder {
            Holder::Pod(namespace, name) => format!("Pod/{namespace}/{name}"),
            Holder::Attachment(key) => format!("Attachment/{key}"),
        }
    }
}

impl std::fmt::Display for PodClaim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.holder {
            Holder::Pod(namespace, name) => write!(f, "Pod {namespace}/{name}{}", read_from(self.origin)),
            Holder::Attachment(key) => write!(f, "interface {key} on this node"),
        }
    }
}

/// The nodes' addresses, by their objects and by this node's devices.
#[derive(Debug, Default)]
pub(super) struct NodeAddresses {
    claimants: BTreeMap<Address, String>,
    /// Those that are a pod's all the same.
    lost: BTreeSet<Address>,
}

impl NodeAddresses {
    /// Where two nodes claim one address, this node keeps its own, and else the first by name: a node's own address must
    /// be somebody's, or nothing reaches it.
    pub(super) fn claimed(model: &Model, policy: &Policy, events: &mut Collector) -> NodeAddresses {
        let mut owners: BTreeMap<IpAddr, &NodeObject> = BTreeMap::new();
        // What this node's devices have is certain, whatever objects say.
        if let Some(own) = model.node_object(model.node()) {
            owners.extend(policy.host_addresses.iter().map(|address| (*address, own)));
        }
        let own = model.node_object(model.node()).into_iter();
        for node in own.chain(model.nodes().filter(|node| node.name != model.node())) {
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
                    let objects = [object(owner), object(node)];
                    events.warn(reason::ADDRESS_CONFLICT, objects, || node_conflict(address, owner, node));
                }
            }
        }
        let claimants = owners.into_iter().map(|(address, node)| (address.into(), node.name.clone())).collect();
        NodeAddresses { claimants, lost: BTreeSet::new() }
    }

    /// Whether the same nodes claim the same addresses.
    pub(super) fn are_claimed_alike(&self, other: &NodeAddresses) -> bool {
        self.claimants == other.claimants
    }

    /// Every address, lost or not.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.claimants.keys().copied()
    }

    /// The node's own addresses, internal ones first, each kind in its object's order.
    pub(super) fn of_node(&self, node: &NodeObject) -> impl Iterator<Item = IpAddr> {
        let of_kind = |internal| node.addresses.iter().filter(move |address| address.internal == internal);
        of_kind(true).chain(of_kind(false)).map(|address| address.address).filter(|address| {
            let address = Address::from(*address);
            self.claimant(address) == Some(&node.name) && !self.lost.contains(&address)
        })
    }

    /// Notes whether the address is a pod's or a node's after all. Returns whether that is news.
    pub(super) fn note(&mut self, address: Address, lost: bool) -> bool {
        if lost { self.lost.insert(address) } else { self.lost.remove(&address) }
    }

    /// The node that claims the address.
    pub(super) fn claimant(&self, address: Address) -> Option<&str> {
        self.claimants.get(&address).map(String::as_str)
    }
}

/// What is to be said of a pod by itself.
pub(super) fn tell_pod(model: &Model, policy: &Policy, pod: &Pod, events: &mut Collector) {
    if !pod.has_network() {
        return;
    }
    let ruling = protection::of_pod(model, policy, pod);
    if ruling.rule == Rule::PodOptOutRefused {
        let name = pod.full_name();
        events.warn(reason::POD_OPT_OUT_REFUSED, [format!("Pod/{name}")], || {
            format!(
                "Pod {name}{}: label {ENCRYPTION_LABEL}={} would weaken its namespace's {} and is refused; take the label \
                 away, or set allowPodOptOut on every node",
                read_from(&pod.origin),
                pod.encryption.as_deref().unwrap_or_default(),
                protection::label_value(ruling.protection)
            )
        });
    }
    tell_refused(&of_pod(model, policy, pod), &pod.addresses, events);
}

/// What is to be said of a namespace. While the source is still being read it is no news that it has no object: that may
/// come next.
pub(super) fn tell_namespace(model: &Model, namespace: &str, events: &mut Collector) {
    if !model.synced() || model.namespace(namespace).is_some() {
        return;
    }
    let Some(pod) = model.pods.of_namespace(namespace).find(|pod| pod.has_network()) else { return };
    events.warn(reason::NAMESPACE_UNKNOWN, [format!("Namespace/{namespace}")], || {
        format!(
            "Namespace {namespace} has pods (Pod {}{} is one) but no object: they are treated as enabled; add the \
             Namespace object",
            pod.full_name(),
            read_from(&pod.origin)
        )
    });
}

/// What is to be said of the addresses of an interface on this node.
pub(super) fn tell_attachment(
    model: &Model,
    policy: &Policy,
    key: &AttachmentKey,
    attachment: &Attachment,
    events: &mut Collector,
) {
    let addresses: Vec<IpAddr> = attachment.reservation.addresses.iter().map(IpNet::addr).collect();
    tell_refused(&of_attachment(model, policy, key, attachment), &addresses, events);
}

fn tell_refused(claim: &PodClaim<'_>, addresses: &[IpAddr], events: &mut Collector) {
    for address in addresses {
        if let Some(what) = reserved::address(*address) {
            events.warn(reason::ADDRESS_REFUSED, [claim.object()], || {
                format!("{claim}: address {address} is refused: it is {what} and no pod's; correct status.podIPs")
            });
        }
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

fn node_conflict(address: IpAddr, owner: &NodeObject, other: &NodeObject) -> String {
    format!(
        "Node {}{} and Node {}{} both claim {address}: {} keeps it (this node before others, then by name); correct \
         status.addresses of one",
        owner.name,
        read_from(&owner.origin),
        other.name,
        read_from(&other.origin),
        owner.name
    )
}

fn object(node: &NodeObject) -> String {
    format!("Node/{}", node.name)
}
