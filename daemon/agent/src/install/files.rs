//! hauberk's files in other programs' folders: written whole or not at all, and never over another
//! program's file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::InstallError;
use super::list::is_ours;

/// The prefix of files under construction. The runtime does not read such names.
const PREFIX: &str = ".hauberk-";
/// How much is compared at a time, bytes.
const BLOCK: usize = 1 << 16;

/// Copies the plugin unless it is there already.
pub(super) fn install_plugin(from: &Path, to: &Path) -> Result<(), InstallError> {
    if same(from, to).map_err(failed("read", from))? {
        return Ok(());
    }
    let copy = || -> io::Result<()> {
        let folder = to.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder)?;
        io::copy(&mut File::open(from)?, &mut file)?;
        finish(file, to, 0o755)
    };
    // A running plugin keeps its own file: the new file only takes over the name.
    copy().map_err(failed("install the plugin as", to))
}

/// Whether the file has exactly this content and these permissions.
pub(super) fn holds(path: &Path, wanted: &[u8], mode: u32) -> Result<bool, InstallError> {
    let read = || -> io::Result<bool> {
        let mut file = File::open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(text == wanted && file.metadata()?.permissions().mode() & 0o777 == mode)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        read => read.map_err(failed("read", path)),
    }
}

/// Replaces the file in one step.
pub(super) fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), InstallError> {
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder)?;
        file.write_all(contents)?;
        finish(file, path, mode)
    };
    write().map_err(failed("write", path))
}

/// Removes the list, if an agent wrote it.
pub(super) fn remove_list(path: &Path) -> Result<(), InstallError> {
    match fs::read(path) {
        Ok(text) if is_ours(&text) => remove(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes files under construction that an agent left when it was killed.
pub(super) fn sweep(folder: &Path) -> Result<(), InstallError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", folder)(error)),
    };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn finish(file: tempfile::NamedTempFile, path: &Path, mode: u32) -> io::Result<()> {
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Whether two files have the same content and the second may be executed.
fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let mut from = File::open(one)?;
    let Ok(mut to) = File::open(other) else { return Ok(false) };
    let metadata = to.metadata()?;
    if from.metadata()?.len() != metadata.len() || metadata.permissions().mode() & 0o777 != 0o755 {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let count = from.read(&mut a)?;
        if count == 0 {
            return Ok(true);
        }
        if to.read_exact(&mut b[..count]).is_err() || a[..count] != b[..count] {
            return Ok(false);
        }
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> InstallError + 'a {
    move |source| InstallError::File { action, path: path.to_owned(), source }
}
