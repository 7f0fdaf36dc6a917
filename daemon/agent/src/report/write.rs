//! The requests: each reads or writes one object once. A missing object, or one that another writer
//! changed meanwhile, is no error: the next look decides again.

use std::collections::BTreeMap;

use hauberk_core::names::PodName;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::events::Writing;
use super::{lease, taint};
use crate::cluster_config::{Acceptance, CONFIG_ANNOTATION, HauberkConfig, HauberkConfigStatus, NAME};

/// The annotation on namespaces and pods.
pub const STATUS_ANNOTATION: &str = "hauberk.io/status";
/// The field manager's name, for the API server.
const MANAGER: &str = "hauberk";
/// Objects in one page of a list.
const PAGE: u32 = 100;

/// The API server did not carry out a request.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}; it is tried again")]
pub struct WriteError {
    what: String,
    source: Box<kube::Error>,
}

/// The API server, as far as reports need it.
pub struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    /// `namespace` is the Lease's.
    pub fn new(client: Client, namespace: String) -> Cluster {
        Cluster { client, namespace }
    }

    /// The Lease as it is.
    pub async fn lease(&self) -> Result<Option<Lease>, WriteError> {
        let what = || format!("read Lease {}/{}", self.namespace, lease::NAME);
        self.leases().get_opt(lease::NAME).await.map_err(failed(what))
    }

    /// Returns whether this agent created it.
    pub async fn create_lease(&self, lease: &Lease) -> Result<bool, WriteError> {
        let what = || format!("create Lease {}/{}", self.namespace, lease::NAME);
        done(self.leases().create(&PostParams::default(), lease).await, what)
    }

    /// Returns whether it was still as it had been read.
    pub async fn replace_lease(&self, lease: &Lease) -> Result<bool, WriteError> {
        let what = || format!("renew Lease {}/{}", self.namespace, lease::NAME);
        done(self.leases().replace(lease::NAME, &PostParams::default(), lease).await, what)
    }

    /// Removes the start-up taint from the node. Returns whether it is gone.
    pub async fn untaint(&self, node: &str) -> Result<bool, WriteError> {
        let what = || format!("remove the taint {} from node {node}", taint::KEY);
        let api: Api<Node> = Api::all(self.client.clone());
        let Some(object) = api.get_opt(node).await.map_err(failed(what))? else { return Ok(false) };
        let taints = object.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let Some(others) = taint::without_ours(&taints) else { return Ok(true) };
        // The whole list is written, so only if the object has not changed since.
        let patch =
            json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "spec": {"taints": others}});
        done(api.patch_metadata(node, &parameters(), &Patch::Merge(&patch)).await, what)
    }

    /// What the annotations of this node's pods say.
    pub async fn pod_texts(&self, node: &str) -> Result<BTreeMap<PodName, String>, WriteError> {
        let selection = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let what = || format!("list the pods of node {node}");
        let mut texts = BTreeMap::new();
        each::<Pod>(&Api::all(self.client.clone()), selection, what, |object| {
            let (Some(namespace), Some(name)) = (object.metadata.namespace, object.metadata.name) else { return };
            if let Some(text) = object.metadata.annotations.unwrap_or_default().remove(STATUS_ANNOTATION) {
                texts.insert(PodName { namespace, name }, text);
            }
        })
        .await?;
        Ok(texts)
    }

    /// What namespaces' annotations say.
    pub async fn namespace_texts(&self) -> Result<BTreeMap<String, String>, WriteError> {
        let mut texts = BTreeMap::new();
        let what = || "list namespaces".to_owned();
        each::<Namespace>(&Api::all(self.client.clone()), ListParams::default(), what, |object| {
            let text = object.metadata.annotations.unwrap_or_default().remove(STATUS_ANNOTATION);
            texts.extend(object.metadata.name.zip(text));
        })
        .await?;
        Ok(texts)
    }

    /// Each node's answer to HauberkConfig; none for a node without one.
    pub async fn acceptances(&self) -> Result<BTreeMap<String, Option<Acceptance>>, WriteError> {
        let mut acceptances = BTreeMap::new();
        let what = || "list nodes".to_owned();
        each::<Node>(&Api::all(self.client.clone()), ListParams::default(), what, |object| {
            let text = object.metadata.annotations.unwrap_or_default().remove(CONFIG_ANNOTATION);
            let acceptance = text.and_then(|text| Acceptance::parse(&text));
            acceptances.extend(object.metadata.name.map(|name| (name, acceptance)));
        })
        .await?;
        Ok(acceptances)
    }

    /// Sets or removes a pod's annotation.
    pub async fn tell_pod(&self, pod: &PodName, text: Option<&str>) -> Result<(), WriteError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        annotate(&api, &pod.name, text, || format!("annotate pod {pod}")).await
    }

    /// Sets or removes a namespace's annotation.
    pub async fn tell_namespace(&self, name: &str, text: Option<&str>) -> Result<(), WriteError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        annotate(&api, name, text, || format!("annotate namespace {name}")).await
    }

    /// Creates an Event, or counts it up.
    pub async fn tell_event(&self, writing: &Writing) -> Result<(), WriteError> {
        let metadata = &writing.event.metadata;
        let (name, namespace) =
            (metadata.name.clone().unwrap_or_default(), metadata.namespace.clone().unwrap_or_default());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let what = || format!("write Event {namespace}/{name}");
        match api.create(&PostParams::default(), &writing.event).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let patch = json!({"series": writing.series});
                done(api.patch(&name, &parameters(), &Patch::Merge(&patch)).await, what)
            }
            created => done(created, what),
        }
        .map(|_| ())
    }

    /// The object HauberkConfig, if there is one.
    pub async fn cluster_config(&self) -> Result<Option<HauberkConfig>, WriteError> {
        let api: Api<HauberkConfig> = Api::all(self.client.clone());
        api.get_opt(NAME).await.map_err(failed(|| format!("read HauberkConfig {NAME}")))
    }

    /// Writes its status.
    pub async fn tell_acceptance(&self, status: &HauberkConfigStatus) -> Result<(), WriteError> {
        let api: Api<HauberkConfig> = Api::all(self.client.clone());
        let what = || format!("write the status of HauberkConfig {NAME}");
        let patch = json!({"status": status});
        done(api.patch_status(NAME, &parameters(), &Patch::Merge(&patch)).await, what).map(|_| ())
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

fn parameters() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

async fn annotate<K>(api: &Api<K>, name: &str, text: Option<&str>, what: impl Fn() -> String) -> Result<(), WriteError>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({"metadata": {"annotations": {STATUS_ANNOTATION: text}}});
    done(api.patch_metadata(name, &parameters(), &Patch::Merge(&patch)).await, what).map(|_| ())
}

/// Lists in pages, so that the whole list of a large cluster is never in memory.
async fn each<K>(
    api: &Api<K>,
    mut selection: ListParams,
    what: impl Fn() -> String,
    mut take: impl FnMut(PartialObjectMeta<K>),
) -> Result<(), WriteError>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    selection.limit = Some(PAGE);
    loop {
        let page = api.list_metadata(&selection).await.map_err(failed(&what))?;
        page.items.into_iter().for_each(&mut take);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => selection.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

/// Whether a write was carried out. An object that is missing, or not as it was read, makes it
/// false and is no error.
fn done<T>(result: Result<T, kube::Error>, what: impl Fn() -> String) -> Result<bool, WriteError> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(failed(what)(error)),
    }
}

fn failed(what: impl Fn() -> String) -> impl Fn(kube::Error) -> WriteError {
    move |error| WriteError { what: what(), source: Box::new(error) }
}
