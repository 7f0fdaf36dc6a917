//! What every service claims, and which of several services with one frontend has it. A change of
//! one service looks at that service and at its rivals alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use hauberk_abi::address::Address;
use hauberk_abi::service::FrontendKey;

use crate::events::{Collector, reason};
use crate::model::Model;
use crate::names::ServiceName;
use crate::reserved;
use crate::services::derive::{Claim, Derived, Room, claimed, derive};
use crate::services::refusal::{Facts, Refusal};
use crate::services::{FrontendKind, Scope, ServiceStep, Services, SetNumber, is_limited, sets_of};
use crate::words::read_from;

/// The services' claims.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Claims {
    services: BTreeMap<ServiceName, Derived>,
    /// Who claims a frontend, in the order of their right to it.
    frontends: BTreeMap<FrontendKey, Vec<Rival>>,
    /// Whose set has the number: the first of several services.
    sets: BTreeMap<SetNumber, Vec<ServiceName>>,
    /// Whose health check has the port: the first of several services.
    health: BTreeMap<u16, BTreeSet<ServiceName>>,
    /// How much room the services take.
    taken: Room,
    /// Services that are left out for want of room.
    without_room: BTreeSet<ServiceName>,
}

/// A service that claims a frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rival {
    /// It cannot have the frontend, whoever else claims it.
    is_refused: bool,
    kind: FrontendKind,
    service: ServiceName,
}

/// Sets to which a frontend leads that a service has.
#[derive(Default)]
struct Used {
    sets: BTreeSet<SetNumber>,
    /// Those of them that admit only some clients.
    limited: BTreeSet<SetNumber>,
}

/// Why a service does not have a frontend that it claims.
#[derive(Clone, Copy)]
pub(crate) enum LeftOut<'a> {
    Refused(Refusal),
    /// Its set's number is also that of this service's set.
    SetTaken(&'a ServiceName),
    /// This service has the better claim.
    Lost(FrontendKind, &'a ServiceName),
}

impl Claims {
    /// The service that has the frontend, or else one that claims it.
    pub(crate) fn claimant(&self, key: &FrontendKey) -> Option<&ServiceName> {
        self.frontends.get(key)?.first().map(|rival| &rival.service)
    }

    /// The service that has the set.
    pub(crate) fn owner(&self, set: SetNumber) -> Option<&ServiceName> {
        self.sets.get(&set)?.first()
    }

    /// The services that claim the address, in vain or not.
    pub(crate) fn of_address(&self, address: Address) -> impl Iterator<Item = &ServiceName> {
        let first = FrontendKey { address, ..FrontendKey::default() };
        let of_address = self.frontends.range(first..).take_while(move |(key, _)| key.address == address);
        of_address.flat_map(|(_, rivals)| rivals.iter().map(|rival| &rival.service))
    }

    /// The ports of health checks, in ascending order, and the services that have them.
    pub(super) fn health_ports(&self) -> impl Iterator<Item = (u16, &ServiceName)> {
        self.health.iter().filter_map(|(port, services)| Some((*port, services.first()?)))
    }

    pub(crate) fn derived(&self, service: &ServiceName) -> Option<&Derived> {
        self.services.get(service)
    }

    /// Why the service does not have the frontend; none if it has it.
    pub(crate) fn left_out(&self, service: &ServiceName, claim: &Claim) -> Option<LeftOut<'_>> {
        if let Some(refusal) = claim.refusal {
            return Some(LeftOut::Refused(refusal));
        }
        let mut owners = sets_of(&claim.frontend).filter_map(|set| self.owner(set));
        if let Some(owner) = owners.find(|owner| *owner != service) {
            return Some(LeftOut::SetTaken(owner));
        }
        let holder = self.frontends.get(&claim.key)?.first()?;
        (holder.service != *service).then_some(LeftOut::Lost(holder.kind, &holder.service))
    }

    /// Looks at these services again, and updates what the kernel should hold. Returns the services
    /// about which something else may have to be told than before.
    pub(crate) fn look(
        &mut self,
        facts: &Facts<'_>,
        services: impl IntoIterator<Item = ServiceName>,
        held: &mut Services,
        scope: &mut Scope,
    ) -> BTreeSet<ServiceName> {
        let settings = &facts.local.settings;
        let room = settings.services_room.map(Room::all);
        let claimed = |name: &ServiceName| -> Room {
            facts.model.services.find(name).map(|(object, _)| claimed(settings, object)).unwrap_or_default()
        };
        let named: BTreeSet<ServiceName> = services.into_iter().collect();
        let mut named: Vec<ServiceName> = named.into_iter().collect();
        // The small ones come first, so that a large one does not take the room of many.
        named.sort_by_cached_key(|name| Reverse((claimed(name).frontends, name.clone())));
        let mut waiting = BTreeSet::new();
        let (taken, mut is_last_turn) = (self.taken, false);
        let mut concerned = BTreeSet::new();
        let mut keys = BTreeSet::new();
        let mut sets = BTreeSet::new();
        let mut sources = BTreeSet::new();
        loop {
            let Some(name) = named.pop().or_else(|| waiting.pop_first()) else {
                let is_freed = !self.taken.holds(&taken);
                if let Some(room) = room.filter(|_| is_freed && !is_last_turn) {
                    is_last_turn = true;
                    let left = room.zip(self.taken, usize::saturating_sub);
                    named.extend(self.without_room.iter().filter(|name| left.holds(&claimed(name))).cloned());
                    continue;
                }
                break;
            };
            let found = facts.model.services.find(&name);
            let before = self.services.remove(&name);
            self.taken = self.taken.zip(takes(before.as_ref()), |taken, own| taken - own);
            let left = room.map(|room| room.zip(self.taken, usize::saturating_sub));
            let now = found.map(|(object, service)| derive(facts, object, service, left));
            self.taken = self.taken.zip(takes(now.as_ref()), |taken, own| taken + own);
            if now.as_ref().is_some_and(Derived::lacks_room) {
                self.without_room.insert(name.clone());
            } else {
                self.without_room.remove(&name);
            }
            for derived in before.iter().chain(&now) {
                keys.extend(derived.claims.iter().map(|claim| claim.key));
                sets.extend(derived.sets.iter().map(|set| set.number));
                sources.extend(derived.sources.iter().copied());
            }
            self.claim_sets(&name, before.as_ref(), now.as_ref(), &mut waiting);
            self.claim_frontends(&name, before.as_ref(), now.as_ref(), &mut concerned);
            self.claim_health(&name, before.as_ref(), now.as_ref(), &mut concerned);
            self.services.extend(now.map(|now| (name.clone(), now)));
            concerned.insert(name);
        }
        for key in keys {
            let now = self.held(&key).map(|claim| claim.frontend);
            let before = match now {
                Some(frontend) => held.frontends.insert(key, frontend),
                None => held.frontends.remove(&key),
            };
            if before != now {
                scope.frontends.insert(key);
            }
        }
        // A rival may have won or lost the only frontend of a set.
        for derived in concerned.iter().filter_map(|name| self.services.get(name)) {
            sets.extend(derived.sets.iter().map(|set| set.number));
            sources.extend(derived.sources.iter().copied());
        }
        let used = self.used_sets(sets.iter().filter_map(|number| self.owner(*number)).collect());
        for number in sets {
            let backends = self
                .owner(number)
                .filter(|_| used.sets.contains(&number))
                .and_then(|owner| Some(self.services.get(owner)?.set(number)?.backends.clone()));
            let before = match &backends {
                Some(backends) => held.sets.insert(number, backends.clone()),
                None => held.sets.remove(&number),
            };
            if before != backends {
                scope.sets.insert(number);
            }
        }
        for range in sources {
            let number = range.key.set();
            let is_wanted = used.limited.contains(&number)
                && self.owner(number).and_then(|owner| self.services.get(owner)).is_some_and(|it| it.admits(&range));
            let is_changed = if is_wanted { held.sources.insert(range) } else { held.sources.remove(&range) };
            if is_changed {
                scope.sources.insert(range);
            }
        }
        concerned
    }

    /// Replaces a service's claims to sets' numbers. If a number goes to another service, the
    /// services that share it wait to be looked at.
    fn claim_sets(
        &mut self,
        name: &ServiceName,
        before: Option<&Derived>,
        now: Option<&Derived>,
        waiting: &mut BTreeSet<ServiceName>,
    ) {
        let numbers = |derived: Option<&Derived>| -> BTreeSet<SetNumber> {
            derived.into_iter().flat_map(|derived| derived.sets.iter().map(|set| set.number)).collect()
        };
        let (before, now) = (numbers(before), numbers(now));
        for number in before.symmetric_difference(&now) {
            let owners = self.sets.entry(*number).or_default();
            let first = owners.first().cloned();
            owners.retain(|owner| owner != name);
            if now.contains(number) {
                owners.push(name.clone());
                owners.sort();
            }
            if owners.first() != first.as_ref() {
                waiting.extend(owners.iter().filter(|owner| *owner != name).cloned());
            }
            if owners.is_empty() {
                self.sets.remove(number);
            }
        }
    }

    /// Replaces a service's claims to frontends. Its rivals are concerned if one of these has
    /// another holder now.
    fn claim_frontends(
        &mut self,
        name: &ServiceName,
        before: Option<&Derived>,
        now: Option<&Derived>,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        let gone = before.into_iter().flat_map(|derived| derived.claims.iter().map(|claim| (claim.key, None)));
        let mut changes: BTreeMap<FrontendKey, Option<(bool, FrontendKind)>> = gone.collect();
        for claim in now.into_iter().flat_map(|derived| &derived.claims) {
            changes.insert(claim.key, Some((self.is_refused(name, claim), claim.kind)));
        }
        for (key, claim) in changes {
            let rivals = self.frontends.entry(key).or_default();
            let first = rivals.first().cloned();
            rivals.retain(|rival| rival.service != *name);
            if let Some((is_refused, kind)) = claim {
                rivals.push(Rival { is_refused, kind, service: name.clone() });
                rivals.sort();
            }
            if rivals.first() != first.as_ref() {
                concerned.extend(rivals.iter().map(|rival| rival.service.clone()));
            }
            if rivals.is_empty() {
                self.frontends.remove(&key);
            }
        }
    }

    /// Replaces a service's claim to the port of its health check. Its rivals are concerned if the
    /// port has another holder now.
    fn claim_health(
        &mut self,
        name: &ServiceName,
        before: Option<&Derived>,
        now: Option<&Derived>,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        let port = |derived: Option<&Derived>| derived.and_then(|derived| Some(derived.health?.port));
        let (before, now) = (port(before), port(now));
        if before == now {
            return;
        }
        for (port, has) in before.map(|port| (port, false)).into_iter().chain(now.map(|port| (port, true))) {
            let services = self.health.entry(port).or_default();
            let first = services.first().cloned();
            if has {
                services.insert(name.clone())
            } else {
                services.remove(name)
            };
            if services.first() != first.as_ref() {
                concerned.extend(services.iter().cloned());
            }
            if services.is_empty() {
                self.health.remove(&port);
            }
        }
    }

    fn is_refused(&self, name: &ServiceName, claim: &Claim) -> bool {
        claim.refusal.is_some() || sets_of(&claim.frontend).any(|set| self.owner(set) != Some(name))
    }

    /// The claim that a frontend goes to.
    fn held(&self, key: &FrontendKey) -> Option<&Claim> {
        let rival = self.frontends.get(key)?.first().filter(|rival| !rival.is_refused)?;
        self.services.get(&rival.service)?.claim(key)
    }

    /// The sets of these services to which a frontend leads.
    fn used_sets(&self, services: BTreeSet<&ServiceName>) -> Used {
        let has = |name: &ServiceName, claim: &Claim| {
            let first = self.frontends.get(&claim.key).and_then(|rivals| rivals.first());
            first.is_some_and(|rival| !rival.is_refused && rival.service == *name)
        };
        let derived = services.into_iter().filter_map(|name| Some((name, self.services.get(name)?)));
        let claims = derived.flat_map(|(name, derived)| derived.claims.iter().map(move |claim| (name, claim)));
        let mut used = Used::default();
        for (_, claim) in claims.filter(|(name, claim)| has(name, claim)) {
            used.sets.extend(sets_of(&claim.frontend));
            used.limited.extend(is_limited(&claim.frontend).then_some(claim.frontend.outside));
        }
        used
    }

    /// Adds the events about a service.
    pub(crate) fn tell(&self, model: &Model, service: &ServiceName, events: &mut Collector) {
        let Some((derived, (object, known))) = self.services.get(service).zip(model.services.find(service)) else {
            return;
        };
        let mut refused = None;
        for claim in &derived.claims {
            let Some(left_out) = self.left_out(service, claim) else { continue };
            let address = IpAddr::from(claim.key.address);
            let (reason, rival, what) = match left_out {
                // Another program serves it. And all ports of an address are refused alike.
                LeftOut::Refused(refusal) if !refusal.is_told() || refused.replace(address) == Some(address) => {
                    continue;
                }
                LeftOut::Refused(Refusal::NoRoom) => (reason::SERVICE_LEFT_OUT, None, address.to_string()),
                LeftOut::Refused(_) => (reason::SERVICE_ADDRESS_REFUSED, None, address.to_string()),
                LeftOut::SetTaken(owner) => (reason::SERVICE_SET_TAKEN, Some(owner), claim.key.to_string()),
                LeftOut::Lost(_, holder) => (reason::SERVICE_CONFLICT, Some(holder), claim.key.to_string()),
            };
            let remedy = match left_out {
                LeftOut::Refused(Refusal::NoRoom) => {
                    "raise limits.frontends or limits.backends, run `hauberkd uninstall`, and start again"
                }
                _ => "correct the service",
            };
            let objects = [service].into_iter().chain(rival).map(ServiceName::object);
            events.add(
                true,
                reason,
                || objects.collect(),
                || {
                    format!(
                        "Service {service}{}: its {} {what} is left out: {left_out}; {remedy}",
                        read_from(&object.origin),
                        kind_in_words(claim.kind)
                    )
                },
            );
        }
        for text in &object.no_source_ranges {
            events.warn(reason::SERVICE_ADDRESS_REFUSED, [service.object()], || {
                format!(
                    "Service {service}{}: spec.loadBalancerSourceRanges has {text:?}, which is no range of addresses and \
                     admits nobody; correct the service",
                    read_from(&object.origin)
                )
            });
        }
        if let Some(port) = derived.health.map(|health| health.port)
            && let Some(holder) = self.health.get(&port).and_then(BTreeSet::first).filter(|holder| *holder != service)
        {
            events.warn(reason::SERVICE_CONFLICT, [service, holder].map(ServiceName::object), || {
                format!(
                    "Service {service}{}: its health check is not answered: Service {holder} has spec.healthCheckNodePort \
                     {port} too; correct the service",
                    read_from(&object.origin)
                )
            });
        }
        if !derived.has_refused_endpoints {
            return;
        }
        for slice in known.slices() {
            let mut refuse = |address: &dyn fmt::Display, why: &str| {
                events.warn(reason::SERVICE_ADDRESS_REFUSED, [format!("EndpointSlice/{}", slice.name)], || {
                    format!(
                        "EndpointSlice {}{}: endpoint {address} is left out: it is {why}; correct it",
                        slice.name,
                        read_from(&slice.origin)
                    )
                });
            };
            for text in &slice.no_addresses {
                let family = if slice.is_ipv4 { "no IPv4 address" } else { "no IPv6 address" };
                refuse(&format_args!("{text:?}"), family);
            }
            for endpoint in &slice.endpoints {
                if let Some(what) = reserved::address(endpoint.address) {
                    refuse(&endpoint.address, &format!("{what} and no pod's or node's"));
                }
            }
        }
    }

    /// The service that a step is about.
    pub(crate) fn of_step(&self, step: &ServiceStep) -> Option<&ServiceName> {
        match step {
            ServiceStep::PutSet(number, _) | ServiceStep::RemoveSet(number) => self.owner(*number),
            ServiceStep::PutFrontend(key, _) | ServiceStep::RemoveFrontend(key) => self.claimant(key),
            ServiceStep::PutSource(range) | ServiceStep::RemoveSource(range) => self.owner(range.key.set()),
            ServiceStep::Masquerade(_) => None,
        }
    }
}

impl fmt::Display for LeftOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeftOut::Refused(refusal) => refusal.fmt(f),
            LeftOut::SetTaken(owner) => {
                write!(f, "the number of its set of backends is also that of a set of Service {owner}")
            }
            LeftOut::Lost(kind, holder) => write!(
                f,
                "Service {holder} has it as its {} (a cluster address comes before a load balancer's, that before an external \
                 one, then the lower name)",
                kind_in_words(*kind)
            ),
        }
    }
}

/// How much room a service takes.
fn takes(derived: Option<&Derived>) -> Room {
    derived.map(Derived::takes).unwrap_or_default()
}

/// The kind for a reader.
fn kind_in_words(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterAddress => "cluster address",
        FrontendKind::NodePort => "node port",
        FrontendKind::LoadBalancer => "load balancer's address",
        FrontendKind::ExternalAddress => "external address",
    }
}
