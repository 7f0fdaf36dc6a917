//! The API server's part: objects, their history, and the watchers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

type Watcher = (String, mpsc::UnboundedSender<String>);

#[derive(Clone, Default)]
pub(super) struct Backup {
    /// By kind and name.
    objects: BTreeMap<(String, String), Value>,
    version: u64,
    history: Vec<(u64, String, Value)>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum StreamedLists {
    #[default]
    Work,
    AreRefused,
    AreGivenUp,
}

#[derive(Default)]
struct State {
    data: Backup,
    /// A watch cannot begin at an earlier version.
    compacted: u64,
    watchers: Vec<Watcher>,
    away: bool,
    streamed_lists: StreamedLists,
    lists: usize,
    asked: BTreeSet<String>,
    accepted: BTreeMap<String, String>,
}

#[derive(Clone)]
pub(super) struct Server {
    state: Arc<Mutex<State>>,
    address: String,
}

impl Server {
    pub(super) async fn start() -> Server {
        let state = Arc::new(Mutex::new(State::default()));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Server { state, address }
    }

    /// A client that tries nothing again by itself, as the agent's.
    pub(super) fn client(&self) -> kube::Client {
        let mut config = kube::Config::new(self.address.parse().unwrap());
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    }

    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    pub(super) fn put(&self, kind: &str, name: &str, object: Value) {
        self.state().put(kind, name, object);
    }

    pub(super) fn remove(&self, kind: &str, name: &str) {
        let mut state = self.state();
        let object = state.data.objects.remove(&(kind.into(), name.into())).unwrap();
        state.happened(kind, "DELETED", object);
    }

    pub(super) fn object(&self, kind: &str, name: &str) -> Option<Value> {
        self.state().data.objects.get(&(kind.to_owned(), name.to_owned())).cloned()
    }

    /// Every watch ends, and every request is answered with a failure.
    pub(super) fn go(&self) {
        let mut state = self.state();
        state.away = true;
        state.watchers.clear();
    }

    pub(super) fn come_back(&self) {
        self.state().away = false;
    }

    pub(super) fn compact(&self) {
        let mut state = self.state();
        state.compacted = state.data.version;
    }

    pub(super) fn backup(&self) -> Backup {
        self.state().data.clone()
    }

    pub(super) fn restore(&self, backup: Backup) {
        self.state().data = backup;
    }

    pub(super) fn empty(&self) {
        self.state().data = Backup::default();
    }

    pub(super) fn set_streamed_lists(&self, how: StreamedLists) {
        self.state().streamed_lists = how;
    }

    /// Pages of lists that were requested, except those that only ask for the version.
    pub(super) fn lists(&self) -> usize {
        self.state().lists
    }

    pub(super) fn asked(&self) -> BTreeSet<String> {
        self.state().asked.clone()
    }

    pub(super) fn accepted(&self, kind: &str) -> String {
        self.state().accepted.get(kind).cloned().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn put(&mut self, kind: &str, name: &str, mut object: Value) {
        let (namespace, short) = name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
        object["metadata"]["name"] = json!(short);
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let key = (kind.to_owned(), name.to_owned());
        let happened = if self.data.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        object["metadata"]["resourceVersion"] = json!((self.data.version + 1).to_string());
        self.data.objects.insert(key, object.clone());
        self.happened(kind, happened, object);
    }

    fn happened(&mut self, kind: &str, what: &str, mut object: Value) {
        self.data.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.data.version.to_string());
        let event = json!({"type": what, "object": object});
        self.watchers.retain(|(of, watcher)| of != kind || watcher.send(format!("{event}\n")).is_ok());
        self.data.history.push((self.data.version, kind.to_owned(), event));
    }

    fn of_kind(&self, kind: &str) -> Vec<Value> {
        self.data.objects.iter().filter(|((of, _), _)| of == kind).map(|(_, object)| object.clone()).collect()
    }

    fn watch(&mut self, kind: &str, query: &BTreeMap<String, String>) -> Response {
        let (sender, receiver) = mpsc::unbounded_channel();
        let say = |value: Value| sender.send(format!("{value}\n")).unwrap();
        if query.get("sendInitialEvents").is_some_and(|value| value == "true") {
            match self.streamed_lists {
                StreamedLists::Work => {}
                StreamedLists::AreRefused => {
                    return refuse(StatusCode::UNPROCESSABLE_ENTITY, "sendInitialEvents is forbidden for watch");
                }
                // The answer of Kubernetes 1.36 with etcd 3.4 behind it.
                StreamedLists::AreGivenUp => {
                    let status = json!({"status": "Failure", "code": 500, "reason": "InternalError",
                        "message": "the required storage feature RequestWatchProgress is disabled"});
                    return format!("{}\n", json!({"type": "ERROR", "object": status})).into_response();
                }
            }
            for object in self.of_kind(kind) {
                say(json!({"type": "ADDED", "object": object}));
            }
            say(json!({"type": "BOOKMARK", "object": {"kind": "x", "apiVersion": "v1", "metadata": {
                "resourceVersion": self.data.version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}}}));
        } else {
            let from: u64 = query["resourceVersion"].parse().unwrap();
            if from < self.compacted {
                return refuse(StatusCode::GONE, "too old resource version");
            }
            for (version, of, event) in &self.data.history {
                if *version > from && of == kind {
                    say(event.clone());
                }
            }
        }
        self.watchers.push((kind.to_owned(), sender));
        let lines = futures_util::stream::unfold(receiver, async |mut receiver: mpsc::UnboundedReceiver<String>| {
            let line = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(Bytes::from(line)), receiver))
        });
        Body::from_stream(lines).into_response()
    }

    fn page(&mut self, kind: &str, query: &BTreeMap<String, String>) -> Response {
        let limit: usize = query["limit"].parse().unwrap();
        self.lists += usize::from(limit > 1);
        let from: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
        let all = self.of_kind(kind);
        let items: Vec<&Value> = all.iter().skip(from).take(limit).collect();
        let next = if from + limit < all.len() { (from + limit).to_string() } else { String::new() };
        axum::Json(
            json!({"metadata": {"resourceVersion": self.data.version.to_string(), "continue": next}, "items": items}),
        )
        .into_response()
    }

    fn patch(&mut self, kind: &str, name: &str, body: &[u8]) -> Response {
        let Some(mut object) = self.data.objects.get(&(kind.to_owned(), name.to_owned())).cloned() else {
            return refuse(StatusCode::NOT_FOUND, "not found");
        };
        let patch: Value = serde_json::from_slice(body).unwrap();
        for (name, value) in patch["metadata"]["annotations"].as_object().unwrap() {
            let annotations = object["metadata"]["annotations"].as_object_mut().unwrap();
            match value {
                Value::Null => drop(annotations.remove(name)),
                value => drop(annotations.insert(name.clone(), value.clone())),
            }
        }
        self.put(kind, name, object.clone());
        axum::Json(object).into_response()
    }
}

async fn answer(
    Extract(state): Extract<Arc<Mutex<State>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut state = state.lock().unwrap();
    if state.away {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "away (503)");
    }
    let path = uri.path().trim_start_matches("/api/v1/").trim_start_matches("/apis/discovery.k8s.io/v1/");
    let mut parts = path.splitn(2, '/');
    let (kind, name) = (parts.next().unwrap().to_owned(), parts.next());
    let query = uri.query().unwrap_or_default();
    if method == Method::PATCH {
        return state.patch(&kind, name.unwrap(), &body);
    }
    if let Some(name) = name {
        let object = state.data.objects.get(&(kind, name.to_owned())).cloned();
        return object
            .map_or_else(|| refuse(StatusCode::NOT_FOUND, "not found"), |object| axum::Json(object).into_response());
    }
    state.asked.insert(format!("{kind}?{query}"));
    let accept = headers.get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
    state.accepted.insert(kind.clone(), accept.to_owned());
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if uri.query().is_some_and(|query| query.contains("watch=true")) {
        state.watch(&kind, &query)
    } else {
        state.page(&kind, &query)
    }
}

fn refuse(code: StatusCode, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "x", "code": code.as_u16()});
    (code, axum::Json(status)).into_response()
}
