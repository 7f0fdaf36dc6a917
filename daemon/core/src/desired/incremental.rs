//! The desired state, kept in step with the model.
//!
//! What a node should hold for an address depends on the claimants of the address, on the nodes and
//! on the local node. So a change of a pod, an interface or a namespace looks at the addresses it
//! touches, and a change of one node's keys at the tunnels. A change of a service or its endpoints
//! looks at that service, and so does a change of an address that it claims. When this node's zone
//! changes, all services are looked at. Everything is computed again when nodes come or go, when
//! their ranges change, when the model syncs, and when the local node changes in anything but its
//! addresses and detours. [`desired`](super::desired()) does the same with no earlier state, and
//! the tests compare the two.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use hauberk_abi::address::Address;
use hauberk_abi::identity::{Identity, Kind, Protection};
use ipnet::IpNet;

use crate::convergence;
use crate::desired::Desired;
use crate::desired::standing::{Cause, Known, Standing};
use crate::events::{Collector, NewEvent};
use crate::identities::Identities;
use crate::identities::addresses::Places;
use crate::identities::claims::{self, Party};
use crate::local_node::LocalNode;
use crate::model::{Claimant, Model, Touched};
use crate::names::{NodeNumber, ServiceName};
use crate::pods::derive::local_pod;
use crate::services;
use crate::state::{Scope, State};
use crate::tunnels::derive::{Speakers, flags, route_to_pod};
use crate::tunnels::{self, Tunnels};

/// The desired state, updated change by change; see the module.
#[derive(Debug, Default)]
pub struct Incremental {
    desired: Desired,
    /// The local node it was computed with.
    local: Option<LocalNode>,
    places: Places,
    speakers: Speakers,
    /// Ranges that are always exempt from masquerading, whatever addresses are in use there.
    inside: BTreeSet<IpNet>,
    /// This node's zone, for the services.
    zone: Option<String>,
    standing: Standing,
}

/// What a change of the model did to the desired state.
#[derive(Debug, Default)]
#[must_use]
pub struct Followed {
    /// What may differ from before.
    pub scope: Scope,
    /// Events that were not in the previous set.
    pub news: Vec<NewEvent>,
}

impl Deref for Incremental {
    type Target = Desired;

    fn deref(&self) -> &Desired {
        &self.desired
    }
}

impl Incremental {
    /// The desired state, computed from scratch.
    pub(super) fn computed(model: &Model, local: &LocalNode) -> Desired {
        let mut incremental = Incremental::default();
        incremental.compute(model, local);
        incremental.tell(model, local);
        incremental.desired
    }

    /// Applies what has changed in the model and the local node since the last call.
    pub fn follow(&mut self, model: &mut Model, local: &LocalNode) -> Followed {
        let touched = model.take_touched();
        let alike = self.local.as_ref().is_some_and(|before| before.is_alike(local));
        let known = alike && self.desired.prune() == model.synced();
        let scope = if known && !touched.node_set { self.update(model, local, &touched) } else { None };
        let scope = scope.unwrap_or_else(|| {
            self.compute(model, local);
            Scope::everything()
        });
        Followed { scope, news: self.tell(model, local) }
    }

    /// Computes everything again, except the text of the events.
    fn compute(&mut self, model: &Model, local: &LocalNode) {
        let mut events = Collector::default();
        self.local = Some(local.clone());
        self.places = Places::claimed(model, local, &mut events);
        self.speakers = Speakers::default();
        self.inside = local.settings.cluster_ranges.iter().map(IpNet::trunc).collect();
        self.inside.extend(self.places.ranges.all().filter(|range| !local.settings.in_cluster(*range)));
        let identities = Identities {
            ranges: self.places.ranges.identities(model, local),
            untranslated: self.inside.clone(),
            synced: model.synced(),
            ..Identities::default()
        };
        self.desired = Desired {
            node: model.own_number(),
            state: State { identities, ..State::default() },
            contested: self.places.nodes.contests().clone(),
            enforced: model.synced().then(|| convergence::enforced(model, local)),
            events: std::mem::take(&mut self.desired.events),
            ..Desired::default()
        };
        self.standing = Standing::default();
        let mut scope = Scope::everything();
        let mut last = None;
        for address in model.claims.addresses().chain(self.places.nodes.addresses().collect::<Vec<_>>()) {
            if last.replace(address) != Some(address) {
                self.decide(model, local, address, &mut scope);
            }
        }
        self.speakers.set_nodes(model, &self.places);
        self.derive_tunnels(model, local, events);
        for (key, attachment) in model.attachments() {
            let pod = local_pod(model, local, &self.places, key, attachment);
            self.desired.state.pods.extend(pod.map(|pod| (key.clone(), pod)));
        }
        self.zone = model.zone().map(str::to_owned);
        self.look_at_services(model, local, model.services.iter().map(|(name, ..)| name.clone()), &mut scope);
        self.set_masquerade(model, local, &mut scope);
        self.look_at_everything(model, local);
    }

    fn derive_tunnels(&mut self, model: &Model, local: &LocalNode, mut of_nodes: Collector) {
        self.desired.state.tunnels = Tunnels::derive(model, local, &self.places, &self.speakers, &mut of_nodes);
        self.standing.set_nodes(of_nodes);
    }

    /// Updates what has been touched; none if everything must be computed again.
    fn update(&mut self, model: &Model, local: &LocalNode, touched: &Touched) -> Option<Scope> {
        let mut scope = Scope::default();
        let mut addresses = Cow::Borrowed(&touched.addresses);
        let mut of_nodes = None;
        if touched.nodes || self.local.as_ref() != Some(local) {
            let mut events = Collector::default();
            let Places { ranges, nodes } = Places::claimed(model, local, &mut events);
            if ranges != self.places.ranges {
                return None;
            }
            let before = self.local.replace(local.clone()).unwrap_or_default().addresses;
            let devices = before.symmetric_difference(&local.addresses).map(|address| Address::from(*address));
            addresses.to_mut().extend(self.places.nodes.replace(nodes).into_iter().chain(devices));
            self.desired.contested.clone_from(self.places.nodes.contests());
            self.speakers.set_nodes(model, &self.places);
            of_nodes = Some(events);
        }
        let mut attachments = touched.attachments.clone();
        for address in &*addresses {
            if self.decide(model, local, *address, &mut scope) {
                return None;
            }
            attachments.extend(model.claims.of(*address).filter_map(|claimant| match claimant {
                Claimant::Attachment(key) => Some(Arc::clone(key)),
                Claimant::Pod(_) => None,
            }));
        }
        if let Some(events) = of_nodes {
            // The order of a node's own addresses decides at which one it is reached.
            self.derive_tunnels(model, local, events);
            scope.tunnels.extend(tunnels::Scope::everything());
            self.set_masquerade(model, local, &mut scope);
        }
        for key in attachments {
            let attachment = model.attachments.get(&key);
            match attachment.and_then(|attachment| local_pod(model, local, &self.places, &key, attachment)) {
                Some(pod) => self.desired.state.pods.insert(pod.key(), pod),
                None => self.desired.state.pods.remove(&key),
            };
            scope.pods = true;
            self.look(model, local, Cause::Attachment(key));
        }
        for name in &touched.ready {
            let Some(number) = model.node_number(name) else { continue };
            let reachable = self.desired.state.tunnels.peers.get(&number).is_some_and(|peer| peer.endpoint.is_some());
            if let Some(entry) = self.desired.state.tunnels.peer_entries.get_mut(&number) {
                entry.flags = flags(reachable, model.ready.contains(name));
                scope.tunnels.peers.insert(number);
            }
        }
        for namespace in &touched.namespaces {
            if let Some(enforced) = &mut self.desired.enforced {
                match convergence::enforced_in(model, local, namespace) {
                    Some(digest) => enforced.insert(namespace.to_string(), digest),
                    None => enforced.remove(&**namespace),
                };
            }
            self.look(model, local, Cause::Namespace(Arc::clone(namespace)));
        }
        for (namespace, name) in &touched.pods {
            self.look(model, local, Cause::Pod(Arc::clone(namespace), name.clone()));
        }
        self.update_services(model, local, touched, &addresses, &mut scope);
        Some(scope)
    }

    /// Looks at the services that are touched, themselves or by an address that they claim.
    fn update_services(
        &mut self,
        model: &Model,
        local: &LocalNode,
        touched: &Touched,
        addresses: &BTreeSet<Address>,
        scope: &mut Scope,
    ) {
        let claimed = addresses.iter().flat_map(|address| self.desired.services.of_address(*address));
        let mut services: BTreeSet<ServiceName> = touched.services.iter().chain(claimed).cloned().collect();
        if self.zone.as_deref() != model.zone() {
            self.zone = model.zone().map(str::to_owned);
            services.extend(model.services.iter().map(|(name, ..)| name.clone()));
        }
        self.look_at_services(model, local, services, scope);
    }

    fn set_masquerade(&mut self, model: &Model, local: &LocalNode, scope: &mut Scope) {
        let now = services::masquerade(model, local, &self.places.nodes);
        scope.services.masquerade |= now != self.desired.state.services.masquerade;
        self.desired.state.services.masquerade = now;
    }

    /// Before everything is known, nothing is said of services: half of one's backends may not be
    /// read yet, and what the kernel has stays until then.
    fn look_at_services(
        &mut self,
        model: &Model,
        local: &LocalNode,
        names: impl IntoIterator<Item = ServiceName>,
        scope: &mut Scope,
    ) {
        if !local.settings.services || !model.synced() {
            return;
        }
        let Desired { state: State { identities, services: held, .. }, services, .. } = &mut self.desired;
        let (places, endpoints, number) = (&self.places, &identities.endpoints, services::set_number);
        let facts = services::Facts { model, local, places, endpoints, number };
        for name in services.look(&facts, names, held, &mut scope.services) {
            self.look(model, local, Cause::Service(name));
        }
    }

    fn look(&mut self, model: &Model, local: &LocalNode, cause: Cause) {
        let known = Known { model, local, places: &self.places, services: &self.desired.services };
        self.standing.look(known, cause);
    }

    /// Decides which party has the address now. Returns whether that changes which addresses or
    /// ranges are nodes': then the caller computes tunnels and routes again.
    fn decide(&mut self, model: &Model, local: &LocalNode, address: Address, scope: &mut Scope) -> bool {
        let mut told = Collector::counting();
        let number = |node: &str| model.node_number(node).unwrap_or_default();
        let ip = IpAddr::from(address);
        let party = claims::decide(model, local, &self.places, address, &mut told);
        let (identity, outside) = match &party {
            Party::Nobody => (None, None),
            Party::Contested | Party::Departed => (Some(Identity::new(Kind::UnknownNode, Protection::None, 0)), None),
            Party::Node(node) => (Some(Identity::new(Kind::Node, Protection::None, number(node).0)), None),
            Party::Pod(claim) => {
                let node = claim.node.map(number);
                let covered = claim.node.is_some_and(|node| self.places.ranges.covers(node, ip));
                let identity = Identity::new(Kind::Pod, claim.protection, node.unwrap_or_default().0);
                (Some(identity), (!covered).then_some(node))
            }
        };
        // A new owner of a departed address has no route to pods, so what unprotected pods send
        // there is masqueraded.
        let in_cluster = !matches!(party, Party::Nobody | Party::Departed);
        let lost = matches!(party, Party::Pod(_)) && self.places.nodes.claim(address).is_some();
        self.standing.note(Cause::Address(address), told);
        self.put_endpoint(address, identity, scope);
        let mut anew = false;
        if let Some([before, now]) = self.speakers.set_pod(ip, outside) {
            self.move_prefix(ip.into(), before, now, scope);
            // If the range is this one address, it has a route of its own, which must be computed
            // again.
            anew = self.places.ranges.is_owned(&ip.into());
            let route = now.and_then(|node| route_to_pod(model, local, &self.places.nodes, ip, node));
            let before = match route {
                Some(route) => self.desired.state.tunnels.routes.insert(route.destination, route),
                None => self.desired.state.tunnels.routes.remove(&IpNet::from(ip)),
            };
            if before != route {
                scope.tunnels.extend(tunnels::Scope::everything());
            }
        }
        let prefix = IpNet::from(ip);
        if !local.settings.in_cluster(prefix) && !self.inside.contains(&prefix) {
            let untranslated = &mut self.desired.state.identities.untranslated;
            scope.identities.untranslated |=
                if in_cluster { untranslated.insert(prefix) } else { untranslated.remove(&prefix) };
        }
        self.places.nodes.note(address, lost) | anew
    }

    fn put_endpoint(&mut self, address: Address, identity: Option<Identity>, scope: &mut Scope) {
        let before = match identity {
            Some(identity) => self.desired.state.identities.endpoints.insert(address, identity),
            None => self.desired.state.identities.endpoints.remove(&address),
        };
        if before != identity {
            scope.identities.endpoints.insert(address);
            self.desired.permissive_endpoints -= usize::from(before.is_some_and(is_permissive));
            self.desired.permissive_endpoints += usize::from(identity.is_some_and(is_permissive));
        }
    }

    /// Moves a pod's address from one peer to another.
    fn move_prefix(&mut self, prefix: IpNet, before: Option<NodeNumber>, now: Option<NodeNumber>, scope: &mut Scope) {
        for (number, has) in [(before, false), (now, true)] {
            let Some(peer) = number.and_then(|number| self.desired.state.tunnels.peers.get_mut(&number)) else {
                continue;
            };
            if has {
                peer.allowed.insert(prefix)
            } else {
                peer.allowed.remove(&prefix)
            };
            scope.tunnels.peers.insert(peer.number);
        }
    }

    fn look_at_everything(&mut self, model: &Model, local: &LocalNode) {
        let mut standing = std::mem::take(&mut self.standing);
        let attachments = model.attachments.keys().map(|key| Cause::Attachment(Arc::clone(key)));
        let namespaces = model.pods.namespaces().map(|namespace| Cause::Namespace(namespace.into()));
        let known = Known { model, local, places: &self.places, services: &self.desired.services };
        for cause in attachments.chain(namespaces) {
            standing.look(known, cause);
        }
        for pod in model.pods.iter() {
            let mut told = Collector::counting();
            claims::tell_pod(model, local, pod, &mut told);
            if !told.is_empty() {
                standing.note(Cause::Pod(Arc::clone(&pod.namespace), pod.name.clone()), told);
            }
        }
        self.standing = standing;
    }

    /// Writes the standing problems as events. Returns those that did not stand before.
    fn tell(&mut self, model: &Model, local: &LocalNode) -> Vec<NewEvent> {
        let known = Known { model, local, places: &self.places, services: &self.desired.services };
        let Some(told) = self.standing.told(known) else { return Vec::new() };
        let before = std::mem::replace(&mut self.desired.events, told);
        self.desired.events.difference(&before).cloned().collect()
    }
}

fn is_permissive(identity: Identity) -> bool {
    identity.kind() == Kind::Pod && identity.protection() == Protection::Permissive
}
