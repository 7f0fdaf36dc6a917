//! v1 Service: a manifest of it is checked; the model does not hold it yet.

use hauberk_core::model::Change;
use k8s_openapi::api::core::v1::Service;

use super::Kind;

impl Kind for Service {
    const NAME: &'static str = "Service";
    const VERSION: &'static str = "v1";

    fn change(self, _: &str, _: &str, _: &str) -> Result<Option<Change>, String> {
        Ok(None)
    }

    fn gone(_: &str, _: &str) -> Option<Change> {
        None
    }
}
