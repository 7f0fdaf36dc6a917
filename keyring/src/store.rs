//! Keeps a node's keys in one file that only its owner can read.
//!
//! The file is written atomically: a temporary file, fsync, rename, fsync of the directory. A file
//! that cannot be read is never replaced: a new key would cut every tunnel of the node and look
//! like an attack from outside.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::OFlag;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{MAX_EPOCHS, NodeKey, Secret};

/// The file's name in its directory.
pub const FILE: &str = "keys.json";

/// The version of the format that this agent writes and reads.
const VERSION: u64 = 1;

/// The most bytes that a key file may have; two keys need about 200.
const MAX_LENGTH: u64 = 4096;

/// This node's keys, read from a directory.
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
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Other users may read or write it.
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
    /// It belongs to another user.
    #[error(
        "{path} belongs to user {owner}, but hauberkd runs as user {user}: who owns the file owns the keys; `chown {user} \
         {path}` if that is a mistake, else find out who put it there"
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The agent's user id.
        user: u32,
    },
    /// A symbolic link, a device, or a directory instead of a file.
    #[error("{path} is not a {wanted}: move it away, or configure another `paths.state`")]
    Type {
        /// The file or directory.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// The contents are invalid.
    #[error(
        "{path} {fault}; it is left as it is: put its backup back, or move it away to have a new key made (other nodes \
         follow as soon as they read the new annotation)"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never a part of the contents.
        fault: Fault,
    },
}

/// What is wrong with a key file. It never quotes the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file is empty.
    #[error("is empty")]
    Empty,
    /// Longer than any valid key file.
    #[error("is longer than {MAX_LENGTH} bytes, more than keys can need")]
    TooLong,
    /// Not the JSON it should be.
    #[error("is not the JSON that hauberkd writes (line {line}, column {column})")]
    Json {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// Written by an agent with another version of the format.
    #[error("has version {0}, and this agent reads version {VERSION} only")]
    Version(u64),
    /// No key, or more than two.
    #[error("holds {0} keys instead of 1 to {MAX_EPOCHS}")]
    KeyCount(usize),
    /// Epoch 0, or the same epoch twice.
    #[error("has an epoch 0 or the same epoch twice")]
    Epoch,
    /// Not base64 of 32 bytes, or all zero.
    #[error("holds a private key that is not the base64 of 32 random bytes")]
    Key,
}

impl Store {
    /// Opens the directory. Creates it and a first key if they do not exist. Another process that
    /// opens it at the same time waits.
    pub fn open(directory: &Path) -> Result<Store, StoreError> {
        make_directory(directory)?;
        let handle = open_directory(directory)?;
        // Held until the handle is dropped: two agents must not both find no key and create one.
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
    let metadata = close_if_fresh(directory, &handle, metadata)?;
    check_access(directory, &metadata, 0o700)?;
    Ok(handle)
}

/// Closes the agent's directory to other users if another program has created it (the kubelet, for
/// a `hostPath` volume: mode 0755) and it is still empty. A directory that others may write to is
/// not trusted.
fn close_if_fresh(directory: &Path, handle: &File, metadata: Metadata) -> Result<Metadata, StoreError> {
    let is_ours = metadata.uid() == nix::unistd::geteuid().as_raw();
    if !is_ours || metadata.mode() & 0o077 == 0 || metadata.mode() & 0o022 != 0 {
        return Ok(metadata);
    }
    let mut entries = fs::read_dir(directory).map_err(io_error("list", directory))?;
    if entries.next().is_some() {
        return Ok(metadata);
    }
    handle.set_permissions(Permissions::from_mode(0o700)).map_err(io_error("close to others", directory))?;
    handle.metadata().map_err(io_error("read the state of", directory))
}

/// The key file, opened, after checking that only this user has access; none if it does not exist.
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

/// Opens the path itself, not the target of a link, and without waiting for the other end of a
/// pipe.
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

/// The format of the file. The keys are borrowed from the text, so that no copy of them remains in
/// memory.
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
    // The whole capacity is reserved at once, because growing would leave copies in memory.
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

/// Writes the whole file or nothing: a reader finds the old or the new file, also after a crash.
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
    // The whole capacity is reserved at once, because growing would leave copies in memory.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    struct Place {
        _root: TempDir,
        directory: PathBuf,
    }

    impl Place {
        fn new() -> Place {
            let root = TempDir::new().unwrap();
            let directory = root.path().join("state/keys");
            Place { _root: root, directory }
        }

        fn with_file(contents: &str) -> Place {
            let place = Place::new();
            make_directory(&place.directory).unwrap();
            fs::write(place.file(), contents).unwrap();
            fs::set_permissions(place.file(), Permissions::from_mode(0o600)).unwrap();
            place
        }

        fn file(&self) -> PathBuf {
            self.directory.join(FILE)
        }

        fn open(&self) -> Result<Store, StoreError> {
            Store::open(&self.directory)
        }

        fn mode(&self, path: &Path) -> u32 {
            fs::metadata(path).unwrap().permissions().mode() & 0o7777
        }
    }

    fn key_file(keys: &[(u32, [u8; 32])]) -> String {
        let keys: Vec<_> = keys
            .iter()
            .map(|(epoch, key)| serde_json::json!({"epoch": epoch, "privateKey": STANDARD.encode(key)}))
            .collect();
        serde_json::json!({"version": 1, "keys": keys}).to_string()
    }

    #[test]
    fn the_first_start_makes_a_key_and_every_other_finds_it() {
        let place = Place::new();
        let first = place.open().unwrap();
        assert_eq!(first.keys().len(), 1);
        assert_eq!(first.keys()[0].epoch, 1);
        assert_eq!(place.mode(&place.directory), 0o700);
        assert_eq!(place.mode(&place.file()), 0o600);
        let again = place.open().unwrap();
        assert_eq!(again.keys()[0].public, first.keys()[0].public);
        assert_eq!(again.keys()[0].secret.public(), first.keys()[0].public);
        assert_eq!(fs::read_dir(&place.directory).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn two_stores_have_two_keys() {
        assert_ne!(Place::new().open().unwrap().keys()[0].public, Place::new().open().unwrap().keys()[0].public);
    }

    #[test]
    fn many_first_starts_at_once_agree_on_one_key() {
        let place = Place::new();
        let publics: Vec<[u8; 32]> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| place.open().unwrap().keys()[0].public)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(publics.iter().all(|public| *public == publics[0]));
    }

    #[test]
    fn a_crash_before_the_rename_leaves_no_key_and_no_obstacle() {
        let place = Place::new();
        make_directory(&place.directory).unwrap();
        fs::write(place.directory.join(format!("{FILE}.new")), "half").unwrap();
        assert_eq!(place.open().unwrap().keys().len(), 1);
        assert_eq!(fs::read_dir(&place.directory).unwrap().count(), 1);
    }

    #[test]
    fn two_epochs_come_newest_first() {
        let place = Place::with_file(&key_file(&[(1, [1; 32]), (2, [2; 32])]));
        let store = place.open().unwrap();
        assert_eq!(store.keys().iter().map(|key| key.epoch).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let keys = vec![generate(7), generate(3)];
        let read = parse(render(&keys).as_bytes()).unwrap();
        assert_eq!(read.iter().map(|key| key.epoch).collect::<Vec<_>>(), [7, 3]);
        assert!(read.iter().zip(&keys).all(|(read, key)| read.secret.0.as_bytes() == key.secret.0.as_bytes()));
    }

    #[test]
    fn looser_permissions_are_refused_with_what_to_do() {
        for mode in [0o640, 0o604, 0o660, 0o644] {
            let place = Place::with_file(&key_file(&[(1, [1; 32])]));
            fs::set_permissions(place.file(), Permissions::from_mode(mode)).unwrap();
            let error = place.open().unwrap_err().to_string();
            assert!(error.contains("keys.json has mode") && error.contains("chmod 0600"), "{error}");
        }
        let place = Place::with_file(&key_file(&[(1, [1; 32])]));
        fs::set_permissions(&place.directory, Permissions::from_mode(0o750)).unwrap();
        let error = place.open().unwrap_err().to_string();
        assert!(error.contains("chmod 0700"), "{error}");
    }

    #[test]
    fn an_empty_directory_that_others_only_read_is_closed_to_them() {
        let place = Place::new();
        fs::create_dir_all(&place.directory).unwrap();
        fs::set_permissions(&place.directory, Permissions::from_mode(0o755)).unwrap();
        place.open().unwrap();
        assert_eq!(place.mode(&place.directory), 0o700);

        let place = Place::new();
        fs::create_dir_all(&place.directory).unwrap();
        fs::set_permissions(&place.directory, Permissions::from_mode(0o775)).unwrap();
        assert!(matches!(place.open(), Err(StoreError::Mode { .. })));
    }

    #[test]
    fn a_foreign_owner_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            // Only root can change a file's owner; the check itself is the same for every user.
            let metadata = fs::metadata("/").unwrap();
            assert!(matches!(check_access(Path::new("/"), &metadata, 0o700), Err(StoreError::Owner { owner: 0, .. })));
            return;
        }
        let place = Place::with_file(&key_file(&[(1, [1; 32])]));
        std::os::unix::fs::chown(place.file(), Some(12345), None).unwrap();
        let error = place.open().unwrap_err().to_string();
        assert!(error.contains("belongs to user 12345"), "{error}");
    }

    #[test]
    fn links_and_directories_in_the_files_place_are_refused() {
        let elsewhere = Place::with_file(&key_file(&[(1, [1; 32])]));
        let place = Place::new();
        make_directory(&place.directory).unwrap();
        symlink(elsewhere.file(), place.file()).unwrap();
        assert!(matches!(place.open(), Err(StoreError::Type { .. })));
        fs::remove_file(place.file()).unwrap();
        fs::create_dir(place.file()).unwrap();
        assert!(matches!(place.open(), Err(StoreError::Type { .. })));
    }

    #[test]
    fn a_corrupt_file_is_an_error_that_names_it_and_is_left_as_it_is() {
        let secret = STANDARD.encode([0x5a; 32]);
        let good = key_file(&[(1, [0x5a; 32])]);
        let cases = [
            (String::new(), "is empty"),
            ("{".into(), "not the JSON"),
            (good[..good.len() - 3].into(), "not the JSON"),
            (good.replace("\"version\":1", "\"version\":9"), "version 9"),
            (key_file(&[]), "holds 0 keys"),
            (key_file(&[(1, [1; 32]), (2, [2; 32]), (3, [3; 32])]), "holds 3 keys"),
            (key_file(&[(0, [1; 32])]), "epoch 0"),
            (key_file(&[(1, [1; 32]), (1, [2; 32])]), "same epoch"),
            (key_file(&[(1, [0; 32])]), "not the base64"),
            (good.replace(&secret, &secret[..40]), "not the base64"),
            (good.replace(&secret, &STANDARD.encode([0x5a; 33])), "not the base64"),
            (good + &" ".repeat(MAX_LENGTH as usize), "longer than"),
        ];
        for (contents, expected) in cases {
            let place = Place::with_file(&contents);
            let error = place.open().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("keys.json"), "{contents}: {error}");
            assert!(!error.contains(&secret[..8]), "the message quotes a key: {error}");
            assert_eq!(fs::read_to_string(place.file()).unwrap(), contents);
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let store = Place::new().open().unwrap();
        let shown = format!("{store:?}");
        assert!(!shown.contains(&STANDARD.encode(store.keys()[0].secret.0.as_bytes())), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_contents_panic(contents in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&contents);
        }
    }
}
