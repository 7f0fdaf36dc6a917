//! A node and its pods as network namespaces, with an agent that only stores what it is given.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use hauberk_api::{Adopt, Adopted, ApiError, Attach, Attachment, FailedAdd, Reservation, Reserve};
use serde_json::Value;

/// A network namespace of this test, removed at its end.
pub struct Netns {
    pub name: String,
}

static NUMBER: AtomicUsize = AtomicUsize::new(0);

impl Netns {
    pub fn new() -> Netns {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("hauberk-cni-{}-{number}", std::process::id());
        let added = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
        let told = String::from_utf8_lossy(&added.stderr);
        assert!(added.status.success(), "cannot make a network namespace (these tests need root): {told}");
        Netns { name }
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// The parsed output of `ip -j` in this namespace.
    pub fn ip(&self, arguments: &str) -> Value {
        ip_json(&self.name, arguments)
    }

    pub fn run(&self, command: &str) {
        let output = self.command(command).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn command(&self, command: &str) -> Command {
        let mut words = command.split_whitespace();
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.path())).arg(words.next().unwrap()).args(words);
        nsenter
    }

    pub fn links(&self) -> Vec<String> {
        let links = self.ip("link show");
        let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_string());
        names.filter(|name| name != "lo").collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip_json(namespace: &str, arguments: &str) -> Value {
    let output =
        Command::new("ip").args(["-n", namespace, "-j", "-d"]).args(arguments.split_whitespace()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if text.trim().is_empty() { Value::Array(Vec::new()) } else { serde_json::from_str(&text).unwrap() }
}

/// What the agent has stored, and how it should behave.
#[derive(Default)]
pub struct Memory {
    pub attachments: BTreeMap<(String, String), Attachment>,
    pub given: u32,
    pub not_ready: bool,
    pub refuse_attach: Option<StatusCode>,
    /// What it was told of failures; none as an agent that does not know of them.
    pub failures: Option<Vec<FailedAdd>>,
    /// The node's namespace, which `attach` inspects.
    node: String,
    /// Links that were up when `attach` was called; there must be none.
    pub up_too_early: Vec<String>,
}

pub type Shared = Arc<Mutex<Memory>>;

/// A node with its agent.
pub struct Node {
    pub netns: Netns,
    pub agent: Shared,
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    pub fn new() -> Node {
        let node = Node::without_agent();
        node.start_agent();
        node
    }

    pub fn without_agent() -> Node {
        let netns = Netns::new();
        let memory = Memory { node: netns.name.clone(), ..Memory::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Node { netns, agent: Arc::new(Mutex::new(memory)), directory: tempfile::tempdir().unwrap(), runtime }
    }

    pub fn start_agent(&self) {
        let router = Router::new()
            .route("/readyz", get(ready))
            .route("/v1/attachments", get(list).post(reserve))
            .route("/v1/attachments/adopt", post(adopt))
            .route("/v1/attachments/failed", post(failed))
            .route("/v1/attachments/{container}/{interface}", delete(detach))
            .route("/v1/attachments/{container}/{interface}/attach", post(attach))
            .with_state(self.agent.clone());
        let socket = self.socket();
        let _entered = self.runtime.enter();
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        self.runtime.spawn(async move { axum::serve(listener, router).await });
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// A configuration as JSON, with additional fields (`more`) given without braces.
    pub fn config(&self, version: &str, timeout: u32, more: &str) -> String {
        let comma = if more.is_empty() { "" } else { "," };
        format!(
            r#"{{"cniVersion":"{version}","name":"hauberk","type":"hauberk-cni","socket":"{}","timeoutSeconds":{timeout}{comma}{more}}}"#,
            self.socket().display()
        )
    }

    /// Runs the plugin as a runtime on this node does.
    pub fn plugin(&self, command: &str, container: &str, netns: &str, stdin: &str) -> Answer {
        let mut plugin = self.netns.command(env!("CARGO_BIN_EXE_hauberk-cni"));
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=payments;K8S_POD_NAME=api-0")
            .env("CNI_PATH", "/opt/cni/bin");
        let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The plugin answers an invalid request without reading its configuration, so writing may
        // fail.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let json = if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout).unwrap() };
        Answer { success: output.status.success(), json }
    }
}

/// The plugin's answer.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    pub json: Value,
}

impl Answer {
    #[track_caller]
    pub fn succeeded(self) -> Value {
        assert!(self.success, "{}", self.json);
        self.json
    }

    #[track_caller]
    pub fn failed(self, code: u32) -> String {
        assert!(!self.success, "{}", self.json);
        assert_eq!(self.json["code"], code, "{}", self.json);
        self.json["msg"].as_str().unwrap().to_string()
    }
}

async fn ready(State(agent): State<Shared>) -> Response {
    match agent.lock().unwrap().not_ready {
        true => (StatusCode::SERVICE_UNAVAILABLE, "the self-test packet has not come back yet").into_response(),
        false => "ready".into_response(),
    }
}

async fn list(State(agent): State<Shared>) -> Json<Vec<Attachment>> {
    Json(agent.lock().unwrap().attachments.values().cloned().collect())
}

async fn reserve(State(agent): State<Shared>, Json(request): Json<Reserve>) -> Json<Reservation> {
    let mut agent = agent.lock().unwrap();
    agent.given += 1;
    let number = agent.given;
    let reservation = Reservation {
        addresses: vec![
            format!("10.244.{}.{}/32", number / 256, number % 256).parse().unwrap(),
            format!("fd00:10:244::{number:x}/128").parse().unwrap(),
        ],
        gateways: vec!["169.254.1.1".parse().unwrap(), "fe80::1".parse().unwrap()],
        route_mtu: 1420,
        device_mtu: 1500,
        host_interface: format!("hbk{number:08x}"),
        cluster_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        gso_max_size: 65000,
    };
    let key = (request.container.clone(), request.interface.clone());
    let fresh = Attachment { request, reservation, attach: None, adopted: false, recovered: false };
    Json(agent.attachments.entry(key).or_insert(fresh).reservation.clone())
}

async fn attach(
    State(agent): State<Shared>,
    Path(key): Path<(String, String)>,
    Json(attach): Json<Attach>,
) -> Response {
    let mut agent = agent.lock().unwrap();
    if let Some(status) = agent.refuse_attach {
        return (status, Json(ApiError { error: "cannot attach from_pod: the verifier says no".to_string() }))
            .into_response();
    }
    let node = agent.node.clone();
    let attachment = agent.attachments.get_mut(&key).unwrap();
    attachment.attach = Some(attach);
    let (host, pod) = (attachment.reservation.host_interface.clone(), attachment.request.netns.clone());
    let pod = pod.rsplit('/').next().unwrap().to_string();
    for (namespace, link) in [(node, host), (pod, key.1)] {
        let up = ip_json(&namespace, &format!("link show dev {link}"))[0]["flags"].to_string().contains("\"UP\"");
        if up {
            agent.up_too_early.push(link);
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn adopt(State(agent): State<Shared>, Json(adopt): Json<Adopt>) -> Json<Adopted> {
    let reservation = Reservation {
        addresses: adopt.addresses.iter().map(|address| (*address).into()).collect(),
        gateways: Vec::new(),
        route_mtu: 0,
        device_mtu: 0,
        host_interface: adopt.host_interface,
        cluster_ranges: Vec::new(),
        gso_max_size: 0,
    };
    let key = (adopt.request.container.clone(), adopt.request.interface.clone());
    let adopted =
        Attachment { request: adopt.request, reservation, attach: Some(adopt.attach), adopted: true, recovered: false };
    agent.lock().unwrap().attachments.insert(key, adopted);
    Json(Adopted { route_mtu: 1420 })
}

async fn failed(State(agent): State<Shared>, Json(failed): Json<FailedAdd>) -> StatusCode {
    match &mut agent.lock().unwrap().failures {
        Some(failures) => {
            failures.push(failed);
            StatusCode::NO_CONTENT
        }
        None => StatusCode::NOT_FOUND,
    }
}

async fn detach(State(agent): State<Shared>, Path(key): Path<(String, String)>) -> StatusCode {
    agent.lock().unwrap().attachments.remove(&key);
    StatusCode::NO_CONTENT
}
