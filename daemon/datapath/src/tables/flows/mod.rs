//! The flows that the programs have seen. Verdicts do not follow from them: the agent removes idle
//! ones, and that begins no new generation.

mod tally;

use aya::maps::{HashMap, MapData, PerCpuArray};
use hauberk_abi::flow::{Flow, FlowKey, Tally};
use hauberk_abi::layout::map;

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&FLOWS, &TALLIES];

/// [`Flow`] by [`FlowKey`]; the kernel evicts the least recently used.
pub static FLOWS: Table = Table::sized(map::FLOWS, "what was seen of a flow", "limits.flows", |limits| limits.flows);

/// [`Tally`] by slot and CPU: packets of a flow that are not in its entry of [`FLOWS`] yet.
pub static TALLIES: Table = Table::fixed(map::TALLIES, "what is not in FLOWS yet");

pub(super) struct Handles {
    flows: HashMap<MapData, FlowKey, Flow>,
    tallies: PerCpuArray<MapData, Tally>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { flows: opener.open(&FLOWS)?, tallies: opener.open(&TALLIES)? })
    }
}

impl Maps {
    /// Every remembered flow at a time of the monotonic clock (nanoseconds), including what
    /// programs have gathered but not yet added. Entries that vanish during the read are left out.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn flows(&self, now: u64) -> Result<Vec<(FlowKey, Flow)>, DatapathError> {
        // Entries are read first: what is added in between is missed this time, but not counted
        // twice.
        let entries = self.flows.flows.iter().filter_map(Result::ok).collect();
        Ok(tally::add_up(entries, &self.tallies()?, self.idle_since(now)?))
    }

    /// The flows that have been silent for so long that the programs would start them anew.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn silent_flows(&self, now: u64) -> Result<Vec<(FlowKey, Flow)>, DatapathError> {
        let idle_since = self.idle_since(now)?;
        let mut flows = self.flows(now)?;
        flows.retain(|(_, flow)| flow.last < idle_since);
        Ok(flows)
    }

    /// A flow whose last packet came before this time is idle.
    fn idle_since(&self, now: u64) -> Result<u64, DatapathError> {
        Ok(now.saturating_sub(u64::from(self.settings()?.flow_idle_ms) * 1_000_000))
    }

    /// What programs have gathered and not added to the flows yet.
    fn tallies(&self) -> Result<Vec<Tally>, DatapathError> {
        let read = |slot| self.flows.tallies.get(&slot, 0).map_err(TALLIES.failed());
        let mut tallies = Vec::new();
        for slot in 0..self.flows.tallies.len() {
            let seen = read(slot)?;
            if seen.iter().all(|tally| tally.flow.packets == 0) {
                continue;
            }
            // Another flow may have taken the slot during the read: the values belong to this flow
            // only if it still has the slot.
            let again = read(slot)?;
            let same = seen.iter().zip(again.iter()).filter(|(seen, again)| seen.key == again.key);
            tallies.extend(same.map(|(seen, _)| *seen).filter(|tally| tally.flow.packets != 0));
        }
        Ok(tallies)
    }

    /// The entries of the flows' map alone.
    #[cfg(test)]
    pub(crate) fn flow_entries(&self) -> Vec<(FlowKey, Flow)> {
        self.flows.flows.iter().filter_map(Result::ok).collect()
    }

    /// Removes a flow. What is gathered of it and idle
    /// ([`flow_idle_ms`](hauberk_abi::layout::Settings::flow_idle_ms)) does not count from then on.
    pub fn remove_flow(&mut self, key: &FlowKey) -> Result<(), DatapathError> {
        FLOWS.absent_is_fine(self.flows.flows.remove(key))
    }
}
