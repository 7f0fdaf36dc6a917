//! v1 Service.

use std::net::IpAddr;

use hauberk_core::model::Change;
use hauberk_core::names::ServiceName;
use hauberk_core::objects::{ServiceKind, ServiceObject, ServicePort, TrafficPolicy};
use ipnet::IpNet;
use serde::Deserialize;

use super::ports::{port, protocol};
use super::{Followed, Kind, Metadata};

/// `sessionAffinityConfig.clientIP.timeoutSeconds`, if it is not given.
const AFFINITY: i64 = 10_800;

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Service {
    metadata: Option<Metadata>,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<GivenPort>>,
    load_balancer_source_ranges: Option<Vec<String>>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    health_check_node_port: Option<i64>,
    publish_not_ready_addresses: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GivenPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
    node_port: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIpConfig {
    timeout_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<Balancer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Balancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

impl Kind for Service {
    const NAME: &'static str = "Service";
    const VERSION: &'static str = "v1";

    fn change(self, namespace: &str, name: &str, origin: &str) -> Result<Option<Change>, String> {
        self.object(namespace, name, origin).map(|object| Some(Change::Service(object)))
    }

    fn gone(namespace: &str, name: &str) -> Option<Change> {
        Some(Change::ServiceGone(ServiceName::new(namespace, name)))
    }
}

impl Followed for Service {
    const PATH: &'static str = "/api/v1/services";

    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Service {
    /// What the model keeps.
    fn object(self, namespace: &str, name: &str, origin: &str) -> Result<ServiceObject, String> {
        let labels = self.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let kind = match spec.kind.as_deref() {
            None | Some("" | "ClusterIP") => ServiceKind::ClusterIp,
            Some("NodePort") => ServiceKind::NodePort,
            Some("LoadBalancer") => ServiceKind::LoadBalancer,
            Some("ExternalName") => ServiceKind::ExternalName,
            Some(other) => return Err(format!("`spec.type` is {other:?}, which no service is")),
        };
        let mut cluster = match spec.cluster_ips {
            Some(all) if !all.is_empty() => all,
            _ => spec.cluster_ip.into_iter().collect(),
        };
        // A headless service says so in the address's place.
        cluster.retain(|address| address != "None" && kind != ServiceKind::ExternalName);
        let balancer = self.status.and_then(|status| status.load_balancer).and_then(|balancer| balancer.ingress);
        let vip = |ingress: &Ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        let balancer = balancer.unwrap_or_default().into_iter().filter(vip).filter_map(|ingress| ingress.ip);
        let external_policy = policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?;
        // A service that had one once may keep it without a use.
        let has_health = kind == ServiceKind::LoadBalancer && external_policy == TrafficPolicy::Local;
        // While none is given, the API server has 0 there.
        let health = spec.health_check_node_port.filter(|number| has_health && *number != 0).map(port).transpose();
        let (source_ranges, no_source_ranges) = source_ranges(spec.load_balancer_source_ranges.unwrap_or_default());
        Ok(ServiceObject {
            name: ServiceName::new(namespace, name),
            kind,
            cluster_addresses: addresses("spec.clusterIPs", cluster)?,
            ports: spec.ports.unwrap_or_default().into_iter().map(service_port).collect::<Result<_, _>>()?,
            external_addresses: addresses("spec.externalIPs", spec.external_ips.unwrap_or_default())?,
            balancer_addresses: addresses("status.loadBalancer.ingress", balancer)?,
            source_ranges,
            no_source_ranges,
            affinity: affinity(spec.session_affinity.as_deref(), spec.session_affinity_config)?,
            internal_policy: policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?,
            external_policy,
            health_check_port: health.map_err(|what| format!("`spec.healthCheckNodePort` is {what}"))?,
            publishes_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            other_proxy: labels.proxy,
            origin: origin.to_owned(),
        })
    }
}

fn addresses(field: &str, given: impl IntoIterator<Item = String>) -> Result<Vec<IpAddr>, String> {
    let given = given.into_iter().filter(|address| !address.is_empty());
    given.map(|given| given.parse().map_err(|_| format!("`{field}` has {given:?}, which is no address"))).collect()
}

fn service_port(given: GivenPort) -> Result<ServicePort, String> {
    let number = given.port.ok_or("`spec.ports` has an entry without `port`")?;
    // While none is given, the API server has 0 there.
    let node_port = given.node_port.filter(|number| *number != 0);
    Ok(ServicePort {
        name: given.name.unwrap_or_default().into(),
        protocol: protocol(given.protocol.as_deref()).map_err(|what| format!("`spec.ports` has {what}"))?,
        port: port(number).map_err(|what| format!("`spec.ports` has {what}"))?,
        node_port: node_port.map(port).transpose().map_err(|what| format!("`spec.ports` has nodePort {what}"))?,
    })
}

/// The ranges, and what is none. An object with such a thing is not refused: its last good version
/// may admit more clients.
fn source_ranges(given: Vec<String>) -> (Vec<IpNet>, Vec<String>) {
    let (mut ranges, mut others) = (Vec::new(), Vec::new());
    for text in given {
        match text.trim().parse() {
            Ok(range) => ranges.push(range),
            Err(_) => others.push(text),
        }
    }
    (ranges, others)
}

/// For how many seconds a client keeps its backend.
fn affinity(given: Option<&str>, config: Option<AffinityConfig>) -> Result<Option<u32>, String> {
    match given {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => return Err(format!("`spec.sessionAffinity` is {other:?}, which is not None or ClientIP")),
    }
    let seconds = config.and_then(|config| config.client_ip?.timeout_seconds).unwrap_or(AFFINITY);
    match u32::try_from(seconds) {
        Ok(0) | Err(_) => {
            Err(format!("`spec.sessionAffinityConfig.clientIP.timeoutSeconds` is {seconds}, which is no time"))
        }
        Ok(seconds) => Ok(Some(seconds)),
    }
}

fn policy(field: &str, given: Option<&str>) -> Result<TrafficPolicy, String> {
    match given {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(format!("`{field}` is {other:?}, which is not Cluster or Local")),
    }
}

#[cfg(test)]
mod tests {
    use hauberk_abi::packet::protocol;
    use serde_json::{Value, json};

    use super::*;

    fn read(given: Value) -> Result<ServiceObject, String> {
        serde_json::from_value::<Service>(given).unwrap().object("ns", "s", "f")
    }

    #[test]
    fn all_that_matters_is_read() {
        let object = read(json!({
            "metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd01::1"],
                "ports": [
                    {"name": "web", "port": 80, "targetPort": "http", "nodePort": 30080},
                    {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 0},
                    {"name": "sig", "protocol": "SCTP", "port": 132},
                ],
                "externalIPs": ["192.0.2.9"], "loadBalancerSourceRanges": ["198.51.100.0/24 ", "10.0.0.0", ""],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 32_100, "publishNotReadyAddresses": true,
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
                {"hostname": "balancer.example"},
            ]}},
        }))
        .unwrap();
        let port = |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
        let expected = ServiceObject {
            name: ServiceName::new("ns", "s"),
            kind: ServiceKind::LoadBalancer,
            cluster_addresses: vec!["10.96.0.1".parse().unwrap(), "fd01::1".parse().unwrap()],
            ports: vec![
                port("web", protocol::TCP, 80, Some(30080)),
                port("dns", protocol::UDP, 53, None),
                port("sig", protocol::SCTP, 132, None),
            ],
            external_addresses: vec!["192.0.2.9".parse().unwrap()],
            balancer_addresses: vec!["203.0.113.1".parse().unwrap(), "203.0.113.2".parse().unwrap()],
            source_ranges: vec!["198.51.100.0/24".parse().unwrap()],
            no_source_ranges: vec!["10.0.0.0".into(), "".into()],
            affinity: Some(60),
            internal_policy: TrafficPolicy::Local,
            external_policy: TrafficPolicy::Local,
            health_check_port: Some(32_100),
            publishes_not_ready: true,
            other_proxy: Some("other".into()),
            origin: "f".into(),
        };
        assert_eq!(object, expected);
    }

    #[test]
    fn what_is_missing_is_as_the_api_server_would_have_it() {
        for given in [json!({}), json!({"metadata": null, "spec": null, "status": null})] {
            let object = read(given).unwrap();
            let name = ServiceName::new("ns", "s");
            assert_eq!(object, ServiceObject { name, origin: "f".into(), ..ServiceObject::default() });
        }
        let object = read(json!({"spec": {"sessionAffinity": "ClientIP", "clusterIP": "10.96.0.1"}})).unwrap();
        assert_eq!((object.affinity, object.cluster_addresses.len()), (Some(10_800), 1));
    }

    #[test]
    fn a_health_check_is_of_a_load_balancer_with_the_policy_local() {
        for (kind, policy, port, expected) in [
            ("LoadBalancer", "Local", 32_100, Some(32_100)),
            ("LoadBalancer", "Local", 0, None),
            ("LoadBalancer", "Cluster", 32_100, None),
            ("NodePort", "Local", 32_100, None),
        ] {
            let spec = json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port});
            assert_eq!(read(json!({"spec": spec})).unwrap().health_check_port, expected, "{spec}");
        }
    }

    #[test]
    fn headless_and_external_names_have_no_cluster_address() {
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"clusterIP": "None"}),
            json!({"clusterIP": ""}),
            json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": "10.96.0.1"}),
        ] {
            assert_eq!(read(json!({"spec": spec})).unwrap().cluster_addresses, [] as [IpAddr; 0], "{spec}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (spec, field) in [
            (json!({"type": "Cluster"}), "spec.type"),
            (json!({"clusterIPs": ["10.96.0"]}), "spec.clusterIPs"),
            (json!({"externalIPs": ["example.com"]}), "spec.externalIPs"),
            (json!({"ports": [{"port": 0}]}), "spec.ports"),
            (json!({"ports": [{"port": 65_536}]}), "spec.ports"),
            (json!({"ports": [{"name": "web"}]}), "spec.ports"),
            (json!({"ports": [{"port": 80, "protocol": "ICMP"}]}), "spec.ports"),
            (json!({"ports": [{"port": 80, "nodePort": -1}]}), "nodePort"),
            (json!({"sessionAffinity": "Cookie"}), "spec.sessionAffinity"),
            (
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
                "timeoutSeconds",
            ),
            (json!({"internalTrafficPolicy": "local"}), "spec.internalTrafficPolicy"),
            (json!({"externalTrafficPolicy": "Node"}), "spec.externalTrafficPolicy"),
            (
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 65_536}),
                "spec.healthCheckNodePort",
            ),
        ] {
            let error = read(json!({"spec": spec})).unwrap_err();
            assert!(error.contains(field), "{spec}: {error}");
        }
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "x"}]}}});
        assert!(read(status).unwrap_err().contains("status.loadBalancer.ingress"));
    }
}
