//! Addresses that no service gets, whatever its object says, and frontends that are left to
//! kube-proxy.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use hauberk_abi::address::Address;
use hauberk_abi::identity::{Identity, Kind};
use hauberk_abi::layout::probe;

use crate::identities::addresses::Places;
use crate::local_node::LocalNode;
use crate::model::Model;
use crate::names::ServiceName;
use crate::objects::{ServicePort, TrafficPolicy};
use crate::reserved;
use crate::services::{FrontendKind, SetNumber};

/// What decides about a service, beside its own objects.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) model: &'a Model,
    pub(crate) local: &'a LocalNode,
    pub(crate) places: &'a Places,
    /// Who has which address.
    pub(crate) endpoints: &'a BTreeMap<Address, Identity>,
    /// The number of a set of backends, by its service and port, whether it is IPv4, and whose
    /// endpoints it has.
    pub(crate) number: fn(&ServiceName, &ServicePort, bool, TrafficPolicy) -> SetNumber,
}

/// Why a frontend is left out, whoever else claims it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Connections of this protocol come by no hook.
    Protocol,
    /// Some clients may not use it.
    SourceRanges,
    /// The service is not for the node's proxy.
    OtherProxy,
    /// The service is of the other family only.
    OtherFamily,
    /// The address is none that a service can have.
    Reserved(&'static str),
    /// A pod has it.
    Pod,
    /// A node has it, or had it until recently.
    Node,
    /// It is in a node's pod range.
    PodRange,
    /// It is in the cluster's pod ranges.
    ClusterRanges,
    /// The number of its set is also another set's of the service.
    OwnSet,
    /// The service has more addresses and ports, or backends, than fit beside the others.
    NoRoom,
}

impl Refusal {
    /// Whether the address is one that the service must not have, rather than one that another
    /// program serves.
    pub(crate) fn is_told(self) -> bool {
        !matches!(self, Refusal::Protocol | Refusal::SourceRanges | Refusal::OtherProxy | Refusal::OtherFamily)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Protocol => f.write_str("SCTP cannot be led to a backend where it connects: left to kube-proxy"),
            Refusal::SourceRanges => f.write_str(
                "spec.loadBalancerSourceRanges admits only some clients, and a client's address is not known yet where it \
                 connects: left to kube-proxy",
            ),
            Refusal::OtherProxy => {
                f.write_str("the label service.kubernetes.io/service-proxy-name leaves the service to another program")
            }
            Refusal::OtherFamily => f.write_str("the service has no cluster address of this family"),
            Refusal::Reserved(what) => write!(f, "the address is {what} and no service's"),
            Refusal::Pod => f.write_str("the address is a pod's"),
            Refusal::Node => f.write_str("the address is a node's, or was until lately"),
            Refusal::PodRange => f.write_str("the address is in a node's pod range"),
            Refusal::ClusterRanges => f.write_str("the address is in clusterRanges, where pods are"),
            Refusal::NoRoom => f.write_str(
                "its addresses and ports, or its backends, do not fit beside those of the other services: left to kube-proxy",
            ),
            Refusal::OwnSet => f.write_str("two of the service's sets of backends have one number"),
        }
    }
}

/// Why a service cannot have the address; none if it can.
///
/// Who writes Services chooses external addresses freely, and those of load balancers nearly so: a
/// pod's traffic must not be taken that way (CVE-2020-8554). Cluster addresses are given by the API
/// server from a range of its own, and must be nobody else's.
pub(super) fn of_address(facts: &Facts<'_>, kind: FrontendKind, address: IpAddr) -> Option<Refusal> {
    if let Some(what) = reserved::address(address) {
        return Some(Refusal::Reserved(what));
    }
    if address == IpAddr::from(probe::SOCKET_V4) {
        return Some(Refusal::Reserved("the agent's probe"));
    }
    let is_cluster = kind == FrontendKind::ClusterAddress;
    match facts.endpoints.get(&address.into()).map(|identity| identity.kind()) {
        Some(Kind::Pod) => Some(Refusal::Pod),
        Some(Kind::Node | Kind::UnknownNode) if is_cluster => Some(Refusal::Node),
        // An address of a node's device may lie in its pod range: a bridge has one there.
        Some(Kind::Node) => None,
        _ if facts.places.ranges.hold(address) => Some(Refusal::PodRange),
        _ if !is_cluster && facts.local.settings.is_for_pods(address) => Some(Refusal::ClusterRanges),
        _ => None,
    }
}
