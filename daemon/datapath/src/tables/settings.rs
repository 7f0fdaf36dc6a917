//! The node's settings. Verdicts follow from them: a change begins a new generation.

use aya::maps::{Array, MapData};
use hauberk_abi::layout::{Settings, map};

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&SETTINGS];

/// One [`Settings`], which the agent writes before it attaches any program.
pub static SETTINGS: Table = Table::fixed(map::SETTINGS, "this node's settings");

pub(super) struct Handles {
    map: Array<MapData, Settings>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { map: opener.open(&SETTINGS)? })
    }
}

impl Maps {
    /// The node's settings as the programs see them.
    pub fn settings(&self) -> Result<Settings, DatapathError> {
        self.settings.map.get(&0, 0).map_err(SETTINGS.failed())
    }

    pub(crate) fn write_settings(&mut self, settings: &Settings) -> Result<(), DatapathError> {
        let written = self.settings.map.set(0, settings, 0).map_err(SETTINGS.failed());
        self.changed(written)
    }
}
