//! The names of nodes, pods, services and pods' interfaces.

use std::fmt;
use std::sync::Arc;

/// A node's number in the datapath's maps: never 0 for a known node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeNumber(pub u32);

/// A namespaced name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The namespaced name of a service, or of one of its endpoint slices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ServiceName {
    /// The name in the namespace.
    pub fn new(namespace: &str, name: &str) -> ServiceName {
        ServiceName { namespace: namespace.into(), name: name.into() }
    }

    /// The service as events and problems name it.
    pub fn object(&self) -> String {
        format!("Service/{self}")
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod's interface on this node: which container, which interface inside it (CNI spec 1.1,
/// section 2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentKey {
    /// The runtime's container (sandbox) id.
    pub container: String,
    /// The interface's name inside the pod.
    pub interface: String,
}

impl AttachmentKey {
    /// The key of a container's interface.
    pub fn new(container: &str, interface: &str) -> AttachmentKey {
        AttachmentKey { container: container.to_owned(), interface: interface.to_owned() }
    }

    /// The interface as problems name it.
    pub fn object(&self) -> String {
        format!("container/{}/{}", self.container, self.interface)
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.interface)
    }
}

impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
