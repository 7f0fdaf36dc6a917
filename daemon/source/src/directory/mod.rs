//! A folder of ordinary Kubernetes manifests as the source: for a rack or a laptop without an API
//! server.
//!
//! | module | does |
//! |---|---|
//! | [`document`] | cuts files into documents |
//! | [`manifest`] | turns documents into objects |
//! | `claims` | decides which file wins when two describe one object |
//! | `folder` | the folder as last read; what changed |
//! | `watch` | which files were touched |
//! | [`annotate`] | edits this node's annotations in its manifest's text |
//! | `write` | writes that text to the file |
//!
//! [`Directory`] runs them. It reads on a thread of its own, because file access blocks.

pub mod annotate;
mod claims;
pub mod document;
mod folder;
pub mod manifest;
mod strict;
mod watch;
mod write;
mod yaml;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use hauberk_api::{SourceKind, SourceStatus};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch as signal};

use self::annotate::Annotations;
use self::folder::{Folder, Scope};
use self::watch::Watch;
use super::{Batch, Source, SourceError};

/// Between scans of the whole folder. inotify does not report changes made on another machine.
const RESCAN: Duration = Duration::from_secs(10);
/// Between attempts to read a folder that cannot be read.
const RETRY: Duration = Duration::from_secs(1);

/// The source.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    node: String,
    shared: Mutex<Shared>,
}

/// What the reading thread shares with the others.
#[derive(Debug, Default)]
struct Shared {
    synced: bool,
    unavailable: Option<(Timestamp, String)>,
    rejected: usize,
    own_file: Option<PathBuf>,
}

impl Directory {
    /// The manifests in `path`, as seen by `node`. Nothing is read yet.
    pub fn new(path: PathBuf, node: String) -> Directory {
        Directory { path, node, shared: Mutex::default() }
    }

    /// Reads until the receiver is dropped or the watch is stopped.
    fn read(&self, batches: &mpsc::Sender<Batch>, mut watch: Watch) {
        let mut folder = Folder::new(self.path.clone(), &self.node);
        let mut scope = Scope::All;
        let mut whole_next = Instant::now();
        loop {
            watch.follow(&self.path);
            let scan = folder.scan(&scope, SystemTime::now());
            self.note(&folder);
            let soon = scan.again_after.map(|after| Instant::now() + after);
            if scope == Scope::All {
                let usual = if folder.unavailable().is_some() { RETRY } else { RESCAN };
                whole_next = soon.unwrap_or_else(|| Instant::now() + usual);
            } else if let Some(soon) = soon {
                whole_next = whole_next.min(soon);
            }
            if !scan.batch.is_empty() {
                let (changes, events) = (scan.batch.changes.len(), scan.batch.events.len());
                tracing::debug!(changes, events, objects = folder.objects(), "manifests changed");
                if batches.blocking_send(scan.batch).is_err() {
                    return;
                }
            }
            if scope != Scope::All && whole_next <= Instant::now() {
                // A full scan is due, however many files are touched.
                scope = Scope::All;
                continue;
            }
            match watch.wait(whole_next) {
                Some(Scope::Files(files)) if files.is_empty() => scope = Scope::All,
                Some(touched) => scope = touched,
                None => return,
            }
        }
    }

    fn note(&self, folder: &Folder) {
        let mut shared = self.shared();
        shared.synced = folder.is_synced();
        let at = |since| Timestamp::try_from(since).unwrap_or(Timestamp::UNIX_EPOCH);
        shared.unavailable = folder.unavailable().map(|(since, why)| (at(since), why.to_owned()));
        shared.rejected = folder.rejected();
        shared.own_file = folder.own_file();
    }

    fn write(&self, annotations: &Annotations) -> Result<(), SourceError> {
        let file = self.shared().own_file.clone().ok_or_else(|| SourceError::NoNode {
            node: self.node.clone(),
            location: self.path.display().to_string(),
        })?;
        write::annotations(&self.path, &file, &self.node, annotations)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Source for Directory {
    fn run(
        self: Arc<Self>,
        batches: mpsc::Sender<Batch>,
        mut stop: signal::Receiver<bool>,
    ) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let (watch, stopper) = Watch::new();
            let (ended, mut has_ended) = tokio::sync::oneshot::channel::<()>();
            let reader = thread::Builder::new()
                .name("source".into())
                .spawn(move || {
                    self.read(&batches, watch);
                    drop(ended);
                })
                .map_err(SourceError::Thread)?;
            let stopped = async {
                let _ = stop.wait_for(|stopped| *stopped).await;
            };
            tokio::select! {
                () = stopped => {
                    stopper.stop();
                    let _ = has_ended.await;
                }
                _ = &mut has_ended => {}
            }
            // The thread has dropped its end of the channel, so joining does not wait.
            let _ = reader.join();
            Ok(())
        })
    }

    fn status(&self) -> SourceStatus {
        let shared = self.shared();
        SourceStatus {
            kind: SourceKind::Directory.into(),
            location: self.path.display().to_string(),
            synced: shared.synced,
            unavailable_since: shared.unavailable.as_ref().map(|(since, _)| *since),
            unavailable_because: shared.unavailable.as_ref().map(|(_, why)| why.clone()),
            rejected: shared.rejected,
        }
    }

    fn annotate(self: Arc<Self>, annotations: Annotations) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let write = tokio::task::spawn_blocking(move || self.write(&annotations));
            write.await.map_err(|error| SourceError::Thread(std::io::Error::other(error)))?
        })
    }
}

#[cfg(test)]
mod tests;
