//! v1 Namespace.

use hauberk_core::model::Change;
use hauberk_core::objects::NamespaceObject;
use serde::Deserialize;

use super::{Followed, Kind, Metadata};

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Namespace {
    metadata: Option<Metadata>,
}

impl Kind for Namespace {
    const NAME: &'static str = "Namespace";
    const VERSION: &'static str = "v1";
    const NAMESPACED: bool = false;

    fn change(self, _: &str, name: &str, origin: &str) -> Result<Option<Change>, String> {
        Ok(Some(Change::Namespace(self.object(name, origin))))
    }

    fn gone(_: &str, name: &str) -> Option<Change> {
        Some(Change::NamespaceGone(name.to_owned()))
    }
}

impl Followed for Namespace {
    const PATH: &'static str = "/api/v1/namespaces";
    const METADATA_ONLY: bool = true;

    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Namespace {
    /// What the model keeps.
    fn object(self, name: &str, origin: &str) -> NamespaceObject {
        let labels = self.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
        NamespaceObject { encryption: labels.encryption, name: name.to_owned(), origin: origin.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use hauberk_core::label::ENCRYPTION_LABEL;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_label_has_the_name_that_is_written() {
        let given: Namespace =
            serde_json::from_value(json!({"metadata": {"labels": {ENCRYPTION_LABEL: "enabled", "a": "b"}}})).unwrap();
        assert_eq!(given.object("n", "").encryption.as_deref(), Some("enabled"));
    }
}
