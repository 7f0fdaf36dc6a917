//! The source against a server that lists and watches as the API server does: with versions,
//! bookmarks, pages and outages.

mod server;

use std::collections::BTreeSet;

use hauberk_core::names::{PodName, ServiceName};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use self::server::{Server, StreamedLists};
use super::*;
use crate::reason;

/// Longer than anything here takes: pauses between tries begin below a second.
const SOON: Duration = Duration::from_secs(20);

struct Listening {
    source: Arc<Kubernetes>,
    batches: mpsc::Receiver<Batch>,
    _stop: watch::Sender<bool>,
    running: JoinHandle<Result<(), SourceError>>,
}

impl Listening {
    fn to(server: &Server) -> Listening {
        Listening::for_services(server, false)
    }

    fn for_services(server: &Server, services: bool) -> Listening {
        let source = Arc::new(Kubernetes::new(server.client(), server.address(), "n1".into(), services));
        let (sender, batches) = mpsc::channel(100);
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(Arc::clone(&source).run(sender, stopped));
        Listening { source, batches, _stop: stop, running }
    }

    /// Takes batches until one matches; returns all changes since the call.
    async fn until(&mut self, found: impl Fn(&Batch) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let wait = async {
            loop {
                let batch = self.batches.recv().await.expect("the source runs");
                let last = found(&batch);
                changes.extend(batch.changes);
                if last {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, wait).await.expect("what is waited for comes");
        changes
    }

    async fn until_change(&mut self, wanted: impl Fn(&Change) -> bool) -> Vec<Change> {
        self.until(|batch| batch.changes.iter().any(&wanted)).await
    }

    async fn until_event(&mut self, reason: &str) -> (Vec<Change>, String) {
        let message = std::sync::Mutex::new(String::new());
        let changes = self
            .until(|batch| {
                let event = batch.events.iter().find(|event| event.reason == reason);
                event.is_some_and(|event| {
                    message.lock().unwrap().clone_from(&event.message);
                    true
                })
            })
            .await;
        (changes, message.into_inner().unwrap())
    }

    async fn until_synced(&mut self) -> Vec<Change> {
        self.until_change(|change| *change == Change::Synced).await
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// A server with a node, its namespaces, and a pod in one of them.
async fn cluster() -> Server {
    let server = Server::start().await;
    server.put("namespaces", "kube-system", json!({"metadata": {"uid": "first"}}));
    server.put("namespaces", "shop", json!({"metadata": {"labels": {"hauberk.io/encryption": "enabled"}}}));
    server.put("nodes", "n1", node("K1"));
    server.put("pods", "shop/a", pod("10.244.1.5"));
    server
}

fn node(keys: &str) -> Value {
    json!({"metadata": {"annotations": {"hauberk.io/keys": keys}}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}})
}

fn pod(address: &str) -> Value {
    json!({"spec": {"nodeName": "n1"}, "status": {"podIPs": [{"ip": address}]}})
}

fn is_pod(change: &Change, name: &str) -> bool {
    matches!(change, Change::Pod(pod) if format!("{}/{}", pod.namespace, pod.name) == name)
}

fn pod_gone(namespace: &str, name: &str) -> Change {
    Change::PodGone(PodName { namespace: namespace.into(), name: name.into() })
}

#[tokio::test]
async fn everything_there_is_then_synced_then_what_changes() {
    let server = cluster().await;
    let mut listening = Listening::to(&server);
    let changes = listening.until_synced().await;
    assert_eq!(changes.iter().filter(|change| **change == Change::Synced).count(), 1);
    assert_eq!(changes.last(), Some(&Change::Synced), "nothing is synced before all kinds are read");
    assert!(changes.iter().any(|change| is_pod(change, "shop/a")));
    assert!(changes.iter().any(
        |change| matches!(change, Change::Namespace(shop) if shop.name == "shop" && shop.encryption.as_deref() == Some("enabled"))
    ));
    assert!(listening.source.status().synced);

    server.put("pods", "shop/b", pod("10.244.1.6"));
    listening.until_change(|change| is_pod(change, "shop/b")).await;
    server.remove("pods", "shop/b");
    listening.until_change(|change| *change == pod_gone("shop", "b")).await;
    assert_eq!(server.lists(), 0, "lists were streamed");
}

#[tokio::test]
async fn a_change_of_an_annotation_alone_is_told() {
    let server = cluster().await;
    let mut listening = Listening::to(&server);
    listening.until_synced().await;
    server.put("nodes", "n1", node("K2"));
    listening.until_change(|change| matches!(change, Change::Node(node) if node.keys.as_deref() == Some("K2"))).await;
}

#[tokio::test]
async fn a_server_that_does_not_stream_lists_is_read_page_by_page() {
    for how in [StreamedLists::AreRefused, StreamedLists::AreGivenUp] {
        let server = cluster().await;
        server.set_streamed_lists(how);
        for number in 0..1_200 {
            server.put("pods", &format!("shop/many-{number}"), pod("10.244.1.7"));
        }
        let mut listening = Listening::to(&server);
        let changes = listening.until_synced().await;
        assert_eq!(changes.iter().filter(|change| matches!(change, Change::Pod(_))).count(), 1_201, "{how:?}");
        server.remove("pods", "shop/a");
        listening.until_change(|change| *change == pod_gone("shop", "a")).await;
        assert!(server.lists() >= 5, "three pages of pods, one each of the others");
        assert_eq!(listening.source.status().unavailable_since, None, "{how:?} is no outage");
    }
}

#[tokio::test]
async fn what_is_known_stays_while_the_server_is_away_and_only_changes_are_told_after() {
    let server = cluster().await;
    let mut listening = Listening::to(&server);
    listening.until_synced().await;
    server.go();
    let (changes, message) = listening.until_event(reason::SOURCE_UNAVAILABLE).await;
    assert_eq!(changes, [], "absence is not deletion");
    assert!(message.contains("refused") || message.contains("503"), "it says what is wrong: {message}");
    let status = listening.source.status();
    assert!(status.synced && status.unavailable_since.is_some() && status.unavailable_because.is_some());

    server.put("pods", "shop/b", pod("10.244.1.6"));
    server.come_back();
    let (mut changes, _) = listening.until_event(reason::SOURCE_AVAILABLE).await;
    if changes.is_empty() {
        changes = listening.until_change(|change| is_pod(change, "shop/b")).await;
    }
    assert!(matches!(&changes[..], [change] if is_pod(change, "shop/b")), "no list is needed: {changes:?}");
    assert_eq!(listening.source.status().unavailable_since, None);
}

#[tokio::test]
async fn a_version_too_old_leads_to_a_list_and_what_it_lacks_is_gone() {
    let server = cluster().await;
    let mut listening = Listening::to(&server);
    listening.until_synced().await;
    server.go();
    listening.until_event(reason::SOURCE_UNAVAILABLE).await;
    server.remove("pods", "shop/a");
    server.put("pods", "shop/b", pod("10.244.1.6"));
    server.compact();
    server.come_back();
    let changes = listening.until_change(|change| *change == pod_gone("shop", "a")).await;
    assert!(changes.iter().any(|change| is_pod(change, "shop/b")));
    assert!(!changes.contains(&Change::Synced), "it is told once");
}

#[tokio::test]
async fn a_server_that_went_back_in_time_is_read_anew() {
    let server = cluster().await;
    let mut listening = Listening::to(&server);
    listening.until_synced().await;
    let backup = server.backup();
    for number in 0..10 {
        server.put("pods", "shop/b", pod(&format!("10.244.1.{number}")));
    }
    listening
        .until_change(
            |change| matches!(change, Change::Pod(pod) if pod.addresses.contains(&"10.244.1.9".parse().unwrap())),
        )
        .await;
    server.go();
    listening.until_event(reason::SOURCE_UNAVAILABLE).await;
    server.restore(backup);
    server.come_back();
    listening.until_change(|change| *change == pod_gone("shop", "b")).await;
}

#[tokio::test]
async fn the_objects_of_another_cluster_are_not_taken() {
    let server = cluster().await;
    let mut listening = Listening::to(&server);
    listening.until_synced().await;
    let backup = server.backup();
    server.go();
    listening.until_event(reason::SOURCE_UNAVAILABLE).await;
    server.empty();
    server.come_back();
    for uid in ["none", "second"] {
        // At first the namespace does not exist.
        if uid != "none" {
            server.put("namespaces", "kube-system", json!({"metadata": {"uid": uid}}));
        }
        let (changes, message) = listening.until_event(reason::SOURCE_UNAVAILABLE).await;
        assert_eq!(changes, [], "an emptied etcd deletes nothing");
        let expected = ["another cluster", "rollout restart", &format!("uid {uid}")];
        assert!(expected.iter().all(|words| message.contains(words)), "{message}");
    }
    assert!(listening.source.status().unavailable_since.is_some());

    server.go();
    server.restore(backup);
    server.put("pods", "shop/b", pod("10.244.1.6"));
    server.come_back();
    listening.until_change(|change| is_pod(change, "shop/b")).await;
}

#[tokio::test]
async fn a_malformed_object_rejects_only_itself_and_keeps_its_last_good_version() {
    let server = cluster().await;
    let mut listening = Listening::to(&server);
    listening.until_synced().await;
    server.put("pods", "shop/a", pod("no address"));
    server.put("pods", "shop/b", pod("10.244.1.6"));
    let (mut changes, message) = listening.until_event(reason::OBJECT_REJECTED).await;
    assert!(message.contains("Pod/shop/a") && message.contains("no address"), "{message}");
    if !changes.iter().any(|change| is_pod(change, "shop/b")) {
        changes.extend(listening.until_change(|change| is_pod(change, "shop/b")).await);
    }
    assert!(changes.iter().all(|change| is_pod(change, "shop/b")), "{changes:?}");
    assert_eq!(listening.source.status().rejected, 1);
    server.put("pods", "shop/a", pod("10.244.1.5"));
    listening.until_change(|change| is_pod(change, "shop/a")).await;
    assert_eq!(listening.source.status().rejected, 0);
}

#[tokio::test]
async fn annotations_are_merged_into_the_own_node() {
    let server = cluster().await;
    let source = Arc::new(Kubernetes::new(server.client(), server.address(), "n1".into(), false));
    let annotations =
        BTreeMap::from([("hauberk.io/keys".into(), None), ("hauberk.io/enforced".into(), Some("E".into()))]);
    Arc::clone(&source).annotate(annotations.clone()).await.unwrap();
    let written = server.object("nodes", "n1").unwrap();
    assert_eq!(written["metadata"]["annotations"], json!({"hauberk.io/enforced": "E"}));

    server.remove("nodes", "n1");
    let error = Arc::clone(&source).annotate(annotations.clone()).await.unwrap_err();
    assert!(matches!(error, SourceError::NoNode { .. }), "{error}");
    server.go();
    let error = source.annotate(annotations).await.unwrap_err();
    assert!(matches!(error, SourceError::Server { .. }), "{error}");
}

#[tokio::test]
async fn finished_pods_are_not_asked_for_and_namespaces_by_metadata_alone() {
    let server = cluster().await;
    let mut listening = Listening::to(&server);
    listening.until_synced().await;
    let asked: BTreeSet<String> = server.asked();
    assert!(
        asked.iter().any(|query| query.starts_with("pods?") && query.contains("status.phase%21%3DSucceeded")),
        "{asked:?}"
    );
    assert!(server.accepted("namespaces").contains("PartialObjectMetadata"), "{}", server.accepted("namespaces"));
}

#[tokio::test]
async fn services_and_their_endpoints_are_read_and_awaited_if_they_are_asked_for() {
    let server = cluster().await;
    server.put("services", "shop/cart", json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}));
    let slice = json!({"metadata": {"labels": {"kubernetes.io/service-name": "cart"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.5"]}]});
    server.put("endpointslices", "shop/cart-1", slice);
    let is_service = |change: &Change| matches!(change, Change::Service(_) | Change::EndpointSlice(_));

    let mut without = Listening::to(&server);
    assert!(!without.until_synced().await.iter().any(is_service));
    let asked = server.asked();
    assert!(
        !asked.iter().any(|query| query.starts_with("services") || query.starts_with("endpointslices")),
        "{asked:?}"
    );

    let mut with = Listening::for_services(&server, true);
    let changes = with.until_synced().await;
    assert_eq!(changes.iter().filter(|change| is_service(change)).count(), 2, "before it is synced: {changes:?}");
    server.remove("endpointslices", "shop/cart-1");
    let gone = Change::EndpointSliceGone(ServiceName::new("shop", "cart-1"));
    with.until_change(|change| *change == gone).await;
    server.put("services", "shop/cart", json!({"spec": {"clusterIP": "none"}}));
    let (_, message) = with.until_event(reason::OBJECT_REJECTED).await;
    assert!(message.contains("Service/shop/cart") && message.contains("spec.clusterIPs"), "{message}");
    server.remove("services", "shop/cart");
    with.until_change(|change| *change == Change::ServiceGone(ServiceName::new("shop", "cart"))).await;
}
