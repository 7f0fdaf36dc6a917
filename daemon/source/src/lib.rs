//! Where the cluster's objects come from: the first stage of the agent.
//!
//! ```text
//! source -> model -> desired -> plan -> apply -> observe
//! ^^^^^^
//! ```
//! A [`Source`] tells changes in batches, in an order that the model can take. When its origin
//! becomes unavailable, what it told stays in force: absence is not deletion. It also writes this
//! node's annotations back.
#![forbid(unsafe_code)]

pub mod directory;
pub mod kinds;
pub mod kubernetes;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use hauberk_api::SourceStatus;
use hauberk_core::events::NewEvent;
use hauberk_core::model::Change;
use tokio::sync::{mpsc, watch};

/// Changes that belong together, and events for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// For the model, in this order. [`Change::Synced`] comes once, after everything that existed
    /// at the start.
    pub changes: Vec<Change>,
    /// New since the batch before.
    pub events: Vec<NewEvent>,
}

impl Batch {
    /// Whether it has neither changes nor events.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.events.is_empty()
    }
}

/// Reasons of a source's events.
pub mod reason {
    /// A document could not be used; its last good version stays in force.
    pub const MANIFEST_REJECTED: &str = "ManifestRejected";
    /// An object of the API server could not be used; its last good version stays in force.
    pub const OBJECT_REJECTED: &str = "ObjectRejected";
    /// An object is there more than once.
    pub const DUPLICATE_OBJECT: &str = "DuplicateObject";
    /// The source cannot be read; what it told stays in force.
    pub const SOURCE_UNAVAILABLE: &str = "SourceUnavailable";
    /// The source can be read again.
    pub const SOURCE_AVAILABLE: &str = "SourceAvailable";
}

/// An annotation could not be written, or a source could not start.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// This node has no Node object.
    #[error(
        "node {node} has no Node object in {location}: create it; its annotations are written as soon as it is there"
    )]
    NoNode {
        /// This node.
        node: String,
        /// The folder or server.
        location: String,
    },
    /// The object's file could not be read or replaced.
    #[error("cannot write the annotations of node {node} to {path}: {source}")]
    Write {
        /// This node.
        node: String,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Another program keeps changing the file, or another agent holds the folder's lock.
    #[error("cannot write the annotations of node {node} to {path}: {why}")]
    Busy {
        /// This node.
        node: String,
        /// The file.
        path: String,
        /// What was in the way.
        why: &'static str,
    },
    /// The object's document has a form that cannot be edited.
    #[error(
        "cannot write the annotations of node {node} to {path}: the document cannot be edited without changing more than them; write it in plain block style"
    )]
    Form {
        /// This node.
        node: String,
        /// The file.
        path: String,
    },
    /// The API server did not accept the annotations.
    #[error(
        "the API server {location} did not take the annotations of node {node}: {reason}; if it says forbidden, is the agent's token bound to a pod on this node?"
    )]
    Server {
        /// This node.
        node: String,
        /// The server.
        location: String,
        /// The server's answer.
        reason: String,
    },
    /// The thread that reads could not be started.
    #[error("cannot start reading: {0}")]
    Thread(std::io::Error),
}

/// Where objects come from.
pub trait Source: Send + Sync {
    /// Tells everything there is, then every change, until `stop` is true or the receiver is
    /// dropped.
    fn run(
        self: Arc<Self>,
        batches: mpsc::Sender<Batch>,
        stop: watch::Receiver<bool>,
    ) -> BoxFuture<'static, Result<(), SourceError>>;

    /// The source's state.
    fn status(&self) -> SourceStatus;

    /// Sets this node's annotations to the given values, and removes those without one. Other
    /// annotations stay as they are.
    fn annotate(
        self: Arc<Self>,
        annotations: BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'static, Result<(), SourceError>>;
}
