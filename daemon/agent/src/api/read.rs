//! Read requests: nothing here changes anything.

use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use hauberk_api::{Drops, Event, Explanation, FlowRecord, Maps, Service, Severity, Status};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use super::{Context, Refusal};
use crate::observe::services::{self, NoServices};
use crate::observe::{self, connections, drops, explain, flows, maps, metrics};

pub(super) async fn status(State(context): State<Context>) -> Json<Status> {
    Json(observe::status::status(&context.agent.read(), &context.map_reader, &context.facts))
}

#[derive(Deserialize)]
pub(super) struct Pair {
    source: String,
    destination: String,
}

pub(super) async fn explain(
    State(context): State<Context>,
    Query(pair): Query<Pair>,
) -> Result<Json<Explanation>, Refusal> {
    explain::explain(&context.agent, &context.map_reader, &pair.source, &pair.destination)
        .map(Json)
        .map_err(|error| Refusal::new(StatusCode::NOT_FOUND, error))
}

#[derive(Deserialize)]
pub(super) struct Follow {
    #[serde(default)]
    follow: bool,
}

/// Without `follow`: the remembered records and the flows in the table. With it: the remembered
/// records, then all new ones.
pub(super) async fn flows(State(context): State<Context>, Query(query): Query<Follow>) -> Result<Response, Refusal> {
    let mut live = query.follow.then(|| context.flows.follow());
    let mut records = context.flows.recent();
    if live.is_none() {
        let agent = context.agent.read();
        records.extend(flows::ongoing(&agent, &context.map_reader, context.flows.lost()).map_err(internal)?);
        records.sort_by_key(|record| record.time);
    }
    let before = futures_util::stream::iter(records.into_iter().map(line));
    let after = futures_util::stream::unfold(live.take(), async |live| {
        let mut live = live?;
        loop {
            match live.recv().await {
                Ok(seen) => return Some((line(seen.record()), Some(live))),
                // The client was too slow and lost some records; it continues with the next ones.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let body = Body::from_stream(before.chain(after).map(Ok::<_, Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn line(record: FlowRecord) -> Bytes {
    let mut text = serde_json::to_vec(&record).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

pub(super) async fn drops(State(context): State<Context>) -> Result<Json<Drops>, Refusal> {
    drops::drops(&context.agent, &context.map_reader, &context.facts.config.tunnel.device).map(Json).map_err(internal)
}

pub(super) async fn maps(State(context): State<Context>) -> Result<Json<Maps>, Refusal> {
    maps::maps(&context.agent, &context.map_reader, &context.pins).map(Json).map_err(internal)
}

pub(super) async fn events(State(context): State<Context>) -> Json<Vec<Event>> {
    Json(context.agent.read().events.list())
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    namespace: Option<String>,
    name: Option<String>,
}

pub(super) async fn services(
    State(context): State<Context>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Vec<Service>>, Refusal> {
    let (namespace, name) = (wanted.namespace.as_deref(), wanted.name.as_deref());
    let config = &context.facts.config;
    let connections =
        if config.services.outside { Some(connections::by_set(&context.map_reader).map_err(internal)?) } else { None };
    let found = services::services(&context.agent.read(), config, namespace, name, connections.as_ref());
    found.map(Json).map_err(|error| {
        let status = match error {
            NoServices::Off => StatusCode::CONFLICT,
            NoServices::Unknown { .. } => StatusCode::NOT_FOUND,
        };
        Refusal::new(status, error)
    })
}

/// Alive: the agent answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready: attached, and proven by a self-test packet.
pub(super) async fn readyz(State(context): State<Context>) -> Response {
    let agent = context.agent.read();
    if agent.is_ready() {
        return "ok\n".into_response();
    }
    let status = observe::status::status(&agent, &context.map_reader, &context.facts);
    let critical = status.problems.iter().filter(|problem| problem.severity == Severity::Critical);
    let reasons: Vec<String> = critical.map(|problem| format!("{}: {}", problem.object, problem.message)).collect();
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; "))).into_response()
}

pub(super) async fn metrics(State(context): State<Context>) -> Result<Response, Refusal> {
    let text =
        metrics::metrics(&context.agent, &context.map_reader, &context.facts, &context.flows).map_err(internal)?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}

fn internal(error: impl ToString) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}
