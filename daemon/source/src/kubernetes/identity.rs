//! Whether the same cluster still answers.
//!
//! An API server whose etcd was emptied, or another cluster's server at the same address, has other
//! objects. That the known objects are missing there does not mean that they were deleted. The uid
//! of the namespace `kube-system`, which is created once, identifies a cluster.

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::sync::Mutex;

use super::follow::Failure;

const NAMESPACE: &str = "kube-system";

/// The cluster that answered first.
#[derive(Debug, Default)]
pub(super) struct Identity {
    uid: Mutex<Option<String>>,
}

impl Identity {
    /// Asks the server which cluster it has.
    ///
    /// # Errors
    /// [`Failure::OtherCluster`]; or the request fails.
    pub(super) async fn check(&self, client: &Client) -> Result<(), Failure> {
        let failed = Failure::request("tell the cluster by its namespace kube-system");
        let now = match Api::<Namespace>::all(client.clone()).get_metadata(NAMESPACE).await {
            Ok(namespace) => namespace.metadata.uid.unwrap_or_default(),
            // The namespace cannot be deleted: if it is missing now, etcd was emptied.
            Err(kube::Error::Api(status)) if status.code == 404 && self.uid.lock().await.is_some() => "none".into(),
            Err(error) => return Err(failed(error)),
        };
        let mut known = self.uid.lock().await;
        match known.as_ref() {
            Some(before) if *before != now => Err(Failure::OtherCluster { before: before.clone(), now }),
            Some(_) => Ok(()),
            None => {
                *known = Some(now);
                Ok(())
            }
        }
    }
}
