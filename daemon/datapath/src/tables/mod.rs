//! The tables (pinned maps), by which the agent and the programs tell each other what they know.
//! One file per subject has its tables, their keys and values, how they are read and written, and
//! whether a change of them begins a new generation.
//!
//! A new subject is one file here, its layout in `hauberk_abi`, and its name in the list at
//! `subjects!`. From that list follow the sizes of all tables, the handles and the capacities.

pub mod answers;
pub mod connections;
pub mod counters;
pub mod events;
pub mod flows;
pub mod generations;
pub mod identities;
pub mod pods;
pub mod services;
pub mod settings;
pub mod tunnels;
pub mod uplinks;

use std::io;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};
use hauberk_abi::layout::map::Layout;

use crate::{DatapathError, Limits, Pins, chain};

/// A pinned map of the programs.
pub struct Table {
    /// Its name and shape.
    pub layout: Layout,
    /// What it holds, in words.
    pub holds: &'static str,
    limit: Option<Limit>,
    /// Whether the programs judge packets by what the agent has written there.
    pub(crate) governs: bool,
    /// Whether it is made anew when its size in the configuration changes: it remembers only what
    /// can be forgotten.
    pub(crate) renewed: bool,
}

/// What the size of a table follows from.
struct Limit {
    setting: &'static str,
    entries: fn(&Limits) -> u32,
}

impl Table {
    /// A table of the size that `ebpf/programs/src/maps.rs` says.
    pub(crate) const fn fixed(layout: Layout, holds: &'static str) -> Table {
        Table { layout, holds, limit: None, governs: false, renewed: false }
    }

    /// A table whose size follows from this field of the configuration.
    const fn sized(layout: Layout, holds: &'static str, setting: &'static str, entries: fn(&Limits) -> u32) -> Table {
        Table { layout, holds, limit: Some(Limit { setting, entries }), governs: false, renewed: false }
    }

    /// The programs judge packets by what the agent has written there. While it is new and empty,
    /// the node is closed.
    const fn governing(mut self) -> Table {
        self.governs = true;
        self
    }

    /// It is made anew when its size in the configuration changes.
    const fn renewed(mut self) -> Table {
        self.renewed = true;
        self
    }

    /// Its name in the programs.
    pub const fn name(&self) -> &'static str {
        self.layout.name
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
        let map = self.name();
        move |source| DatapathError::Map { map, source }
    }

    /// The outcome of a removal: it is fine if there was nothing to remove.
    fn absent_is_fine(&self, result: Result<(), MapError>) -> Result<(), DatapathError> {
        match result {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
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
            /// Second handles, by which tables can be pinned again.
            spare: Vec<(&'static str, MapData)>,
        }

        impl Maps {
            fn collect(find: &mut dyn FnMut(&Table) -> Result<Map, MapError>) -> Result<Maps, DatapathError> {
                let mut opener = Opener { find, capacities: Vec::new() };
                Ok(Maps { $($subject: $subject::Handles::open(&mut opener)?,)* capacities: opener.capacities, spare: Vec::new() })
            }
        }

        /// Every table.
        pub fn all() -> impl Iterator<Item = &'static Table> {
            [$($subject::TABLES),*].into_iter().flatten().copied()
        }
    };
}

subjects!(
    settings,
    generations,
    identities,
    tunnels,
    pods,
    uplinks,
    answers,
    counters,
    flows,
    events,
    services,
    connections
);

impl Maps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Maps, DatapathError> {
        // The agent reads and writes most tables, but not all.
        let handle = |table: &Table| data(ebpf.map(table.name())?)?.fd().as_fd().try_clone_to_owned().ok();
        let spare = all().filter_map(|table| Some((table.name(), MapData::from_fd(handle(table)?).ok()?))).collect();
        let maps = Maps::collect(&mut |table| {
            ebpf.take_map(table.name()).ok_or_else(|| MapError::InvalidName { name: table.name().into() })
        })?;
        Ok(Maps { spare, ..maps })
    }

    /// A second set of handles, for observers.
    pub(crate) fn open(pins: &Pins) -> Result<Maps, DatapathError> {
        Maps::collect(&mut |table| Map::from_map_data(MapData::from_pin(pins.map(table))?))
    }

    /// Pins the tables whose pins are gone.
    pub(crate) fn pin_again(&self, pins: &Pins) -> Result<(), DatapathError> {
        for table in all() {
            let pin = pins.map(table);
            let spare = self.spare.iter().find(|(name, _)| *name == table.name()).filter(|_| !pin.exists());
            if let Some((_, map)) = spare {
                map.pin(&pin).map_err(|error| {
                    let source = io::Error::other(chain(&error));
                    DatapathError::Pins { path: pin, source }
                })?;
            }
        }
        Ok(())
    }

    /// A table's capacity in entries (of the ring buffer: in bytes).
    pub fn capacity(&self, table: &Table) -> Option<u32> {
        self.capacities.iter().find(|(known, _)| *known == table.name()).map(|(_, capacity)| *capacity)
    }
}

/// Opens tables, and notes their capacities.
struct Opener<'a> {
    find: &'a mut dyn FnMut(&Table) -> Result<Map, MapError>,
    capacities: Vec<(&'static str, u32)>,
}

impl Opener<'_> {
    fn open<M: TryFrom<Map, Error = MapError>>(&mut self, table: &Table) -> Result<M, DatapathError> {
        let map = (self.find)(table).map_err(table.failed())?;
        if let Some(capacity) = capacity(&map) {
            self.capacities.push((table.name(), capacity));
        }
        M::try_from(map).map_err(table.failed())
    }
}

fn capacity(map: &Map) -> Option<u32> {
    data(map)?.info().ok().map(|info| info.max_entries())
}

fn data(map: &Map) -> Option<&MapData> {
    Some(match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    })
}
