//! What the programs count, per CPU. The agent only reads it, as sums over all CPUs.

use aya::maps::{MapData, PerCpuArray};
use hauberk_abi::layout::{COUNTER_SLOTS, Counter, Hook, LOST_EVENTS, counter_slot, map};
use hauberk_abi::reason::{DropReason, Encryption};

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&DROPS, &COUNTERS];

/// Packets by [`DropReason`].
pub static DROPS: Table = Table::fixed(map::DROPS, "dropped packets, by reason");

/// [`Counter`] by [`counter_slot`], and [`LOST_EVENTS`].
pub static COUNTERS: Table = Table::fixed(map::COUNTERS, "packets, by hook and encryption");

/// Packets and bytes at one hook with one encryption value, summed over all CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// The hook.
    pub hook: Hook,
    /// What happened to them.
    pub encryption: Encryption,
    /// How many.
    pub counter: Counter,
}

pub(super) struct Handles {
    drops: PerCpuArray<MapData, u64>,
    counters: PerCpuArray<MapData, Counter>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { drops: opener.open(&DROPS)?, counters: opener.open(&COUNTERS)? })
    }
}

impl Maps {
    /// Dropped packets by reason, summed over all CPUs.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>, DatapathError> {
        DropReason::ALL
            .iter()
            .map(|reason| {
                let values = self.counters.drops.get(&(*reason as u32), 0).map_err(DROPS.failed())?;
                Ok((*reason, values.iter().sum()))
            })
            .collect()
    }

    /// Packets by hook and encryption value.
    pub fn counters(&self) -> Result<Vec<Counted>, DatapathError> {
        let mut counted = Vec::new();
        for hook in Hook::ALL {
            for encryption in Encryption::ALL {
                let counter = self.counter(counter_slot(hook, *encryption))?;
                counted.push(Counted { hook, encryption: *encryption, counter });
            }
        }
        Ok(counted)
    }

    /// Flow events that were lost because the ring buffer was full.
    pub fn lost_events(&self) -> Result<u64, DatapathError> {
        Ok(self.counter(LOST_EVENTS)?.packets)
    }

    fn counter(&self, slot: u32) -> Result<Counter, DatapathError> {
        debug_assert!(slot < COUNTER_SLOTS);
        let values = self.counters.counters.get(&slot, 0).map_err(COUNTERS.failed())?;
        Ok(values.iter().fold(Counter::default(), |sum, counter| Counter {
            packets: sum.packets + counter.packets,
            bytes: sum.bytes + counter.bytes,
        }))
    }
}
