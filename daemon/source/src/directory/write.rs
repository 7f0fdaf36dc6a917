//! Replaces a manifest by its edited text: whole or not at all, and never over another program's
//! change.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::annotate::{Annotations, EditError, edit};
use super::document::Format;
use crate::SourceError;

/// Agents that share the folder take turns by locking this file. Its name keeps it from being read
/// as a manifest.
const LOCK: &str = ".hauberk.lock";
/// An agent holds the lock for milliseconds; one that holds it this long is stuck.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How often to try again when another program, which takes no lock, writes to the file during the
/// edit.
const TRIES: usize = 5;

/// Sets annotations in the Node's manifest `file`, which is in `folder`.
///
/// # Errors
/// [`SourceError`].
pub(super) fn annotations(
    folder: &Path,
    file: &Path,
    node: &str,
    annotations: &Annotations,
) -> Result<(), SourceError> {
    let failed = |source| SourceError::Write { node: node.into(), path: file.display().to_string(), source };
    let busy = |why| SourceError::Busy { node: node.into(), path: file.display().to_string(), why };
    let Some(_lock) = lock(&folder.join(LOCK)).map_err(failed)? else {
        return Err(busy(
            "another agent holds the lock of the folder and does not let go; is it stopped in the middle?",
        ));
    };
    // Links are resolved first, so that the target is replaced and not the link.
    let target = fs::canonicalize(file).map_err(failed)?;
    let format = file.file_name().and_then(|name| Format::of(name.to_str()?)).unwrap_or(Format::Yaml);
    for _ in 0..TRIES {
        let (text, before) = read(&target).map_err(failed)?;
        let changed = match edit(&text, format, node, annotations) {
            Ok(Some(changed)) => changed,
            Ok(None) => return Ok(()),
            Err(EditError::NoNode) => {
                return Err(SourceError::NoNode { node: node.into(), location: file.display().to_string() });
            }
            Err(EditError::Form) => {
                return Err(SourceError::Form { node: node.into(), path: file.display().to_string() });
            }
        };
        if replace(&target, &changed, &before).map_err(failed)? {
            return Ok(());
        }
    }
    Err(busy("somebody writes to the file all the time"))
}

/// Takes the lock; none if it is not free within [`LOCK_PATIENCE`].
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    let mut file = OpenOptions::new().create(true).append(true).mode(0o644).open(path)?;
    let begin = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) if begin.elapsed() > LOCK_PATIENCE => return Ok(None),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
            Err((_, error)) => return Err(error.into()),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn read(path: &Path) -> io::Result<(String, fs::Metadata)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, metadata))
}

/// Puts `text` in the file's place, with the file's mode and owner; false if the file has changed
/// since it was read.
fn replace(path: &Path, text: &str, before: &fs::Metadata) -> io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut temporary = tempfile::Builder::new().prefix(".hauberk-").suffix(".new").tempfile_in(folder)?;
    temporary.write_all(text.as_bytes())?;
    let own = temporary.as_file().metadata()?;
    if (own.uid(), own.gid()) != (before.uid(), before.gid()) {
        fchown(temporary.as_file(), Some(before.uid()), Some(before.gid()))?;
    }
    temporary.as_file().set_permissions(before.permissions())?;
    temporary.as_file().sync_all()?;
    let now = fs::metadata(path)?;
    let same = |of: fn(&fs::Metadata) -> i64| of(&now) == of(before);
    if now.ino() != before.ino()
        || now.size() != before.size()
        || !same(MetadataExt::mtime)
        || !same(MetadataExt::mtime_nsec)
    {
        return Ok(false);
    }
    temporary.persist(path)?;
    File::open(folder)?.sync_all()?;
    Ok(true)
}
