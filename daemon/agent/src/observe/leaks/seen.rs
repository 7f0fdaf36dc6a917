//! What the observer has seen, as the status, the metrics and `hauberk drops` show it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hauberk_api::{LeakCount, Problem, Severity};
use hauberk_core::events::{NewEvent, reason};
use hauberk_datapath::observer::Leak;
use jiff::{SignedDuration, Timestamp};

/// A leak makes the node not ready for this long.
const LATELY: SignedDuration = SignedDuration::from_mins(5);
/// A leak stays in the status for this long.
const TOLD: SignedDuration = SignedDuration::from_hours(1);
/// Most leaks remembered; the oldest are dropped first.
const REMEMBERED: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Leaks {
    /// Packets by device: every device that the observer is attached to, or that leaked before.
    devices: BTreeMap<String, u64>,
    seen: BTreeMap<Pair, Seen>,
    /// When another program last detached the observer, by device.
    detached: BTreeMap<String, Timestamp>,
    failures: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    device: String,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
}

#[derive(Debug)]
struct Seen {
    source: String,
    destination: String,
    port: u16,
    last: Timestamp,
}

/// A leak with the names of its device and ends.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The packet.
    pub leak: Leak,
    /// The device's name.
    pub device: String,
    /// The parties that have its source and its destination, in words.
    pub owners: [String; 2],
    /// When.
    pub last: Timestamp,
}

impl Leaks {
    /// Adds to the packets that left by a device.
    pub fn count(&mut self, device: &str, packets: u64) {
        *self.devices.entry(device.to_owned()).or_default() += packets;
    }

    /// Sets the devices that the observer is attached to, and its failures, one sentence each.
    pub fn watched<'a>(&mut self, devices: impl Iterator<Item = &'a str>, failures: Vec<String>) {
        self.devices.retain(|_, packets| *packets > 0);
        for device in devices {
            self.devices.entry(device.to_owned()).or_default();
        }
        self.failures = failures;
    }

    /// The observer itself does not work.
    pub fn failed(&mut self, sentence: String) {
        self.failures = vec![sentence];
    }

    /// A leak was seen. Returns the event to tell.
    pub fn note(&mut self, node: &str, sighting: &Sighting) -> NewEvent {
        let Leak { source, destination, protocol, destination_port: port, .. } = sighting.leak;
        let pair = Pair { device: sighting.device.clone(), source, destination, protocol };
        let [from, to] = sighting.owners.clone();
        self.seen.insert(pair.clone(), Seen { source: from, destination: to, port, last: sighting.last });
        if self.seen.len() > REMEMBERED {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.last).map(|(pair, _)| pair.clone());
            oldest.map(|pair| self.seen.remove(&pair));
        }
        let [from, to] = &sighting.owners;
        let message = format!(
            "a packet that had to be encrypted left node {node} by {} in the clear: {source} ({from}) to {destination} ({to}); \
             something sends past the guard: `hauberk status` says what to look for",
            sighting.device
        );
        NewEvent { warning: true, reason: reason::LEAK_SEEN, objects: vec![format!("Node/{node}")], message }
    }

    /// The observer did not run on the device any more, because another program had detached it.
    /// Returns the event to tell.
    pub fn note_detached(&mut self, device: &str, now: Timestamp) -> NewEvent {
        self.detached.retain(|_, last| now.duration_since(*last) < LATELY);
        self.detached.insert(device.to_owned(), now);
        let message = "the leak detector had been detached by another program; it is attached again, and what left \
                       meanwhile was not looked at"
            .to_owned();
        NewEvent { warning: true, reason: reason::RESTORED, objects: vec![format!("device/{device}")], message }
    }

    /// Whether a leak was seen within the last minutes.
    pub fn lately(&self) -> bool {
        let now = Timestamp::now();
        self.seen.values().any(|seen| now.duration_since(seen.last) < LATELY)
    }

    /// Packets by device, with zeros for the devices that the observer is attached to.
    pub fn devices(&self) -> impl Iterator<Item = (&str, u64)> {
        self.devices.iter().map(|(device, packets)| (device.as_str(), *packets))
    }

    /// Devices by which something leaked.
    pub fn counts(&self) -> Vec<LeakCount> {
        let leaked = self.devices().filter(|(_, packets)| *packets > 0);
        leaked.map(|(device, packets)| LeakCount { device: device.to_owned(), packets }).collect()
    }

    /// One for each device by which something leaked lately, and one for each that cannot be looked
    /// at, or was not for a while.
    pub fn problems(&self) -> Vec<Problem> {
        let now = Timestamp::now();
        let mut latest: BTreeMap<&str, (&Pair, &Seen)> = BTreeMap::new();
        for (pair, seen) in self.seen.iter().filter(|(_, seen)| now.duration_since(seen.last) < TOLD) {
            let known = latest.entry(&pair.device).or_insert((pair, seen));
            if seen.last > known.1.last {
                *known = (pair, seen);
            }
        }
        let leaks = latest.into_iter().map(|(device, (pair, seen))| Problem {
            severity: Severity::Critical,
            object: format!("device/{device}"),
            message: self.message(device, pair, seen),
        });
        let failures = self.failures.iter().map(|sentence| Problem {
            severity: Severity::Warning,
            object: "leak detector".into(),
            message: sentence.clone(),
        });
        let detached = self.detached.iter().filter(|(_, last)| now.duration_since(**last) < LATELY);
        let detached = detached.map(|(device, last)| Problem {
            severity: Severity::Warning,
            object: "leak detector".into(),
            message: format!(
                "another program detached it from {device}, the last time seen at {last:.0}; what left by {device} until it was \
                 attached again was not looked at; find what removes programs or queueing disciplines of {device} (`tc monitor`, a \
                 CNI plugin or tuning script that resets them)"
            ),
        });
        leaks.chain(failures).chain(detached).collect()
    }

    fn message(&self, device: &str, pair: &Pair, seen: &Seen) -> String {
        format!(
            "packets that had to be encrypted have left this node by {device} in the clear: {} were seen (of most traffic one packet in 64 \
             is looked at), the last at {:.0}: {} ({}) to {} ({}), protocol {}, port {}; something sends past the guard: look for programs, \
             filters and sockets that are not hauberk's (`bpftool net`, `tc filter show dev {device} egress`), and stop them",
            self.devices.get(device).copied().unwrap_or_default(),
            seen.last,
            pair.source,
            seen.source,
            pair.destination,
            seen.destination,
            pair.protocol,
            seen.port,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(destination: &str, last: Timestamp) -> Sighting {
        Sighting {
            leak: Leak {
                device: 2,
                source: "10.1.0.5".parse().unwrap(),
                destination: destination.parse().unwrap(),
                source_port: 999,
                destination_port: 443,
                protocol: 6,
            },
            device: "eth1".into(),
            owners: ["shop/cart".into(), "unknown".into()],
            last,
        }
    }

    #[test]
    fn a_leak_is_critical_and_makes_the_node_not_ready_for_some_minutes() {
        let mut leaks = Leaks::default();
        leaks.watched(["eth0", "eth1"].into_iter(), Vec::new());
        assert!(!leaks.lately() && leaks.problems().is_empty() && leaks.counts().is_empty());
        leaks.count("eth1", 3);
        let event = leaks.note("n1", &sighting("10.2.0.7", Timestamp::now()));
        assert_eq!((event.reason, event.objects), ("LeakSeen", vec!["Node/n1".to_owned()]));
        assert!(leaks.lately());
        let [problem] = &leaks.problems()[..] else { panic!("{:?}", leaks.problems()) };
        assert_eq!((problem.severity, problem.object.as_str()), (Severity::Critical, "device/eth1"));
        for part in ["eth1", "3 were seen", "10.1.0.5 (shop/cart)", "10.2.0.7 (unknown)", "port 443"] {
            assert!(problem.message.contains(part), "{}", problem.message);
        }
        assert_eq!(leaks.devices().collect::<Vec<_>>(), [("eth0", 0), ("eth1", 3)]);
        // A device that is gone is forgotten, unless it has leaked.
        leaks.watched(["eth2"].into_iter(), Vec::new());
        assert_eq!(leaks.devices().collect::<Vec<_>>(), [("eth1", 3), ("eth2", 0)]);
    }

    #[test]
    fn what_is_long_ago_is_counted_and_no_more_said() {
        let mut leaks = Leaks::default();
        leaks.count("eth1", 1);
        let _ = leaks.note("n1", &sighting("10.2.0.7", Timestamp::now() - SignedDuration::from_mins(10)));
        assert!(!leaks.lately());
        assert_eq!(leaks.problems().len(), 1);
        let mut leaks = Leaks::default();
        let _ = leaks.note("n1", &sighting("10.2.0.7", Timestamp::now() - SignedDuration::from_hours(2)));
        assert!(leaks.problems().is_empty());
    }

    #[test]
    fn a_detector_that_was_detached_is_told_for_some_minutes() {
        let mut leaks = Leaks::default();
        let event = leaks.note_detached("eth1", Timestamp::now());
        assert_eq!((event.reason, event.objects), ("Restored", vec!["device/eth1".to_owned()]));
        let [problem] = &leaks.problems()[..] else { panic!("{:?}", leaks.problems()) };
        assert_eq!((problem.severity, problem.object.as_str()), (Severity::Warning, "leak detector"));
        assert!(problem.message.contains("detached it from eth1"), "{}", problem.message);
        assert!(!leaks.lately());
        let _ = leaks.note_detached("eth1", Timestamp::now() - LATELY);
        assert!(leaks.problems().is_empty());
    }

    #[test]
    fn no_more_is_remembered_than_has_room() {
        let mut leaks = Leaks::default();
        for number in 0..2 * REMEMBERED as i64 {
            let address = format!("10.2.{}.{}", number / 256, number % 256);
            let _ = leaks.note("n1", &sighting(&address, Timestamp::UNIX_EPOCH + SignedDuration::from_secs(number)));
        }
        assert_eq!(leaks.seen.len(), REMEMBERED);
        assert!(leaks.seen.keys().all(|pair| pair.destination.to_string().as_str() >= "10.2.1.0"));
    }
}
