//! `hauberk services`: where services are reached, and who answers there, as this node has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::identity::{Identity, Kind, Protection};
use hauberk_abi::judge::{self, Place, Verdict};
use hauberk_abi::packet::protocol;
use hauberk_abi::service::{ANY_NODE_V4, ANY_NODE_V6, Backend, Frontend, FrontendKey, frontend_flag};
use hauberk_api::{
    AddressFamily, BackendCondition, FromOutside, Service, ServiceBackend, ServiceFrontend, ServiceMode, ServicesStatus,
};
use hauberk_core::names::NodeNumber;
use hauberk_core::objects::{ServiceKind, ServiceObject, TrafficPolicy};
use hauberk_core::services::view::{self, BackendView, Condition, FrontendKind, FrontendView, ServiceView};
use hauberk_core::services::{Services, SetNumber};

use super::{MapReader, protocol_in_words};
use crate::config::{Config, HostRouting};
use crate::state::AgentState;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoServices {
    /// Nothing reads them.
    #[error(
        "this node does not read services, which are left to kube-proxy: services.sockets is off in its configuration"
    )]
    Off,
    /// There is none of that name.
    #[error("there is no service {asked} among the {known} that have been read; `hauberk services` lists them")]
    Unknown {
        /// As asked.
        asked: String,
        /// How many there are.
        known: usize,
    },
}

/// All services, or those of a namespace, with a name, or both. `connections`: how many connections
/// of clients outside the cluster each set has, if that could be read.
///
/// # Errors
/// [`NoServices::Off`]; [`NoServices::Unknown`] if a name was given and nothing has it.
pub fn services(
    agent: &AgentState,
    config: &Config,
    namespace: Option<&str>,
    name: Option<&str>,
    connections: Option<&BTreeMap<SetNumber, u64>>,
) -> Result<Vec<Service>, NoServices> {
    if !config.services.sockets {
        return Err(NoServices::Off);
    }
    let place = Place {
        node: agent.model.own_number().0,
        stack: config.host_routing == HostRouting::Stack,
        carries_protected: false,
    };
    let (model, claims, held) = (&agent.model, &agent.desired.services, &agent.desired.state.services);
    let views: Vec<ServiceView<'_>> = match (namespace, name) {
        (Some(namespace), Some(name)) => view::find(model, claims, namespace, name).into_iter().collect(),
        _ => view::services(model, claims)
            .filter(|service| {
                let of = &service.object.name;
                namespace.is_none_or(|wanted| *of.namespace == *wanted) && name.is_none_or(|wanted| *of.name == *wanted)
            })
            .collect(),
    };
    match name {
        Some(name) if views.is_empty() => {
            let asked = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
            Err(NoServices::Unknown { asked, known: model.services().count() })
        }
        _ => Ok(views.iter().map(|service| one_service(agent, &place, held, service, connections)).collect()),
    }
}

/// What the status says of services.
pub fn status(agent: &AgentState, map_reader: &MapReader, config: &Config) -> ServicesStatus {
    if !config.services.sockets {
        return ServicesStatus {
            mode: ServiceMode::BesideKubeProxy.into(),
            services: 0,
            frontends: 0,
            backends: 0,
            balanced: 0,
            refused: 0,
            failed: 0,
            connections: None,
        };
    }
    // Counters that cannot be read count nothing: the problems say what is wrong with the tables.
    let [balanced, refused, failed] = map_reader.maps().socket_counters().unwrap_or_default();
    let held = &agent.desired.state.services;
    ServicesStatus {
        mode: if config.services.outside { ServiceMode::SocketsAndDevices } else { ServiceMode::Sockets }.into(),
        services: agent.model.services().count(),
        frontends: held.frontends.len(),
        backends: held.sets.values().map(|backends| backends.len()).sum(),
        balanced,
        refused,
        failed,
        connections: agent.connections.filter(|_| config.services.outside).map(|count| count as u64),
    }
}

fn one_service(
    agent: &AgentState,
    place: &Place,
    held: &Services,
    service: &ServiceView<'_>,
    connections: Option<&BTreeMap<SetNumber, u64>>,
) -> Service {
    let ServiceView { object, frontends, backends } = service;
    let kind = match object.kind {
        ServiceKind::ClusterIp => hauberk_api::ServiceKind::ClusterIp,
        ServiceKind::NodePort => hauberk_api::ServiceKind::NodePort,
        ServiceKind::LoadBalancer => hauberk_api::ServiceKind::LoadBalancer,
        ServiceKind::ExternalName => hauberk_api::ServiceKind::ExternalName,
    };
    let outside = Outside::of(held, frontends);
    Service {
        namespace: object.name.namespace.to_string(),
        name: object.name.name.to_string(),
        kind: kind.into(),
        frontends: frontends.iter().map(|frontend| one_frontend(held, object, frontend)).collect(),
        backends: backends.iter().map(|backend| one_backend(agent, place, backend, outside.as_ref())).collect(),
        connections: outside.as_ref().zip(connections).map(|(outside, counts)| outside.connections(counts)),
    }
}

/// Where clients outside the cluster are led.
#[derive(Default)]
struct Outside<'a> {
    /// The sets that they are led to.
    sets: BTreeSet<SetNumber>,
    /// The backends in them, each with the name of the service's port.
    backends: BTreeSet<(&'a str, Backend)>,
}

impl<'a> Outside<'a> {
    /// None if none of the frontends leads them anywhere.
    fn of(held: &Services, frontends: &[FrontendView<'a>]) -> Option<Outside<'a>> {
        let mut outside = Outside::default();
        for frontend in frontends {
            let Some(Frontend { outside: set, .. }) = held_for_outside(held, frontend) else { continue };
            if outside.sets.insert(set) {
                let backends = held.sets.get(&set).into_iter().flat_map(|set| set.iter());
                outside.backends.extend(backends.map(|backend| (frontend.port_name, *backend)));
            }
        }
        (!outside.sets.is_empty()).then_some(outside)
    }

    fn connections(&self, counts: &BTreeMap<SetNumber, u64>) -> u64 {
        self.sets.iter().filter_map(|set| counts.get(set)).sum()
    }
}

/// The frontend as the kernel should hold it, if it leads clients outside the cluster.
fn held_for_outside(held: &Services, frontend: &FrontendView<'_>) -> Option<Frontend> {
    let leads = held.frontends.get(&frontend.key).copied();
    // Another service may have what this one only claims.
    leads.filter(|leads| frontend.left_out.is_none() && leads.flags & frontend_flag::OUTSIDE != 0)
}

fn from_outside(held: &Services, object: &ServiceObject, frontend: &FrontendView<'_>) -> Option<FromOutside> {
    let leads = held_for_outside(held, frontend)?;
    let policy = match object.external_policy {
        TrafficPolicy::Cluster => hauberk_api::TrafficPolicy::Cluster,
        TrafficPolicy::Local => hauberk_api::TrafficPolicy::Local,
    };
    let is_v4 = frontend.key.address.is_v4();
    let of_family = object.source_ranges.iter().filter(|range| range.addr().is_ipv4() == is_v4);
    Some(FromOutside {
        policy: policy.into(),
        usable: held.sets.get(&leads.outside).map_or(0, |backends| backends.len()),
        source_ranges: (leads.flags & frontend_flag::LIMITED != 0).then(|| of_family.copied().collect()),
    })
}

fn one_frontend(held: &Services, object: &ServiceObject, frontend: &FrontendView<'_>) -> ServiceFrontend {
    let FrontendKey { address, port, protocol: number, .. } = frontend.key;
    let (address, family) = match address {
        ANY_NODE_V4 => (None, AddressFamily::V4),
        ANY_NODE_V6 => (None, AddressFamily::V6),
        address => {
            let family = if address.is_v4() { AddressFamily::V4 } else { AddressFamily::V6 };
            (Some(IpAddr::from(address)), family)
        }
    };
    let kind = match frontend.kind {
        FrontendKind::ClusterAddress => hauberk_api::FrontendKind::ClusterAddress,
        FrontendKind::NodePort => hauberk_api::FrontendKind::NodePort,
        FrontendKind::LoadBalancer => hauberk_api::FrontendKind::LoadBalancer,
        FrontendKind::ExternalAddress => hauberk_api::FrontendKind::ExternalAddress,
    };
    ServiceFrontend {
        address,
        family: family.into(),
        port,
        // Kubernetes knows three protocols of services by name.
        protocol: if number == protocol::SCTP { "sctp".into() } else { protocol_in_words(number) },
        kind: kind.into(),
        port_name: frontend.port_name.to_owned(),
        affinity_seconds: frontend.affinity,
        usable: frontend.usable,
        left_out: frontend.left_out.clone(),
        outside: from_outside(held, object, frontend),
    }
}

fn one_backend(
    agent: &AgentState,
    place: &Place,
    backend: &BackendView<'_>,
    outside: Option<&Outside<'_>>,
) -> ServiceBackend {
    let address = IpAddr::from(backend.backend.address);
    let verdict = from_here(agent, place, address);
    let condition = match backend.condition {
        Condition::Ready => BackendCondition::Ready,
        Condition::Terminating => BackendCondition::Terminating,
        Condition::NotReady => BackendCondition::NotReady,
    };
    ServiceBackend {
        address,
        port: backend.backend.port,
        port_name: backend.port_name.to_owned(),
        node: backend.node.map(str::to_owned),
        condition: condition.into(),
        used: backend.used,
        outside: outside.map(|outside| outside.backends.contains(&(backend.port_name, backend.backend))),
        encryption: Some(verdict.encryption.into()),
        why: Some(verdict.why.into()),
    }
}

/// What becomes of packets of a process on this node's own network to the address.
fn from_here(agent: &AgentState, place: &Place, to: IpAddr) -> Verdict {
    let here = Identity::new(Kind::Node, Protection::None, place.node);
    let to = agent.desired.identity(to);
    let peers = &agent.desired.state.tunnels.peer_entries;
    let peer = peers.get(&NodeNumber(to.node)).copied().unwrap_or_default();
    judge::outgoing(judge::need(&here, &to, place), &to, &peer)
}

#[cfg(test)]
mod tests {
    use hauberk_api::{Encryption, Why};
    use hauberk_core::model::Change;
    use hauberk_core::names::ServiceName;
    use hauberk_core::objects::{
        Endpoint, EndpointPort, EndpointSliceObject, NodeObject, ServiceObject, ServicePort, TrafficPolicy,
    };

    use super::*;
    use crate::config::Services;

    fn on() -> Config {
        Config { services: Services { sockets: true, ..Services::default() }, ..Config::default() }
    }

    fn endpoint(address: &str, node: &str, ready: bool) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            ready,
            serving: ready,
            terminating: false,
            node: Some(node.into()),
            hints: None,
        }
    }

    /// `payments/api` at 10.96.0.10 and at a port of every node, with a protected pod on `n2`, an
    /// endpoint outside of the cluster, and one that is not ready.
    fn agent() -> AgentState {
        let mut agent = crate::testing::payments(Some("enabled"), "n2", "10.0.2.5");
        agent.local.settings.services = true;
        agent.local.settings.cluster_ranges = vec!["10.0.0.0/16".parse().unwrap()];
        let service = ServiceObject {
            name: ServiceName::new("payments", "api"),
            kind: ServiceKind::NodePort,
            cluster_addresses: vec!["10.96.0.10".parse().unwrap()],
            ports: vec![ServicePort { name: "web".into(), protocol: protocol::TCP, port: 80, node_port: Some(30080) }],
            affinity: Some(60),
            internal_policy: TrafficPolicy::Cluster,
            ..ServiceObject::default()
        };
        let slice = EndpointSliceObject {
            name: ServiceName::new("payments", "api-1"),
            service: "api".into(),
            is_ipv4: true,
            ports: vec![EndpointPort { name: "web".into(), protocol: protocol::TCP, port: 8080 }],
            endpoints: vec![
                endpoint("10.0.2.5", "n2", true),
                endpoint("198.51.100.7", "n2", true),
                endpoint("10.0.2.6", "n2", false),
            ],
            no_addresses: Vec::new(),
            origin: String::new(),
        };
        let node = |name: &str| Change::Node(NodeObject { name: name.into(), ..NodeObject::default() });
        for change in [node("n1"), node("n2"), Change::Service(service), Change::EndpointSlice(slice)] {
            let _ = agent.model.apply(change);
        }
        let AgentState { desired, model, local, .. } = &mut agent;
        let _ = desired.follow(model, local);
        agent
    }

    #[test]
    fn a_service_is_told_with_its_addresses_and_who_answers() {
        let found = services(&agent(), &on(), Some("payments"), Some("api"), None).unwrap();
        let [service] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((&*service.namespace, &*service.name, service.kind.as_str()), ("payments", "api", "NodePort"));
        let frontends: Vec<_> = service
            .frontends
            .iter()
            .map(|frontend| (frontend.address, frontend.port, frontend.kind.as_str(), frontend.usable))
            .collect();
        let cluster: IpAddr = "10.96.0.10".parse().unwrap();
        assert!(frontends.contains(&(Some(cluster), 80, "cluster_address", 2)), "{frontends:?}");
        assert!(frontends.contains(&(None, 30080, "node_port", 2)), "{frontends:?}");
        assert!(service.frontends.iter().all(|frontend| frontend.affinity_seconds == 60 && frontend.protocol == "tcp"));
        let backend = |address: &str| {
            service.backends.iter().find(|backend| backend.address == address.parse::<IpAddr>().unwrap()).unwrap()
        };
        // The protected pod's node has no key yet.
        let pod = backend("10.0.2.5");
        assert_eq!((pod.used, pod.port, pod.node.as_deref()), (true, 8080, Some("n2")));
        assert!(pod.encryption == Some(Encryption::Refused.into()) && pod.why == Some(Why::Dropped.into()), "{pod:?}");
        assert_eq!(backend("198.51.100.7").encryption, Some(Encryption::World.into()));
        let ending = backend("10.0.2.6");
        assert!(!ending.used && ending.condition == BackendCondition::NotReady, "{ending:?}");
    }

    /// What the kernel holds is made here: which frontends lead clients outside the cluster is not
    /// this module's to say.
    #[test]
    fn clients_outside_the_cluster_are_told_apart() {
        let agent = agent();
        let mut held = agent.desired.state.services.clone();
        let local = held.sets.values().next().unwrap()[..1].to_vec();
        held.sets.insert(7, local.clone().into());
        for (_, frontend) in held.frontends.iter_mut().filter(|(key, _)| key.address == ANY_NODE_V4) {
            frontend.outside = 7;
            frontend.flags |= frontend_flag::OUTSIDE | frontend_flag::LIMITED;
        }
        let counts = BTreeMap::from([(7, 3), (8, 100)]);
        let place = Place { node: agent.model.own_number().0, stack: false, carries_protected: false };
        let view = view::find(&agent.model, &agent.desired.services, "payments", "api").unwrap();
        let service = one_service(&agent, &place, &held, &view, Some(&counts));
        assert_eq!(service.connections, Some(3));
        for frontend in &service.frontends {
            let expected = FromOutside {
                policy: hauberk_api::TrafficPolicy::Cluster.into(),
                usable: 1,
                source_ranges: Some(Vec::new()),
            };
            assert_eq!(frontend.outside, frontend.address.is_none().then_some(expected), "{frontend:?}");
        }
        for backend in &service.backends {
            let is_led = IpAddr::from(local[0].address) == backend.address;
            assert_eq!(backend.outside, Some(is_led), "{backend:?}");
        }
    }

    #[test]
    fn services_are_found_by_what_is_known_of_them() {
        let agent = agent();
        let count = |namespace, name| services(&agent, &on(), namespace, name, None).map(|found| found.len());
        assert_eq!(count(None, None), Ok(1));
        assert_eq!(count(Some("payments"), None), Ok(1));
        assert_eq!(count(Some("public"), None), Ok(0));
        assert_eq!(count(None, Some("api")), Ok(1));
        for (namespace, name, asked) in [(Some("public"), "api", "public/api"), (None, "db", "db")] {
            let error = count(namespace, Some(name)).unwrap_err();
            assert_eq!(error, NoServices::Unknown { asked: asked.into(), known: 1 });
        }
        let off = services(&agent, &Config::default(), None, None, None).unwrap_err();
        assert!(off.to_string().contains("services.sockets is off"), "{off}");
    }
}
