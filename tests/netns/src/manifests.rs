//! The folder of Kubernetes manifests that all agents read. The harness writes it as an API server
//! and a kubelet on each node would.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The label on namespaces and pods.
pub const LABEL: &str = "hauberk.io/encryption";
/// The annotation with a node's public keys.
pub const KEYS: &str = "hauberk.io/keys";

/// A folder of manifests, one file per object. Every change is a rename: a reader sees the old
/// object or the new one.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    staging: PathBuf,
    count: AtomicU64,
}

impl Manifests {
    /// Makes an empty folder at `directory`.
    ///
    /// # Errors
    /// File access fails.
    pub fn create(directory: &Path) -> Result<Manifests> {
        let staging = directory.with_extension("staging");
        for path in [directory, &staging] {
            fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        }
        Ok(Manifests { directory: directory.to_owned(), staging, count: AtomicU64::new(0) })
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of an object's file.
    pub fn path(&self, kind: &str, name: &str) -> PathBuf {
        self.directory.join(format!("{kind}-{name}.yaml"))
    }

    /// Writes an object.
    ///
    /// # Errors
    /// File access fails.
    pub fn put(&self, kind: &str, name: &str, object: &Value) -> Result<()> {
        let text = serde_yaml_ng::to_string(object).context("write YAML")?;
        self.put_text(&format!("{kind}-{name}.yaml"), &text)
    }

    /// Writes a file with any text.
    ///
    /// # Errors
    /// File access fails.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        let temporary = self.staging.join(format!("{}", self.count.fetch_add(1, Ordering::Relaxed)));
        let path = self.directory.join(file);
        fs::write(&temporary, text).with_context(|| format!("write {}", temporary.display()))?;
        fs::rename(&temporary, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Reads an object, including what other programs wrote into it.
    ///
    /// # Errors
    /// There is none, or it is not YAML.
    pub fn read(&self, kind: &str, name: &str) -> Result<Value> {
        let path = self.path(kind, name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_yaml_ng::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// Changes an object.
    ///
    /// # Errors
    /// As [`Manifests::read`] and [`Manifests::put`].
    pub fn change(&self, kind: &str, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut object = self.read(kind, name)?;
        change(&mut object);
        self.put(kind, name, &object)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, kind: &str, name: &str) -> Result<()> {
        let path = self.path(kind, name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Sets or removes the encryption label of a namespace or of a pod (for a pod, `name` is
    /// `namespace-pod`, as in the file name).
    ///
    /// # Errors
    /// As [`Manifests::change`].
    pub fn label(&self, kind: &str, name: &str, value: Option<&str>) -> Result<()> {
        self.change(kind, name, |object| match value {
            Some(value) => object["metadata"]["labels"][LABEL] = json!(value),
            None => {
                if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
                    labels.remove(LABEL);
                }
            }
        })
    }
}

/// A Node.
pub fn node(name: &str, addresses: &[IpAddr], pod_ranges: &[String]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address.to_string()})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": pod_ranges.first(), "podCIDRs": pod_ranges},
        "status": {"addresses": addresses}
    })
}

/// The value of the annotation [`KEYS`] that a node's agent publishes for its only key, given in
/// base64.
pub fn keys(public: &str) -> String {
    json!({"version": 1, "port": 51840, "keys": [{"epoch": 1, "publicKey": public}]}).to_string()
}

/// A Namespace, opted in or not.
pub fn namespace(name: &str, encryption: Option<&str>) -> Value {
    let mut labels = json!({"kubernetes.io/metadata.name": name});
    if let Some(value) = encryption {
        labels[LABEL] = json!(value);
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A Pod on a node, before it has an address.
pub fn pod(namespace: &str, name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{namespace}-{name}"), "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "example.com/main:1"}]},
        "status": {"phase": "Pending"}
    })
}

/// Gives a Pod its addresses, as the kubelet does once the network is set up.
pub fn set_addresses(pod: &mut Value, addresses: &[IpAddr]) {
    let list: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    pod["status"] = json!({"phase": "Running", "podIP": addresses[0].to_string(), "podIPs": list});
}

/// A Service at these addresses and ports (name, protocol, port). `extra` is merged into its spec.
pub fn service(namespace: &str, name: &str, addresses: &[IpAddr], ports: &[(&str, &str, u16)], extra: &Value) -> Value {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let mut spec = json!({"type": "ClusterIP", "clusterIP": addresses.first(), "clusterIPs": addresses, "ports": port_list(ports)});
    if let (Some(spec), Some(extra)) = (spec.as_object_mut(), extra.as_object()) {
        spec.extend(extra.clone());
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// An EndpointSlice of a service. All its endpoints have these ports (name, protocol, port).
pub fn endpoint_slice(
    (namespace, service): (&str, &str),
    name: &str,
    v4: bool,
    ports: &[(&str, &str, u16)],
    endpoints: &[Value],
) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}
        },
        "addressType": if v4 { "IPv4" } else { "IPv6" },
        "ports": port_list(ports),
        "endpoints": endpoints,
    })
}

fn port_list(ports: &[(&str, &str, u16)]) -> Value {
    ports.iter().map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port})).collect()
}

/// A ready endpoint on a node.
pub fn endpoint(address: IpAddr, node: &str) -> Value {
    json!({"addresses": [address.to_string()], "nodeName": node, "conditions": {"ready": true, "serving": true}})
}
