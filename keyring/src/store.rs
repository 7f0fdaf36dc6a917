//! Where a node's keys are kept: one file, its owner's alone.
//!
//! The file is written once and whole: a temporary file, fsync, rename, fsync of the directory. A file that cannot be
//! read is never replaced: a new key in its place would cut every tunnel of the node and look like an attack from
//! outside.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::OFlag;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{MAX_EPOCHS, NodeKey, Secret};

/// The file's name in its directory.
pub const FILE: &str = "keys.json";

/// The file's version that this agent writes and reads.
const VERSION: u64 = 1;

/// No key file is longer, bytes; two keys need about 200.
const MAX_LENGTH: u64 = 4096;

/// This node's keys, as kept in a directory.
#[derive(Debug)]
pub struct Store {
    file: PathBuf,
    keys: Vec<NodeKey>,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The kernel refused an operation.
    #[error("cannot {what} {path}: {source}; hauberkd needs its state directory on a writable disk of its own user")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else may read or write it.
    #[error(
        "{path} has mode {mode:04o}, which lets others at the private keys; check who had access, then `chmod {wanted:04o} \
         {path}` (or move the directory away to have new keys made)"
    )]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// It is somebody else's.
    #[error(
        "{path} belongs to user {owner}, but hauberkd runs as user {user}: who owns the file owns the keys; `chown {user} \
         {path}` if that is a mistake, else find out who put it there"
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// Ours.
        user: u32,
    },
    /// A symbolic link, a device, a directory where a file should be.
    #[error("{path} is not a {wanted}: move it away, or configure another `paths.state`")]
    Type {
        /// The file or directory.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// The contents cannot be right.
    #[error(
        "{path} {fault}; it is left as it is: put its backup back, or move it away to have a new key made (other nodes \
         follow as soon as they read the new annotation)"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong; never any of the contents.
        fault: Fault,
    },
}

/// What is wrong with a key file. It never quotes the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Longer than any key file.
    #[error("is longer than {MAX_LENGTH} bytes, more than keys can need")]
    TooLong,
    /// Not the JSON it should be.
    #[error("is not the JSON that hauberkd writes (line {line}, column {column})")]
    Json {
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// Written by an agent of another generation.
    #[error("has version {0}, and this agent reads version {VERSION} only")]
    Version(u64),
    /// No key, or more than two.
    #[error("holds {0} keys instead of 1 to {MAX_EPOCHS}")]
    KeyCount(usize),
    /// Epoch 0, or twice the same.
    #[error("has an epoch 0 or the same epoch twice")]
    Epoch,
    /// Not base64 of 32 bytes, or all zero.
    #[error("holds a private key that is not the base64 of 32 random bytes")]
    Key,
}

impl Store {
    /// Opens the directory, making it and a first key where there is none. Whoever opens it at the same time waits.
    pub fn open(directory: &Path) -> Result<Store, StoreError> {
        make_directory(directory)?;
        let handle = open_directory(directory)?;
        // Held until the handle is dropped: two agents must not both find no key and make one.
        handle.lock().map_err(io_error("lock", directory))?;
        let file = directory.join(FILE);
        let keys = match open_file(&file)? {
            Some(opened) => read(opened, &file)?,
            None => {
                let keys = vec![generate(1)];
                write(&handle, directory, &keys)?;
                keys
            }
        };
        Ok(Store { file, keys })
    }

    /// The keys, newest epoch first: one or two.
    pub fn keys(&self) -> &[NodeKey] {
        &self.keys
    }

    /// The file they are in.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

fn generate(epoch: u32) -> NodeKey {
    let secret = Secret::generate();
    let public = secret.public();
    NodeKey { epoch, secret, public }
}

fn make_directory(directory: &Path) -> Result<(), StoreError> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", directory)(error)),
        _ => Ok(()),
    }
}

fn open_directory(directory: &Path) -> Result<File, StoreError> {
    let wanted = "directory";
    let handle = open_without_links(directory, wanted)?;
    let metadata = handle.metadata().map_err(io_error("read the state of", directory))?;
    if !metadata.is_dir() {
        return Err(StoreError::Type { path: directory.to_owned(), wanted });
    }
    check_access(directory, &metadata, 0o700)?;
    Ok(handle)
}

/// The key file, opened and found to be ours alone; none if there is none.
fn open_file(file: &Path) -> Result<Option<File>, StoreError> {
    let wanted = "regular file";
    let opened = match open_without_links(file, wanted) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let metadata = opened.metadata().map_err(io_error("read the state of", file))?;
    if !metadata.is_file() {
        return Err(StoreError::Type { path: file.to_owned(), wanted });
    }
    check_access(file, &metadata, 0o600)?;
    Ok(Some(opened))
}

/// Opens what is there itself, not what a link points to, and without waiting for the other end of a pipe.
fn open_without_links(path: &Path, wanted: &'static str) -> Result<File, StoreError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|source| {
        if source.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) {
            return StoreError::Type { path: path.to_owned(), wanted };
        }
        io_error("open", path)(source)
    })
}

fn check_access(path: &Path, metadata: &Metadata, wanted: u32) -> Result<(), StoreError> {
    let user = nix::unistd::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(StoreError::Owner { path: path.to_owned(), owner: metadata.uid(), user });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Mode { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// The file's form. The keys are borrowed from the text, so that no copy of them is left behind.
#[derive(Deserialize)]
struct Stored<'a> {
    version: u64,
    #[serde(borrow)]
    keys: Vec<StoredKey<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredKey<'a> {
    epoch: u32,
    private_key: &'a str,
}

fn read(opened: File, file: &Path) -> Result<Vec<NodeKey>, StoreError> {
    // Reserved whole: growing would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_LENGTH as usize + 1));
    opened.take(MAX_LENGTH + 1).read_to_end(&mut text).map_err(io_error("read", file))?;
    parse(&text).map_err(|fault| StoreError::Corrupt { path: file.to_owned(), fault })
}

fn parse(text: &[u8]) -> Result<Vec<NodeKey>, Fault> {
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    if text.len() as u64 > MAX_LENGTH {
        return Err(Fault::TooLong);
    }
    let json = |error: serde_json::Error| Fault::Json { line: error.line(), column: error.column() };
    let stored: Stored<'_> = serde_json::from_slice(text).map_err(json)?;
    if stored.version != VERSION {
        return Err(Fault::Version(stored.version));
    }
    if stored.keys.is_empty() || stored.keys.len() > MAX_EPOCHS {
        return Err(Fault::KeyCount(stored.keys.len()));
    }
    let mut keys = stored.keys.iter().map(parse_key).collect::<Result<Vec<_>, _>>()?;
    keys.sort_by_key(|key| std::cmp::Reverse(key.epoch));
    if keys.iter().any(|key| key.epoch == 0) || keys.windows(2).any(|pair| pair[0].epoch == pair[1].epoch) {
        return Err(Fault::Epoch);
    }
    Ok(keys)
}

fn parse_key(stored: &StoredKey<'_>) -> Result<NodeKey, Fault> {
    // base64 decodes in whole groups: 44 characters need room for 33 bytes.
    let mut room = Zeroizing::new([0u8; 33]);
    let length = STANDARD.decode_slice(stored.private_key, room.as_mut_slice()).map_err(|_| Fault::Key)?;
    let mut bytes = Zeroizing::new([0u8; 32]);
    if length != bytes.len() {
        return Err(Fault::Key);
    }
    bytes.copy_from_slice(&room[..32]);
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(Fault::Key);
    }
    let secret = Secret((*bytes).into());
    let public = secret.public();
    Ok(NodeKey { epoch: stored.epoch, secret, public })
}

/// Writes the file whole or not at all: whoever reads it, after a crash too, finds the old or the new one.
fn write(handle: &File, directory: &Path, keys: &[NodeKey]) -> Result<(), StoreError> {
    let file = directory.join(FILE);
    let temporary = directory.join(format!("{FILE}.new"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &temporary)(error)),
        _ => {}
    }
    let mut opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    opened.write_all(render(keys).as_bytes()).map_err(io_error("write", &temporary))?;
    opened.sync_all().map_err(io_error("write to disk", &temporary))?;
    fs::rename(&temporary, &file).map_err(io_error("put in place", &file))?;
    handle.sync_all().map_err(io_error("write to disk", directory))
}

fn render(keys: &[NodeKey]) -> Zeroizing<String> {
    // Reserved whole: growing would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_LENGTH as usize));
    text.push_str(&format!("{{\"version\":{VERSION},\"keys\":["));
    for (index, key) in keys.iter().enumerate() {
        text.push_str(if index == 0 { "" } else { "," });
        text.push_str(&format!("{{\"epoch\":{},\"privateKey\":\"", key.epoch));
        STANDARD.encode_string(key.secret.0.as_bytes(), &mut text);
        text.push_str("\"}");
    }
    text.push_str("]}\n");
    text
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { what, path: path.to_owned(), source }
}
