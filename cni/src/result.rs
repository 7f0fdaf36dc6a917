//! The answer to ADD, in the caller's version; and the part of a kept answer that CHECK needs.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Dns;
use crate::error::CniError;
use crate::plan::PodPlan;
use crate::version::Version;

/// The result of ADD (CNI spec, "ADD Success").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddResult {
    #[serde(rename = "cniVersion")]
    version: &'static str,
    interfaces: Vec<Interface>,
    ips: Vec<Address>,
    routes: Vec<Route>,
    dns: Dns,
}

/// Index in the list of interfaces: the host side is 0, the pod's side is 1.
const POD_INTERFACE: usize = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Interface {
    name: String,
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Address {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    address: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    interface: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Route {
    dst: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
}

/// One side of the pair that was created.
pub(crate) struct Side<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: String,
}

impl AddResult {
    pub(crate) fn new(version: Version, plan: &PodPlan, host: Side<'_>, pod: Side<'_>, netns: &Path, dns: Dns) -> Self {
        // Version 1.1 added MTUs; version 1.0 removed the number of the family.
        let says_mtu = version >= Version::V1_1;
        let says_family = version < Version::V1_0;
        let interface = |side: Side<'_>, sandbox| Interface {
            name: side.name.to_string(),
            mac: side.mac,
            mtu: says_mtu.then_some(plan.mtu),
            sandbox,
        };
        let ip = |address: &IpNet| Address {
            version: says_family.then_some(if address.addr().is_ipv4() { "4" } else { "6" }),
            address: *address,
            gateway: plan.gateway(&address.addr()),
            interface: POD_INTERFACE,
        };
        AddResult {
            version: version.as_str(),
            interfaces: vec![interface(host, None), interface(pod, Some(netns.display().to_string()))],
            ips: plan.addresses.iter().map(ip).collect(),
            routes: plan
                .routes
                .iter()
                .map(|route| Route { dst: route.destination, gw: route.gateway, mtu: route.mtu.filter(|_| says_mtu) })
                .collect(),
            dns,
        }
    }

    /// For stdout.
    pub fn to_json(&self) -> String {
        // A struct of strings and numbers always serializes.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The part of a kept result that CHECK needs. Later plugins may have added to it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct PreviousResult {
    #[serde(default)]
    pub(crate) interfaces: Vec<PreviousInterface>,
    #[serde(default)]
    pub(crate) ips: Vec<PreviousAddress>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct PreviousInterface {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) mac: String,
    #[serde(default)]
    pub(crate) sandbox: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct PreviousAddress {
    pub(crate) address: IpNet,
    #[serde(default)]
    pub(crate) interface: Option<usize>,
}

impl PreviousResult {
    pub(crate) fn parse(previous: &serde_json::Value) -> Result<PreviousResult, CniError> {
        PreviousResult::deserialize(previous).map_err(|error| CniError::Config(format!("prevResult: {error}")))
    }

    /// The addresses of this interface inside the pod. An address without an interface counts as
    /// this one's.
    pub(crate) fn addresses_of(&self, interface: &str) -> Vec<IpAddr> {
        let own = self.interfaces.iter().position(|one| one.name == interface && !one.sandbox.is_empty());
        let is_own = |ip: &&PreviousAddress| ip.interface.is_none_or(|index| Some(index) == own);
        self.ips.iter().filter(is_own).map(|ip| ip.address.addr()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::reservation;

    fn result(version: Version) -> serde_json::Value {
        let plan = PodPlan::new(&reservation()).unwrap();
        let host = Side { name: "hbk0123456789", mac: "0a:00:00:00:00:01".to_string() };
        let pod = Side { name: "eth0", mac: "0a:00:00:00:00:02".to_string() };
        let result = AddResult::new(version, &plan, host, pod, Path::new("/run/netns/a"), Dns::default());
        serde_json::from_str(&result.to_json()).unwrap()
    }

    #[test]
    fn the_latest_form_says_mtus() {
        let json = result(Version::V1_1);
        assert_eq!(json["cniVersion"], "1.1.0");
        assert_eq!(json["interfaces"][1]["sandbox"], "/run/netns/a");
        assert_eq!(json["interfaces"][1]["mtu"], 1500);
        assert_eq!(json["ips"][0]["address"], "10.244.1.5/32");
        assert_eq!(json["ips"][0]["gateway"], "169.254.1.1");
        assert_eq!(json["ips"][0]["interface"], 1);
        assert_eq!(json["ips"][0]["version"], serde_json::Value::Null);
        assert_eq!(json["routes"][2]["mtu"], 1420);
        assert_eq!(json["dns"], serde_json::json!({}));
    }

    #[test]
    fn older_forms_leave_out_what_came_later() {
        let json = result(Version::V1_0);
        assert_eq!(json["interfaces"][1]["mtu"], serde_json::Value::Null);
        assert_eq!(json["routes"][2]["mtu"], serde_json::Value::Null);
        let json = result(Version::V0_4);
        assert_eq!(json["ips"][1]["version"], "6");
    }

    #[test]
    fn addresses_of_other_interfaces_are_not_the_pods() {
        let previous = |ips: &str| {
            let text = format!(
                r#"{{"interfaces":[{{"name":"eth0"}},{{"name":"eth0","sandbox":"/x"}},{{"name":"net1","sandbox":"/x"}}],"ips":{ips}}}"#
            );
            PreviousResult::parse(&serde_json::from_str(&text).unwrap()).unwrap().addresses_of("eth0").len()
        };
        assert_eq!(previous(r#"[{"address":"10.0.0.1/24","interface":1},{"address":"fd00::1/64","interface":1}]"#), 2);
        assert_eq!(previous(r#"[{"address":"10.0.0.1/24","interface":2},{"address":"10.0.0.2/24","interface":0}]"#), 0);
        assert_eq!(previous(r#"[{"version":"4","address":"10.0.0.1/24"}]"#), 1);
    }

    #[test]
    fn what_add_answers_check_can_read() {
        let previous = PreviousResult::parse(&result(Version::V1_1)).unwrap();
        assert_eq!(previous.interfaces[0].sandbox, "");
        assert_eq!(previous.ips.len(), 2);
    }
}
