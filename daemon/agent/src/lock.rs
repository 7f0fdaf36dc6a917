//! Only one agent at a time has a state directory, whatever happens to its socket. A second agent
//! would take the running one's datapath for the remains of an agent that has ended.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The file in the state directory.
const FILE: &str = "agent.lock";

/// The state directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another hauberkd runs with the state directory {}: stop it first", .0.display())]
    Taken(PathBuf),
    /// The file cannot be opened or locked.
    #[error("cannot lock {path}: {source}; is the state directory (paths.state) on a disk that is full or read-only?")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Held until it is dropped, or the process ends or executes another program.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Locks the state directory, which must exist.
///
/// # Errors
/// [`LockError`].
pub fn take(state: &Path) -> Result<Lock, LockError> {
    let path = state.join(FILE);
    let failed = |source| LockError::Io { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(LockError::Taken(state.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Whether an agent has locked the state directory.
pub fn is_taken(state: &Path) -> bool {
    File::open(state.join(FILE)).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_is_one_agents_until_that_ends() {
        let state = tempfile::tempdir().unwrap();
        assert!(!is_taken(state.path()));
        let lock = take(state.path()).unwrap();
        assert!(is_taken(state.path()));
        let error = take(state.path()).unwrap_err();
        assert!(error.to_string().contains(&state.path().display().to_string()), "{error}");
        drop(lock);
        assert!(!is_taken(state.path()));
        take(state.path()).unwrap();
    }
}
