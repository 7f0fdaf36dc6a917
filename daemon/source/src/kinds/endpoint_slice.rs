//! discovery.k8s.io/v1 EndpointSlice.
//!
//! An address that is none is left out and named ([`EndpointSliceObject::no_addresses`]): refusing
//! the slice because of it would take the other endpoints' changes away too. A port that is none is
//! every endpoint's, so the slice is refused.

use std::net::IpAddr;
use std::sync::Arc;

use hauberk_core::model::Change;
use hauberk_core::names::ServiceName;
use hauberk_core::objects::{Endpoint, EndpointPort, EndpointSliceObject, Hints};
use serde::Deserialize;

use super::ports::{port, protocol};
use super::{Followed, Kind, Metadata};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    metadata: Option<Metadata>,
    address_type: Option<String>,
    endpoints: Option<Vec<GivenEndpoint>>,
    ports: Option<Vec<GivenPort>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GivenEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
    node_name: Option<String>,
    hints: Option<GivenHints>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GivenHints {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Named {
    name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct GivenPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
}

impl Kind for EndpointSlice {
    const NAME: &'static str = "EndpointSlice";
    const VERSION: &'static str = "discovery.k8s.io/v1";

    fn change(self, namespace: &str, name: &str, origin: &str) -> Result<Option<Change>, String> {
        let name = ServiceName::new(namespace, name);
        // One of no service, or of names instead of addresses, is as if it were not there.
        let change = self.object(name.clone(), origin)?.map_or(Change::EndpointSliceGone(name), Change::EndpointSlice);
        Ok(Some(change))
    }

    fn gone(namespace: &str, name: &str) -> Option<Change> {
        Some(Change::EndpointSliceGone(ServiceName::new(namespace, name)))
    }
}

impl Followed for EndpointSlice {
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";

    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl EndpointSlice {
    /// What the model keeps; none if it keeps nothing of it.
    fn object(self, name: ServiceName, origin: &str) -> Result<Option<EndpointSliceObject>, String> {
        let labels = self.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
        let is_ipv4 = match self.address_type.as_deref() {
            Some("IPv4") => true,
            Some("IPv6") => false,
            Some("FQDN") => return Ok(None),
            other => {
                return Err(format!(
                    "`addressType` is {:?}, which is not IPv4, IPv6 or FQDN",
                    other.unwrap_or_default()
                ));
            }
        };
        let Some(service) = labels.service.filter(|name| !name.is_empty()) else { return Ok(None) };
        let mut no_addresses = Vec::new();
        let mut endpoints = Vec::new();
        for given in self.endpoints.unwrap_or_default() {
            let Some(text) = given.addresses.as_ref().and_then(|addresses| addresses.first()) else { continue };
            match text.parse::<IpAddr>() {
                Ok(address) if address.is_ipv4() == is_ipv4 => endpoints.push(given.endpoint(address)),
                _ => no_addresses.push(text.clone()),
            }
        }
        // The API allows an entry without a port, for other programs than proxies of services.
        let ports = self.ports.unwrap_or_default().into_iter().filter_map(|given| Some((given.port?, given)));
        let ports = ports.map(|(number, given)| {
            Ok(EndpointPort {
                name: given.name.unwrap_or_default().into(),
                protocol: protocol(given.protocol.as_deref())?,
                port: port(number)?,
            })
        });
        let ports = ports.collect::<Result<_, String>>().map_err(|what| format!("`ports` has {what}"))?;
        let origin = origin.to_owned();
        Ok(Some(EndpointSliceObject { name, service: service.into(), is_ipv4, ports, endpoints, no_addresses, origin }))
    }
}

impl GivenEndpoint {
    fn endpoint(self, address: IpAddr) -> Endpoint {
        let Conditions { ready, serving, terminating } = self.conditions.unwrap_or_default();
        let ready = ready.unwrap_or(true);
        Endpoint {
            address,
            ready,
            serving: serving.unwrap_or(ready),
            terminating: terminating.unwrap_or(false),
            node: self.node_name.filter(|name| !name.is_empty()).map(Arc::from),
            hints: self.hints.and_then(GivenHints::hints).map(Arc::new),
        }
    }
}

impl GivenHints {
    /// None if there are none.
    fn hints(self) -> Option<Hints> {
        let names = |named: Option<Vec<Named>>| -> Vec<Arc<str>> {
            named.unwrap_or_default().into_iter().filter_map(|named| named.name).map(Arc::from).collect()
        };
        let hints = Hints { zones: names(self.for_zones), nodes: names(self.for_nodes) };
        (hints != Hints::default()).then_some(hints)
    }
}

#[cfg(test)]
mod tests {
    use hauberk_abi::packet::protocol;
    use serde_json::{Value, json};

    use super::*;

    fn read(given: Value) -> Result<Option<Change>, String> {
        serde_json::from_value::<EndpointSlice>(given).unwrap().change("ns", "s-1", "f")
    }

    /// A slice of the service `s`.
    fn object(fields: Value) -> EndpointSliceObject {
        let mut given = json!({"metadata": {"labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4"});
        given.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        match read(given) {
            Ok(Some(Change::EndpointSlice(object))) => object,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_that_matters_is_read() {
        let read = object(json!({
            "ports": [{"name": "web", "port": 8080}, {"protocol": "UDP", "port": 53}, {"name": "any", "port": null}],
            "endpoints": [{
                "addresses": ["10.0.1.5", "10.0.1.6"], "nodeName": "n1", "zone": "a",
                "conditions": {"ready": false, "serving": true, "terminating": true},
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]},
            }],
        }));
        let expected = EndpointSliceObject {
            name: ServiceName::new("ns", "s-1"),
            service: "s".into(),
            is_ipv4: true,
            ports: vec![
                EndpointPort { name: "web".into(), protocol: protocol::TCP, port: 8080 },
                EndpointPort { name: "".into(), protocol: protocol::UDP, port: 53 },
            ],
            endpoints: vec![Endpoint {
                address: "10.0.1.5".parse().unwrap(),
                ready: false,
                serving: true,
                terminating: true,
                node: Some("n1".into()),
                hints: Some(Arc::new(Hints { zones: vec!["a".into()], nodes: vec!["n1".into()] })),
            }],
            no_addresses: Vec::new(),
            origin: "f".into(),
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn conditions_that_are_not_given_are_as_the_api_says() {
        for (given, expected) in [
            (json!(null), (true, true, false)),
            (json!({}), (true, true, false)),
            (json!({"ready": false}), (false, false, false)),
            (json!({"ready": false, "serving": true}), (false, true, false)),
            (json!({"ready": null, "terminating": true}), (true, true, true)),
        ] {
            let read = object(json!({"endpoints": [{"addresses": ["10.0.1.5"], "conditions": given}]}));
            let endpoint = &read.endpoints[0];
            assert_eq!((endpoint.ready, endpoint.serving, endpoint.terminating), expected, "{given}");
        }
    }

    #[test]
    fn what_is_no_address_loses_only_its_endpoint() {
        let given =
            json!([{"addresses": ["10.0.1.5"]}, {"addresses": ["fd00::5"]}, {"addresses": ["x"]}, {"addresses": []}]);
        let read = object(json!({"endpoints": given}));
        assert_eq!((read.endpoints.len(), read.no_addresses), (1, vec!["fd00::5".to_owned(), "x".to_owned()]));
    }

    #[test]
    fn a_slice_of_no_service_or_of_names_is_as_if_it_were_not_there() {
        let gone = Change::EndpointSliceGone(ServiceName::new("ns", "s-1"));
        let of_service = json!({"labels": {"kubernetes.io/service-name": "s"}});
        for given in [
            json!({"addressType": "IPv4"}),
            json!({"addressType": "IPv6", "metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
            json!({"addressType": "FQDN", "metadata": of_service, "endpoints": [{"addresses": ["example.com"]}]}),
        ] {
            assert_eq!(read(given.clone()), Ok(Some(gone.clone())), "{given}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let metadata = json!({"labels": {"kubernetes.io/service-name": "s"}});
        for (given, field) in [
            (json!({"metadata": metadata}), "addressType"),
            (json!({"metadata": metadata, "addressType": "IPX"}), "addressType"),
            (json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"port": 70_000}]}), "`ports`"),
            (json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"port": 7, "protocol": "x"}]}), "`ports`"),
        ] {
            let error = read(given.clone()).unwrap_err();
            assert!(error.contains(field), "{given}: {error}");
        }
    }
}
