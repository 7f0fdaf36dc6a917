//! The generations, by which the programs know that what they remember of a flow is void.

use aya::maps::{Array, MapData};
use hauberk_abi::layout::{generation, map};

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&GENERATIONS];

/// Numbers by [`generation`]: the agent's and the programs' own.
pub static GENERATIONS: Table = Table::fixed(map::GENERATIONS, "what voids remembered verdicts");

pub(super) struct Handles {
    map: Array<MapData, u64>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { map: opener.open(&GENERATIONS)? })
    }
}

impl Maps {
    /// Voids the verdicts that programs remember for flows. This is the last step of every change
    /// that verdicts depend on, even of one that failed halfway.
    ///
    /// The generation is a reading of the monotonic clock: it never repeats, and nothing has to
    /// remember the last one.
    pub(super) fn changed(&mut self, change: Result<(), DatapathError>) -> Result<(), DatapathError> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
        let now = now.map_or(0, |now| now.as_nanos() as u64);
        self.generations.map.set(generation::AGENT, now, 0).map_err(GENERATIONS.failed())?;
        change
    }
}
