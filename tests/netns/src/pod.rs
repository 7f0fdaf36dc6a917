//! A pod: a network namespace that the CNI plugin connected to its node. Without hauberk the
//! harness connects it.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::manifests::{self, Manifests};
use crate::netns::Netns;
use crate::node::Node;
use crate::party::Party;
use crate::plugin::{self, Attachment};

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name (`namespace/name`), namespace and addresses.
    pub party: Party,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: Arc<Node>,
    /// The runtime's id of its sandbox.
    pub container: String,
}

impl Deref for Pod {
    type Target = Party;

    fn deref(&self) -> &Party {
        &self.party
    }
}

impl Pod {
    /// Does what the kubelet and a container runtime do for a new pod: writes the object, makes a
    /// network namespace, calls ADD, writes the addresses into the object.
    ///
    /// # Errors
    /// Any of these steps failed.
    pub fn run(node: &Arc<Node>, manifests: &Manifests, namespace: &str, name: &str) -> Result<Pod> {
        let netns = node.netns.create_beside(&format!("{namespace}-{name}"))?;
        Pod::run_in(netns, node, manifests, namespace, name)
    }

    /// Like [`Pod::run`], in a network namespace where programs may already run.
    ///
    /// # Errors
    /// As [`Pod::run`].
    pub fn run_in(netns: Netns, node: &Arc<Node>, manifests: &Manifests, namespace: &str, name: &str) -> Result<Pod> {
        let mut object = manifests::pod(namespace, name, &node.name);
        let file = format!("{namespace}-{name}");
        manifests.put("pod", &file, &object)?;
        let container = format!("sandbox-{}-{namespace}-{name}", node.name);
        let path = netns.path();
        let attachment =
            Attachment { container: &container, netns: &path, interface: "eth0", pod: Some((namespace, name)) };
        let result = node.plugin.add(&attachment).with_context(|| format!("attach pod {namespace}/{name}"))?;
        let addresses = plugin::addresses(&result)?;
        manifests::set_addresses(&mut object, &addresses);
        manifests.put("pod", &file, &object)?;
        Pod::with_addresses(netns, node, namespace, name, container, &addresses)
    }

    pub(crate) fn with_addresses(
        netns: Netns,
        node: &Arc<Node>,
        namespace: &str,
        name: &str,
        container: String,
        addresses: &[IpAddr],
    ) -> Result<Pod> {
        let party = Party::new(format!("{namespace}/{name}"), netns, addresses)?;
        Ok(Pod { party, namespace: namespace.into(), name: name.into(), node: node.clone(), container })
    }

    /// The name of its file in [`Manifests`].
    pub fn file(&self) -> String {
        format!("{}-{}", self.namespace, self.name)
    }

    /// Calls DEL, as the runtime does when the pod ends.
    ///
    /// # Errors
    /// The plugin refused.
    pub fn detach(&self) -> Result<()> {
        let path = self.netns.path();
        let pod = Some((self.namespace.as_str(), self.name.as_str()));
        self.node.plugin.delete(&Attachment { container: &self.container, netns: &path, interface: "eth0", pod })
    }

    /// Ends the pod: calls DEL, removes the object, then the namespace.
    ///
    /// # Errors
    /// Any of these steps failed.
    pub fn delete(&self, manifests: &Manifests) -> Result<()> {
        self.detach()?;
        manifests.remove("pod", &self.file())?;
        self.netns.remove()
    }
}
