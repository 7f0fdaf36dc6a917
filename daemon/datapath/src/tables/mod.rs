//! The tables (pinned maps), by which the agent and the programs tell each other what they know.
//! One file per subject has its tables, their keys and values, how they are read and written, and
//! whether a change of them begins a new generation.
//!
//! A new subject is one file here, its layout in `hauberk_abi`, and its name in the list at
//! `subjects!`. From that list follow the sizes of all tables, the handles and the capacities.

pub mod answers;
pub mod counters;
pub mod events;
pub mod flows;
pub mod generations;
pub mod identities;
pub mod pods;
pub mod settings;
pub mod tunnels;
pub mod uplinks;

use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};

use crate::{DatapathError, Limits};

/// A pinned map of the programs.
pub struct Table {
    /// The map's name, under which it is pinned.
    pub name: &'static str,
    /// What it holds, in words.
    pub holds: &'static str,
    limit: Option<Limit>,
}

/// What the size of a table follows from.
struct Limit {
    setting: &'static str,
    entries: fn(&Limits) -> u32,
}

impl Table {
    /// A table of the size that `ebpf/programs/src/maps.rs` says.
    const fn fixed(name: &'static str, holds: &'static str) -> Table {
        Table { name, holds, limit: None }
    }

    /// A table whose size follows from this field of the configuration.
    const fn sized(
        name: &'static str,
        holds: &'static str,
        setting: &'static str,
        entries: fn(&Limits) -> u32,
    ) -> Table {
        Table { name, holds, limit: Some(Limit { setting, entries }) }
    }

    /// The field of the configuration from which its size follows, if there is one.
    pub fn setting(&self) -> Option<&'static str> {
        self.limit.as_ref().map(|limit| limit.setting)
    }

    /// Its size in entries (of the ring buffer: in bytes), if that follows from the configuration.
    pub(crate) fn size(&self, limits: &Limits) -> Option<u32> {
        self.limit.as_ref().map(|limit| (limit.entries)(limits))
    }

    fn failed(&self) -> impl Fn(MapError) -> DatapathError + use<> {
        let map = self.name;
        move |source| DatapathError::Map { map, source }
    }

    /// The outcome of a removal: it is fine if there was nothing to remove.
    fn absent_is_fine(&self, result: Result<(), MapError>) -> Result<(), DatapathError> {
        match result {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(self.failed()),
        }
    }
}

/// Makes of the list of subjects what goes over all tables.
macro_rules! subjects {
    ($($subject:ident),* $(,)?) => {
        /// Handles to the pinned tables, by subject. The reconciler writes them, observers read
        /// them.
        pub struct Maps {
            $($subject: $subject::Handles,)*
            capacities: Vec<(&'static str, u32)>,
        }

        impl Maps {
            fn collect(find: &mut dyn FnMut(&'static str) -> Result<Map, MapError>) -> Result<Maps, DatapathError> {
                let mut opener = Opener { find, capacities: Vec::new() };
                Ok(Maps { $($subject: $subject::Handles::open(&mut opener)?,)* capacities: opener.capacities })
            }
        }

        /// Every table.
        pub fn all() -> impl Iterator<Item = &'static Table> {
            [$($subject::TABLES),*].into_iter().flatten().copied()
        }
    };
}

subjects!(settings, generations, identities, tunnels, pods, uplinks, answers, counters, flows, events);

impl Maps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Maps, DatapathError> {
        Maps::collect(&mut |name| ebpf.take_map(name).ok_or(MapError::InvalidName { name: name.into() }))
    }

    /// A second set of handles, for observers.
    pub(crate) fn open(pins: &Path) -> Result<Maps, DatapathError> {
        Maps::collect(&mut |name| Map::from_map_data(MapData::from_pin(pins.join(name))?))
    }

    /// A table's capacity in entries (of the ring buffer: in bytes).
    pub fn capacity(&self, table: &Table) -> Option<u32> {
        self.capacities.iter().find(|(known, _)| *known == table.name).map(|(_, capacity)| *capacity)
    }
}

/// Opens tables, and notes their capacities.
struct Opener<'a> {
    find: &'a mut dyn FnMut(&'static str) -> Result<Map, MapError>,
    capacities: Vec<(&'static str, u32)>,
}

impl Opener<'_> {
    fn open<M: TryFrom<Map, Error = MapError>>(&mut self, table: &Table) -> Result<M, DatapathError> {
        let map = (self.find)(table.name).map_err(table.failed())?;
        if let Some(capacity) = capacity(&map) {
            self.capacities.push((table.name, capacity));
        }
        M::try_from(map).map_err(table.failed())
    }
}

fn capacity(map: &Map) -> Option<u32> {
    let data = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    };
    data.info().ok().map(|info| info.max_entries())
}
