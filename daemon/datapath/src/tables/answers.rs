//! The way of answers: what the programs note of a packet for its answers. The agent only removes
//! entries of flows that have been silent for so long that no verdict is remembered: that begins no
//! new generation.

use aya::maps::{HashMap, MapData};
use hauberk_abi::layout::{Answer, AnswerKey, map};

use super::{Maps, Opener, Table};
use crate::DatapathError;

/// How long an answer must stay encrypted after the last question, nanoseconds: a connection may be
/// silent for long.
const FORGET: u64 = 24 * 3_600 * 1_000_000_000;
/// The same when the map is more than half full.
const FORGET_WHEN_CROWDED: u64 = 600 * 1_000_000_000;

pub(super) const TABLES: &[&Table] = &[&SEALED, &TRANSLATED];

/// [`Answer`] by [`AnswerKey`]: answers that must leave encrypted, because the questions came so.
pub static SEALED: Table = Table::fixed(map::SEALED, "answers to what came sealed");

/// Nanoseconds by [`hauberk_abi::layout::Pair`]: pairs of addresses that netfilter translated, so
/// that their packets must pass the stack. The agent neither reads nor writes it.
pub static TRANSLATED: Table = Table::fixed(map::TRANSLATED, "pairs whose packets netfilter translated");

pub(super) struct Handles {
    sealed: HashMap<MapData, AnswerKey, Answer>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { sealed: opener.open(&SEALED)? })
    }
}

impl Maps {
    /// Answers that must leave encrypted.
    pub fn sealed(&self) -> Result<Vec<(AnswerKey, Answer)>, DatapathError> {
        self.answers.sealed.iter().collect::<Result<_, _>>().map_err(SEALED.failed())
    }

    /// Removes answers whose questions ended long ago: after a day, or after ten minutes if the map
    /// is more than half full. `now` is a time of the monotonic clock, nanoseconds.
    pub fn forget_answers(&mut self, now: u64) -> Result<(), DatapathError> {
        let sealed = self.sealed()?;
        let crowded = sealed.len() * 2 > self.capacity(&SEALED).unwrap_or(0) as usize;
        let limit = if crowded { FORGET_WHEN_CROWDED } else { FORGET };
        for (key, _) in sealed.iter().filter(|(_, answer)| now.saturating_sub(answer.last) > limit) {
            SEALED.absent_is_fine(self.answers.sealed.remove(key))?;
        }
        Ok(())
    }
}
