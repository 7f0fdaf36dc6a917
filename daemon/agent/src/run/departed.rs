//! Addresses that nodes had until recently. They are kept over restarts, because nothing else
//! remembers them. They are forgotten after a while ([`Change::AddressForgotten`]), when a machine
//! outside the cluster may have one of them.
//!
//! The file also has the nodes' current addresses. A new agent takes all of them as departed until
//! the source has told which node has which address. So it also knows the addresses that went away
//! while no agent ran.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use hauberk_core::events::{NewEvent, reason};
use hauberk_core::model::{Change, MOST_DEPARTED, Model};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::reconcile::Input;
use crate::state::SharedState;

const FILE: &str = "node-addresses.json";
const VERSION: u32 = 1;
/// In bytes. A longer file is not hauberk's: [`MOST`] entries with the longest names fit.
const LONGEST: u64 = 16 << 20;
/// The most addresses that are kept; departed ones come first.
const MOST: usize = 2 * MOST_DEPARTED;
/// How long a departed address stays closed: longer than connections and cached names still lead to
/// it.
const CLOSED: Duration = Duration::from_secs(3600);
/// Between checks.
const LOOK: Duration = Duration::from_secs(1);

/// The file in the state directory.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    addresses: BTreeMap<IpAddr, Holder>,
}

/// The node that has an address, or had it last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Holder {
    node: String,
    /// When the node lost the address; none while it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone: Option<Timestamp>,
}

/// What an earlier agent kept.
#[derive(Debug, Default)]
pub struct Restored {
    /// For the model, before the source tells anything.
    pub changes: Vec<Change>,
    /// Says what was lost, if the file cannot be read.
    pub event: Option<NewEvent>,
    since: Since,
}

/// Reads what was kept. A file that cannot be read is reported and otherwise ignored.
pub fn restore(state: &Path, node: &str) -> Restored {
    let path = state.join(FILE);
    let kept = match read(&path) {
        Ok(kept) => kept,
        Err(reason) => {
            let event = lost(node, &path, &reason);
            return Restored { event: Some(event), ..Restored::default() };
        }
    };
    let (now, wall) = (Instant::now(), Timestamp::now());
    let mut restored = Restored::default();
    // If there are too many, departed addresses come first: the source tells the others.
    let (gone, had): (Vec<_>, Vec<_>) = kept.addresses.into_iter().partition(|(_, holder)| holder.gone.is_some());
    for (address, holder) in gone.into_iter().chain(had) {
        // If the clock was set back, the address stays closed longer. An address that a node still
        // had may have departed just now.
        let ago = holder.gone.map(|gone| wall.duration_since(gone)).unwrap_or_default();
        let ago = Duration::try_from(ago).unwrap_or_default();
        if ago >= CLOSED {
            continue;
        }
        restored.since.0.insert(address, now.checked_sub(ago).unwrap_or(now));
        restored.changes.push(Change::AddressDeparted { address, node: holder.node });
    }
    restored
}

/// Writes the file and forgets old addresses, until the agent ends.
pub async fn run(agent: SharedState, inputs: mpsc::Sender<Input>, state: PathBuf, restored: Restored) {
    let mut since = restored.since;
    let mut written = Kept::default();
    let mut failing = false;
    let mut departed = BTreeSet::new();
    // The model's generation by which the others are, and by which the file is.
    let (mut seen, mut kept_by) = (None, None);
    loop {
        tokio::time::sleep(LOOK).await;
        let generation = {
            let model = &agent.read().model;
            // Until then the source has not said what there is, and the file says more.
            if !model.synced() {
                continue;
            }
            let generation = Some(model.generation());
            if seen != generation {
                departed = model.departed().map(|(address, _)| address).collect();
                seen = generation;
            }
            generation
        };
        let forgotten: Vec<Change> = since.due(&departed, Instant::now()).map(Change::AddressForgotten).collect();
        if !forgotten.is_empty() && inputs.send(Input::Changes(forgotten)).await.is_err() {
            return;
        }
        if kept_by == generation {
            continue;
        }
        let kept = since.kept(&agent.read().model, &written, Instant::now(), Timestamp::now());
        if kept == written {
            kept_by = generation;
            continue;
        }
        let folder = state.clone();
        // A disk that hangs blocks this task only.
        let outcome = spawn_blocking(move || write(&folder, &kept).map(|()| kept)).await;
        match outcome.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(kept) => (written, failing, kept_by) = (kept, false, generation),
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, state = %state.display(), "cannot keep which addresses nodes have");
                }
            }
        }
    }
}

/// Since when no node has had an address.
#[derive(Debug, Default)]
struct Since(BTreeMap<IpAddr, Instant>);

impl Since {
    /// Those of `departed` that no node has had for long enough.
    fn due(&mut self, departed: &BTreeSet<IpAddr>, now: Instant) -> impl Iterator<Item = IpAddr> {
        self.0.retain(|address, _| departed.contains(address));
        for address in departed {
            self.0.entry(*address).or_insert(now);
        }
        self.0.iter().filter(move |(_, since)| now.duration_since(**since) >= CLOSED).map(|(address, _)| *address)
    }

    /// What the file should say. The time written for an address stays, even if the clock is set
    /// meanwhile.
    fn kept(&self, model: &Model, before: &Kept, now: Instant, wall: Timestamp) -> Kept {
        let gone = |address: IpAddr, node: &str| {
            let known = before.addresses.get(&address).filter(|holder| *holder.node == *node);
            let since = self.0.get(&address).copied().unwrap_or(now);
            let ago = SignedDuration::try_from(now.duration_since(since)).unwrap_or_default();
            let time = || wall.checked_sub(ago).unwrap_or(wall);
            known.and_then(|holder| holder.gone).unwrap_or_else(time)
        };
        let departed = model
            .departed()
            .map(|(address, node)| (address, Holder { node: node.to_owned(), gone: Some(gone(address, node)) }));
        let had = model.node_addresses().map(|(address, node)| (address, Holder { node: node.to_owned(), gone: None }));
        let mut kept = Kept { version: VERSION, addresses: BTreeMap::new() };
        for (address, holder) in departed.chain(had).take(MOST) {
            kept.addresses.entry(address).or_insert(holder);
        }
        kept
    }
}

fn read(path: &Path) -> Result<Kept, String> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error.to_string()),
    };
    if length > LONGEST {
        return Err(format!("it is {length} bytes long"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    match kept.version {
        VERSION => Ok(kept),
        other => Err(format!("it has version {other}")),
    }
}

/// At every moment the old or the new file exists. It is not synced to the disk: a power cut may
/// lose the last seconds, or the file.
fn write(state: &Path, kept: &Kept) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(state)?;
    let mut buffer = io::BufWriter::new(&mut file);
    serde_json::to_writer(&mut buffer, kept)?;
    buffer.flush()?;
    drop(buffer);
    file.persist(state.join(FILE)).map_err(|error| error.error)?;
    Ok(())
}

fn lost(node: &str, path: &Path, why: &str) -> NewEvent {
    NewEvent {
        warning: true,
        reason: reason::DEPARTED_LOST,
        objects: vec![format!("Node/{node}")],
        message: format!(
            "{} cannot be read ({why}): an address that a node had until lately, and has no more, is the world's for protected pods \
             here, unless nodeRanges has it; the file is written anew",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use hauberk_core::objects::{NodeAddress, NodeObject};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(number: u8, addresses: &[&str]) -> Change {
        let addresses = addresses.iter().map(|address| NodeAddress { address: ip(address), internal: true }).collect();
        Change::Node(NodeObject { name: format!("n{number}"), addresses, ..NodeObject::default() })
    }

    fn model(changes: impl IntoIterator<Item = Change>) -> Model {
        let mut model = Model::new("n1");
        for change in changes.into_iter().chain([Change::Synced]) {
            let _ = model.apply(change);
        }
        model
    }

    fn departed(model: &Model) -> Vec<(String, String)> {
        model.departed().map(|(address, node)| (address.to_string(), node.to_owned())).collect()
    }

    #[test]
    fn an_address_is_forgotten_an_hour_after_it_went_for_the_last_time() {
        let (mut since, start) = (Since::default(), Instant::now());
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let mut due = |departed: &[IpAddr], minutes: u64| -> Vec<IpAddr> {
            since.due(&departed.iter().copied().collect(), start + Duration::from_secs(60 * minutes)).collect()
        };
        assert!(due(&[a], 0).is_empty());
        assert!(due(&[a, b], 59).is_empty());
        assert_eq!(due(&[a, b], 60), [a]);
        // A node had `b` in between.
        assert_eq!(due(&[a], 100), [a]);
        assert_eq!(due(&[a, b], 120), [a]);
        assert_eq!(due(&[a, b], 179), [a]);
        assert_eq!(due(&[b], 180), [b]);
    }

    #[test]
    fn what_nodes_had_is_known_after_a_restart_and_what_they_have_again_is_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let (now, wall) = (Instant::now(), Timestamp::now());
        let before = model([
            node(1, &["192.0.2.1"]),
            node(2, &["192.0.2.2", "192.0.2.77"]),
            node(3, &["192.0.2.3"]),
            node(2, &["192.0.2.2"]),
        ]);
        let kept = Since::default().kept(&before, &Kept::default(), now, wall);
        assert_eq!(kept.addresses[&ip("192.0.2.77")].gone, Some(wall));
        assert!(!kept.addresses.contains_key(&ip("192.0.2.1")), "this node's own");
        write(folder.path(), &kept).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");

        // Meanwhile the third node disappears.
        let restored = restore(folder.path(), "n1");
        assert!(restored.event.is_none());
        let after = model(restored.changes.into_iter().chain([node(2, &["192.0.2.2"])]));
        let pairs = [("192.0.2.3", "n3"), ("192.0.2.77", "n2")].map(|(a, n)| (a.to_owned(), n.to_owned()));
        assert_eq!(departed(&after), pairs);
        // The times continue.
        let mut since = restored.since;
        let all = after.departed().map(|(address, _)| address).collect();
        assert_eq!(since.due(&all, now + CLOSED + Duration::from_secs(60)).count(), 2);
        let again = since.kept(&after, &kept, now, wall);
        assert_eq!(again.addresses[&ip("192.0.2.77")].gone, Some(wall));
        assert!(again.addresses[&ip("192.0.2.3")].gone.is_some());
    }

    #[test]
    fn what_went_long_ago_is_not_closed_anew() {
        let folder = tempfile::tempdir().unwrap();
        let gone = |seconds: i64| Some(Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).unwrap());
        let holder = |seconds| Holder { node: "n2".into(), gone: gone(seconds) };
        // The clock was set back after the last one.
        let addresses = [("192.0.2.1", 3_700), ("192.0.2.2", 3_500), ("192.0.2.3", -500)];
        let addresses = addresses.map(|(address, seconds)| (ip(address), holder(seconds))).into();
        write(folder.path(), &Kept { version: VERSION, addresses }).unwrap();
        let restored = restore(folder.path(), "n1");
        let model = model(restored.changes);
        assert!(model.departed().all(|(address, _)| address != ip("192.0.2.1")), "{:?}", departed(&model));
        assert!(model.departed().any(|(address, _)| address == ip("192.0.2.3")), "{:?}", departed(&model));
    }

    #[test]
    fn a_damaged_file_costs_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(restore(folder.path(), "n1").event.is_none(), "there is none before the first agent");
        for bad in ["", "{", r#"{"version":2,"addresses":{}}"#, r#"{"version":1,"addresses":{"x":{"node":"n2"}}}"#] {
            fs::write(folder.path().join(FILE), bad).unwrap();
            let restored = restore(folder.path(), "n1");
            assert!(restored.changes.is_empty());
            assert_eq!(restored.event.unwrap().reason, reason::DEPARTED_LOST, "{bad}");
        }
    }
}
