//! The agent's API: JSON over HTTP on a unix socket; `/metrics`, `/healthz` and `/readyz` also on
//! TCP. `hauberk_api` has the types and paths.

mod attachments;
pub(crate) mod connections;
mod read;

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use hauberk_api::ApiError;
use hauberk_datapath::Pins;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tracing::warn;

use self::connections::Bounds;
use crate::attachments::Attachments;
use crate::observe::MapReader;
use crate::observe::flows::FlowLog;
use crate::observe::status::Facts;
use crate::reconcile::Input;
use crate::state::SharedState;

/// The unix socket's clients are the CNI plugin, one process for each pod that starts or ends, and
/// users who follow flows.
const LOCAL: Bounds = Bounds { connections: 256, request: Duration::from_secs(10), lifetime: None };
/// The TCP clients are scrapers and the kubelet.
const METRICS: Bounds =
    Bounds { connections: 64, request: Duration::from_secs(10), lifetime: Some(Duration::from_secs(60)) };

/// Between checks of the socket's path.
const LOOK: Duration = Duration::from_secs(2);

/// What the answers are made from.
#[derive(Clone)]
pub struct Context {
    /// The shared state.
    pub agent: SharedState,
    /// The maps, for reading.
    pub map_reader: MapReader,
    /// Flow records.
    pub flows: FlowLog,
    /// What does not change.
    pub facts: Arc<Facts>,
    /// Pods' interfaces on record.
    pub attachments: Attachments,
    /// The reconciler's input.
    pub inputs: mpsc::Sender<Input>,
    /// Where maps and links are pinned.
    pub pins: Pins,
}

/// A socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ApiStartError {
    /// The unix socket.
    #[error("cannot offer the API on {path}: {source}; is another agent running, or the folder read-only?")]
    Unix {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The metrics address.
    #[error("cannot offer metrics on {address}: {source}; set `metrics` to a free address, or to null")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Binds the unix socket, for the owner alone. It replaces a socket that an earlier agent left, but
/// not one that answers.
///
/// # Errors
/// [`ApiStartError::Unix`].
pub async fn bind(path: &Path) -> Result<UnixListener, ApiStartError> {
    let failed = |source| ApiStartError::Unix { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(failed(std::io::ErrorKind::AddrInUse.into()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// The socket's path, if an agent answers there.
pub async fn answers(path: &Path) -> Option<String> {
    tokio::net::UnixStream::connect(path).await.is_ok().then(|| path.display().to_string())
}

/// Answers on the unix socket until the process ends. If the socket is removed from its path, it is
/// bound again there.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: UnixListener, path: PathBuf, context: Context) -> std::io::Result<()> {
    let attachment = "/v1/attachments/{container}/{interface}";
    let router = health(context.clone()).merge(
        Router::new()
            .route("/v1/status", get(read::status))
            .route("/v1/explain", get(read::explain))
            .route("/v1/flows", get(read::flows))
            .route("/v1/drops", get(read::drops))
            .route("/v1/maps", get(read::maps))
            .route("/v1/events", get(read::events))
            .route("/v1/services", get(read::services))
            .route("/v1/attachments", get(attachments::list).post(attachments::reserve))
            .route("/v1/attachments/adopt", post(attachments::adopt))
            .route("/v1/attachments/failed", post(attachments::failed))
            .route(&format!("{attachment}/attach"), post(attachments::attach))
            .route(attachment, delete(attachments::release))
            .with_state(context),
    );
    let mut listener = listener;
    loop {
        tokio::select! {
            ended = connections::serve(listener, router.clone(), LOCAL) => return ended,
            () = removed(&path) => {}
        }
        warn!(path = %path.display(), "another program removed the API's socket: it is bound anew");
        listener = bind_again(&path).await;
    }
}

/// Waits until the present socket is gone from the path.
async fn removed(path: &Path) {
    let now = || std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let bound = now();
    while bound.is_some() && now() == bound {
        tokio::time::sleep(LOOK).await;
    }
}

async fn bind_again(path: &Path) -> UnixListener {
    loop {
        match bind(path).await {
            Ok(listener) => return listener,
            Err(error) => warn!(%error, "it is tried again"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Answers on TCP, where any host may ask, so only with what any host may know.
///
/// # Errors
/// [`ApiStartError::Tcp`].
pub async fn serve_metrics(address: SocketAddr, context: Context) -> Result<(), ApiStartError> {
    let failed = |source| ApiStartError::Tcp { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    connections::serve(listener, health(context), METRICS).await.map_err(failed)
}

fn health(context: Context) -> Router {
    Router::new()
        .route("/healthz", get(read::healthz))
        .route("/readyz", get(read::readyz))
        .route("/metrics", get(read::metrics))
        .with_state(context)
}

/// An error answer.
pub(crate) struct Refusal(StatusCode, String);

impl Refusal {
    fn new(status: StatusCode, error: impl ToString) -> Refusal {
        Refusal(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, axum::Json(ApiError { error: self.1 })).into_response()
    }
}
