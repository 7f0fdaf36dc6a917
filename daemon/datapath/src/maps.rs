//! The maps by name and type: the one place that knows which map holds what. The reconciler writes
//! them, observers read them.

use std::collections::BTreeSet;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf, lpm_trie::Key};
use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::flow::{Flow, FlowKey, Tally};
use hauberk_abi::identity::Identity;
use hauberk_abi::layout::Hook;
use hauberk_abi::layout::{
    self, Answer, AnswerKey, Attachment, COUNTER_SLOTS, Counter, Interface, LOST_EVENTS, Settings, counter_slot,
    generation, map,
};
use hauberk_abi::reason::{DropReason, Encryption};

use crate::events::Events;
use crate::{DatapathError, tally};

/// How long an answer must stay encrypted after the last question, nanoseconds: a connection may be
/// silent for long.
const FORGET: u64 = 24 * 3_600 * 1_000_000_000;
/// The same when the map is more than half full.
const FORGET_WHEN_CROWDED: u64 = 600 * 1_000_000_000;

/// Handles to the pinned maps.
pub struct Maps {
    settings: Array<MapData, Settings>,
    endpoints: HashMap<MapData, Address, Identity>,
    ranges: LpmTrie<MapData, Address, Identity>,
    attachments: HashMap<MapData, Address, Attachment>,
    interfaces: HashMap<MapData, u32, Interface>,
    uplinks: HashMap<MapData, u32, u32>,
    generations: Array<MapData, u64>,
    peers: HashMap<MapData, u32, layout::Peer>,
    sealed: HashMap<MapData, AnswerKey, Answer>,
    drops: PerCpuArray<MapData, u64>,
    counters: PerCpuArray<MapData, Counter>,
    flows: HashMap<MapData, FlowKey, Flow>,
    tallies: PerCpuArray<MapData, Tally>,
    events: Option<RingBuf<MapData>>,
    capacities: Vec<(&'static str, u32)>,
}

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

impl Maps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Maps, DatapathError> {
        Maps::collect(|name| ebpf.take_map(name).ok_or(MapError::InvalidName { name: name.into() }))
    }

    /// A second set of handles, for observers.
    pub(crate) fn open(pins: &Path) -> Result<Maps, DatapathError> {
        Maps::collect(|name| Map::from_map_data(MapData::from_pin(pins.join(name))?))
    }

    fn collect(mut find: impl FnMut(&'static str) -> Result<Map, MapError>) -> Result<Maps, DatapathError> {
        let mut capacities = Vec::new();
        let mut find = |name| -> Result<Map, DatapathError> {
            let map = find(name).map_err(failed(name))?;
            if let Some(capacity) = capacity(&map) {
                capacities.push((name, capacity));
            }
            Ok(map)
        };
        let settings = typed(find(map::SETTINGS)?, map::SETTINGS)?;
        let endpoints = typed(find(map::ENDPOINTS)?, map::ENDPOINTS)?;
        let ranges = typed(find(map::RANGES)?, map::RANGES)?;
        let attachments = typed(find(map::ATTACHMENTS)?, map::ATTACHMENTS)?;
        let interfaces = typed(find(map::INTERFACES)?, map::INTERFACES)?;
        let uplinks = typed(find(map::UPLINKS)?, map::UPLINKS)?;
        let generations = typed(find(map::GENERATIONS)?, map::GENERATIONS)?;
        let peers = typed(find(map::PEERS)?, map::PEERS)?;
        let sealed = typed(find(map::SEALED)?, map::SEALED)?;
        let drops = typed(find(map::DROPS)?, map::DROPS)?;
        let counters = typed(find(map::COUNTERS)?, map::COUNTERS)?;
        let flows = typed(find(map::FLOWS)?, map::FLOWS)?;
        let tallies = typed(find(map::TALLIES)?, map::TALLIES)?;
        let events = Some(typed(find(map::EVENTS)?, map::EVENTS)?);
        Ok(Maps {
            settings,
            endpoints,
            ranges,
            attachments,
            interfaces,
            uplinks,
            generations,
            peers,
            sealed,
            drops,
            counters,
            flows,
            tallies,
            events,
            capacities,
        })
    }

    /// A map's capacity in entries (of the ring buffer: in bytes).
    pub fn capacity(&self, name: &str) -> Option<u32> {
        self.capacities.iter().find(|(known, _)| *known == name).map(|(_, capacity)| *capacity)
    }

    /// The ring buffer of flow events. Only the first call returns it.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take().map(Events::new)
    }

    /// The node's settings as the programs see them.
    pub fn settings(&self) -> Result<Settings, DatapathError> {
        self.settings.get(&0, 0).map_err(failed(map::SETTINGS))
    }

    pub(crate) fn write_settings(&mut self, settings: &Settings) -> Result<(), DatapathError> {
        let written = self.settings.set(0, settings, 0).map_err(failed(map::SETTINGS));
        self.changed(written)
    }

    /// Voids the verdicts that programs remember for flows. This is the last step of every change
    /// that verdicts depend on, even of one that failed halfway.
    ///
    /// The generation is a reading of the monotonic clock: it never repeats, and nothing has to
    /// remember the last one.
    fn changed(&mut self, change: Result<(), DatapathError>) -> Result<(), DatapathError> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
        let now = now.map_or(0, |now| now.as_nanos() as u64);
        self.generations.set(generation::AGENT, now, 0).map_err(failed(map::GENERATIONS))?;
        change
    }

    /// Stores the identity of `address`.
    pub fn put_endpoint(&mut self, address: Address, identity: Identity) -> Result<(), DatapathError> {
        let written = self.endpoints.insert(address, identity, 0).map_err(failed(map::ENDPOINTS));
        self.changed(written)
    }

    /// The same without telling the programs, as if the agent died in between.
    #[cfg(test)]
    pub(crate) fn put_endpoint_and_die(&mut self, address: Address, identity: Identity) {
        self.endpoints.insert(address, identity, 0).expect("the map has room");
    }

    /// Removes the identity of `address`: from now on its range decides.
    pub fn remove_endpoint(&mut self, address: Address) -> Result<(), DatapathError> {
        let removed = absent_is_fine(self.endpoints.remove(&address), map::ENDPOINTS);
        self.changed(removed)
    }

    /// The identity of `address`, if it is known.
    pub fn endpoint(&self, address: Address) -> Result<Option<Identity>, DatapathError> {
        present(self.endpoints.get(&address, 0)).map_err(failed(map::ENDPOINTS))
    }

    /// Every known address.
    pub fn endpoints(&self) -> Result<Vec<(Address, Identity)>, DatapathError> {
        self.endpoints.iter().collect::<Result<_, _>>().map_err(failed(map::ENDPOINTS))
    }

    /// Stores the identity of the addresses in `range` that are no endpoint's.
    pub fn put_range(&mut self, range: Prefix, identity: Identity) -> Result<(), DatapathError> {
        let written =
            self.ranges.insert(&Key::new(range.length, range.address), identity, 0).map_err(failed(map::RANGES));
        self.changed(written)
    }

    /// Removes a range.
    pub fn remove_range(&mut self, range: Prefix) -> Result<(), DatapathError> {
        let removed = absent_is_fine(self.ranges.remove(&Key::new(range.length, range.address)), map::RANGES);
        self.changed(removed)
    }

    /// Every known range.
    pub fn ranges(&self) -> Result<Vec<(Prefix, Identity)>, DatapathError> {
        self.ranges
            .iter()
            .map(|entry| {
                entry.map(|(key, identity)| (Prefix { length: key.prefix_len(), address: key.data() }, identity))
            })
            .collect::<Result<_, _>>()
            .map_err(failed(map::RANGES))
    }

    /// Stores the interface of a local pod's address.
    pub fn put_attachment(&mut self, address: Address, attachment: Attachment) -> Result<(), DatapathError> {
        let written = self.attachments.insert(address, attachment, 0).map_err(failed(map::ATTACHMENTS));
        self.changed(written)
    }

    /// Removes it, unless another interface has the address by now.
    pub fn remove_attachment(&mut self, address: Address, interface: u32) -> Result<(), DatapathError> {
        if matches!(self.attachments.get(&address, 0), Ok(attachment) if attachment.interface != interface) {
            return Ok(());
        }
        let removed = absent_is_fine(self.attachments.remove(&address), map::ATTACHMENTS);
        self.changed(removed)
    }

    /// Every local pod's address.
    pub fn attachments(&self) -> Result<Vec<(Address, Attachment)>, DatapathError> {
        self.attachments.iter().collect::<Result<_, _>>().map_err(failed(map::ATTACHMENTS))
    }

    /// Stores the protection of the pod behind an interface.
    pub fn put_interface(&mut self, index: u32, interface: Interface) -> Result<(), DatapathError> {
        let written = self.interfaces.insert(index, interface, 0).map_err(failed(map::INTERFACES));
        self.changed(written)
    }

    /// Removes an interface.
    pub fn remove_interface(&mut self, index: u32) -> Result<(), DatapathError> {
        let removed = absent_is_fine(self.interfaces.remove(&index), map::INTERFACES);
        self.changed(removed)
    }

    /// Every local pod's interface.
    pub fn interfaces(&self) -> Result<Vec<(u32, Interface)>, DatapathError> {
        self.interfaces.iter().collect::<Result<_, _>>().map_err(failed(map::INTERFACES))
    }

    /// Sets the interfaces by which packets may leave without passing the stack. All of them must
    /// be guarded.
    pub fn set_uplinks(&mut self, uplinks: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let before: BTreeSet<u32> = self.uplinks.keys().collect::<Result<_, _>>().map_err(failed(map::UPLINKS))?;
        if before == *uplinks {
            return Ok(());
        }
        let gone = before.difference(uplinks).map(|index| absent_is_fine(self.uplinks.remove(index), map::UPLINKS));
        let gone = gone.collect::<Result<Vec<()>, _>>();
        let new =
            uplinks.difference(&before).map(|index| self.uplinks.insert(*index, 1, 0).map_err(failed(map::UPLINKS)));
        let new = new.collect::<Result<Vec<()>, _>>();
        self.changed(gone.and(new).map(|_| ()))
    }

    /// Stores what the programs may expect of a node's tunnel.
    pub fn put_peer(&mut self, node: u32, peer: layout::Peer) -> Result<(), DatapathError> {
        let written = self.peers.insert(node, peer, 0).map_err(failed(map::PEERS));
        self.changed(written)
    }

    /// Removes a node's tunnel.
    pub fn remove_peer(&mut self, node: u32) -> Result<(), DatapathError> {
        let removed = absent_is_fine(self.peers.remove(&node), map::PEERS);
        self.changed(removed)
    }

    /// Every node's tunnel.
    pub fn peers(&self) -> Result<Vec<(u32, layout::Peer)>, DatapathError> {
        self.peers.iter().collect::<Result<_, _>>().map_err(failed(map::PEERS))
    }

    /// Answers that must leave encrypted.
    pub fn sealed(&self) -> Result<Vec<(AnswerKey, Answer)>, DatapathError> {
        self.sealed.iter().collect::<Result<_, _>>().map_err(failed(map::SEALED))
    }

    /// Removes answers whose questions ended long ago: after a day, or after ten minutes if the map
    /// is more than half full. `now` is a time of the monotonic clock, nanoseconds.
    pub fn forget_answers(&mut self, now: u64) -> Result<(), DatapathError> {
        let sealed = self.sealed()?;
        let crowded = sealed.len() * 2 > self.capacity(map::SEALED).unwrap_or(0) as usize;
        let limit = if crowded { FORGET_WHEN_CROWDED } else { FORGET };
        for (key, _) in sealed.iter().filter(|(_, answer)| now.saturating_sub(answer.last) > limit) {
            absent_is_fine(self.sealed.remove(key), map::SEALED)?;
        }
        Ok(())
    }

    /// Dropped packets by reason, summed over all CPUs.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>, DatapathError> {
        DropReason::ALL
            .iter()
            .map(|reason| {
                let values = self.drops.get(&(*reason as u32), 0).map_err(failed(map::DROPS))?;
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
        let values = self.counters.get(&slot, 0).map_err(failed(map::COUNTERS))?;
        Ok(values.iter().fold(Counter::default(), |sum, counter| Counter {
            packets: sum.packets + counter.packets,
            bytes: sum.bytes + counter.bytes,
        }))
    }

    /// Every remembered flow at a time of the monotonic clock (nanoseconds), including what
    /// programs have gathered but not yet added. Entries that vanish during the read are left out.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn flows(&self, now: u64) -> Result<Vec<(FlowKey, Flow)>, DatapathError> {
        // Entries are read first: what is added in between is missed this time, but not counted
        // twice.
        let entries = self.flows.iter().filter_map(Result::ok).collect();
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
        let read = |slot| self.tallies.get(&slot, 0).map_err(failed(map::TALLIES));
        let mut tallies = Vec::new();
        for slot in 0..self.tallies.len() {
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
        self.flows.iter().filter_map(Result::ok).collect()
    }

    /// Removes a flow. What is gathered of it and [idle](Settings::flow_idle_ms) does not count
    /// from then on.
    pub fn remove_flow(&mut self, key: &FlowKey) -> Result<(), DatapathError> {
        absent_is_fine(self.flows.remove(key), map::FLOWS)
    }
}

fn typed<M: TryFrom<Map, Error = MapError>>(map: Map, name: &'static str) -> Result<M, DatapathError> {
    M::try_from(map).map_err(failed(name))
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

fn failed(map: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { map, source }
}

fn present<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn absent_is_fine(result: Result<(), MapError>, map: &'static str) -> Result<(), DatapathError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed(map)),
    }
}
