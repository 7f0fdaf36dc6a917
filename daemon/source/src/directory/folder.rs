//! The folder as last read: turns what is in the files now into changes for the model.
//!
//! Nothing here waits or watches: the caller passes [`Folder::scan`] what was touched and the time.
//! Three rules keep a broken or half-copied folder from opening anything:
//! - a document that cannot be read leaves the last good version of its object in force;
//! - a file that is being written is read once its writer has closed it, or has been quiet for a
//!   while;
//! - nothing is told while this node's own Node object is missing: a folder without it does not
//!   describe this cluster (any more).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hauberk_core::events::NewEvent;
use hauberk_core::model::Change;

use super::claims::{Claim, Claims, change};
use super::document::{self, Format};
use super::manifest::{self, Key, Rejection};
use crate::{Batch, reason};

/// A file that changed this long ago is taken as complete although its writer was not seen to close
/// it.
const QUIET: Duration = Duration::from_millis(300);
/// A file whose writer was seen but has not closed it is left alone for this long.
const OPEN: Duration = Duration::from_secs(2);
/// A file that keeps changing is read all the same after this time.
const IMPATIENT: Duration = Duration::from_secs(10);
/// A file that is gone for this long is removed. Before that it may be about to be replaced.
const GONE: Duration = Duration::from_millis(500);
/// In bytes. Larger files are not manifests.
const MAX_FILE: u64 = 256 << 20;
/// In bytes. Larger documents are not objects (the API server's own limit is about this size), but
/// lists may be larger.
const MAX_OBJECT: usize = 1 << 20;
/// Events told of one scan; the rest is only counted.
const MAX_EVENTS: usize = 100;

/// What happened to a file, as far as was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// It was written and is complete: closed, or moved here.
    Closed,
    /// It is being written.
    Open,
    /// Unknown: the rescan found it, or the event does not say.
    Unknown,
}

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The whole folder.
    All,
    /// These files.
    Files(BTreeMap<String, Touch>),
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) batch: Batch,
    /// When to scan the whole folder again, if earlier than usual.
    pub(super) again_after: Option<Duration>,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    own: Key,
    files: BTreeMap<Arc<str>, File>,
    claims: Claims,
    /// Objects that have changed but were not told yet, with what was told of them before.
    untold: BTreeMap<Key, Option<Arc<Option<Change>>>>,
    hasher: RandomState,
    was_synced: bool,
    /// Since when the folder is not usable, and why.
    unavailable: Option<(SystemTime, String)>,
}

/// A file as last read.
#[derive(Debug, Default)]
struct File {
    /// What it looked like when it was read.
    stamp: Option<Stamp>,
    /// Its documents' results, by the hash of their text.
    documents: Vec<Read>,
    /// The objects it has claims on.
    keys: BTreeSet<Key>,
    /// The events about its parts that could not be used.
    rejections: Vec<NewEvent>,
    /// What it looks like now, if that differs from what was read.
    waiting: Option<Waiting>,
    /// Since when it is gone.
    gone_since: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    stamp: Stamp,
    since: SystemTime,
    first: SystemTime,
    quiet: Duration,
}

/// A change of any of these means that the content may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A document's objects, kept as long as its text stays the same: one changed pod in a file of
/// thousands costs one parse.
#[derive(Clone, Debug)]
struct Read {
    hash: u64,
    line: usize,
    objects: Arc<Vec<Parsed>>,
}

/// An object of a document, or why there is none.
type Parsed = Result<(Key, Arc<Option<Change>>), Rejection>;

impl Folder {
    /// A folder that has not been read yet.
    pub(super) fn new(path: PathBuf, node: &str) -> Folder {
        Folder {
            path,
            own: Key::of_node(node),
            files: BTreeMap::new(),
            claims: Claims::default(),
            untold: BTreeMap::new(),
            hasher: RandomState::new(),
            was_synced: false,
            unavailable: None,
        }
    }

    /// Whether all objects have been told once.
    pub(super) fn is_synced(&self) -> bool {
        self.was_synced
    }

    /// Since when the folder cannot be read, or does not describe this cluster any more, and why.
    pub(super) fn unavailable(&self) -> Option<(SystemTime, &str)> {
        self.unavailable.as_ref().map(|(since, why)| (*since, why.as_str()))
    }

    /// Documents and files that cannot be used at the moment.
    pub(super) fn rejected(&self) -> usize {
        self.files.values().map(|file| file.rejections.len()).sum()
    }

    /// Objects in force.
    pub(super) fn objects(&self) -> usize {
        self.claims.len()
    }

    /// The file that has this node's own Node object.
    pub(super) fn own_file(&self) -> Option<PathBuf> {
        self.claims.on(&self.own).first().map(|claim| self.path.join(&*claim.file))
    }

    /// Looks at what was touched and tells what changed.
    pub(super) fn scan(&mut self, scope: &Scope, now: SystemTime) -> Scan {
        let mut scan = Scan::default();
        match scope {
            Scope::Files(files) => {
                for (name, touch) in files.iter().filter(|(name, _)| Format::of(name).is_some()) {
                    self.look(name, *touch, now, &mut scan);
                }
                self.look_at_own_node(now, &mut scan);
                if self.has_own_node() {
                    self.tell(&mut scan.batch);
                }
            }
            Scope::All => match list(&self.path) {
                Ok(names) => self.scan_all(&names, now, &mut scan),
                Err(error) => self.set_unavailable(&format!("it cannot be read: {error}"), now, &mut scan.batch),
            },
        }
        limit_events(&mut scan.batch.events);
        scan
    }

    fn scan_all(&mut self, names: &BTreeSet<String>, now: SystemTime, scan: &mut Scan) {
        for name in names {
            self.look(name, Touch::Unknown, now, scan);
        }
        let known: Vec<Arc<str>> = self.files.keys().cloned().collect();
        for name in known.iter().filter(|name| !names.contains(&***name)) {
            self.note_gone(name, now, scan);
        }
        self.remove_gone(now, scan);
        self.look_at_own_node(now, scan);
        if self.has_own_node() {
            self.tell(&mut scan.batch);
            self.set_available(&mut scan.batch);
            let is_complete = self.files.values().all(|file| file.waiting.is_none());
            if is_complete && !self.was_synced {
                self.was_synced = true;
                scan.batch.changes.push(Change::Synced);
            }
        } else if self.is_settled(now, scan) {
            let why = format!(
                "it has no {} of this node: an empty folder, one of another cluster, or one that is being copied; nothing \
                 of it is taken until it is there",
                self.own
            );
            self.set_unavailable(&why, now, &mut scan.batch);
        }
    }

    /// Whether no file is awaited: none is being written, and none disappeared so recently that it
    /// may be about to be replaced.
    fn is_settled(&self, now: SystemTime, scan: &mut Scan) -> bool {
        let is_recent = |since: SystemTime| now.duration_since(since).unwrap_or_default() < GONE;
        if self.files.values().any(|file| file.gone_since.is_some_and(is_recent)) {
            scan.come_again(GONE);
            return false;
        }
        self.files.values().all(|file| file.waiting.is_none())
    }

    /// When another cluster's manifests replace this folder's, other files may be read before the
    /// one that held this node's Node object. Looks at that one again.
    fn look_at_own_node(&mut self, now: SystemTime, scan: &mut Scan) {
        if !self.untold.is_empty() {
            let files: Vec<Arc<str>> = self.claims.on(&self.own).iter().map(|claim| Arc::clone(&claim.file)).collect();
            for name in files {
                self.look(&name, Touch::Unknown, now, scan);
            }
        }
    }

    /// Whether a file that exists, and is not being replaced, has this node's Node object.
    fn has_own_node(&self) -> bool {
        let is_there = |file: &File| file.gone_since.is_none() && file.waiting.is_none();
        self.claims.on(&self.own).iter().any(|claim| self.files.get(&claim.file).is_some_and(is_there))
    }

    /// Decides whether a file must be read, and reads it if it is complete.
    fn look(&mut self, name: &str, touch: Touch, now: SystemTime, scan: &mut Scan) {
        let path = self.path.join(name);
        let stamp = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Stamp::of(&metadata),
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.note_gone(&Arc::from(name), now, scan);
            }
            Err(error) => return self.reject_file(name, None, &error.to_string(), &mut scan.batch),
        };
        let file = self.files.entry(Arc::from(name)).or_default();
        file.gone_since = None;
        if file.stamp == Some(stamp) {
            file.waiting = None;
            return;
        }
        if touch != Touch::Closed && !file.is_at_rest(stamp, touch, now) {
            scan.come_again(file.waiting.map_or(QUIET, |waiting| waiting.quiet));
            return;
        }
        match read_file(&path) {
            // The file was written to while it was read.
            Ok((_, after)) if after != stamp => scan.come_again(QUIET),
            Ok((text, _)) => self.update(name, stamp, &text, &mut scan.batch),
            Err(error) => self.reject_file(name, Some(stamp), &error.to_string(), &mut scan.batch),
        }
    }

    /// Takes over a file's new text.
    fn update(&mut self, name: &str, stamp: Stamp, text: &str, batch: &mut Batch) {
        let format = Format::of(name).unwrap_or(Format::Yaml);
        let before = self.files.remove(name).unwrap_or_default();
        let documents = self.read_documents(name, format, text, &before.documents);
        let is_incomplete = documents
            .iter()
            .flat_map(|read| read.objects.iter())
            .any(|object| matches!(object, Err(rejection) if rejection.key.is_none()));
        let rejected: BTreeSet<&Key> = documents
            .iter()
            .flat_map(|read| read.objects.iter())
            .filter_map(|object| object.as_ref().err()?.key.as_ref())
            .collect();
        let present: BTreeSet<Key> = documents
            .iter()
            .flat_map(|read| read.objects.iter())
            .filter_map(|object| Some(object.as_ref().ok()?.0.clone()))
            .collect();
        let keep = |key: &Key| !present.contains(key) && (is_incomplete || rejected.contains(key));
        let kept: BTreeSet<Key> = before.keys.iter().filter(|key| keep(key)).cloned().collect();

        let rejections = self.rejections(name, &documents, &kept);
        batch.events.extend(rejections.iter().filter(|event| !before.rejections.contains(event)).cloned());
        let touched: BTreeSet<Key> = before.keys.union(&present).cloned().collect();
        let was: Vec<Option<Arc<Option<Change>>>> = touched.iter().map(|key| self.claims.effective(key)).collect();
        let file: Arc<str> = Arc::from(name);
        for key in &before.keys {
            let taken = self.claims.take(key, name);
            if kept.contains(key) {
                for claim in taken {
                    self.claims.add(key.clone(), Claim { is_kept: true, ..claim });
                }
            }
        }
        for (index, read) in documents.iter().enumerate() {
            for (key, object) in read.objects.iter().flatten() {
                let claim =
                    Claim { is_kept: false, file: Arc::clone(&file), document: index + 1, object: Arc::clone(object) };
                self.claims.add(key.clone(), claim);
            }
        }
        let keys = present.union(&kept).cloned().collect();
        let state = File { stamp: Some(stamp), documents, keys, rejections, ..File::default() };
        self.files.insert(file, state);
        self.note(touched, was, batch);
    }

    /// Notes that these objects are about to be told, and what they were before.
    fn note(&mut self, touched: BTreeSet<Key>, was: Vec<Option<Arc<Option<Change>>>>, batch: &mut Batch) {
        let location = self.path.display().to_string();
        for (key, was) in touched.into_iter().zip(was) {
            batch.events.extend(self.claims.note_duplicates(&key, &location));
            if was != self.claims.effective(&key) {
                self.untold.entry(key).or_insert(was);
            }
        }
    }

    /// Tells the differences between what was told before and what is true now.
    fn tell(&mut self, batch: &mut Batch) {
        for (key, was) in std::mem::take(&mut self.untold) {
            let is = self.claims.effective(&key);
            if was != is {
                batch.changes.extend(change(&key, is.as_deref()));
            }
        }
    }

    fn read_documents(&self, name: &str, format: Format, text: &str, before: &[Read]) -> Vec<Read> {
        let known: HashMap<u64, &Read> = before.iter().map(|read| (read.hash, read)).collect();
        let origin = self.path.join(name).display().to_string();
        document::split(text, format)
            .into_iter()
            .map(|document| {
                let part = text.get(document.range.clone()).unwrap_or_default();
                let hash = self.hasher.hash_one(part);
                let objects = match known.get(&hash) {
                    Some(read) => Arc::clone(&read.objects),
                    None => Arc::new(parse(part, format, &origin)),
                };
                Read { hash, line: document.line, objects }
            })
            .collect()
    }

    fn rejections(&self, name: &str, documents: &[Read], kept: &BTreeSet<Key>) -> Vec<NewEvent> {
        let path = self.path.join(name);
        let mut events = Vec::new();
        for (index, read) in documents.iter().enumerate() {
            for rejection in read.objects.iter().filter_map(|object| object.as_ref().err()) {
                let consequence = match &rejection.key {
                    Some(key) if kept.contains(key) => format!("the last good version of {key} stays in force"),
                    None if !kept.is_empty() => "what the file had before stays in force".to_owned(),
                    _ => "nothing of it is in force: what it would have named is treated as unknown, hence protected"
                        .to_owned(),
                };
                events.push(NewEvent {
                    warning: true,
                    reason: reason::MANIFEST_REJECTED,
                    objects: vec![rejection.key.as_ref().map_or_else(|| format!("File/{name}"), Key::to_string)],
                    message: format!(
                        "{}: document {}, line {}, is refused: {}; {consequence}",
                        path.display(),
                        index + 1,
                        read.line + rejection.line.saturating_sub(1),
                        rejection.cause
                    ),
                });
            }
        }
        events
    }

    /// Notes that a whole file cannot be used; what it said before stays in force.
    fn reject_file(&mut self, name: &str, stamp: Option<Stamp>, cause: &str, batch: &mut Batch) {
        let event = NewEvent {
            warning: true,
            reason: reason::MANIFEST_REJECTED,
            objects: vec![format!("File/{name}")],
            message: format!(
                "{} is refused: {cause}; what it said before stays in force",
                self.path.join(name).display()
            ),
        };
        let file = self.files.entry(Arc::from(name)).or_default();
        file.stamp = stamp;
        file.waiting = None;
        if !file.rejections.contains(&event) {
            batch.events.push(event.clone());
        }
        file.rejections = vec![event];
    }

    fn note_gone(&mut self, name: &Arc<str>, now: SystemTime, scan: &mut Scan) {
        let Some(file) = self.files.get_mut(name) else { return };
        file.waiting = None;
        if file.gone_since.is_none() {
            file.gone_since = Some(now);
            scan.come_again(GONE);
        }
    }

    /// Removes files that are gone for good.
    fn remove_gone(&mut self, now: SystemTime, scan: &mut Scan) {
        let mut gone = Vec::new();
        for (name, file) in &self.files {
            match file.gone_since.map(|since| now.duration_since(since).unwrap_or_default()) {
                Some(age) if age >= GONE => gone.push(Arc::clone(name)),
                Some(age) => scan.come_again(GONE - age),
                None => {}
            }
        }
        for name in gone {
            let Some(file) = self.files.remove(&name) else { continue };
            let was = file.keys.iter().map(|key| self.claims.effective(key)).collect();
            for key in &file.keys {
                self.claims.take(key, &name);
            }
            self.note(file.keys, was, &mut scan.batch);
        }
    }

    fn set_unavailable(&mut self, why: &str, now: SystemTime, batch: &mut Batch) {
        if let Some((_, before)) = &mut self.unavailable {
            why.clone_into(before);
            return;
        }
        self.unavailable = Some((now, why.to_owned()));
        let consequence = if self.was_synced {
            "what was known stays in force, existing tunnels are kept"
        } else {
            "nothing is known yet, so that every pod is treated as protected"
        };
        batch.events.push(NewEvent {
            warning: true,
            reason: reason::SOURCE_UNAVAILABLE,
            objects: vec![format!("Folder{}", self.path.display())],
            message: format!("the folder of manifests {} is not usable: {why}; {consequence}", self.path.display()),
        });
    }

    fn set_available(&mut self, batch: &mut Batch) {
        if self.unavailable.take().is_some() {
            batch.events.push(NewEvent {
                warning: false,
                reason: reason::SOURCE_AVAILABLE,
                objects: vec![format!("Folder{}", self.path.display())],
                message: format!("the folder of manifests {} is usable again", self.path.display()),
            });
        }
    }
}

impl Scan {
    fn come_again(&mut self, after: Duration) {
        self.again_after = Some(self.again_after.map_or(after, |earlier| earlier.min(after)));
    }
}

impl File {
    /// Whether the file has been like this for long enough to be complete.
    fn is_at_rest(&mut self, stamp: Stamp, touch: Touch, now: SystemTime) -> bool {
        let quiet = if touch == Touch::Open { OPEN } else { QUIET };
        let waiting = match self.waiting {
            // The writer that was seen may still be writing: a touch by another program changes
            // nothing.
            Some(waiting) if waiting.stamp == stamp => Waiting { quiet: waiting.quiet.max(quiet), ..waiting },
            Some(waiting) => Waiting { stamp, since: now, first: waiting.first, quiet: waiting.quiet.max(quiet) },
            None => Waiting { stamp, since: now, first: now, quiet },
        };
        self.waiting = Some(waiting);
        let passed = |since: SystemTime, time: Duration| now.duration_since(since).is_ok_and(|age| age >= time);
        let is_old = touch == Touch::Unknown && waiting.quiet == QUIET && passed(stamp.modified_at(), QUIET);
        is_old || passed(waiting.since, waiting.quiet) || passed(waiting.first, IMPATIENT)
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn modified_at(&self) -> SystemTime {
        let seconds = u64::try_from(self.modified.0).unwrap_or_default();
        let nanoseconds = u32::try_from(self.modified.1).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::new(seconds.min(1 << 40), nanoseconds)
    }
}

/// The names of the manifests in a folder.
fn list(path: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        if let Ok(name) = entry?.file_name().into_string()
            && Format::of(&name).is_some()
        {
            names.insert(name);
        }
    }
    Ok(names)
}

/// A file's text, and what the file looked like after it was read.
fn read_file(path: &Path) -> io::Result<(String, Stamp)> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(io::Error::other(format!("its {size} bytes are more than the {MAX_FILE} that are read")));
    }
    let text = fs::read_to_string(path)?;
    Ok((text, Stamp::of(&fs::metadata(path)?)))
}

fn parse(text: &str, format: Format, origin: &str) -> Vec<Parsed> {
    let value = match document::read(text, format) {
        Ok(value) => value,
        Err(error) => return vec![Err(Rejection { key: None, line: error.line, cause: error.cause })],
    };
    // Only the items of a list may add up to more than one object's size.
    let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    if text.len() > MAX_OBJECT && !is_list {
        let cause = format!("its {} bytes are more than the {MAX_OBJECT} an object may have", text.len());
        return vec![Err(Rejection { key: None, line: 1, cause })];
    }
    manifest::objects(value, origin)
        .into_iter()
        .map(|object| object.map(|(key, object)| (key, Arc::new(object))))
        .collect()
}

fn limit_events(events: &mut Vec<NewEvent>) {
    if events.len() > MAX_EVENTS {
        let more = events.len() - MAX_EVENTS;
        events.truncate(MAX_EVENTS);
        events.push(NewEvent {
            warning: true,
            reason: reason::MANIFEST_REJECTED,
            objects: Vec::new(),
            message: format!("{more} more events of the same scan are not told one by one"),
        });
    }
}

#[cfg(test)]
mod tests;
