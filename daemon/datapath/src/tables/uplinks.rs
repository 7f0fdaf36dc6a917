//! The guarded uplinks. Verdicts follow from them: a change begins a new generation.

use std::collections::BTreeSet;

use aya::maps::{HashMap, MapData};
use hauberk_abi::layout::map;

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&UPLINKS];

/// 1 by index of the interface.
pub static UPLINKS: Table = Table::fixed(map::UPLINKS, "guarded uplinks").governing();

pub(super) struct Handles {
    map: HashMap<MapData, u32, u32>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { map: opener.open(&UPLINKS)? })
    }
}

impl Maps {
    /// Sets the interfaces by which packets may leave without passing the stack. All of them must
    /// be guarded.
    pub fn set_uplinks(&mut self, uplinks: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let before: BTreeSet<u32> = self.uplinks.map.keys().collect::<Result<_, _>>().map_err(UPLINKS.failed())?;
        if before == *uplinks {
            return Ok(());
        }
        let gone = before.difference(uplinks).map(|index| UPLINKS.absent_is_fine(self.uplinks.map.remove(index)));
        let gone = gone.collect::<Result<Vec<()>, _>>();
        let new =
            uplinks.difference(&before).map(|index| self.uplinks.map.insert(*index, 1, 0).map_err(UPLINKS.failed()));
        let new = new.collect::<Result<Vec<()>, _>>();
        self.changed(gone.and(new).map(|_| ()))
    }
}
