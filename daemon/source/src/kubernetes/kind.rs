//! What tells the kinds of objects apart that are read from an API server.

use hauberk_core::model::{Change, PodName};
use serde::de::DeserializeOwned;

use crate::objects::{self, Metadata, Namespace, Node, Pod};

/// A kind of object.
pub(super) trait Kind: Clone + DeserializeOwned + Send + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Where its objects are.
    const PATH: &'static str;
    /// Which of them matter, as a field selector.
    const FIELDS: Option<&'static str> = None;
    /// Whether their metadata says everything that matters.
    const METADATA_ONLY: bool = false;

    /// `metadata`.
    fn metadata(&self) -> Option<&Metadata>;

    /// What it means for the model.
    ///
    /// # Errors
    /// Which field cannot be used, and why.
    fn change(self, name: &Name) -> Result<Change, String>;

    /// What it means that there is none of that name any more.
    fn gone(name: &Name) -> Change;
}

/// An object's name among those of its kind: `namespace/name`, or `name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name(Box<str>);

impl Name {
    /// None of an object without a name.
    pub(super) fn of(metadata: Option<&Metadata>) -> Option<Name> {
        let metadata = metadata?;
        let name = metadata.name.as_deref()?;
        Some(Name(match &metadata.namespace {
            Some(namespace) => format!("{namespace}/{name}").into(),
            None => name.into(),
        }))
    }

    /// For people.
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
    // The addresses of pods that have finished are not theirs any more. Whoever else turns up with one is unknown, hence protected.
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
