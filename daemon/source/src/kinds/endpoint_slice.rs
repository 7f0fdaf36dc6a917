//! discovery.k8s.io/v1 EndpointSlice: a manifest of it is checked; the model does not hold it yet.

use hauberk_core::model::Change;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::Kind;

impl Kind for EndpointSlice {
    const NAME: &'static str = "EndpointSlice";
    const VERSION: &'static str = "discovery.k8s.io/v1";

    fn change(self, _: &str, _: &str, _: &str) -> Result<Option<Change>, String> {
        Ok(None)
    }

    fn gone(_: &str, _: &str) -> Option<Change> {
        None
    }
}
