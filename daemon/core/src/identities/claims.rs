//! Which party has which address: nodes, pods by their objects, and pods by their interfaces on
//! this node.

use std::net::IpAddr;

use hauberk_abi::address::Address;
use hauberk_abi::identity::Protection;

use crate::attachment::Attachment;
use crate::events::{Collector, reason};
use crate::identities::Owner;
use crate::identities::addresses::{NodeClaim, Places};
use crate::label::{ENCRYPTION_LABEL, label_value};
use crate::local_node::LocalNode;
use crate::model::{Claimant, Model, Pod};
use crate::names::{AttachmentKey, PodName};
use crate::protection::{self, Rule};
use crate::reserved;
use crate::words::read_from;

/// The party that has an address.
pub(crate) enum Party<'a> {
    Nobody,
    /// A node, by name.
    Node(&'a str),
    /// Several nodes claim it, so none is believed.
    Contested,
    /// A node had it until recently, and no party has it now.
    Departed,
    Pod(PodClaim<'a>),
}

/// A pod's claim to an address, or several claims joined.
pub(crate) struct PodClaim<'a> {
    /// The strictest protection of all that claim the address.
    pub(crate) protection: Protection,
    /// The node the pod is on, if it is known.
    pub(crate) node: Option<&'a str>,
    /// The interface on this node that has the address.
    pub(crate) attachment: Option<&'a AttachmentKey>,
    holder: Holder<'a>,
    terminating: bool,
    origin: &'a str,
}

/// The holder of the claim. An interface whose pod is named counts as that pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holder<'a> {
    /// By namespace and name.
    Pod(&'a str, &'a str),
    Attachment(&'a AttachmentKey),
}

/// Decides which party has the address.
///
/// If a pod and a node claim one address, it is the pod's if it lies in a pod range or an interface
/// of this node has it: no node may take a pod's traffic by claiming its address. Elsewhere, and if
/// a device of this node has it, it is the node's: no pod may cut off a node.
pub(crate) fn decide<'a>(
    model: &'a Model,
    local: &LocalNode,
    places: &'a Places,
    address: Address,
    events: &mut Collector,
) -> Party<'a> {
    let pod = pod_claim(model, local, places, address, events);
    let Some(nodes) = places.nodes.claim(address) else { return pod.map_or(Party::Nobody, Party::Pod) };
    let of_nodes = match nodes {
        NodeClaim::Of(node) => Party::Node(node),
        NodeClaim::Contested(_) => Party::Contested,
        // A pod may have taken over the departed address.
        NodeClaim::Departed(_) => return pod.map_or(Party::Departed, Party::Pod),
    };
    let Some(claim) = pod else { return of_nodes };
    let node = nodes.node();
    let address = IpAddr::from(address);
    let here = local.addresses.contains(&address);
    let pod_keeps = match claim.attachment {
        Some(_) => !here || places.are_pods(local, address),
        None => places.are_pods(local, address) && (!here || claim.node == Some(model.node())),
    };
    events.warn(reason::ADDRESS_CONFLICT, [format!("Node/{node}"), claim.object()], || {
        let (keeper, why) = if pod_keeps {
            ("the pod keeps it", "it is a pod's by clusterRanges, by a node's pod range, or by its interface here")
        } else {
            ("the node keeps it", "it is outside of pod ranges, or a device here has it")
        };
        let origin = model.node_object(node).map(|node| read_from(&node.origin)).unwrap_or_default();
        format!(
            "Node {node}{origin} and {claim} both claim {address}: {keeper}, because {why}; correct the other's status"
        )
    });
    if pod_keeps { Party::Pod(claim) } else { of_nodes }
}

/// Joins the claims of pods and interfaces to the address. An interface's claim counts before the
/// pod's object lists it.
fn pod_claim<'a>(
    model: &'a Model,
    local: &LocalNode,
    places: &'a Places,
    address: Address,
    events: &mut Collector,
) -> Option<PodClaim<'a>> {
    let owner = places.ranges.owner(address.into());
    let mut holder: Option<PodClaim<'a>> = None;
    for claimant in model.claims.of(address) {
        let claim = match claimant {
            Claimant::Attachment(key) => of_attachment(model, local, key, model.attachments.get(key)?),
            Claimant::Pod(pod) => {
                let mut claim = of_pod(model, local, pod);
                // A range has one owner: an object may add protection there, but cannot move an
                // address to another node.
                if let Some(owner) = owner.filter(|owner| claim.node != Some(owner)) {
                    if let Some(node) = claim.node {
                        let objects = [claim.object(), format!("Node/{owner}")];
                        events.warn(reason::POD_IN_FOREIGN_RANGE, objects, || {
                            in_foreign_range(model, address.into(), &claim, node, owner)
                        });
                    }
                    claim.node = Some(owner);
                }
                claim
            }
        };
        let Some(first) = &mut holder else {
            holder = Some(claim);
            continue;
        };
        if first.holder != claim.holder {
            events.warn(reason::ADDRESS_CONFLICT, [first.object(), claim.object()], || {
                conflict(address.into(), first, &claim)
            });
        }
        first.join(claim);
    }
    holder
}

fn of_attachment<'a>(
    model: &'a Model,
    local: &LocalNode,
    key: &'a AttachmentKey,
    attachment: &'a Attachment,
) -> PodClaim<'a> {
    let pod = model.pod_of(attachment);
    PodClaim {
        protection: protection_of(model, local, attachment),
        node: Some(model.node()),
        attachment: Some(key),
        holder: pod.map_or(Holder::Attachment(key), |pod| Holder::Pod(pod.namespace, pod.name)),
        terminating: false,
        origin: "",
    }
}

fn of_pod<'a>(model: &'a Model, local: &LocalNode, pod: &'a Pod) -> PodClaim<'a> {
    let known = |node: &&str| *node == model.node() || model.nodes.contains_key(*node);
    PodClaim {
        protection: protection::of_pod(model, local, pod).protection,
        node: pod.node.as_deref().filter(known),
        attachment: None,
        holder: Holder::Pod(&pod.namespace, &pod.name),
        terminating: pod.terminating,
        origin: &pod.origin,
    }
}

/// How the pod behind an interface on this node is protected.
pub(crate) fn protection_of(model: &Model, local: &LocalNode, attachment: &Attachment) -> Protection {
    let pod = model.pod_of(attachment).map(|pod| (pod.full_name(), pod.uid));
    protection::of_attached(model, local, pod.as_ref().map(|(name, uid)| (name, *uid))).protection
}

/// The owner of the address, for messages; if several claim it, the likeliest.
pub(crate) fn owner(model: &Model, local: &LocalNode, address: Address) -> Option<Owner> {
    let places = Places::default();
    Some(match pod_claim(model, local, &places, address, &mut Collector::counting())?.holder {
        Holder::Pod(namespace, name) => Owner::Pod(PodName { namespace: namespace.to_owned(), name: name.to_owned() }),
        Holder::Attachment(key) => Owner::Attachment(key.clone()),
    })
}

impl<'a> PodClaim<'a> {
    /// Joins the claims of two pods to one address: the stricter protection of both, and the node
    /// of the more likely one.
    fn join(&mut self, other: PodClaim<'a>) {
        let protection = self.protection.max(other.protection);
        if other.likelihood() > self.likelihood() {
            *self = other;
        }
        self.protection = protection;
    }

    /// An interface here is certain. A pod on a known node is more likely than one without a node,
    /// and a pod that stays more than one that terminates. Then the stricter one wins; after that
    /// any order will do as long as it is always the same.
    fn likelihood(&self) -> impl Ord {
        let order = std::cmp::Reverse((self.holder, self.attachment));
        (self.attachment.is_some(), self.node.is_some(), !self.terminating, self.protection, order)
    }

    /// Its name in an event's list of objects.
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

/// Adds the events about a pod by itself.
pub(crate) fn tell_pod(model: &Model, local: &LocalNode, pod: &Pod, events: &mut Collector) {
    let ruling = protection::of_pod(model, local, pod);
    // What the namespace asks for is not known before its object is read: at every start some pods
    // are read before their namespace.
    let is_asked = ruling.protection > Protection::None && ruling.rule != Rule::NamespaceUnknown;
    if pod.host_network && !pod.finished && is_asked {
        let name = pod.full_name();
        events.add(false, reason::HOST_NETWORK_POD, || vec![format!("Pod/{name}")], || {
            format!(
                "Pod {name}{} is opted in ({}), but on its node's network (hostNetwork): it has the node's address and counts as \
                 the node, so that its traffic is encrypted with opted-in pods alone",
                read_from(&pod.origin),
                ruling.rule
            )
        });
    }
    if !pod.has_network() {
        return;
    }
    if ruling.rule == Rule::PodOptOutRefused {
        let name = pod.full_name();
        events.warn(reason::POD_OPT_OUT_REFUSED, [format!("Pod/{name}")], || {
            format!(
                "Pod {name}{}: label {ENCRYPTION_LABEL}={} would weaken its namespace's {} and is refused; take the label \
                 away, or set allowPodOptOut on every node",
                read_from(&pod.origin),
                pod.encryption.as_deref().unwrap_or_default(),
                label_value(ruling.protection)
            )
        });
    }
    tell_refused(&of_pod(model, local, pod), &pod.addresses, events);
}

/// Adds the event about a namespace without an object. While the source is still being read there
/// is none, because the object may come next.
pub(crate) fn tell_namespace(model: &Model, namespace: &str, events: &mut Collector) {
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

/// Adds the events about the addresses of an interface on this node.
pub(crate) fn tell_attachment(
    model: &Model,
    local: &LocalNode,
    key: &AttachmentKey,
    attachment: &Attachment,
    events: &mut Collector,
) {
    tell_refused(&of_attachment(model, local, key, attachment), &attachment.addresses, events);
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
        label_value(one.protection.max(other.protection))
    )
}

fn in_foreign_range(model: &Model, address: IpAddr, claim: &PodClaim<'_>, node: &str, owner: &str) -> String {
    let origin = model.node_object(owner).map(|node| read_from(&node.origin)).unwrap_or_default();
    format!(
        "{claim} on node {node} claims {address}, which is in the pod range of Node {owner}{origin}: it is protected as the \
         pod, but stays that node's, so that packets to it go there; delete the pod or correct its status, or, if the CNI \
         plugin gives out addresses regardless of spec.podCIDRs (as Calico's IPAM does), take the pod ranges off the Node \
         objects or make them correct"
    )
}
