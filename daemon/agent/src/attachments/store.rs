//! Keeps attachments on disk: one JSON file each, written to a temporary file, synced and renamed
//! before the answer.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hauberk_api::Attachment;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use hauberk_host::hint;

/// The format's version. Files of another version are reported and not interpreted.
const VERSION: u32 = 1;
/// The file of the last given addresses.
const CURSORS: &str = "cursors";
/// In bytes. No attachment is larger.
const MAX_BYTES: u64 = 1 << 20;

/// A file of the state folder could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}{}", hint(.source, "is the disk full or read-only?"))]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    #[serde(flatten)]
    attachment: Attachment,
}

/// A disk that takes longer than this is reported.
const LATE: Duration = Duration::from_secs(3);

/// The state of the disk, for tasks that do not wait for it.
#[derive(Debug, Default)]
pub(super) struct Disk {
    state: Mutex<DiskState>,
    /// A test holds this lock to make the disk hang.
    #[cfg(test)]
    pub(super) hangs: Mutex<()>,
}

#[derive(Debug, Default)]
struct DiskState {
    /// Since when a write has been under way.
    busy_since: Option<Instant>,
    /// Why what failed last failed, for as long as the same has not succeeded.
    failed: BTreeMap<Work, String>,
}

/// What is done there. That one succeeds says nothing of the others: on a full disk files are
/// removed, and none is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Write,
    Remove,
    Cursors,
}

impl Work {
    /// What it means that it fails.
    fn consequence(self) -> &'static str {
        match self {
            Work::Write => "pods cannot start until something can be written there",
            Work::Remove => "pods cannot end until it is removed",
            Work::Cursors => "addresses of pods that ended may be given again sooner",
        }
    }
}

impl Disk {
    /// What is wrong, as a message.
    pub(super) fn trouble(&self, now: Instant) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = state.busy_since.is_some_and(|since| now.saturating_duration_since(since) >= LATE);
        let late = "the disk does not answer: pods that start or end wait for it, what runs is not concerned; look at the \
                    disk of paths.state";
        if is_late { Some(late.to_owned()) } else { state.failed.values().next().cloned() }
    }

    /// Whether nothing could be written when it was last tried.
    pub(super) fn refuses(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failed.keys().any(|work| *work != Work::Remove)
    }

    fn during<T>(&self, work: Work, write: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let state = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state().busy_since = Some(Instant::now());
        #[cfg(test)]
        drop(self.hangs.lock());
        let written = write();
        let mut state = state();
        state.busy_since = None;
        match &written {
            Ok(_) => drop(state.failed.remove(&work)),
            // The first one stays: others of the kind say the same in other words.
            Err(error) => {
                state.failed.entry(work).or_insert_with(|| format!("{error}; {}", work.consequence()));
            }
        }
        drop(state);
        written
    }
}

/// The folder.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    disk: Arc<Disk>,
}

impl Store {
    /// Creates the folder if it does not exist.
    pub(super) fn open(folder: PathBuf) -> Result<Store, StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(failed("make the folder", &folder))?;
        Ok(Store { folder, disk: Arc::default() })
    }

    /// The state of its disk.
    pub(super) fn disk(&self) -> Arc<Disk> {
        Arc::clone(&self.disk)
    }

    /// Everything in the folder, and a sentence for each file that cannot be used.
    pub(super) fn load(&self) -> Result<(Vec<Attachment>, Vec<String>), StoreError> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.folder)
            .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
            .map_err(failed("read the folder", &self.folder))?;
        paths.sort();
        let (mut attachments, mut problems) = (Vec::new(), Vec::new());
        for path in paths {
            if path.extension().is_none_or(|extension| extension != "json") {
                // A leftover of a write that was cut short.
                if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".new")) {
                    let _ = fs::remove_file(&path);
                }
                continue;
            }
            match read(&path) {
                Ok(attachment) if self.path(&attachment) == path => attachments.push(attachment),
                Ok(_) => {
                    problems.push(format!("{}: the file's name is not its attachment's; remove it", path.display()))
                }
                Err(error) => problems.push(format!(
                    "{}: not a usable attachment: {error}; the pod it was for must be deleted, and the file removed",
                    path.display()
                )),
            }
        }
        Ok((attachments, problems))
    }

    /// Writes an attachment; when this returns, it survives a power failure.
    pub(super) fn save(&self, attachment: &Attachment) -> Result<(), StoreError> {
        let path = self.path(attachment);
        let stored = Stored { version: VERSION, attachment: attachment.clone() };
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".new").tempfile_in(&self.folder)?;
            serde_json::to_writer_pretty(&mut file, &stored)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            self.sync()
        };
        self.disk.during(Work::Write, || write().map_err(failed("write", &path)))
    }

    /// Writes as much as an attachment needs, and takes it away again.
    pub(super) fn try_disk(&self) -> Result<(), StoreError> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".new").tempfile_in(&self.folder)?;
            file.write_all(&[0; 4_096])?;
            file.as_file().sync_all()?;
            file.close()
        };
        self.disk.during(Work::Write, || write().map_err(failed("write to", &self.folder)))
    }

    /// Removes an attachment; when this returns, the removal survives a power failure.
    pub(super) fn remove(&self, attachment: &Attachment) -> Result<(), StoreError> {
        let path = self.path(attachment);
        let remove = || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync(),
        };
        self.disk.during(Work::Remove, || remove().map_err(failed("remove", &path)))
    }

    /// The last given addresses, by range. If they are missing, addresses are only re-used earlier.
    pub(super) fn load_cursors(&self) -> BTreeMap<IpNet, IpAddr> {
        let text = fs::read(self.folder.join(CURSORS)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Writes the last given addresses: whole or not at all, but not synced. Losing them in a power
    /// failure does no harm, because no pod survives that either.
    pub(super) fn save_cursors(&self, cursors: &BTreeMap<IpNet, IpAddr>) {
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".new").tempfile_in(&self.folder)?;
            serde_json::to_writer(&mut file, cursors)?;
            file.persist(self.folder.join(CURSORS))?;
            Ok(())
        };
        let path = self.folder.join(CURSORS);
        if let Err(error) = self.disk.during(Work::Cursors, || write().map_err(failed("write", &path))) {
            tracing::warn!(%error, "cannot keep the allocator's position");
        }
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        // Neither part can have a ':' or a '/' (`check_names`), so different ids have different
        // names.
        self.folder.join(format!("{}:{}.json", attachment.request.container, attachment.request.interface))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.folder)?.sync_all()
    }
}

fn read(path: &Path) -> io::Result<Attachment> {
    let metadata = fs::metadata(path)?;
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::other(format!("{} bytes are too many", metadata.len())));
    }
    if metadata.permissions().mode() & 0o022 != 0 {
        return Err(io::Error::other("others may write to it"));
    }
    let stored: Stored = serde_json::from_slice(&fs::read(path)?)?;
    if stored.version != VERSION {
        return Err(io::Error::other(format!("version {} is not {VERSION}", stored.version)));
    }
    super::check_names(&stored.attachment.request).map_err(io::Error::other)?;
    Ok(stored.attachment)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError { action, path: path.to_owned(), source }
}
