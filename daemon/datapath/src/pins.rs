//! Where maps and links are pinned.

use std::io;
use std::path::{Path, PathBuf};

use crate::tables::{self, Table};
use crate::{Attachment, DatapathError, links};

/// The part of the path that says how this module arranges the pins. Maps have versions of their
/// own.
const ARRANGEMENT: &str = "v1";

/// The pin folder.
#[derive(Clone, Debug)]
pub struct Pins {
    pub(crate) root: PathBuf,
}

impl Pins {
    /// Pins below `root`.
    pub fn new(root: &Path) -> Pins {
        Pins { root: root.to_owned() }
    }

    fn folder(&self) -> PathBuf {
        self.root.join(ARRANGEMENT)
    }

    /// The folder of the maps.
    pub(crate) fn maps(&self) -> PathBuf {
        self.folder().join("maps")
    }

    /// A table's pin. Its version is part of the name, because a pinned map keeps its shape.
    pub(crate) fn map(&self, table: &Table) -> PathBuf {
        let name = table.name();
        self.maps().join(match table.layout.version {
            1 => name.to_owned(),
            version => format!("{name}_v{version}"),
        })
    }

    /// Removes the pins of maps that no program of this agent uses: what an agent with another
    /// version of them has left. Call it when the programs of that agent run no more.
    ///
    /// # Errors
    /// [`DatapathError::Pins`] for the first that cannot be removed.
    pub fn forget_other_maps(&self) -> Result<(), DatapathError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DatapathError::Pins { path, source }
        };
        let own: Vec<PathBuf> = tables::all().map(|table| self.map(table)).collect();
        for entry in std::fs::read_dir(self.maps()).map_err(failed(&self.maps()))? {
            let path = entry.map_err(failed(&self.maps()))?.path();
            if !own.contains(&path) {
                std::fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.folder().join("links")
    }

    /// The folder of the socket programs' links.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.folder().join("sockets")
    }

    /// The folder, for messages.
    pub fn display(&self) -> String {
        self.folder().display().to_string()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::flows::FLOWS;

    #[test]
    fn a_versions_pin_is_not_taken_for_anothers() {
        let pins = Pins::new(Path::new("/pins"));
        assert_eq!(pins.map(&FLOWS), Path::new("/pins/v1/maps/FLOWS"));
        let mut next = FLOWS.layout;
        next.version += 1;
        assert_eq!(pins.map(&Table::fixed(next, "flows")), Path::new("/pins/v1/maps/FLOWS_v2"));
    }
}
