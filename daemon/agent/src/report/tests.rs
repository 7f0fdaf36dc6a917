//! Reports against a server that behaves like the API server where it matters here: objects with a
//! resourceVersion, merge patches, creation once.

mod server;

use hauberk_api::{Attachment, Event as Noted, PodReference};
use hauberk_core::events::NewEvent;
use hauberk_core::model::Change;
use hauberk_core::objects::{NamespaceObject, NodeObject, PodObject};
use serde_json::{Value, json};

use super::*;
use crate::attachments::domain;
use crate::cluster_config::{Acceptance, HauberkConfigStatus};
use server::Server;

fn agent(node: &str) -> SharedState {
    let agent = SharedState::new(crate::testing::agent(node));
    apply(&agent, Change::Node(NodeObject { name: node.into(), ..NodeObject::default() }));
    apply(&agent, Change::Synced);
    agent
}

fn apply(agent: &SharedState, change: Change) {
    let _ = agent.write().model.apply(change);
}

fn namespace(name: &str, label: Option<&str>) -> Change {
    Change::Namespace(NamespaceObject {
        name: name.into(),
        encryption: label.map(str::to_owned),
        origin: String::new(),
    })
}

fn pod(namespace: &str, name: &str, node: &str, address: &str) -> PodObject {
    PodObject {
        namespace: namespace.into(),
        name: name.into(),
        uid: Some(format!("uid-of-{name}")),
        node: Some(node.into()),
        addresses: address.parse().into_iter().collect(),
        ..PodObject::default()
    }
}

fn attachment(namespace: &str, name: &str) -> Change {
    let pod = PodReference { namespace: namespace.into(), name: name.into(), uid: Some(format!("uid-of-{name}")) };
    let attached = json!({
        "request": {"container": format!("c-{name}"), "interface": "eth0", "pod": pod, "netns": "/n"},
        "reservation": {"addresses": [], "gateways": [], "route_mtu": 1400, "device_mtu": 1500, "host_interface": "h",
            "cluster_ranges": [], "gso_max_size": 60000},
        "attach": {"host_index": 7, "host_mac": "02:00:00:00:00:01", "pod_mac": "02:00:00:00:00:02"},
    });
    domain::change(&serde_json::from_value::<Attachment>(attached).unwrap())
}

/// This node acknowledges that it enforces everything.
fn acknowledge(agent: &SharedState, node: &str) {
    let enforced = {
        let agent = agent.read();
        hauberk_core::annotations::enforced::render(&hauberk_core::convergence::enforced(&agent.model, &agent.local))
    };
    apply(agent, Change::Node(NodeObject { name: node.into(), enforced: Some(enforced), ..NodeObject::default() }));
}

async fn reporter(server: &Server, agent: &SharedState) -> (Reporter, watch::Receiver<BTreeMap<String, Timestamp>>) {
    let since = watch::Sender::new(BTreeMap::new());
    let told = since.subscribe();
    let parts = Parts {
        client: server.client(),
        namespace: "hauberk-system".into(),
        agent: agent.clone(),
        cni_in_place: watch::Sender::new(true).subscribe(),
        adopts: false,
        since,
    };
    (Reporter::new(parts), told)
}

const STATUS: &str = "/metadata/annotations/hauberk.io~1status";

fn text(server: &Server, path: &str) -> Option<String> {
    server.object(path)?.pointer(STATUS)?.as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_namespace_says_how_far_it_is_and_since_when_and_nothing_is_written_twice() {
    let server = Server::start().await;
    server.put("/api/v1/namespaces/payments", json!({"metadata": {"name": "payments"}}));
    let agent = agent("n1");
    apply(&agent, namespace("payments", Some("enabled")));
    let (mut reporter, since) = reporter(&server, &agent).await;
    let path = "/api/v1/namespaces/payments";

    reporter.pass().await.unwrap();
    assert_eq!(text(&server, path).as_deref(), Some("encrypting: 0/1 nodes, waiting for n1"));
    acknowledge(&agent, "n1");
    reporter.pass().await.unwrap();
    let encrypted = text(&server, path).unwrap();
    assert!(encrypted.starts_with("encrypted on 1/1 nodes since 20"), "{encrypted}");
    assert!(since.borrow().contains_key("payments"));
    let written = server.writes();
    reporter.pass().await.unwrap();
    assert_eq!(server.writes(), written, "nothing is new");

    apply(&agent, namespace("payments", None));
    reporter.pass().await.unwrap();
    assert_eq!(text(&server, path), None, "not opted in any more");
    assert!(since.borrow().is_empty());
}

#[tokio::test]
async fn only_the_lease_s_holder_writes_about_namespaces_and_the_next_one_goes_on_where_it_stopped() {
    let server = Server::start().await;
    let path = "/api/v1/namespaces/payments";
    let long_ago = "encrypted on 1/1 nodes since 2026-01-02T03:04:05Z";
    server.put(path, json!({"metadata": {"name": "payments", "annotations": {"hauberk.io/status": long_ago}}}));
    server.put(
        "/api/v1/namespaces/left",
        json!({"metadata": {"name": "left", "annotations": {"hauberk.io/status": "x"}}}),
    );
    let (first_world, second_world) = (agent("n1"), agent("n2"));
    for (agent, node) in [(&first_world, "n1"), (&second_world, "n2")] {
        apply(agent, namespace("payments", Some("enabled")));
        apply(agent, namespace("left", None));
        acknowledge(agent, node);
    }
    let (mut first, _) = reporter(&server, &first_world).await;
    let (mut second, since) = reporter(&server, &second_world).await;
    first.pass().await.unwrap();
    assert_eq!(text(&server, path).as_deref(), Some(long_ago), "since when is read from what is there");
    assert_eq!(text(&server, "/api/v1/namespaces/left"), None, "what an earlier holder left behind");
    assert!(first.holds());

    apply(&second_world, namespace("payments", Some("permissive")));
    acknowledge(&second_world, "n2");
    let written = server.writes();
    second.pass().await.unwrap();
    assert!(!second.holds());
    assert_eq!(server.writes(), written, "the other one has the lease");
    assert!(since.borrow().contains_key("payments"), "its own status knows all the same");

    first.give_back().await;
    assert!(!first.holds());
    second.look_at_lease = None;
    second.pass().await.unwrap();
    assert!(second.holds());
    assert!(text(&server, path).unwrap().starts_with("permissive on 1/1 nodes since "));
    let lease =
        server.object("/apis/coordination.k8s.io/v1/namespaces/hauberk-system/leases/hauberk-reporter").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "n2");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}

#[tokio::test]
async fn pods_of_this_node_say_how_they_are_protected_or_why_not() {
    let server = Server::start().await;
    for name in ["good", "soft", "bare", "plain", "failing", "elsewhere"] {
        server.put(&format!("/api/v1/namespaces/a/pods/{name}"), json!({"metadata": {"name": name, "namespace": "a"}}));
    }
    let agent = agent("n1");
    apply(&agent, namespace("a", Some("permissive")));
    let enabled =
        |name: &str, node: &str| PodObject { encryption: Some("enabled".into()), ..pod("a", name, node, "10.0.0.1") };
    apply(&agent, Change::Pod(enabled("good", "n1")));
    apply(&agent, Change::Pod(pod("a", "soft", "n1", "10.0.0.2")));
    apply(&agent, Change::Pod(enabled("bare", "n1")));
    apply(&agent, Change::Pod(enabled("failing", "n1")));
    apply(&agent, Change::Pod(enabled("elsewhere", "n2")));
    apply(&agent, Change::Pod(pod("b", "not-on-the-server", "n1", "10.0.0.9")));
    for name in ["good", "soft", "failing"] {
        apply(&agent, attachment("a", name));
    }
    let problem = hauberk_api::Problem {
        severity: hauberk_api::Severity::Critical,
        object: "container/c-failing/eth0".into(),
        message: "the map is full".into(),
    };
    agent.write().failures.insert("container/c-failing/eth0".into(), problem);
    let (mut reporter, _) = reporter(&server, &agent).await;
    reporter.pass().await.unwrap();
    let said = |name: &str| text(&server, &format!("/api/v1/namespaces/a/pods/{name}"));
    assert_eq!(said("good").as_deref(), Some("encrypted"));
    assert_eq!(said("soft").as_deref(), Some("permissive"));
    assert!(said("bare").unwrap().starts_with("not attached: "));
    assert_eq!(said("failing").as_deref(), Some("not attached: the map is full"));
    assert_eq!((said("elsewhere"), said("plain")), (None, None));

    apply(&agent, namespace("a", Some("disabled")));
    apply(&agent, Change::Pod(pod("a", "good", "n1", "10.0.0.1")));
    reporter.pass().await.unwrap();
    assert_eq!((said("good"), said("soft")), (None, None), "not opted in any more");
    assert!(said("failing").is_some(), "its own label still is");
}

#[tokio::test]
async fn a_pod_of_the_same_name_is_told_anew_and_what_an_earlier_agent_wrote_is_taken_back() {
    let server = Server::start().await;
    let path = "/api/v1/namespaces/a/pods/db-0";
    let stale = json!({"hauberk.io/status": "encrypted"});
    server.put(path, json!({"metadata": {"name": "db-0", "namespace": "a", "annotations": stale}}));
    let agent = agent("n1");
    apply(&agent, namespace("a", None));
    apply(&agent, Change::Pod(pod("a", "db-0", "n1", "10.0.0.1")));
    let (mut reporter, _) = reporter(&server, &agent).await;
    reporter.pass().await.unwrap();
    assert_eq!(text(&server, path), None);

    apply(&agent, namespace("a", Some("enabled")));
    apply(&agent, attachment("a", "db-0"));
    reporter.pass().await.unwrap();
    assert_eq!(text(&server, path).as_deref(), Some("encrypted"));
    server.put(path, json!({"metadata": {"name": "db-0", "namespace": "a"}}));
    apply(&agent, Change::Pod(PodObject { uid: Some("another".into()), ..pod("a", "db-0", "n1", "10.0.0.1") }));
    reporter.pass().await.unwrap();
    assert!(text(&server, path).unwrap().starts_with("not attached: "), "the interface was the earlier one's");
}

#[tokio::test]
async fn the_start_up_taint_goes_alone_and_only_if_nobody_wrote_in_between() {
    let server = Server::start().await;
    let path = "/api/v1/nodes/n1";
    let taints = json!([{"key": "a", "effect": "NoSchedule"}, {"key": "hauberk.io/agent-not-ready", "effect": "NoSchedule"},
        {"key": "b", "effect": "NoExecute", "value": "v"}]);
    server.put(path, json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.0.0/24", "taints": taints}}));
    let cluster = Cluster::new(server.client(), "hauberk-system".into());
    server.write_between();
    assert!(!cluster.untaint("n1").await.unwrap(), "somebody else wrote: nothing is lost, it is tried again");
    assert_eq!(server.object(path).unwrap()["spec"]["taints"].as_array().unwrap().len(), 3);
    assert!(cluster.untaint("n1").await.unwrap());
    let node = server.object(path).unwrap();
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "NoExecute", "value": "v"}])
    );
    assert_eq!(node["spec"]["podCIDR"], "10.0.0.0/24");
    let written = server.writes();
    assert!(cluster.untaint("n1").await.unwrap());
    assert_eq!(server.writes(), written);
    assert!(!cluster.untaint("nobody").await.unwrap());
}

#[tokio::test]
async fn the_taint_stays_until_the_node_is_ready() {
    let server = Server::start().await;
    let taints = json!([{"key": "hauberk.io/agent-not-ready", "effect": "NoSchedule"}]);
    server.put("/api/v1/nodes/n1", json!({"metadata": {"name": "n1"}, "spec": {"taints": taints}}));
    let agent = agent("n1");
    let (mut reporter, _) = reporter(&server, &agent).await;
    reporter.pass().await.unwrap();
    assert!(!agent.read().is_ready());
    assert_eq!(server.object("/api/v1/nodes/n1").unwrap()["spec"]["taints"], taints);
}

#[test]
fn local_pods_that_are_left_out_are_named() {
    let agent = agent("n1");
    apply(&agent, namespace("a", Some("enabled")));
    apply(&agent, namespace("b", None));
    apply(&agent, Change::Pod(pod("b", "plain", "n1", "10.0.0.7")));
    apply(&agent, Change::Pod(pod("a", "in", "n1", "10.0.0.1")));
    apply(&agent, attachment("a", "in"));
    apply(&agent, Change::Pod(pod("a", "out", "n1", "10.0.0.2")));
    apply(&agent, Change::Pod(PodObject { terminating: true, ..pod("a", "going", "n1", "10.0.0.3") }));
    apply(&agent, Change::Pod(PodObject { addresses: Vec::new(), ..pod("a", "coming", "n1", "10.0.0.4") }));
    apply(&agent, Change::Pod(PodObject { host_network: true, ..pod("a", "host", "n1", "10.0.0.5") }));
    apply(&agent, Change::Pod(pod("a", "elsewhere", "n2", "10.0.0.6")));
    assert_eq!(pods::unattached(&agent.read()), ["a/out"]);
}

fn noted(reason: &'static str, object: &str, count: u64) -> Noted {
    Noted {
        time: "2026-11-23T10:00:00Z".parse().unwrap(),
        warning: true,
        reason: reason.into(),
        objects: vec![object.to_owned()],
        message: format!("{object}: {reason}"),
        count,
    }
}

#[test]
fn each_event_has_one_writer() {
    let agent = agent("n1");
    apply(&agent, Change::Pod(pod("a", "mine", "n1", "10.0.0.1")));
    apply(&agent, Change::Pod(pod("a", "yours", "n2", "10.0.0.2")));
    let agent = agent.read();
    let written = |holder, object: &str| {
        let writer = Writer { model: &agent.model, holder };
        !Events::default()
            .due(&[noted("R", object, 1)], &BTreeSet::new(), &writer, Timestamp::UNIX_EPOCH, Duration::ZERO)
            .is_empty()
    };
    for (object, by_holder, by_others) in [
        ("Pod/a/mine", true, true),
        ("Pod/a/yours", false, false),
        ("Pod/a/unknown", true, false),
        ("Namespace/a", true, false),
        ("Node/n1", true, true),
        ("Node/n2", true, false),
        ("HauberkConfig/cluster", true, false),
        ("file/x.yaml", true, true),
    ] {
        assert_eq!((written(true, object), written(false, object)), (by_holder, by_others), "{object}");
    }
}

#[test]
fn what_keeps_happening_is_written_ever_more_seldom_and_what_holds_now_and_then() {
    let agent = agent("n1");
    let agent = agent.read();
    let writer = Writer { model: &agent.model, holder: true };
    let mut events = Events::default();
    let mut standing = BTreeSet::new();
    let mut look = |count: u64, seconds: u64, standing: &BTreeSet<String>| {
        let uptime = Duration::from_secs(seconds);
        let due = events.due(&[noted("R", "Node/n1", count)], standing, &writer, Timestamp::UNIX_EPOCH, uptime);
        due.iter().for_each(|writing| events.written(writing, uptime));
        due.len()
    };
    assert_eq!([look(1, 0, &standing), look(1, 1, &standing)], [1, 0]);
    assert_eq!(look(50, 30, &standing), 0, "too soon");
    assert_eq!(look(50, 61, &standing), 1, "much more often");
    assert_eq!(look(99, 1_000, &standing), 0);
    assert_eq!(look(100, 1_001, &standing), 1);
    assert_eq!(look(100, 100_000, &standing), 0, "it is over");
    standing.insert("Node/n1: R".to_owned());
    assert_eq!(look(100, 100_001, &standing), 1, "it still holds");

    let many: Vec<Noted> = (0..100).map(|n| noted("R", &format!("Namespace/n{n}"), 1)).collect();
    let due = events.due(&many, &standing, &writer, Timestamp::UNIX_EPOCH, Duration::ZERO);
    assert_eq!(due.len(), 10, "a flood is written in turns");
}

#[tokio::test]
async fn an_event_is_on_its_object_and_said_again_is_counted_also_by_an_agent_that_forgot() {
    let server = Server::start().await;
    let agent = agent("n1");
    apply(&agent, Change::Pod(pod("a", "db", "n1", "10.0.0.1")));
    let event = NewEvent {
        warning: true,
        reason: "AddressConflict",
        objects: vec!["Pod/a/db".into(), "Node/n2".into()],
        message: format!("both claim 10.0.0.1{}", "!".repeat(2_000)),
    };
    let conflict = |agent: &SharedState| agent.write().events.note(&event, Timestamp::now());
    conflict(&agent);
    let (mut first, _) = reporter(&server, &agent).await;
    first.pass().await.unwrap();
    let events = server.below("/apis/events.k8s.io/v1/namespaces/a/events/");
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(
        event["regarding"],
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "a", "name": "db", "uid": "uid-of-db"})
    );
    assert_eq!(event["related"], json!({"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": "n2"}));
    assert_eq!(
        (&event["reason"], &event["type"], &event["action"]),
        (&json!("AddressConflict"), &json!("Warning"), &json!("Protect"))
    );
    assert_eq!(event["reportingInstance"], "n1");
    assert_eq!(event["note"].as_str().map(str::len), Some(1_024));
    assert_eq!(event["series"], Value::Null);
    let (mut restarted, _) = reporter(&server, &agent).await;
    restarted.pass().await.unwrap();
    let events = server.below("/apis/events.k8s.io/v1/namespaces/a/events/");
    assert_eq!((events.len(), &events[0]["series"]["count"]), (1, &json!(2)));
}

#[test]
fn acceptance_is_summed_up_and_its_time_is_that_of_the_last_change() {
    let said = |generation, accepted| {
        let text = format!(r#"{{"version":1,"generation":{generation},"accepted":{accepted},"message":""}}"#);
        Some(Acceptance::parse(&text).unwrap())
    };
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let (early, late) = (at("2026-11-23T10:00:00Z"), at("2026-11-23T11:00:00Z"));
    let before = HauberkConfigStatus::default();
    let mut nodes =
        BTreeMap::from([("n1".to_owned(), said(2, true)), ("n2".to_owned(), said(1, true)), ("n3".to_owned(), None)]);
    let status = acceptance::status(2, &nodes, &before, early);
    assert_eq!((status.accepted_nodes, status.nodes.len()), (1, 2));
    let condition = &status.conditions[0];
    assert_eq!((condition.status.as_str(), condition.message.as_str()), ("Unknown", "waiting for n2, n3"));
    nodes.insert("n2".into(), said(2, true));
    nodes.insert("n3".into(), said(2, true));
    let all = acceptance::status(2, &nodes, &status, early);
    assert_eq!((all.accepted_nodes, all.conditions[0].status.as_str()), (3, "True"));
    assert_eq!(acceptance::status(2, &nodes, &all, late), all, "nothing changed");
    nodes.insert("n2".into(), said(2, false));
    let refused = acceptance::status(2, &nodes, &all, late);
    let condition = &refused.conditions[0];
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "Refused"));
    assert!(condition.message.contains("n2") && condition.last_transition_time == late);
}

#[tokio::test]
async fn the_holder_writes_who_accepted_hauberk_config() {
    let server = Server::start().await;
    let path = "/apis/hauberk.io/v1alpha1/hauberkconfigs/cluster";
    server.put(
        path,
        json!({"metadata": {"name": "cluster", "generation": 3}, "spec": {"clusterRanges": ["10.0.0.0/8"]}}),
    );
    let word = r#"{"version":1,"generation":3,"accepted":true,"message":""}"#;
    server.put("/api/v1/nodes/n1", json!({"metadata": {"name": "n1", "annotations": {"hauberk.io/config": word}}}));
    server.put("/api/v1/nodes/no-agent", json!({"metadata": {"name": "no-agent"}}));
    let (mut reporter, _) = reporter(&server, &agent("n1")).await;
    reporter.pass().await.unwrap();
    let status = &server.object(path).unwrap()["status"];
    assert_eq!(status["acceptedNodes"], 1);
    assert_eq!(status["nodes"], json!([{"name": "n1", "generation": 3, "accepted": true}]));
    assert_eq!(status["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn before_everything_is_read_nothing_is_told_and_a_server_that_fails_is_an_error_with_what_was_tried() {
    let server = Server::start().await;
    let agent = agent("n1");
    agent.write().source.synced = false;
    let (mut reporter, _) = reporter(&server, &agent).await;
    reporter.pass().await.unwrap();
    assert_eq!(server.requests(), 0);
    agent.write().source.synced = true;
    server.fail();
    let error = reporter.pass().await.unwrap_err().to_string();
    assert!(error.contains("Lease hauberk-system/hauberk-reporter"), "{error}");
}
