//! A made-up cluster: nodes, namespaces and pods in the form in which an API server stores them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hauberk_cluster::control_plane::machine_addresses;
use hauberk_netns::manifests;
use serde_json::{Value, json};

use super::etcd::Operation;

/// The number of nodes that exist only as objects.
pub const NODES: usize = 1_000;
/// The number of pods that stay.
pub const PODS: usize = 50_000;
/// The number of their namespaces; every other one is opted in.
pub const NAMESPACES: usize = 100;
/// The namespace of the pods that come and go.
pub const CHURN: &str = "churn";
/// The ranges of pods' addresses: a /24 and a /64 for each node.
pub const CLUSTER_RANGES: [&str; 2] = ["10.244.0.0/14", "fd00:244::/48"];

const CREATED: &str = "2026-01-01T00:00:00Z";

/// A pod by number, on one of the nodes that exist only as objects.
#[derive(Clone, Copy)]
pub struct Pod {
    pub number: usize,
}

/// The phase of a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Scheduled,
    Running,
    Terminating,
}

impl Pod {
    fn namespace(self) -> String {
        if self.number < PODS { format!("team-{}", self.number % NAMESPACES) } else { CHURN.to_owned() }
    }

    fn name(self) -> String {
        format!("checkout-7d9c6b5f4-{:06}", self.number)
    }

    /// Its IPv4 and IPv6 address. No two pods have the same ones.
    pub fn addresses(self) -> [IpAddr; 2] {
        let (node, host) = (self.number % NODES, self.number / NODES + 2);
        let v4 = Ipv4Addr::new(10, 244 + (node / 256) as u8, (node % 256) as u8, host as u8);
        let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, node as u16, 0, 0, 0, host as u16);
        [v4.into(), v6.into()]
    }

    /// Its key in etcd.
    pub fn key(self) -> String {
        format!("/registry/pods/{}/{}", self.namespace(), self.name())
    }

    /// The object, about as large as in real clusters.
    pub fn object(self, phase: Phase) -> Value {
        let labels = json!({"app": "checkout", "team": self.namespace(), "pod-template-hash": "7d9c6b5f4"});
        let environment: Vec<Value> =
            (0..12).map(|n| json!({"name": format!("CHECKOUT_SETTING_{n}"), "value": format!("value-{n}")})).collect();
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name(), "namespace": self.namespace(), "creationTimestamp": CREATED, "labels": labels,
                "uid": uid(self.number), "generateName": "checkout-7d9c6b5f4-",
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "checkout-7d9c6b5f4", "uid": uid(0),
                    "controller": true, "blockOwnerDeletion": true,
                }],
                "managedFields": [{
                    "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": CREATED,
                    "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {"f:app": {}, "f:team": {}}},
                        "f:spec": {"f:containers": {"k:{\"name\":\"checkout\"}": {"f:image": {}, "f:env": {}}}}},
                }],
            },
            "spec": {
                "nodeName": format!("peer{}", self.number % NODES),
                "serviceAccountName": "default",
                "terminationGracePeriodSeconds": 30,
                "containers": [{
                    "name": "checkout", "image": "registry.example/checkout:1.42.0", "env": environment,
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                    "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
                    "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent",
                }],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            },
            "status": {"phase": "Pending", "qosClass": "Burstable"},
        });
        if phase != Phase::Scheduled {
            let [v4, v6] = self.addresses();
            let ready = |kind| json!({"type": kind, "status": "True", "lastTransitionTime": CREATED});
            let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(ready);
            object["status"] = json!({
                "phase": "Running", "qosClass": "Burstable", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
                "conditions": conditions,
                "startTime": CREATED,
            });
        }
        if phase == Phase::Terminating {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:00Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        }
        object
    }
}

/// Every namespace, node and pod that exists from the start. `own` is the node with the real agent.
pub fn everything(own: &str) -> impl Iterator<Item = Operation> {
    let teams = (0..NAMESPACES).map(|team| (format!("team-{team}"), team % 2 == 0));
    let namespaces = teams.chain([(CHURN.to_owned(), true)]).map(|(name, enabled)| namespace(&name, enabled));
    let (v4, v6) = machine_addresses(11);
    let own = node(own, NODES, [v4.into(), v6.into()], None);
    let nodes = (0..NODES).map(|number| {
        let v4 = Ipv4Addr::new(172, 20, (number / 256) as u8, (number % 256) as u8);
        let v6 = Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, number as u16 + 1);
        node(&format!("peer{number}"), number, [v4.into(), v6.into()], Some(keys(number)))
    });
    let pods = (0..PODS).map(|number| Pod { number });
    namespaces.chain([own]).chain(nodes).chain(pods.map(|pod| Operation::Put(pod.key(), pod.object(Phase::Running))))
}

fn namespace(name: &str, enabled: bool) -> Operation {
    let labels = if enabled { json!({"hauberk.io/encryption": "enabled"}) } else { json!({}) };
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "uid": uid(name.len()), "creationTimestamp": CREATED, "labels": labels},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    });
    Operation::Put(format!("/registry/namespaces/{name}"), object)
}

fn node(name: &str, number: usize, addresses: [IpAddr; 2], keys: Option<String>) -> Operation {
    let ranges = [format!("10.{}.{}.0/24", 244 + number / 256, number % 256), format!("fd00:244:0:{number:x}::/64")];
    let annotations = keys.map_or(json!({}), |keys| json!({"hauberk.io/keys": keys}));
    let mut addresses: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    addresses.push(json!({"type": "Hostname", "address": name}));
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": uid(1 << 24 | number), "creationTimestamp": CREATED, "annotations": annotations,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {"addresses": addresses, "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"}},
    });
    Operation::Put(format!("/registry/minions/{name}"), object)
}

/// The annotation that a node's agent would publish. Any 32 bytes are a point of the curve.
fn keys(number: usize) -> String {
    let mut key = [0x11; 32];
    key[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    manifests::keys(&BASE64.encode(key))
}

fn uid(number: usize) -> String {
    format!("0f1e2d3c-4b5a-4978-8695-{number:012x}")
}
