//! The API server's part.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Extract;
use axum::http::{Method, StatusCode, Uri};
use serde_json::{Value, json};

use crate::testing;

#[derive(Default)]
struct State {
    /// By path.
    objects: BTreeMap<String, Value>,
    version: u64,
    requests: usize,
    writes: usize,
    /// Another writer changes the object right after the next read.
    between: bool,
    fails: bool,
}

type Answer = (StatusCode, axum::Json<Value>);

#[derive(Clone)]
pub(super) struct Server {
    state: Arc<Mutex<State>>,
    address: String,
}

impl Server {
    pub(super) async fn start() -> Server {
        let state = Arc::new(Mutex::new(State::default()));
        let address = testing::serve(Router::new().fallback(answer).with_state(Arc::clone(&state))).await;
        Server { state, address }
    }

    pub(super) fn client(&self) -> kube::Client {
        testing::client(&self.address)
    }

    pub(super) fn put(&self, path: &str, object: Value) {
        self.state().store(path, object);
    }

    pub(super) fn object(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    pub(super) fn below(&self, folder: &str) -> Vec<Value> {
        self.state()
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(folder))
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub(super) fn requests(&self) -> usize {
        self.state().requests
    }

    /// The number of writes to anything but Leases.
    pub(super) fn writes(&self) -> usize {
        self.state().writes
    }

    pub(super) fn write_between(&self) {
        self.state().between = true;
    }

    pub(super) fn fail(&self) {
        self.state().fails = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn handle(&mut self, method: &Method, path: &str, body: &[u8]) -> Answer {
        self.requests += 1;
        if self.fails {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        if *method != Method::GET && !path.contains("/leases") {
            self.writes += 1;
        }
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let path = path.strip_suffix("/status").unwrap_or(path);
        match method.as_str() {
            "GET" => self.read(path),
            "POST" => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return refuse(StatusCode::CONFLICT, "AlreadyExists");
                }
                (StatusCode::CREATED, axum::Json(self.store(&path, body)))
            }
            "PUT" | "PATCH" => {
                let Some(before) = self.objects.get(path).cloned() else {
                    return refuse(StatusCode::NOT_FOUND, "NotFound");
                };
                let expected = &body["metadata"]["resourceVersion"];
                if !expected.is_null() && *expected != before["metadata"]["resourceVersion"] {
                    return refuse(StatusCode::CONFLICT, "Conflict");
                }
                let after = if method == Method::PUT { body } else { merged(before, &body) };
                (StatusCode::OK, axum::Json(self.store(path, after)))
            }
            other => panic!("nobody asked for {other} {path}"),
        }
    }

    fn read(&mut self, path: &str) -> Answer {
        if let Some(object) = self.objects.get(path).cloned() {
            if std::mem::take(&mut self.between) {
                self.store(path, object.clone());
            }
            return (StatusCode::OK, axum::Json(object));
        }
        let collection = path.rsplit('/').next().unwrap_or_default();
        if matches!(collection, "pods" | "namespaces" | "nodes") {
            let within =
                |name: &str| name.contains(&format!("/{collection}/")) && name.rsplit('/').nth(1) == Some(collection);
            let items: Vec<&Value> =
                self.objects.iter().filter(|(name, _)| within(name)).map(|(_, object)| object).collect();
            return (StatusCode::OK, axum::Json(json!({"metadata": {}, "items": items})));
        }
        refuse(StatusCode::NOT_FOUND, "NotFound")
    }
}

async fn answer(Extract(state): Extract<Arc<Mutex<State>>>, method: Method, uri: Uri, body: Bytes) -> Answer {
    state.lock().unwrap().handle(&method, uri.path(), &body)
}

fn refuse(code: StatusCode, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason,
        "code": code.as_u16()});
    (code, axum::Json(status))
}

/// RFC 7396.
fn merged(mut target: Value, patch: &Value) -> Value {
    let Value::Object(fields) = patch else { return patch.clone() };
    if !target.is_object() {
        target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            let before = target.get(name).cloned().unwrap_or(Value::Null);
            target[name] = merged(before, value);
        }
    }
    target
}
