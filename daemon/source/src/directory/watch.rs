//! Which files of the folder were touched, as inotify reports it. It may miss some; the rescan
//! finds those.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{Config, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::folder::{Scope, Touch};

/// Touches that may be queued; if there are more, the whole folder is scanned.
const QUEUE: usize = 4096;
/// How long to gather further touches after the first, so that a copy of many files is one scan.
const GATHER: Duration = Duration::from_millis(5);

/// The watch.
pub(super) struct Watch {
    queue: mpsc::Receiver<Wake>,
    wake: mpsc::SyncSender<Wake>,
    overflow: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
    watched: Option<Watched>,
}

/// Ends a wait for good.
pub(super) struct Stopper {
    wake: mpsc::SyncSender<Wake>,
    stopped: Arc<AtomicBool>,
}

struct Watched {
    _watcher: RecommendedWatcher,
    folder: (u64, u64),
}

enum Wake {
    Touched(String, Touch),
    Everything,
}

impl Watch {
    /// A watch on nothing yet.
    pub(super) fn new() -> (Watch, Stopper) {
        let (wake, queue) = mpsc::sync_channel(QUEUE);
        let stopped = Arc::new(AtomicBool::new(false));
        let stopper = Stopper { wake: wake.clone(), stopped: Arc::clone(&stopped) };
        (Watch { queue, wake, overflow: Arc::default(), stopped, watched: None }, stopper)
    }

    /// Watches this folder from now on, if it does not already. A folder that was replaced counts
    /// as another one.
    pub(super) fn follow(&mut self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else {
            self.watched = None;
            return;
        };
        let folder = (metadata.dev(), metadata.ino());
        if self.watched.as_ref().is_some_and(|watched| watched.folder == folder) {
            return;
        }
        let (wake, overflow) = (self.wake.clone(), Arc::clone(&self.overflow));
        let tell = move |event| {
            for woken in understand(event) {
                if wake.try_send(woken).is_err() {
                    overflow.store(true, Ordering::Relaxed);
                }
            }
        };
        let watcher = RecommendedWatcher::new(tell, Config::default()).and_then(|mut watcher| {
            watcher.watch(path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => self.watched = Some(Watched { _watcher: watcher, folder }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot watch the folder of manifests: changes are found by looking every few seconds; raise fs.inotify.max_user_instances or max_user_watches");
                self.watched = None;
            }
        }
    }

    /// Waits until something is touched, or until `until`; none when the watch is stopped.
    pub(super) fn wait(&self, until: Instant) -> Option<Scope> {
        let mut files = BTreeMap::new();
        let mut everything = false;
        let mut deadline = until;
        loop {
            if self.stopped.load(Ordering::Relaxed) {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.queue.recv_timeout(left) {
                Ok(Wake::Touched(name, touch)) => {
                    files.insert(name, touch);
                }
                Ok(Wake::Everything) => everything = true,
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    everything |= self.overflow.swap(false, Ordering::Relaxed);
                    return Some(if everything { Scope::All } else { Scope::Files(files) });
                }
            }
            deadline = deadline.min(Instant::now() + GATHER);
        }
    }
}

impl Stopper {
    /// Ends the wait.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // If the queue is full, another entry wakes the reader up.
        let _ = self.wake.try_send(Wake::Everything);
    }
}

/// What an event means for the files it names.
fn understand(event: notify::Result<notify::Event>) -> Vec<Wake> {
    let Ok(event) = event else { return vec![Wake::Everything] };
    if event.need_rescan() {
        return vec![Wake::Everything];
    }
    let touch = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Touch::Closed,
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Touch::Closed,
        // Of the two names the first is gone; the scan looks at both.
        EventKind::Modify(ModifyKind::Name(_)) => Touch::Closed,
        EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(CreateKind::File) => Touch::Open,
        EventKind::Modify(ModifyKind::Metadata(_)) | EventKind::Remove(_) | EventKind::Create(_) => Touch::Unknown,
        EventKind::Access(_) => return Vec::new(),
        _ => return vec![Wake::Everything],
    };
    let touched = |path: &std::path::PathBuf| {
        let name = path.file_name()?.to_str()?;
        // A name like `..data`: the kubelet switches a ConfigMap volume by it.
        Some(if name.starts_with("..") { Wake::Everything } else { Wake::Touched(name.to_owned(), touch) })
    };
    event.paths.iter().filter_map(touched).collect()
}
