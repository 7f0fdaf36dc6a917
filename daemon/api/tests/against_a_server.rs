//! The client against a small server on a unix socket: path and body of every endpoint, and every
//! kind of error.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use hauberk_api::client::{Client, ClientError, Readiness};
use hauberk_api::{ApiError, Attach, DropCount, Drops, Reservation, Reserve};
use tokio_stream::StreamExt;

struct Server {
    directory: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(router: Router) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Server { directory, task }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.socket()).with_deadline(Duration::from_secs(20))
    }
}

fn reservation() -> Reservation {
    Reservation {
        addresses: vec!["10.244.1.5/32".parse().unwrap(), "fd00:10:244:1::5/128".parse().unwrap()],
        gateways: vec!["169.254.1.1".parse().unwrap(), "fe80::1".parse().unwrap()],
        route_mtu: 1420,
        device_mtu: 1500,
        host_interface: "hbk0123456789a".to_string(),
        cluster_ranges: vec!["10.244.0.0/16".parse().unwrap()],
        gso_max_size: 65536,
    }
}

#[tokio::test]
async fn attachments_are_reserved_attached_and_deleted() {
    let router = Router::new()
        .route(
            "/v1/attachments",
            post(|Json(request): Json<Reserve>| async move {
                assert_eq!(request.interface, "eth0");
                Json(reservation())
            }),
        )
        .route(
            "/v1/attachments/{container}/{interface}/attach",
            post(|Path((container, interface)): Path<(String, String)>, Json(attach): Json<Attach>| async move {
                assert_eq!((container.as_str(), interface.as_str(), attach.host_index), ("c1", "eth0", 7));
                StatusCode::NO_CONTENT
            }),
        )
        .route("/v1/attachments/{container}/{interface}", delete(|| async { StatusCode::NO_CONTENT }));
    let server = Server::start(router);
    let request = Reserve {
        container: "c1".to_string(),
        interface: "eth0".to_string(),
        pod: None,
        netns: "/run/netns/x".to_string(),
    };
    assert_eq!(server.client().reserve(&request).await.unwrap(), reservation());
    let attach = Attach { host_index: 7, host_mac: [2, 0, 0, 0, 0, 1].into(), pod_mac: [2, 0, 0, 0, 0, 2].into() };
    server.client().attach("c1", "eth0", &attach).await.unwrap();
    server.client().detach("c1", "eth0").await.unwrap();
}

#[tokio::test]
async fn an_error_carries_the_agents_words() {
    let explain = |Query(query): Query<std::collections::BTreeMap<String, String>>| async move {
        assert_eq!(query["source"], "payments/api");
        let error = format!("no pod or node is called {}", query["destination"]);
        (StatusCode::NOT_FOUND, Json(ApiError { error }))
    };
    let server = Server::start(Router::new().route("/v1/explain", get(explain)));
    let error = server.client().explain("payments/api", "x y&z").await.unwrap_err();
    assert_eq!(error.to_string(), "no pod or node is called x y&z");
    assert!(!error.is_unavailable());
}

#[tokio::test]
async fn not_ready_is_an_answer() {
    let readyz = || async { (StatusCode::SERVICE_UNAVAILABLE, "self-test pending\n") };
    let server = Server::start(Router::new().route("/readyz", get(readyz)));
    assert_eq!(server.client().readiness().await.unwrap(), Readiness::NotReady("self-test pending".to_string()));
}

#[tokio::test]
async fn lines_are_cut_wherever_the_chunks_are() {
    let flow = r#"{"time":"2026-11-22T10:00:00Z","event":"start","node":"n1","hook":"from_pod","source":"10.0.0.1","source_port":1,
        "destination":"10.0.0.2","destination_port":2,"protocol":"tcp","encryption":"encrypted","why":"source_opted_in","packets":3,
        "bytes":4,"lost_events":0}"#
        .replace('\n', "");
    let text = format!("{flow}\n\n{flow}\n{flow}");
    let chunks: Vec<Bytes> = text.as_bytes().chunks(7).map(Bytes::copy_from_slice).collect();
    let body = move || async move { Body::from_stream(tokio_stream::iter(chunks).map(Ok::<_, std::io::Error>)) };
    let server = Server::start(Router::new().route("/v1/flows", get(body)));
    let mut lines = server.client().flows(true).await.unwrap();
    let mut packets = 0;
    while let Some(flow) = lines.next().await {
        packets += flow.unwrap().packets;
    }
    assert_eq!(packets, 9);
}

#[tokio::test]
async fn answers_of_another_version_are_named_as_such() {
    let server = Server::start(Router::new().route("/v1/status", get(|| async { "{\"node\": 3}" })));
    let error = server.client().status().await.unwrap_err();
    assert!(matches!(error, ClientError::Answer { .. }), "{error}");
    assert!(error.to_string().contains("different versions"), "{error}");
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let silent = || async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        Json(Drops { reasons: Vec::<DropCount>::new(), leaked: Vec::new() })
    };
    let server = Server::start(Router::new().route("/v1/drops", get(silent)));
    let client = Client::new(server.socket()).with_deadline(Duration::from_millis(50));
    let error = client.drops().await.unwrap_err();
    assert!(matches!(error, ClientError::Deadline { .. }) && error.is_unavailable(), "{error}");
}

#[tokio::test]
async fn absent_and_left_over_sockets_are_told_apart() {
    let server = Server::start(Router::new());
    let missing = Client::new(server.directory.path().join("other.sock")).status().await.unwrap_err();
    assert!(matches!(missing, ClientError::NoSocket { .. }) && missing.is_unavailable(), "{missing}");

    server.task.abort();
    let client = server.client();
    let _ = server.task.await;
    let stale = client.status().await.unwrap_err();
    assert!(matches!(stale, ClientError::NotListening { .. }) && stale.is_unavailable(), "{stale}");
}
