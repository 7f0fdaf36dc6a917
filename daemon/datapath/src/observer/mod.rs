//! The observer's program in the kernel: loaded, attached behind the guard, and its maps read. It
//! shares no code with the guard's programs and tables. Of the guard's loader it uses only what
//! tries a load again, and what tells that a queueing discipline is there already.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use aya::maps::{HashMap, MapData, PerCpuHashMap};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use hauberk_host::{Filter, Netlink};

use crate::links::is_there_already;
use crate::loader::load_program;
use crate::{Pins, chain, query, tables};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/observer.bpf.o"));

/// The programs: for devices with Ethernet headers, and for those without.
const PROGRAMS: [&str; 2] = ["observe", "observe_ip"];
/// On the clsact queueing discipline: behind the guard and whoever else asked for a place.
const CLSACT_PRIORITY: u16 = 0xfff0;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, query::OBSERVER_MINOR);

/// The observer could not be loaded or attached, or its maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserverError {
    /// Loading.
    #[error("cannot load the leak detector: {0}; does `hauberkd check` say that this kernel lacks something?")]
    Load(String),
    /// Attaching.
    #[error("cannot attach the leak detector to {device}: {reason}; is the device still there?")]
    Attach {
        /// The device.
        device: String,
        /// What the kernel said.
        reason: String,
    },
    /// Reading.
    #[error("cannot read the leak detector's map {map}: {reason}")]
    Read {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

/// A device that packets may leave by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Whether its packets have Ethernet headers.
    pub ethernet: bool,
}

/// A packet in the clear that should not have been, and others like it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Leak {
    /// Index of the device it left by.
    pub device: u32,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Source port, 0 where there is none.
    pub source_port: u16,
    /// Destination port, 0 where there is none.
    pub destination_port: u16,
    /// IP protocol.
    pub protocol: u8,
}

/// How often, since the observer was loaded, and when last by the monotonic clock, nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Noted {
    /// Packets that were looked at.
    pub packets: u64,
    /// When.
    pub last: u64,
}

/// How the observer has lost its place on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// The guard has come behind it, so that what it saw lately was not what left.
    Overtaken,
    /// It does not run there: another program detached it.
    Detached,
}

/// The loaded observer.
pub struct Observer {
    ebpf: Ebpf,
    leaked: PerCpuHashMap<MapData, u32, u64>,
    leaks: HashMap<MapData, [u32; 11], [u64; 2]>,
    clsact: bool,
    pins: Pins,
    attached: BTreeMap<u32, Attached>,
}

struct Attached {
    device: Device,
    _link: SchedClassifierLink,
}

impl Observer {
    /// Loads the programs against the guard's pinned maps, which must be there. Attaches nothing.
    ///
    /// # Errors
    /// [`ObserverError::Load`].
    pub fn load(pins: &Pins, clsact: bool) -> Result<Observer, ObserverError> {
        let failed = |error: &dyn std::error::Error| ObserverError::Load(chain(error));
        let mut loader = EbpfLoader::new();
        for table in tables::all() {
            loader.map_pin_path(table.name(), pins.map(table));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| failed(&error))?;
        for name in PROGRAMS {
            let program = program(&mut ebpf, name).map_err(ObserverError::Load)?;
            load_program(program).map_err(|error| failed(&error))?;
            query::note_observer(program.info().map_err(|error| failed(&error))?.id());
        }
        let mut take = |name| ebpf.take_map(name).ok_or_else(|| ObserverError::Load(format!("it has no map {name}")));
        let leaked = take("LEAKED")?.try_into().map_err(|error: aya::maps::MapError| failed(&error))?;
        let leaks = take("LEAKS")?.try_into().map_err(|error: aya::maps::MapError| failed(&error))?;
        Ok(Observer { ebpf, leaked, leaks, clsact, pins: pins.clone(), attached: BTreeMap::new() })
    }

    /// Attaches the observer to these devices and no others. Returns the failures.
    pub fn follow(&mut self, devices: &[Device]) -> Vec<ObserverError> {
        self.attached.retain(|_, attached| devices.contains(&attached.device));
        let mut failed = Vec::new();
        for device in devices {
            if self.attached.contains_key(&device.index) {
                continue;
            }
            match self.attach(device) {
                Ok(link) => drop(self.attached.insert(device.index, Attached { device: device.clone(), _link: link })),
                Err(reason) => failed.push(ObserverError::Attach { device: device.name.clone(), reason }),
            }
        }
        failed
    }

    /// Asks the kernel for the program on each device it was attached to, and lets go of the
    /// devices where it has lost its place. [`Observer::follow`] attaches it there again, behind
    /// the guard, if the devices are there still.
    pub async fn check(&mut self, netlink: &Netlink) -> BTreeMap<u32, Lost> {
        let mut lost = BTreeMap::new();
        for (index, Attached { device, .. }) in &self.attached {
            let found = if self.clsact { clsact_place(*index, netlink).await } else { tcx_place(device) };
            lost.extend(found.map(|found| (*index, found)));
        }
        self.attached.retain(|index, _| !lost.contains_key(index));
        lost
    }

    /// Leaked packets by interface index.
    ///
    /// # Errors
    /// [`ObserverError::Read`].
    pub fn leaked(&self) -> Result<Vec<(u32, u64)>, ObserverError> {
        self.leaked
            .iter()
            .map(|entry| entry.map(|(device, counts)| (device, counts.iter().sum())))
            .collect::<Result<_, _>>()
            .map_err(|error| ObserverError::Read { map: "LEAKED", reason: chain(&error) })
    }

    /// The latest leaks. Entries that vanish while they are read are left out.
    pub fn leaks(&self) -> Vec<(Leak, Noted)> {
        self.leaks
            .iter()
            .filter_map(Result::ok)
            .map(|(key, [packets, last])| (leak(&key), Noted { packets, last }))
            .collect()
    }

    /// What a program answers to a packet.
    #[cfg(test)]
    pub fn test_run(&mut self, name: &str, options: aya::programs::TestRunOptions<'_>) -> u32 {
        use aya::programs::TestRun as _;
        program(&mut self.ebpf, name).unwrap().test_run(options).unwrap().return_value
    }

    fn attach(&mut self, device: &Device) -> Result<SchedClassifierLink, String> {
        let program = program(&mut self.ebpf, if device.ethernet { PROGRAMS[0] } else { PROGRAMS[1] })?;
        let id = if self.clsact {
            match qdisc_add_clsact(&device.name) {
                // It goes with hauberk: no agent is there any more then that knew of it.
                Ok(()) => self.pins.note_discipline(&device.name)?,
                Err(error) if is_there_already(&error) => {}
                Err(error) => return Err(chain(&error)),
            }
            // An agent that was killed left its filter; dropping a handle removes it.
            drop(SchedClassifierLink::attached(
                &device.name,
                TcAttachType::Egress,
                CLSACT_PRIORITY,
                CLSACT_HANDLE,
                None,
            ));
            let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
            program.attach_with_options(&device.name, TcAttachType::Egress, TcAttachOptions::Netlink(options))
        } else {
            let options = TcAttachOptions::TcxOrder(LinkOrder::last());
            program.attach_with_options(&device.name, TcAttachType::Egress, options)
        }
        .map_err(|error| chain(&error))?;
        program.take_link(id).map_err(|error| chain(&error))
    }
}

fn tcx_place(device: &Device) -> Option<Lost> {
    let programs = query::tcx_programs(&device.name, TcAttachType::Egress).unwrap_or_default();
    match programs.iter().position(|id| query::is_observer(*id)) {
        Some(own) => (own + 1 < programs.len()).then_some(Lost::Overtaken),
        None => Some(Lost::Detached),
    }
}

/// Filters stand in the order of their preferences: none of the guard's comes behind this one.
async fn clsact_place(index: u32, netlink: &Netlink) -> Option<Lost> {
    let filters = netlink.filters(index, false).await.unwrap_or_default();
    let is_own = |filter: &Filter| {
        (filter.preference, filter.handle) == (CLSACT_PRIORITY, query::OBSERVER_MINOR)
            && filter.program.is_some_and(query::is_observer)
    };
    (!filters.iter().any(is_own)).then_some(Lost::Detached)
}

/// Field by field, in the layout's order.
fn leak(key: &[u32; 11]) -> Leak {
    let [a, b, c, d, e, f, g, h, device, ports, protocol] = *key;
    let [first, second, third, fourth] = ports.to_ne_bytes();
    Leak {
        device,
        source: address([a, b, c, d]),
        destination: address([e, f, g, h]),
        source_port: u16::from_ne_bytes([first, second]),
        destination_port: u16::from_ne_bytes([third, fourth]),
        protocol: protocol as u8,
    }
}

fn address(words: [u32; 4]) -> IpAddr {
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = words.map(u32::to_ne_bytes);
    IpAddr::V6(Ipv6Addr::from([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])).to_canonical()
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, String> {
    let program = ebpf.program_mut(name).ok_or_else(|| format!("it has no program {name}"))?;
    program.try_into().map_err(|error: aya::programs::ProgramError| chain(&error))
}

#[cfg(test)]
mod tests;
