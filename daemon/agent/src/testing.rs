//! Test helpers: an empty state, and an API server on this machine with the client that the agent
//! would have for it.

use axum::Router;
use hauberk_api::{SourceKind, SourceStatus};
use hauberk_core::local_node::LocalNode;
use hauberk_core::model::Change;
use hauberk_core::objects::{NamespaceObject, PodObject};
use kube::{Client, Config};

use crate::state::AgentState;

/// What the agent on `node` knows before anything is read from `/objects`, but already marked as
/// synced.
pub(crate) fn agent(node: &str) -> AgentState {
    let source = SourceStatus {
        kind: SourceKind::Directory.into(),
        location: "/objects".into(),
        synced: true,
        unavailable_since: None,
        unavailable_because: None,
        rejected: 0,
    };
    AgentState::new(LocalNode { name: node.into(), ..LocalNode::default() }, source)
}

/// The same on `n1`, with namespace `payments`, labelled like this or not, and a pod `a` in it on
/// `node`.
pub(crate) fn payments(label: Option<&str>, node: &str, address: &str) -> AgentState {
    let mut agent = agent("n1");
    let pod = PodObject {
        namespace: "payments".into(),
        name: "a".into(),
        node: Some(node.into()),
        addresses: vec![address.parse().unwrap()],
        ..PodObject::default()
    };
    let encryption = label.map(str::to_owned);
    let namespace = NamespaceObject { name: "payments".into(), encryption, ..NamespaceObject::default() };
    for change in [Change::Namespace(namespace), Change::Pod(pod), Change::Synced] {
        let _ = agent.model.apply(change);
    }
    agent
}

/// Serves until the test ends; returns the address.
pub(crate) async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A client without retries of its own, like the agent's.
pub(crate) fn client(address: &str) -> Client {
    let mut config = Config::new(address.parse().unwrap());
    config.default_retry = false;
    Client::try_from(config).unwrap()
}
