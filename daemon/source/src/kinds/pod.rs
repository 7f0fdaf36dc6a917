//! v1 Pod.

use std::net::IpAddr;

use hauberk_core::model::Change;
use hauberk_core::names::PodName;
use hauberk_core::objects::PodObject;
use serde::Deserialize;

use super::{Followed, Kind, Metadata};

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Pod {
    metadata: Option<Metadata>,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

impl Kind for Pod {
    const NAME: &'static str = "Pod";
    const VERSION: &'static str = "v1";

    fn change(self, namespace: &str, name: &str, origin: &str) -> Result<Option<Change>, String> {
        self.object(namespace, name, origin).map(|object| Some(Change::Pod(object)))
    }

    fn gone(namespace: &str, name: &str) -> Option<Change> {
        Some(Change::PodGone(PodName { namespace: namespace.to_owned(), name: name.to_owned() }))
    }
}

impl Followed for Pod {
    const PATH: &'static str = "/api/v1/pods";
    // A pod that has finished does not own its addresses any more. If another endpoint uses one, it
    // is unknown, and therefore protected.
    const FIELDS: Option<&'static str> = Some("status.phase!=Succeeded,status.phase!=Failed");

    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Pod {
    /// What the model keeps.
    fn object(self, namespace: &str, name: &str, origin: &str) -> Result<PodObject, String> {
        let metadata = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let given: Vec<String> = match status.pod_ips {
            Some(all) if !all.is_empty() => all.into_iter().filter_map(|pod_ip| pod_ip.ip).collect(),
            _ => status.pod_ip.into_iter().collect(),
        };
        let addresses = given
            .iter()
            .filter(|address| !address.is_empty())
            .map(|address| {
                address.parse::<IpAddr>().map_err(|_| format!("`status.podIPs` has {address:?}, which is no address"))
            })
            .collect::<Result<_, _>>()?;
        let annotations = metadata.annotations.unwrap_or_default();
        Ok(PodObject {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            encryption: metadata.labels.unwrap_or_default().encryption,
            uid: annotations.mirror.and(annotations.hash).or(metadata.uid),
            node: spec.node_name.filter(|name| !name.is_empty()),
            host_network: spec.host_network.unwrap_or(false),
            addresses,
            finished: status.phase.is_some_and(|phase| phase == "Succeeded" || phase == "Failed"),
            terminating: metadata.deletion_timestamp.is_some(),
            origin: origin.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mirror_pod_has_the_uid_its_kubelet_gave_the_runtime() {
        let uid = |annotations: serde_json::Value| {
            let given = json!({"metadata": {"uid": "of-the-mirror", "annotations": annotations}});
            serde_json::from_value::<Pod>(given).unwrap().object("ns", "p", "").unwrap().uid
        };
        let mirror = json!({"kubernetes.io/config.mirror": "h", "kubernetes.io/config.hash": "of-the-file"});
        assert_eq!(uid(mirror).as_deref(), Some("of-the-file"));
        assert_eq!(uid(json!({"kubernetes.io/config.hash": "claimed"})).as_deref(), Some("of-the-mirror"));
        assert_eq!(uid(json!(null)).as_deref(), Some("of-the-mirror"));
    }

    #[test]
    fn what_is_missing_or_null_is_as_if_it_were_not_there() {
        for given in
            [json!({}), json!({"metadata": null, "spec": null, "status": null}), json!({"status": {"podIPs": [{}]}})]
        {
            let object = serde_json::from_value::<Pod>(given).unwrap().object("ns", "p", "").unwrap();
            assert_eq!(object, PodObject { namespace: "ns".into(), name: "p".into(), ..PodObject::default() });
        }
    }
}
