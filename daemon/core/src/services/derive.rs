//! One service by itself: where it is reached, and which of its endpoints serve there.
//!
//! This follows kube-proxy. For clients inside the cluster, an address of a load balancer or a node
//! leads to all usable endpoints, whatever `externalTrafficPolicy` says. Clients outside reach only
//! such addresses, and for them the policy holds.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use blake2::{Blake2s256, Digest};
use hauberk_abi::address::Prefix;
use hauberk_abi::packet::protocol;
use hauberk_abi::service::{ANY_NODE_V4, ANY_NODE_V6, Backend, Frontend, FrontendKey, SourceRange, frontend_flag};

use crate::local_node::{ServicesRoom, Settings};
use crate::model::Service;
use crate::names::ServiceName;
use crate::objects::{Endpoint, Hints, ServiceKind, ServiceObject, ServicePort, TrafficPolicy};
use crate::reserved;
use crate::services::health::Health;
use crate::services::refusal::{self, Facts, Refusal};
use crate::services::{FrontendKind, SetNumber, is_limited};

/// What follows from a service's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Derived {
    /// The frontends that it claims, by key, each once.
    pub(crate) claims: Box<[Claim]>,
    /// The sets that they lead to, by number.
    pub(crate) sets: Box<[BackendSet]>,
    /// The clients that limited frontends' sets admit, in ascending order and each once.
    pub(crate) sources: Box<[SourceRange]>,
    /// Its health check, if this node answers it.
    pub(super) health: Option<Health>,
    /// Whether some of its endpoints cannot be used.
    pub(crate) has_refused_endpoints: bool,
}

/// A claim to a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) key: FrontendKey,
    pub(crate) kind: FrontendKind,
    /// The place of its port among the service's.
    pub(crate) port: u16,
    pub(crate) frontend: Frontend,
    pub(crate) refusal: Option<Refusal>,
}

/// A set of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackendSet {
    pub(crate) number: SetNumber,
    /// The place of its port among the service's.
    pub(crate) port: u16,
    pub(crate) is_ipv4: bool,
    pub(crate) policy: TrafficPolicy,
    /// In ascending order and each once.
    pub(crate) backends: Arc<[Backend]>,
}

impl Derived {
    pub(crate) fn claim(&self, key: &FrontendKey) -> Option<&Claim> {
        self.claims.binary_search_by_key(key, |claim| claim.key).ok().map(|place| &self.claims[place])
    }

    /// How much room it takes.
    pub(super) fn takes(&self) -> Room {
        Room {
            frontends: self.claims.len(),
            sets: self.sets.len(),
            sources: self.sources.len(),
            backends: self.sets.iter().map(|set| set.backends.len()).sum(),
        }
    }

    /// Whether it is left out for want of room.
    pub(crate) fn lacks_room(&self) -> bool {
        self.claims.first().is_some_and(|claim| claim.refusal == Some(Refusal::NoRoom))
    }

    /// Whether a set of it admits these clients.
    pub(super) fn admits(&self, range: &SourceRange) -> bool {
        self.sources.binary_search(range).is_ok()
    }

    pub(crate) fn set(&self, number: SetNumber) -> Option<&BackendSet> {
        self.sets.binary_search_by_key(&number, |set| set.number).ok().map(|place| &self.sets[place])
    }
}

/// Entries of the services' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Room {
    pub(super) frontends: usize,
    pub(super) sets: usize,
    pub(super) sources: usize,
    pub(super) backends: usize,
}

impl Room {
    /// All there is. The tables of sets and of sources have as much as that of frontends.
    pub(super) fn all(room: ServicesRoom) -> Room {
        let ServicesRoom { frontends, backends } = room;
        Room { frontends, sets: frontends, sources: frontends, backends }
    }

    /// Whether there is as much of everything.
    pub(super) fn holds(&self, other: &Room) -> bool {
        let Room { frontends, sets, sources, backends } = *other;
        self.frontends >= frontends && self.sets >= sets && self.sources >= sources && self.backends >= backends
    }

    /// Each number by itself.
    pub(super) fn zip(self, other: Room, each: impl Fn(usize, usize) -> usize) -> Room {
        Room {
            frontends: each(self.frontends, other.frontends),
            sets: each(self.sets, other.sets),
            sources: each(self.sources, other.sources),
            backends: each(self.backends, other.backends),
        }
    }
}

/// `room` is what the other services leave.
pub(super) fn derive(facts: &Facts<'_>, object: &ServiceObject, service: &Service, room: Option<Room>) -> Derived {
    let fits = |wanted: &Room| room.is_none_or(|room| room.holds(wanted));
    // Before anything is derived, because a small object can claim very much.
    if !fits(&claimed(&facts.local.settings, object)) {
        return no_room(object);
    }
    let derived = derive_all(facts, object, service);
    if fits(&derived.takes()) { derived } else { no_room(object) }
}

/// How many frontends and sources the service claims at most. Of the others, this says nothing.
pub(super) fn claimed(settings: &Settings, object: &ServiceObject) -> Room {
    let is_balancer = object.kind == ServiceKind::LoadBalancer;
    let balancers = if is_balancer { object.balancer_addresses.len() } else { 0 };
    let ranges = if is_balancer && settings.services_outside { object.source_ranges.len() } else { 0 };
    // A node port is one for each family.
    let addresses = object.cluster_addresses.len() + object.external_addresses.len() + balancers + 2;
    let ports = object.ports.len();
    Room { frontends: ports * addresses, sources: ports * ranges, ..Room::default() }
}

/// A service that is left out as a whole. Its first port says so.
fn no_room(object: &ServiceObject) -> Derived {
    let claim = |(address, port): (&IpAddr, &ServicePort)| Claim {
        key: FrontendKey { address: (*address).into(), port: port.port, protocol: port.protocol, reserved: 0 },
        kind: FrontendKind::ClusterAddress,
        port: 0,
        frontend: Frontend::default(),
        refusal: Some(Refusal::NoRoom),
    };
    let mut claims: Vec<Claim> = object
        .cluster_addresses
        .iter()
        .take(2)
        .flat_map(|address| Some((address, object.ports.first()?)))
        .map(claim)
        .collect();
    claims.sort_by_key(|claim| claim.key);
    claims.dedup_by_key(|claim| claim.key);
    let (sets, sources) = Default::default();
    Derived { claims: claims.into(), sets, sources, health: None, has_refused_endpoints: false }
}

fn derive_all(facts: &Facts<'_>, object: &ServiceObject, service: &Service) -> Derived {
    let mut derivation = Derivation { facts, object, service, claims: Vec::new(), sets: Vec::new() };
    for (place, port) in object.ports.iter().enumerate() {
        derivation.port(place as u16, port);
    }
    derivation.finish()
}

/// A derivation on its way.
struct Derivation<'a> {
    facts: &'a Facts<'a>,
    object: &'a ServiceObject,
    service: &'a Service,
    claims: Vec<Claim>,
    sets: Vec<BackendSet>,
}

impl Derivation<'_> {
    fn port(&mut self, place: u16, port: &ServicePort) {
        let object = self.object;
        for address in &object.cluster_addresses {
            self.address(place, port, FrontendKind::ClusterAddress, *address, object.internal_policy);
        }
        if matches!(object.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer)
            && let Some(number) = port.node_port
        {
            for (is_ipv4, address) in [(true, ANY_NODE_V4), (false, ANY_NODE_V6)] {
                if self.has_family(is_ipv4) {
                    let key = FrontendKey { address, port: number, protocol: port.protocol, reserved: 0 };
                    self.claim(place, port, FrontendKind::NodePort, key, TrafficPolicy::Cluster, None);
                }
            }
        }
        if object.kind == ServiceKind::LoadBalancer {
            for address in &object.balancer_addresses {
                self.address(place, port, FrontendKind::LoadBalancer, *address, TrafficPolicy::Cluster);
            }
        }
        for address in &object.external_addresses {
            self.address(place, port, FrontendKind::ExternalAddress, *address, TrafficPolicy::Cluster);
        }
    }

    fn address(&mut self, place: u16, port: &ServicePort, kind: FrontendKind, address: IpAddr, policy: TrafficPolicy) {
        let is_limited = kind == FrontendKind::LoadBalancer && self.object.is_limited();
        let refusal = if !self.has_family(address.is_ipv4()) {
            Some(Refusal::OtherFamily)
        } else if is_limited && !self.facts.local.settings.services_outside {
            Some(Refusal::SourceRanges)
        } else {
            refusal::of_address(self.facts, kind, address)
        };
        let key = FrontendKey { address: address.into(), port: port.port, protocol: port.protocol, reserved: 0 };
        self.claim(place, port, kind, key, policy, refusal);
    }

    fn claim(
        &mut self,
        place: u16,
        port: &ServicePort,
        kind: FrontendKind,
        key: FrontendKey,
        policy: TrafficPolicy,
        refusal: Option<Refusal>,
    ) {
        let mut refusal = if self.object.other_proxy.is_some() {
            Some(Refusal::OtherProxy)
        } else if port.protocol == protocol::SCTP {
            Some(Refusal::Protocol)
        } else {
            refusal
        };
        let mut frontend = Frontend::default();
        if refusal.is_none() {
            match self.set(place, port, key.address.is_v4(), policy) {
                Some(set) => frontend.set = set,
                None => refusal = Some(Refusal::OwnSet),
            }
            if kind != FrontendKind::ClusterAddress && self.facts.local.settings.services_outside {
                match self.set(place, port, key.address.is_v4(), self.object.external_policy) {
                    Some(outside) => frontend.outside = outside,
                    None => refusal = Some(Refusal::OwnSet),
                }
                frontend.flags |= self.flags_outside(kind, &frontend);
            }
            frontend.affinity = self.object.affinity.unwrap_or_default();
            if kind == FrontendKind::NodePort && self.object.external_policy == TrafficPolicy::Local {
                frontend.flags |= frontend_flag::OWN_NODE;
            }
        }
        self.claims.push(Claim { key, kind, port: place, frontend, refusal });
    }

    /// How clients outside the cluster reach a frontend with these sets.
    fn flags_outside(&self, kind: FrontendKind, frontend: &Frontend) -> u32 {
        let mut flags = frontend_flag::OUTSIDE;
        if kind == FrontendKind::LoadBalancer && self.object.is_limited() {
            flags |= frontend_flag::LIMITED;
        }
        let is_empty = |number| self.sets.iter().any(|set| set.number == number && set.backends.is_empty());
        // For clients inside the cluster, every node's endpoints serve here.
        if is_empty(frontend.outside) && !is_empty(frontend.set) {
            flags |= frontend_flag::ELSEWHERE;
        }
        flags
    }

    /// The number of the set, which is made if it is new; none if another set has the number.
    fn set(&mut self, place: u16, port: &ServicePort, is_ipv4: bool, policy: TrafficPolicy) -> Option<SetNumber> {
        let number = (self.facts.number)(&self.object.name, port, is_ipv4, policy);
        let Some(known) = self.sets.iter().find(|set| set.number == number) else {
            let backends = backends(self.facts, self.object, self.service, port, is_ipv4, policy);
            self.sets.push(BackendSet { number, port: place, is_ipv4, policy, backends });
            return Some(number);
        };
        let of = &self.object.ports[usize::from(known.port)];
        let is_same =
            of.name == port.name && of.protocol == port.protocol && known.is_ipv4 == is_ipv4 && known.policy == policy;
        is_same.then_some(number)
    }

    /// Whether the service has a cluster address of the family.
    fn has_family(&self, is_ipv4: bool) -> bool {
        self.object.cluster_addresses.iter().any(|address| address.is_ipv4() == is_ipv4)
    }

    fn finish(self) -> Derived {
        let Derivation { facts, object, service, mut claims, mut sets } = self;
        // Of two claims to one frontend the one of the better kind stays, then the earlier port's.
        claims.sort_by_key(|claim| (claim.key, claim.refusal.is_some(), claim.kind, claim.port));
        claims.dedup_by_key(|claim| claim.key);
        sets.sort_by_key(|set| set.number);
        let has_refused_endpoints = service.slices().any(|slice| {
            let refused = |endpoint: &Endpoint| reserved::address(endpoint.address).is_some();
            !slice.no_addresses.is_empty() || slice.endpoints.iter().any(refused)
        });
        let sources = sources(object, &claims);
        let health = Health::derive(&facts.local.settings, facts.model.node(), object, service);
        Derived { claims: claims.into(), sets: sets.into(), sources, health, has_refused_endpoints }
    }
}

/// The clients that the sets of limited frontends admit, each set those of its family.
fn sources(object: &ServiceObject, claims: &[Claim]) -> Box<[SourceRange]> {
    let limited = claims.iter().filter(|claim| is_limited(&claim.frontend) && claim.refusal.is_none());
    let sets: BTreeSet<(SetNumber, bool)> =
        limited.map(|claim| (claim.frontend.outside, claim.key.address.is_v4())).collect();
    let ranges = sets.into_iter().flat_map(|(set, is_ipv4)| {
        let of_family = object.source_ranges.iter().filter(move |range| range.addr().is_ipv4() == is_ipv4);
        of_family.map(move |range| SourceRange::new(set, Prefix::new(range.network(), range.prefix_len())))
    });
    let mut sources: Vec<SourceRange> = ranges.collect();
    sources.sort();
    sources.dedup();
    sources.into()
}

/// The usable backends of a port. For `TrafficPolicy::Local` those of this node.
fn backends(
    facts: &Facts<'_>,
    object: &ServiceObject,
    service: &Service,
    port: &ServicePort,
    is_ipv4: bool,
    policy: TrafficPolicy,
) -> Arc<[Backend]> {
    let here = facts.model.node();
    let is_meant = |endpoint: &Endpoint| policy == TrafficPolicy::Cluster || endpoint.node.as_deref() == Some(here);
    let mut found: Vec<(&Endpoint, Backend)> = of_port(service, port, is_ipv4)
        .filter(|(endpoint, _)| is_meant(endpoint) && is_ready(object, endpoint))
        .collect();
    if found.is_empty() {
        // Better one that is ending than none (KEP-1669).
        found = of_port(service, port, is_ipv4)
            .filter(|(endpoint, _)| is_meant(endpoint) && endpoint.serving && endpoint.terminating)
            .collect();
    }
    if policy == TrafficPolicy::Cluster {
        follow_hints(facts, &mut found);
    }
    let mut backends: Vec<Backend> = found.into_iter().map(|(_, backend)| backend).collect();
    backends.sort();
    // Two slices may have the same endpoint while it moves from one to the other.
    backends.dedup();
    backends.into()
}

/// The endpoints that the port leads to, usable or not; one that is in several slices comes several
/// times.
pub(super) fn of_port<'a>(
    service: &'a Service,
    port: &'a ServicePort,
    is_ipv4: bool,
) -> impl Iterator<Item = (&'a Endpoint, Backend)> {
    let slices = service.slices().filter(move |slice| slice.is_ipv4 == is_ipv4);
    slices.flat_map(move |slice| {
        let targets = slice.ports.iter();
        let same = targets.filter(move |target| target.name == port.name && target.protocol == port.protocol);
        same.flat_map(move |target| {
            let possible = slice.endpoints.iter().filter(|endpoint| reserved::address(endpoint.address).is_none());
            possible.map(move |endpoint| {
                (endpoint, Backend { address: endpoint.address.into(), port: target.port, reserved: 0 })
            })
        })
    })
}

pub(super) fn is_ready(object: &ServiceObject, endpoint: &Endpoint) -> bool {
    endpoint.ready || object.publishes_not_ready
}

/// Leaves only the endpoints that are meant for this node, or else for its zone (KEP-2433,
/// KEP-3015). If one endpoint has no such hint, or none is meant for this place, all stay:
/// the hints are on their way, or were made without this node.
fn follow_hints(facts: &Facts<'_>, found: &mut Vec<(&Endpoint, Backend)>) {
    let here = facts.model.node();
    let of_nodes = |hints: &Hints| (!hints.nodes.is_empty(), hints.nodes.iter().any(|node| **node == *here));
    if keep_if_all_hint(found, of_nodes) {
        return;
    }
    if let Some(zone) = facts.model.zone() {
        keep_if_all_hint(found, |hints| (!hints.zones.is_empty(), hints.zones.iter().any(|other| **other == *zone)));
    }
}

/// `hint`: whether there is one, and whether it is for this place. Returns whether the hints hold.
fn keep_if_all_hint(found: &mut Vec<(&Endpoint, Backend)>, hint: impl Fn(&Hints) -> (bool, bool)) -> bool {
    let hint = |(endpoint, _): &(&Endpoint, Backend)| endpoint.hints.as_deref().map_or((false, false), &hint);
    let hold = found.iter().all(|it| hint(it).0) && found.iter().any(|it| hint(it).1);
    if hold {
        found.retain(|it| hint(it).1);
    }
    hold
}

/// The number of a set: a hash of its name, with lengths, so that no two names read alike.
pub(crate) fn set_number(name: &ServiceName, port: &ServicePort, is_ipv4: bool, policy: TrafficPolicy) -> SetNumber {
    let mut hash = Blake2s256::new();
    for part in [&name.namespace, &name.name, &port.name] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update([port.protocol, u8::from(is_ipv4), u8::from(policy == TrafficPolicy::Local)]);
    let mut number = [0; 8];
    number.copy_from_slice(&hash.finalize()[..8]);
    SetNumber::from_be_bytes(number)
}
