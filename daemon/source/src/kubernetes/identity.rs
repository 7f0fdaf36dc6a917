//! Whether it is still the same cluster that answers.
//!
//! An API server whose etcd was emptied, or one of another cluster behind the same address, has other objects: that the known ones
//! are not among them does not mean that somebody deleted them. A cluster is told from another by the uid of its namespace
//! `kube-system`, which is made once.

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::sync::Mutex;

use super::follow::Failure;

const NAMESPACE: &str = "kube-system";

/// The cluster that was first heard of.
#[derive(Debug, Default)]
pub(super) struct Identity {
    uid: Mutex<Option<String>>,
}

impl Identity {
    /// Asks the server which cluster it has.
    ///
    /// # Errors
    /// [`Failure::OtherCluster`]; or it cannot be asked.
    pub(super) async fn check(&self, client: &Client) -> Result<(), Failure> {
        let failed = Failure::request("tell the cluster by its namespace kube-system");
        let now = match Api::<Namespace>::all(client.clone()).get_metadata(NAMESPACE).await {
            Ok(namespace) => namespace.metadata.uid.unwrap_or_default(),
            // Nobody can delete it: where there is none any more, everything was emptied.
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
