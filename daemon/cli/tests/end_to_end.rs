//! The built command against a small agent on a unix socket: its output and, above all, its exit
//! code.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::{Command, Output};

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

struct Agent {
    directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Agent {
    fn start(router: Router) -> Agent {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let listener = tokio::net::UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        drop(entered);
        Agent { directory, _runtime: runtime }
    }

    fn hauberk(&self, arguments: &[&str]) -> Output {
        let socket = self.directory.path().join("agent.sock");
        Command::new(env!("CARGO_BIN_EXE_hauberk")).arg("--socket").arg(socket).args(arguments).output().unwrap()
    }
}

fn status(ready: bool) -> Value {
    json!({
        "node": "n1", "version": "0.1.0", "started": "2026-11-22T09:00:00Z", "now": "2026-11-22T10:00:00Z", "ready": ready,
        "problems": [], "host_routing": "bpf", "attach": "tcx", "uplinks": [], "peers": [], "namespaces": [], "attachments": 0,
        "tunnel": {"backend": "userspace", "backend_reason": "configured", "device": "hauberk0", "port": 51840, "mtu": 1420,
            "keys": [{"epoch": 1, "public_key": "a2V5"}], "offloads": []},
        "source": {"kind": "directory", "location": "/m", "synced": true, "unavailable_since": null, "rejected": 0},
        "added_by_a_later_version": true,
    })
}

fn flow(encryption: &str, source: &str) -> String {
    let flow = json!({
        "time": "2026-11-22T10:00:00Z", "event": "ongoing", "node": "n1", "hook": "from_pod", "source": "10.0.0.1", "source_port": 1,
        "source_name": source, "destination": "10.0.0.2", "destination_port": 2, "destination_name": null, "protocol": "tcp",
        "encryption": encryption, "why": "not_opted_in", "drop": null, "peer": null, "epoch": null, "packets": 1, "bytes": 60,
        "lost_events": 0,
    });
    format!("{flow}\n")
}

fn services(wanted: &BTreeMap<String, String>) -> Response {
    let service = json!({"namespace": "payments", "name": "api", "kind": "ClusterIP", "backends": [], "frontends": [
        {"address": "10.96.0.10", "family": "ipv4", "port": 80, "protocol": "tcp", "kind": "cluster_address",
            "port_name": "http", "affinity_seconds": 0, "usable": 0, "left_out": null}]});
    let is = |field: &str, value: &str| wanted.get(field).is_none_or(|asked| asked == value);
    match is("namespace", "payments") && is("name", "api") {
        true => Json(json!([service])).into_response(),
        false => (StatusCode::NOT_FOUND, Json(json!({"error": "no such service"}))).into_response(),
    }
}

fn agent(ready: bool) -> Agent {
    let flows = flow("plain", "public/web") + &flow("encrypted", "payments/api");
    Agent::start(
        Router::new()
            .route("/v1/status", get(move || async move { Json(status(ready)) }))
            .route("/v1/flows", get(|| async { flows }))
            .route("/v1/drops", get(|| async { Json(json!({"reasons": []})) }))
            .route("/v1/events", get(|| async { Json(json!([])) }))
            .route(
                "/v1/services",
                get(|Query(wanted): Query<BTreeMap<String, String>>| async move { services(&wanted) }),
            )
            .route(
                "/v1/explain",
                get(|| async {
                    (StatusCode::NOT_FOUND, Json(json!({"error": "no pod, node or address is called x/y"})))
                }),
            )
            .route(
                "/v1/maps",
                get(|| async { Json(json!({"pin_directory": "/p", "settings": {}, "maps": [], "links": []})) }),
            ),
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_exit_code_says_whether_all_is_protected() {
    let healthy = agent(true).hauberk(&["status"]);
    assert_eq!(healthy.status.code(), Some(0), "{}", text(&healthy.stderr));
    assert!(text(&healthy.stdout).starts_with("problems: none\n\nnode: n1\n"));

    for form in ["text", "json"] {
        assert_eq!(agent(false).hauberk(&["status", "-o", form]).status.code(), Some(2));
    }
    let unreachable =
        Command::new(env!("CARGO_BIN_EXE_hauberk")).args(["--socket", "/nonexistent/s", "status"]).output().unwrap();
    assert_eq!(unreachable.status.code(), Some(1));
    assert!(text(&unreachable.stderr).starts_with("error: no agent on this node"), "{}", text(&unreachable.stderr));
    assert_eq!(agent(true).hauberk(&["stauts"]).status.code(), Some(1));
    assert_eq!(agent(true).hauberk(&["--help"]).status.code(), Some(0));
}

#[test]
fn json_is_json_and_pipes_have_no_colours() {
    let agent = agent(true);
    for command in ["status", "drops", "services", "bpf", "events", "version"] {
        let json = agent.hauberk(&[command, "-o", "json"]);
        assert_eq!(json.status.code(), Some(0), "{command}: {}", text(&json.stderr));
        serde_json::from_slice::<Value>(&json.stdout).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(!text(&agent.hauberk(&[command]).stdout).contains('\u{1b}'), "{command}");
    }
    assert!(text(&agent.hauberk(&["--color", "always", "status"]).stdout).contains('\u{1b}'));
}

#[test]
fn flows_are_filtered_and_followed_to_the_end() {
    let agent = agent(true);
    let all = agent.hauberk(&["flows", "-o", "json"]);
    assert_eq!(text(&all.stdout).lines().count(), 2);
    let plain = text(&agent.hauberk(&["flows", "--encryption", "plain"]).stdout);
    assert!(plain.contains("public/web:1 -> 10.0.0.2:2") && !plain.contains("payments"), "{plain}");
    let none = agent.hauberk(&["flows", "--namespace", "other"]);
    assert_eq!((text(&none.stdout), text(&none.stderr)), (String::new(), "none of 2 flows matches\n".to_string()));
    let followed = agent.hauberk(&["flows", "--follow"]);
    assert_eq!((text(&followed.stdout).lines().count(), followed.status.code()), (2, Some(1)));
}

#[test]
fn the_agents_errors_are_passed_on() {
    let refused = agent(true).hauberk(&["explain", "x/y", "10.0.0.1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(text(&refused.stderr), "error: no pod, node or address is called x/y\n");
    let unknown = agent(true).hauberk(&["bpf", "--map", "X"]);
    assert_eq!(unknown.status.code(), Some(1));
}

#[test]
fn services_are_listed_and_one_is_shown_by_its_name() {
    let agent = agent(true);
    let all = text(&agent.hauberk(&["services"]).stdout);
    assert!(all.starts_with("SERVICE") && all.contains("payments/api"), "{all}");
    for name in ["api", "payments/api"] {
        let one = agent.hauberk(&["services", name]);
        assert_eq!(one.status.code(), Some(0));
        assert!(text(&one.stdout).starts_with("service: payments/api\n"), "{}", text(&one.stdout));
    }
    for unknown in ["db", "public/api"] {
        let refused = agent.hauberk(&["services", unknown]);
        assert_eq!((refused.status.code(), text(&refused.stderr).as_str()), (Some(1), "error: no such service\n"));
    }
}

#[test]
fn what_needs_no_agent_works_without_one() {
    let hauberk = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_hauberk")).args(arguments).output().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&hauberk(&["completions", shell]).stdout).contains("explain"), "{shell}");
    }
    assert!(text(&hauberk(&["man"]).stdout).contains(".TH hauberk"));
    let directory = tempfile::tempdir().unwrap();
    assert!(hauberk(&["man", directory.path().to_str().unwrap()]).status.success());
    assert!(directory.path().join("hauberk-status.1").exists());
    let version = hauberk(&["--socket", "/nonexistent/s", "version"]);
    assert!(version.status.success() && text(&version.stdout).contains("hauberkd unknown"));
}
