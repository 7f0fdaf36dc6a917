//! The kinds of objects that are read, and what hauberk reads of each: the same from a server and
//! from a file.
//!
//! A kind has a file here, a line in [`KINDS`], and one in [`each_followed`] if it is read from an
//! API server too. The types have only the fields that matter: the reader skips an object's other
//! fields, so they never take memory. Every field may be missing, as in the API's own types.

mod endpoint_slice;
mod metadata;
mod namespace;
mod node;
mod pod;
mod ports;
mod service;

use std::fmt;

use hauberk_core::model::Change;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use endpoint_slice::EndpointSlice;
pub(crate) use metadata::Metadata;
pub(crate) use namespace::Namespace;
pub(crate) use node::Node;
pub(crate) use pod::Pod;
pub(crate) use service::Service;

/// Every kind that is read, in the order in which a folder's changes are told.
static KINDS: [Registered; 5] = [
    Registered::of::<Node>(),
    Registered::of::<Namespace>(),
    Registered::of::<Pod>(),
    Registered::of::<Service>(),
    Registered::of::<EndpointSlice>(),
];

/// Visits every kind that is read from an API server. `services`: also those that only services
/// need.
pub(crate) fn each_followed(services: bool, visitor: &mut impl Visitor) {
    visitor.visit::<Node>();
    visitor.visit::<Namespace>();
    visitor.visit::<Pod>();
    if services {
        visitor.visit::<Service>();
        visitor.visit::<EndpointSlice>();
    }
}

/// Does something with each kind.
pub(crate) trait Visitor {
    /// With this one.
    fn visit<K: Followed>(&mut self);
}

/// A kind of object.
pub(crate) trait Kind: DeserializeOwned {
    /// `kind`.
    const NAME: &'static str;
    /// `apiVersion`.
    const VERSION: &'static str;
    /// Whether its objects are in namespaces.
    const NAMESPACED: bool = true;

    /// The change for the model; none if the model does not hold this kind. `origin` says where the
    /// object was read: a file path, or empty.
    ///
    /// # Errors
    /// Which field cannot be used, and why.
    fn change(self, namespace: &str, name: &str, origin: &str) -> Result<Option<Change>, String>;

    /// The change for the model when the object of that name is gone.
    fn gone(namespace: &str, name: &str) -> Option<Change>;
}

/// A kind that is read from an API server.
pub(crate) trait Followed: Kind + Clone + Send + 'static {
    /// The path of its objects.
    const PATH: &'static str;
    /// A field selector for the objects that matter.
    const FIELDS: Option<&'static str> = None;
    /// Whether the metadata has everything that matters.
    const METADATA_ONLY: bool = false;
    /// Whether the node stays closed until every object of this kind has been read. False for a
    /// kind that a server may not know, such as that of a custom resource.
    const AWAITED: bool = true;

    /// `metadata`.
    fn metadata(&self) -> Option<&Metadata>;
}

/// Reads a document with this namespace, name and origin: [`Kind::change`].
type Read = fn(&Value, &str, &str, &str) -> Result<Option<Change>, String>;

/// A kind in [`KINDS`].
struct Registered {
    name: &'static str,
    version: &'static str,
    namespaced: bool,
    read: Read,
    gone: fn(&str, &str) -> Option<Change>,
}

impl Registered {
    const fn of<K: Kind>() -> Registered {
        Registered {
            name: K::NAME,
            version: K::VERSION,
            namespaced: K::NAMESPACED,
            read: |document, namespace, name, origin| typed::<K>(document)?.change(namespace, name, origin),
            gone: K::gone,
        }
    }
}

/// One of [`KINDS`]. Kinds sort in the order of that list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindId(usize);

impl KindId {
    /// This kind.
    pub(crate) fn of<K: Kind>() -> KindId {
        let of_name = KindId::find(K::VERSION, K::NAME);
        of_name.unwrap_or_else(|| unreachable!("{} is in no list of kinds", K::NAME))
    }

    /// The kind with this name and version, if it is read.
    pub(crate) fn find(version: &str, name: &str) -> Option<KindId> {
        KINDS.iter().position(|kind| (kind.version, kind.name) == (version, name)).map(KindId)
    }

    /// Whether its objects are in namespaces.
    pub(crate) fn is_namespaced(self) -> bool {
        KINDS[self.0].namespaced
    }

    /// [`Kind::change`] of a document of this kind.
    pub(crate) fn read(
        self,
        document: &Value,
        namespace: &str,
        name: &str,
        origin: &str,
    ) -> Result<Option<Change>, String> {
        (KINDS[self.0].read)(document, namespace, name, origin)
    }

    /// [`Kind::gone`].
    pub(crate) fn gone(self, namespace: &str, name: &str) -> Option<Change> {
        (KINDS[self.0].gone)(namespace, name)
    }
}

impl fmt::Display for KindId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KINDS[self.0].name)
    }
}

impl fmt::Debug for KindId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn typed<T: DeserializeOwned>(document: &Value) -> Result<T, String> {
    // Finding the field's path costs time, so it is done only after an error.
    T::deserialize(document).map_err(|error| match serde_path_to_error::deserialize::<_, T>(document) {
        Err(with_path) => format!("`{}`: {}", with_path.path(), with_path.inner()),
        Ok(_) => error.to_string(),
    })
}
