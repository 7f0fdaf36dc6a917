//! Where maps and links are pinned.

use std::io;
use std::path::{Path, PathBuf};

use hauberk_abi::LAYOUT_VERSION;

use crate::{Attachment, DatapathError, links};

/// The pin folder. The layout's version is part of the path, because a pinned map keeps its shape.
#[derive(Clone, Debug)]
pub struct Pins {
    pub(crate) root: PathBuf,
}

impl Pins {
    /// Pins below `root`.
    pub fn new(root: &Path) -> Pins {
        Pins { root: root.to_owned() }
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// The folder of the maps.
    pub(crate) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// The versioned folder, for messages.
    pub fn display(&self) -> String {
        self.version().display().to_string()
    }

    /// The attached programs, from the pins (TCX) or from the records beside them (clsact).
    ///
    /// # Errors
    /// [`DatapathError::Pins`].
    pub fn attached(&self) -> Result<Vec<Attachment>, DatapathError> {
        links::list(&self.links())
    }

    /// Notes that the interface had no clsact queueing discipline before an agent made one: it is
    /// removed with everything else.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn note_discipline(&self, interface: &str) -> Result<(), String> {
        links::note_discipline(&self.links(), interface)
    }

    pub(crate) fn create(&self) -> Result<(), DatapathError> {
        for path in [self.maps(), self.links()] {
            std::fs::create_dir_all(&path).map_err(|source| DatapathError::Pins { path, source })?;
        }
        Ok(())
    }

    /// Removes every pin of every version, which detaches the programs and frees the maps.
    ///
    /// # Errors
    /// [`DatapathError::Pins`] if something cannot be removed.
    pub fn remove(&self) -> Result<(), DatapathError> {
        match std::fs::remove_dir_all(&self.root) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::Pins { path: self.root.clone(), source })
            }
            _ => Ok(()),
        }
    }
}
