//! Who has an address. Verdicts follow from it: each change begins a new generation.

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError};
use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::Identity;
use hauberk_abi::layout::map;

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&ENDPOINTS, &RANGES];

/// [`Identity`] by [`Address`]: pods, and nodes' own addresses.
pub static ENDPOINTS: Table =
    Table::sized(map::ENDPOINTS, "who has an address", "limits.endpoints", |limits| limits.endpoints).governing();

/// [`Identity`] by [`Prefix`]; the longest counts, and only for addresses that are no endpoint's.
pub static RANGES: Table =
    Table::sized(map::RANGES, "who has an address that is no endpoint", "limits.ranges", |limits| limits.ranges)
        .governing();

pub(super) struct Handles {
    endpoints: HashMap<MapData, Address, Identity>,
    ranges: LpmTrie<MapData, Address, Identity>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { endpoints: opener.open(&ENDPOINTS)?, ranges: opener.open(&RANGES)? })
    }
}

impl Maps {
    /// Stores the identity of `address`.
    pub fn put_endpoint(&mut self, address: Address, identity: Identity) -> Result<(), DatapathError> {
        let written = self.identities.endpoints.insert(address, identity, 0).map_err(ENDPOINTS.failed());
        self.changed(written)
    }

    /// The same without telling the programs, as if the agent died in between.
    #[cfg(test)]
    pub(crate) fn put_endpoint_and_die(&mut self, address: Address, identity: Identity) {
        self.identities.endpoints.insert(address, identity, 0).expect("the map has room");
    }

    /// Removes the identity of `address`: from now on its range decides.
    pub fn remove_endpoint(&mut self, address: Address) -> Result<(), DatapathError> {
        let removed = ENDPOINTS.absent_is_fine(self.identities.endpoints.remove(&address));
        self.changed(removed)
    }

    /// The identity of `address`, if it is known.
    pub fn endpoint(&self, address: Address) -> Result<Option<Identity>, DatapathError> {
        match self.identities.endpoints.get(&address, 0) {
            Ok(identity) => Ok(Some(identity)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(ENDPOINTS.failed()(error)),
        }
    }

    /// Every known address.
    pub fn endpoints(&self) -> Result<Vec<(Address, Identity)>, DatapathError> {
        self.identities.endpoints.iter().collect::<Result<_, _>>().map_err(ENDPOINTS.failed())
    }

    /// Stores the identity of the addresses in `range` that are no endpoint's.
    pub fn put_range(&mut self, range: Prefix, identity: Identity) -> Result<(), DatapathError> {
        let written =
            self.identities.ranges.insert(&Key::new(range.length, range.address), identity, 0).map_err(RANGES.failed());
        self.changed(written)
    }

    /// Removes a range.
    pub fn remove_range(&mut self, range: Prefix) -> Result<(), DatapathError> {
        let removed = RANGES.absent_is_fine(self.identities.ranges.remove(&Key::new(range.length, range.address)));
        self.changed(removed)
    }

    /// Every known range.
    pub fn ranges(&self) -> Result<Vec<(Prefix, Identity)>, DatapathError> {
        self.identities
            .ranges
            .iter()
            .map(|entry| {
                entry.map(|(key, identity)| (Prefix { length: key.prefix_len(), address: key.data() }, identity))
            })
            .collect::<Result<_, _>>()
            .map_err(RANGES.failed())
    }
}
