//! How the kinds of objects that are read from an API server differ.

use hauberk_core::model::Change;
use hauberk_core::names::PodName;
use serde::de::DeserializeOwned;

use crate::objects::{self, Metadata, Namespace, Node, Pod};

/// A kind of object.
pub(super) trait Kind: Clone + DeserializeOwned + Send + 'static {
    /// Its name.
    const NAME: &'static str;
    /// The path of its objects.
    const PATH: &'static str;
    /// A field selector for the objects that matter.
    const FIELDS: Option<&'static str> = None;
    /// Whether the metadata has everything that matters.
    const METADATA_ONLY: bool = false;

    /// `metadata`.
    fn metadata(&self) -> Option<&Metadata>;

    /// The change for the model.
    ///
    /// # Errors
    /// Which field cannot be used, and why.
    fn change(self, name: &Name) -> Result<Change, String>;

    /// The change for the model when the object of that name is gone.
    fn gone(name: &Name) -> Change;
}

/// An object's name among those of its kind: `namespace/name`, or `name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name(Box<str>);

impl Name {
    /// None for an object without a name.
    pub(super) fn of(metadata: Option<&Metadata>) -> Option<Name> {
        let metadata = metadata?;
        let name = metadata.name.as_deref()?;
        Some(Name(match &metadata.namespace {
            Some(namespace) => format!("{namespace}/{name}").into(),
            None => name.into(),
        }))
    }

    /// For messages.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or(("", &self.0))
    }
}

impl Kind for Node {
    const NAME: &'static str = "Node";
    const PATH: &'static str = "/api/v1/nodes";

    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    fn change(self, name: &Name) -> Result<Change, String> {
        objects::node(self, name.as_str(), "").map(Change::Node)
    }

    fn gone(name: &Name) -> Change {
        Change::NodeGone(name.as_str().to_owned())
    }
}

impl Kind for Namespace {
    const NAME: &'static str = "Namespace";
    const PATH: &'static str = "/api/v1/namespaces";
    const METADATA_ONLY: bool = true;

    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    fn change(self, name: &Name) -> Result<Change, String> {
        Ok(Change::Namespace(objects::namespace(self, name.as_str(), "")))
    }

    fn gone(name: &Name) -> Change {
        Change::NamespaceGone(name.as_str().to_owned())
    }
}

impl Kind for Pod {
    const NAME: &'static str = "Pod";
    const PATH: &'static str = "/api/v1/pods";
    // A pod that has finished does not own its addresses any more. If another endpoint uses one, it
    // is unknown, and therefore protected.
    const FIELDS: Option<&'static str> = Some("status.phase!=Succeeded,status.phase!=Failed");

    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    fn change(self, name: &Name) -> Result<Change, String> {
        let (namespace, name) = name.parts();
        objects::pod(self, namespace, name, "").map(Change::Pod)
    }

    fn gone(name: &Name) -> Change {
        let (namespace, name) = name.parts();
        Change::PodGone(PodName { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}
