//! The last HauberkConfig that this node accepted, on disk: an agent may start while the API server
//! is away, and what was in force stays in force.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The file's name below `paths.state`.
const FILE: &str = "cluster-config.json";
/// The format's version that this agent writes and reads.
const VERSION: u64 = 1;

/// An accepted object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copy {
    version: u64,
    /// Its `metadata.uid`. Generations count within one uid.
    pub uid: String,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// Its `spec`.
    pub spec: Map<String, Value>,
}

/// The copy could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file could not be read or written.
    #[error(
        "cannot {what} {path}, the copy of the cluster's configuration: {source}; without it, this agent does not start as the cluster wants while the API server is away"
    )]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The content is not usable.
    #[error(
        "{path}, the copy of the cluster's configuration, is not what hauberk writes: {reason}; it is not used, and written anew from the API server"
    )]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Copy {
    /// A copy to write.
    pub fn new(uid: String, generation: i64, spec: Map<String, Value>) -> Copy {
        Copy { version: VERSION, uid, generation, spec }
    }

    /// The object that was accepted last, if there ever was one.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn read(state: &Path) -> Result<Option<Copy>, CopyError> {
        let path = state.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CopyError::File { what: "read", path, source }),
        };
        match serde_json::from_str::<Copy>(&text) {
            Ok(copy) if copy.version == VERSION => Ok(Some(copy)),
            Ok(copy) => Err(CopyError::Content { path, reason: format!("it has version {}", copy.version) }),
            Err(error) => Err(CopyError::Content { path, reason: error.to_string() }),
        }
    }

    /// Replaces the copy on disk. At every moment the old or the new one exists, also after a power
    /// cut.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn write(&self, state: &Path) -> Result<(), CopyError> {
        let path = state.join(FILE);
        let write = || {
            std::fs::create_dir_all(state)?;
            let mut file = tempfile::NamedTempFile::new_in(state)?;
            serde_json::to_writer(&mut file, self)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            std::fs::File::open(state)?.sync_all()
        };
        write().map_err(|source| CopyError::File { what: "write", path: path.clone(), source })
    }
}
