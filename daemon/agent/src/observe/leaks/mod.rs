//! The leak detector: a program of its own (`ebpf/observer`) at the egress of every device that
//! leads out of this node, behind the guard, looks for packets that the guard should have kept
//! back. It shares no code with the guard's programs, tables and list of devices. It decides
//! nothing: what it sees is told.

mod devices;
mod seen;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use hauberk_datapath::Pins;
use hauberk_datapath::observer::{Device, Leak, Lost, Noted, Observer, ObserverError};
use hauberk_host::{LinkKind, Netlink};
use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use tracing::warn;

pub use seen::{Leaks, Sighting};

use crate::state::{AgentState, SharedState};

/// Interval of the looks at the observer's maps and at the devices.
const LOOK: Duration = Duration::from_secs(2);
/// For this long after a change, a packet that the guard let pass under the old state is no leak;
/// nanoseconds.
const GRACE: u64 = 2_000_000_000;
/// Most events per look: one leak may have many pairs of ends.
const TOLD_AT_ONCE: usize = 8;

/// Where the detector works.
pub struct Place {
    /// Where the guard's maps are pinned.
    pub pins: Pins,
    /// Whether programs are attached to the clsact queueing discipline.
    pub clsact: bool,
    /// The tunnel device's name.
    pub tunnel: String,
}

/// Looks for leaks until the runtime ends.
///
/// # Errors
/// [`ObserverError`] if the kernel does not take the program; the status says so too.
pub async fn watch(place: Place, agent: SharedState) -> Result<(), ObserverError> {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The observer goes behind the guard, so the guard must be attached first.
    while agent.read().running.is_none() {
        look.tick().await;
    }
    let mut observer =
        Observer::load(&place.pins, place.clsact).inspect_err(|error| agent.write().leaks.failed(error.to_string()))?;
    let netlink = loop {
        match Netlink::connect() {
            Ok(netlink) => break netlink,
            Err(error) => agent.write().leaks.failed(error.to_string()),
        }
        look.tick().await;
    };
    let mut reader = Reader::default();
    loop {
        let passed_on = passing_on(&netlink).await;
        let lost = observer.check(&netlink).await;
        reader.look(&mut observer, &lost, |name, index| name == place.tunnel || passed_on.contains(&index), &agent);
        look.tick().await;
    }
}

/// Devices that hand every packet to another one, where the guard sees it and the observer looks:
/// what leaves by a bridge leaves by one of its ports, and an `ifb` gives back what it was given.
/// None if the kernel does not tell: then too much is looked at.
async fn passing_on(netlink: &Netlink) -> BTreeSet<u32> {
    let links = netlink.links().await.unwrap_or_default();
    let passing = links.iter().filter(|link| matches!(link.kind, LinkKind::Bridge | LinkKind::Ifb));
    passing.map(|link| link.index).collect()
}

/// What the last look read from the observer's maps.
#[derive(Default)]
struct Reader {
    /// Device names by index.
    names: BTreeMap<u32, String>,
    packets: BTreeMap<u32, u64>,
    leaks: BTreeMap<Leak, u64>,
    complaints: Vec<String>,
}

/// A leak that is new, or has gone on.
struct News {
    leak: Leak,
    packets: u64,
    last: u64,
}

impl Reader {
    fn look(
        &mut self,
        observer: &mut Observer,
        lost: &BTreeMap<u32, Lost>,
        is_inside: impl Fn(&str, u32) -> bool,
        agent: &SharedState,
    ) {
        let mut failures = Vec::new();
        let more = match observer.leaked() {
            Ok(packets) => self.more(packets),
            Err(error) => {
                failures.push(error.to_string());
                BTreeMap::new()
            }
        };
        let news = self.news(observer.leaks());
        let now = monotonic();
        {
            let mut agent = agent.write();
            self.tell(&mut agent, more, &news, lost, now);
        }
        match devices::list(|name, index| is_inside(name, index) || is_pods(&agent.read(), name, index)) {
            Ok(devices) => {
                let kept: Vec<_> = devices.iter().filter(|device| self.is_detached(device, lost)).collect();
                failures.extend(observer.follow(&devices).iter().map(ToString::to_string));
                let mut agent = agent.write();
                for device in kept {
                    let event = agent.leaks.note_detached(&device.name, now.1);
                    if agent.events.note(&event, now.1) {
                        warn!(reason = event.reason, objects = ?event.objects, "{}", event.message);
                    }
                }
                drop(agent);
                self.names = devices.into_iter().map(|device| (device.index, device.name)).collect();
            }
            Err(error) => {
                failures.push(format!("cannot list this node's devices: {error}; new ones are not looked at"))
            }
        }
        if failures != self.complaints {
            failures.iter().for_each(|failure| warn!("{failure}"));
            self.complaints.clone_from(&failures);
        }
        agent.write().leaks.watched(self.names.values().map(String::as_str), failures);
    }

    /// Packets since the last look, by device.
    fn more(&mut self, packets: Vec<(u32, u64)>) -> BTreeMap<u32, u64> {
        let more = |(device, packets): &(u32, u64)| {
            (*device, packets.saturating_sub(self.packets.get(device).copied().unwrap_or_default()))
        };
        let since = packets.iter().map(more).collect();
        self.packets = packets.into_iter().collect();
        since
    }

    fn news(&mut self, leaks: Vec<(Leak, Noted)>) -> Vec<News> {
        let mut news = Vec::new();
        let mut known = BTreeMap::new();
        for (leak, Noted { packets, last }) in leaks {
            // An entry that was evicted and came again counts from one.
            let before = self.leaks.get(&leak).copied().filter(|before| *before <= packets).unwrap_or_default();
            if packets > before {
                news.push(News { leak, packets: packets - before, last });
            }
            known.insert(leak, packets);
        }
        self.leaks = known;
        news
    }

    /// Whether the observer was on a device that is there still, and does not run there any more.
    fn is_detached(&self, device: &Device, lost: &BTreeMap<u32, Lost>) -> bool {
        lost.get(&device.index) == Some(&Lost::Detached) && self.names.get(&device.index) == Some(&device.name)
    }

    /// Where the guard had come behind the observer, the guard may have dropped what the observer
    /// saw: those counts are left out.
    fn tell(
        &self,
        agent: &mut AgentState,
        mut more: BTreeMap<u32, u64>,
        news: &[News],
        lost: &BTreeMap<u32, Lost>,
        now: (u64, Timestamp),
    ) {
        more.retain(|device, _| lost.get(device) != Some(&Lost::Overtaken));
        let mut told = 0;
        for News { leak, packets, last } in news {
            let Some(counted) = more.get_mut(&leak.device) else { continue };
            if agent.changes.excuse([leak.source, leak.destination], *last, GRACE) {
                *counted = counted.saturating_sub(*packets);
                continue;
            }
            let Some(device) = self.names.get(&leak.device) else { continue };
            let sighting = Sighting {
                leak: *leak,
                device: device.clone(),
                owners: [owner(agent, leak.source), owner(agent, leak.destination)],
                last: at(*last, now),
            };
            let node = agent.local.name.clone();
            let event = agent.leaks.note(&node, &sighting);
            if told < TOLD_AT_ONCE {
                told += 1;
                if agent.events.note(&event, now.1) {
                    warn!(reason = event.reason, objects = ?event.objects, "{}", event.message);
                }
            }
        }
        for (device, packets) in more.into_iter().filter(|(_, packets)| *packets > 0) {
            if let Some(device) = self.names.get(&device) {
                agent.leaks.count(device, packets);
            }
        }
    }
}

/// Whether the device is a pod's interface: packets to it do not leave the node.
fn is_pods(agent: &AgentState, name: &str, index: u32) -> bool {
    agent.model.attachments().any(|(_, attachment)| {
        attachment.host_interface == name && attachment.pair.is_some_and(|pair| pair.host_index == index)
    })
}

fn owner(agent: &AgentState, address: IpAddr) -> String {
    agent.name_of(&address.into()).unwrap_or_else(|| "nobody that is known".into())
}

/// The clock that the program reads, in nanoseconds, and the wall clock at the same moment.
fn monotonic() -> (u64, Timestamp) {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_nanos() as u64);
    (now, Timestamp::now())
}

fn at(monotonic: u64, (now, timestamp): (u64, Timestamp)) -> Timestamp {
    let ago = SignedDuration::from_nanos(now.saturating_sub(monotonic).min(i64::MAX as u64) as i64);
    timestamp.checked_sub(ago).unwrap_or(timestamp)
}
