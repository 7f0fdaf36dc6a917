//! The parts of the agent's life that exist only in a cluster: the connection, the cluster's own
//! configuration, and reports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hauberk_api::ConfigurationStatus;
use hauberk_source::Source;
use hauberk_source::directory::Directory;
use hauberk_source::kubernetes::Kubernetes;
use jiff::Timestamp;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::cluster_config::{self, Start};
use crate::config::{self, CniInstall, Config, ConfigError, Source as Choice};
use crate::observe::status::ClusterFacts;
use crate::reconcile::Input;
use crate::report::{self, Reporter};
use crate::state::SharedState;

/// How long a stop waits until the Lease is released.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// The agent could not connect to the cluster, or the cluster's configuration is incomplete.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server's address or the agent's credentials are unknown.
    #[error(
        "cannot connect to the cluster with {from}: {reason}; in a pod the service account's token must be mounted, elsewhere set source.kubernetes.kubeconfig"
    )]
    Connect {
        /// The kubeconfig, or the service account.
        from: String,
        /// The library's error.
        reason: String,
    },
    /// The file and the cluster's own configuration do not fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A cluster that the agent is connected to.
pub(super) struct Connected {
    client: Client,
    file: Config,
    namespace: String,
    configuration: watch::Sender<ConfigurationStatus>,
    since: watch::Sender<BTreeMap<String, Timestamp>>,
}

/// Connects if the file says so, and merges the cluster's own configuration into the file's. Also
/// returns the source of objects.
///
/// # Errors
/// [`ClusterError`].
pub(super) async fn connect(file: Config) -> Result<(Config, Arc<dyn Source>, Option<Connected>), ClusterError> {
    let node = file.node.clone().unwrap_or_default();
    let kubernetes = match &file.source {
        Choice::Directory(directory) => {
            let source = Arc::new(Directory::new(directory.clone(), node));
            return Ok((file, source, None));
        }
        Choice::Kubernetes(kubernetes) => kubernetes,
    };
    let (client, location) = client(kubernetes).await?;
    let Start { config, status } = cluster_config::start(&file, &client).await?;
    let source = Arc::new(Kubernetes::new(client.clone(), location, node, config.services.sockets));
    let connected = Connected {
        client,
        namespace: kubernetes.namespace.clone(),
        file,
        configuration: watch::Sender::new(status),
        since: watch::Sender::new(BTreeMap::new()),
    };
    Ok((config, source, Some(connected)))
}

impl Connected {
    /// For `hauberk status`.
    pub(super) fn facts(&self) -> ClusterFacts {
        ClusterFacts { configuration: self.configuration.subscribe(), since: self.since.subscribe() }
    }

    /// Follows the configuration and reports, until `stopped`.
    pub(super) fn spawn(
        self,
        config: &Config,
        agent: &SharedState,
        source: Arc<dyn Source>,
        inputs: mpsc::Sender<Input>,
        cni_in_place: watch::Receiver<bool>,
        stopped: watch::Receiver<bool>,
    ) -> Reporting {
        tokio::spawn(cluster_config::follow(cluster_config::Parts {
            client: self.client.clone(),
            file: self.file,
            running: config.clone(),
            status: self.configuration,
            inputs,
            agent: agent.clone(),
            source,
        }));
        let reporter = Reporter::new(report::Parts {
            client: self.client,
            namespace: self.namespace,
            agent: agent.clone(),
            cni_in_place,
            adopts: config.cni.install == CniInstall::Chained,
            since: self.since,
        });
        Reporting(tokio::spawn(reporter.run(stopped)))
    }
}

/// The reports' task.
pub(super) struct Reporting(JoinHandle<()>);

impl Reporting {
    /// Waits a moment for the Lease to be released, so that another agent may report.
    pub(super) async fn finish(self) {
        // A Lease that is not released expires.
        let _ = tokio::time::timeout(GIVE_BACK, self.0).await;
    }
}

/// The API server, and its address for messages.
async fn client(kubernetes: &config::Kubernetes) -> Result<(Client, String), ClusterError> {
    let from =
        kubernetes.kubeconfig.as_ref().map_or("the pod's service account".into(), |path| path.display().to_string());
    let failed = |reason: String| ClusterError::Connect { from: from.clone(), reason };
    let mut config = match &kubernetes.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| failed(error.to_string()))?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|error| failed(error.to_string()))?
        }
        None => kube::Config::incluster().map_err(|error| failed(error.to_string()))?,
    };
    // Callers retry as they see fit, and must learn of a failure at once to report it.
    config.default_retry = false;
    let location = config.cluster_url.to_string();
    Ok((Client::try_from(config).map_err(|error| failed(error.to_string()))?, location))
}
