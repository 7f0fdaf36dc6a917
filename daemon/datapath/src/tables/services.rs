//! Services: where clients reach them, and the backends they are led to. What packets are judged
//! by does not depend on it.

use std::collections::BTreeSet;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray};
use hauberk_abi::address::Address;
use hauberk_abi::layout::map;
use hauberk_abi::service::{
    Backend, Choice, ClientKey, Frontend, FrontendKey, MemberKey, OutsideClientKey, Seen, Set, SlotKey, SocketKey,
    SourceKey, SourceRange, socket_counter,
};

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] =
    &[&FRONTENDS, &SETS, &BACKENDS, &MEMBERS, &SOURCES, &CHOICES, &CLIENTS, &SOCKETS, &SOCKET_COUNTERS, &MASQUERADE];

/// [`Frontend`] by [`FrontendKey`].
pub static FRONTENDS: Table =
    Table::sized(map::FRONTENDS, "addresses of services", "limits.frontends", |limits| limits.frontends);

/// [`Set`] by its number. Each frontend has one set, and several frontends may share it.
pub static SETS: Table = Table::sized(map::SETS, "sets of backends", "limits.frontends", |limits| limits.frontends);

/// [`Backend`] by [`SlotKey`].
pub static BACKENDS: Table =
    Table::sized(map::BACKENDS, "backends, by set and slot", "limits.backends", |limits| limits.backends);

/// Every [`MemberKey`] there is.
pub static MEMBERS: Table =
    Table::sized(map::MEMBERS, "backends, by set and address", "limits.backends", |limits| limits.backends);

/// Every [`SourceRange`] there is.
pub static SOURCES: Table =
    Table::sized(map::SOURCES, "clients that a load balancer admits", "limits.frontends", |limits| limits.frontends);

/// [`Choice`] by [`OutsideClientKey`], least recently used.
pub static CLIENTS: Table =
    Table::sized(map::CLIENTS, "which backend an outside client has", "limits.sockets", |limits| limits.sockets)
        .renewed();

/// The source address of packets that go on to another node for a client outside the cluster: IPv4,
/// then IPv6.
pub static MASQUERADE: Table = Table::fixed(map::MASQUERADE, "addresses for outside clients' packets");

/// [`Choice`] by [`ClientKey`], least recently used.
pub static CHOICES: Table =
    Table::sized(map::CHOICES, "which backend a client has", "limits.sockets", |limits| limits.sockets).renewed();

/// [`Seen`] by [`SocketKey`], least recently used.
pub static SOCKETS: Table =
    Table::sized(map::SOCKETS, "sockets that were led to a backend", "limits.sockets", |limits| limits.sockets)
        .renewed();

/// What the socket programs did, by [`socket_counter`].
pub static SOCKET_COUNTERS: Table = Table::fixed(map::SOCKET_COUNTERS, "connections to services, by outcome");

pub(super) struct Handles {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    sets: HashMap<MapData, u64, Set>,
    backends: HashMap<MapData, SlotKey, Backend>,
    members: HashMap<MapData, MemberKey, u32>,
    sources: LpmTrie<MapData, SourceKey, u32>,
    clients: HashMap<MapData, OutsideClientKey, Choice>,
    masquerade: Array<MapData, Address>,
    choices: HashMap<MapData, ClientKey, Choice>,
    sockets: HashMap<MapData, SocketKey, Seen>,
    counters: PerCpuArray<MapData, u64>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles {
            frontends: opener.open(&FRONTENDS)?,
            sets: opener.open(&SETS)?,
            backends: opener.open(&BACKENDS)?,
            members: opener.open(&MEMBERS)?,
            sources: opener.open(&SOURCES)?,
            clients: opener.open(&CLIENTS)?,
            masquerade: opener.open(&MASQUERADE)?,
            choices: opener.open(&CHOICES)?,
            sockets: opener.open(&SOCKETS)?,
            counters: opener.open(&SOCKET_COUNTERS)?,
        })
    }
}

impl Maps {
    /// Leads clients of `key` to a set.
    pub fn put_frontend(&mut self, key: FrontendKey, frontend: Frontend) -> Result<(), DatapathError> {
        self.services.frontends.insert(key, frontend, 0).map_err(FRONTENDS.failed())
    }

    /// Leads clients of `key` nowhere any more.
    pub fn remove_frontend(&mut self, key: FrontendKey) -> Result<(), DatapathError> {
        FRONTENDS.absent_is_fine(self.services.frontends.remove(&key))
    }

    /// Every frontend.
    pub fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, DatapathError> {
        self.services.frontends.iter().collect::<Result<_, _>>().map_err(FRONTENDS.failed())
    }

    /// Gives a set these backends. Those that it has already keep their clients; at every moment a
    /// client finds a backend that is in the old or in the new set, if there is one.
    pub fn put_set(&mut self, number: u64, wanted: &[Backend]) -> Result<(), DatapathError> {
        let count = self.count(number)?;
        let mut slots = Vec::new();
        for slot in 0..count.unwrap_or_default() {
            slots.push(self.slot(number, slot)?);
        }
        let mut missing: BTreeSet<Backend> = wanted.iter().copied().collect();
        // A slot that an earlier agent did not get to write, or wrote twice, is filled like one
        // whose backend is gone.
        let mut free = BTreeSet::new();
        let mut gone = Vec::new();
        for (slot, backend) in (0..).zip(&slots) {
            match backend {
                Some(backend) if missing.remove(backend) => {}
                Some(backend) => {
                    free.insert(slot);
                    gone.push(*backend);
                }
                None => {
                    free.insert(slot);
                }
            }
        }
        // First, so that a backend can be replaced where the tables are full.
        for backend in gone.iter().filter(|backend| !wanted.contains(backend)) {
            self.remove_member(number, *backend)?;
        }
        let mut end = count.unwrap_or_default();
        for backend in missing {
            let slot = free.pop_first().unwrap_or(end);
            self.put_member(number, backend)?;
            self.put_slot(number, slot, backend)?;
            end = end.max(slot + 1);
        }
        // The last backends move to the slots that are free.
        while let Some(last) = end.checked_sub(1).filter(|_| !free.is_empty()) {
            if !free.remove(&last)
                && let Some(slot) = free.pop_first()
                && let Some(backend) = self.slot(number, last)?
            {
                self.put_slot(number, slot, backend)?;
            }
            end = last;
        }
        if count != Some(end) {
            let set = Set { count: end, reserved: 0 };
            self.services.sets.insert(number, set, 0).map_err(SETS.failed())?;
        }
        for slot in end..count.unwrap_or_default() {
            self.remove_slot(number, slot)?;
        }
        Ok(())
    }

    /// Removes a set that no frontend leads to.
    pub fn remove_set(&mut self, number: u64) -> Result<(), DatapathError> {
        self.put_set(number, &[])?;
        SETS.absent_is_fine(self.services.sets.remove(&number))
    }

    /// Every set with its backends in ascending order. Those of sets that have no count, which an
    /// earlier agent did not finish, are among them.
    pub fn sets(&self) -> Result<Vec<(u64, Vec<Backend>)>, DatapathError> {
        let mut sets: std::collections::BTreeMap<u64, Vec<Backend>> = std::collections::BTreeMap::new();
        for entry in self.services.sets.iter() {
            sets.entry(entry.map_err(SETS.failed())?.0).or_default();
        }
        for entry in self.services.backends.iter() {
            let (key, backend) = entry.map_err(BACKENDS.failed())?;
            sets.entry(key.set).or_default().push(backend);
        }
        sets.values_mut().for_each(|backends| backends.sort_unstable());
        Ok(sets.into_iter().collect())
    }

    /// Removes what an earlier agent did not finish: slots behind the end of their set, and members
    /// that are in no slot.
    pub fn tidy_services(&mut self) -> Result<(), DatapathError> {
        let mut members = BTreeSet::new();
        let slots: Vec<_> = self.services.backends.iter().collect::<Result<_, _>>().map_err(BACKENDS.failed())?;
        let sets: std::collections::BTreeMap<u64, Set> =
            self.services.sets.iter().collect::<Result<_, _>>().map_err(SETS.failed())?;
        for (key, backend) in slots {
            if sets.get(&key.set).is_some_and(|set| key.slot < set.count) {
                members.insert(MemberKey { set: key.set, backend, reserved: 0 });
            } else {
                self.remove_slot(key.set, key.slot)?;
            }
        }
        let held: Vec<MemberKey> = self.services.members.keys().collect::<Result<_, _>>().map_err(MEMBERS.failed())?;
        for member in held.into_iter().filter(|member| !members.remove(member)) {
            self.remove_member(member.set, member.backend)?;
        }
        for member in members {
            self.put_member(member.set, member.backend)?;
        }
        Ok(())
    }

    /// Admits the clients of a range to a load balancer.
    pub fn put_source(&mut self, range: SourceRange) -> Result<(), DatapathError> {
        self.services.sources.insert(&Key::new(range.length, range.key), 1, 0).map_err(SOURCES.failed())
    }

    /// Admits them no more.
    pub fn remove_source(&mut self, range: SourceRange) -> Result<(), DatapathError> {
        SOURCES.absent_is_fine(self.services.sources.remove(&Key::new(range.length, range.key)))
    }

    /// Every range of clients that a load balancer admits.
    pub fn sources(&self) -> Result<Vec<SourceRange>, DatapathError> {
        let range = |key: Key<SourceKey>| SourceRange { length: key.prefix_len(), key: key.data() };
        self.services.sources.keys().map(|key| key.map(range)).collect::<Result<_, _>>().map_err(SOURCES.failed())
    }

    /// Sets the source addresses of packets that go on to another node for a client outside the
    /// cluster: IPv4, then IPv6; [`Address::UNSPECIFIED`] if there is none.
    pub fn put_masquerade(&mut self, addresses: [Address; 2]) -> Result<(), DatapathError> {
        for (family, address) in (0..).zip(addresses) {
            self.services.masquerade.set(family, address, 0).map_err(MASQUERADE.failed())?;
        }
        Ok(())
    }

    /// These addresses.
    pub fn masquerade(&self) -> Result<[Address; 2], DatapathError> {
        let address = |family| self.services.masquerade.get(&family, 0).map_err(MASQUERADE.failed());
        Ok([address(0)?, address(1)?])
    }

    /// Clients outside the cluster that keep a backend.
    pub fn clients(&self) -> Result<Vec<(OutsideClientKey, Choice)>, DatapathError> {
        self.services.clients.iter().collect::<Result<_, _>>().map_err(CLIENTS.failed())
    }

    /// Connections and datagrams to services so far, by [`socket_counter`].
    pub fn socket_counters(&self) -> Result<[u64; socket_counter::SLOTS as usize], DatapathError> {
        let mut counters = [0; socket_counter::SLOTS as usize];
        for (slot, counter) in (0..).zip(&mut counters) {
            let values = self.services.counters.get(&slot, 0).map_err(SOCKET_COUNTERS.failed())?;
            *counter = values.iter().sum();
        }
        Ok(counters)
    }

    /// Sockets that were led to a backend: the backend, and what their program sees. The least
    /// recently used are forgotten.
    pub fn sockets(&self) -> Result<Vec<(SocketKey, Seen)>, DatapathError> {
        self.services.sockets.iter().collect::<Result<_, _>>().map_err(SOCKETS.failed())
    }

    /// Clients that keep a backend.
    pub fn choices(&self) -> Result<Vec<(ClientKey, Choice)>, DatapathError> {
        self.services.choices.iter().collect::<Result<_, _>>().map_err(CHOICES.failed())
    }

    /// Every backend of every set, as the programs find it.
    #[cfg(test)]
    pub(crate) fn members(&self) -> Result<Vec<MemberKey>, DatapathError> {
        self.services.members.keys().collect::<Result<_, _>>().map_err(MEMBERS.failed())
    }

    /// Writes a slot and a member, and not the set's count, as if the agent died in between.
    #[cfg(test)]
    pub(crate) fn leave_half_written(&mut self, set: u64, slot: u32, backend: Backend) {
        self.put_member(set, backend).expect("the map has room");
        self.put_slot(set, slot, backend).expect("the map has room");
    }

    fn count(&self, set: u64) -> Result<Option<u32>, DatapathError> {
        match self.services.sets.get(&set, 0) {
            Ok(set) => Ok(Some(set.count)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(SETS.failed()(error)),
        }
    }

    fn slot(&self, set: u64, slot: u32) -> Result<Option<Backend>, DatapathError> {
        match self.services.backends.get(&SlotKey { set, slot, reserved: 0 }, 0) {
            Ok(backend) => Ok(Some(backend)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(BACKENDS.failed()(error)),
        }
    }

    fn put_slot(&mut self, set: u64, slot: u32, backend: Backend) -> Result<(), DatapathError> {
        self.services.backends.insert(SlotKey { set, slot, reserved: 0 }, backend, 0).map_err(BACKENDS.failed())
    }

    fn remove_slot(&mut self, set: u64, slot: u32) -> Result<(), DatapathError> {
        BACKENDS.absent_is_fine(self.services.backends.remove(&SlotKey { set, slot, reserved: 0 }))
    }

    fn put_member(&mut self, set: u64, backend: Backend) -> Result<(), DatapathError> {
        self.services.members.insert(MemberKey { set, backend, reserved: 0 }, 1, 0).map_err(MEMBERS.failed())
    }

    fn remove_member(&mut self, set: u64, backend: Backend) -> Result<(), DatapathError> {
        MEMBERS.absent_is_fine(self.services.members.remove(&MemberKey { set, backend, reserved: 0 }))
    }
}
