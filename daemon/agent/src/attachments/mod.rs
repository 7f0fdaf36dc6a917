//! Pods' interfaces on this node: which addresses each was given, and which interface holds them.
//!
//! The CNI plugin reserves addresses ([`Keeper::reserve`]), makes the interface and has it attached
//! ([`Keeper::attach`]). Only the runtime's DEL or GC releases them ([`Keeper::release`]): an
//! address is never given twice because the agent assumed that its pod was gone. Every change is on
//! disk before it is answered ([`store`]), so that an agent that was killed knows after its restart
//! what it gave away. The addresses come from [`pool`].
//!
//! Only a [`Keeper`] changes the records, and there is one at a time. It waits for the disk, on a
//! blocking thread; readers ([`Attachments`]) never wait for it.
//!
//! Interfaces that exist in the kernel but have no record get one again ([`Keeper::recover`]).
//!
//! Interfaces that another CNI plugin made are only adopted ([`Keeper::adopt`]): their addresses
//! belong to that plugin, and their records go with the interface. [`results`] and [`adoption`]
//! find those that existed before this agent.
//!
//! The records are the API's; [`domain`] turns them into what the core knows of an interface.

mod adopt;
pub mod adoption;
pub mod domain;
mod keeper;
mod pool;
mod recover;
mod results;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hauberk_api::{Attachment, Reserve};
use hauberk_core::names::AttachmentKey;
use hauberk_host::INTERFACE_PREFIX;
use ipnet::IpNet;

pub use keeper::Keeper;
use keeper::Writer;
pub use pool::Pools;
pub use store::StoreError;
use store::{Disk, Store};

/// Between looks whether the disk takes something by now.
const TRY: Duration = Duration::from_secs(5);
/// Longest container id: it becomes part of a file name.
const MAX_CONTAINER: usize = 200;
/// Longest interface name (`IFNAMSIZ` without the final zero).
const MAX_INTERFACE: usize = 15;

/// An attachment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentError {
    /// The node has no pod ranges.
    #[error(
        "no address can be given to container {container}: this node has no pod range yet; is its Node object there, with spec.podCIDRs?"
    )]
    NoRanges {
        /// The container.
        container: String,
    },
    /// A family has no free address left.
    #[error(
        "no address can be given to container {container}: {ranges} has none left; delete pods, or give the node another range in spec.podCIDRs"
    )]
    Exhausted {
        /// The container.
        container: String,
        /// The ranges of the family that ran out.
        ranges: String,
    },
    /// More pods than the kernel's maps have room for.
    #[error(
        "container {container} cannot be attached: this node has {limit} attachments already, as many as limits.attachments allows; raise it"
    )]
    TooMany {
        /// The container.
        container: String,
        /// The configured limit.
        limit: usize,
    },
    /// There is no such reservation.
    #[error(
        "container {container} has no reservation for interface {interface}: it was never made or was deleted; the plugin must reserve first"
    )]
    Unknown {
        /// Container id.
        container: String,
        /// Interface name in the pod.
        interface: String,
    },
    /// A name that no runtime gives.
    #[error("{what} {name:?} is not valid: {expected}")]
    Name {
        /// Which name.
        what: &'static str,
        /// The name as given.
        name: String,
        /// What it should look like.
        expected: &'static str,
    },
    /// An interface of another plugin does not match its description.
    #[error("container {container} cannot be adopted: {problem}")]
    NotAdoptable {
        /// Container id.
        container: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A decision could not be written to disk, so it was undone.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The thread that did the work ended early.
    #[error("the work on the attachments broke off: {0}; try again")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// What all reservations have in common. Changes apply to later reservations.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// This node's pod ranges, in the Node object's order: per family, the first one with room is
    /// used.
    pub pod_ranges: Vec<IpNet>,
    /// Addresses in the ranges that pods must not get: the nodes' own.
    pub excluded: BTreeSet<IpAddr>,
    /// Ranges that `route_mtu` applies to.
    pub cluster_ranges: Vec<IpNet>,
    /// Route MTU inside the cluster, bytes of IP.
    pub route_mtu: u32,
    /// Device MTU of the veth pair, bytes of IP.
    pub device_mtu: u32,
    /// Largest GSO super-packet, bytes.
    pub gso_max_size: u32,
    /// The most attachments.
    pub limit: usize,
}

/// All attachments of this node. Clones share them.
#[derive(Clone, Debug)]
pub struct Attachments {
    records: Arc<Mutex<Records>>,
    /// The owner of this lock may change the records.
    writer: Arc<tokio::sync::Mutex<Writer>>,
    disk: Arc<Disk>,
}

/// The records. No thread waits for anything while it holds their lock.
#[derive(Debug)]
struct Records {
    settings: Settings,
    entries: BTreeMap<AttachmentKey, Attachment>,
    taken: BTreeSet<IpAddr>,
    /// Adopted interfaces that were released while they still existed: they must not be adopted
    /// again.
    released: BTreeSet<AttachmentKey>,
}

impl Attachments {
    /// Reads the records in `folder`, which is created if it does not exist. Also returns a
    /// sentence for each file that could not be read: only that file is rejected, and it stays
    /// where it is.
    ///
    /// # Errors
    /// [`StoreError`] if the folder itself cannot be created or read.
    pub fn open(folder: PathBuf, settings: Settings) -> Result<(Attachments, Vec<String>), StoreError> {
        let store = Store::open(folder)?;
        let (stored, mut problems) = store.load()?;
        let mut taken = BTreeSet::new();
        let mut entries = BTreeMap::new();
        for attachment in stored {
            for address in attachment.reservation.addresses.iter().filter(|_| !attachment.adopted) {
                if !taken.insert(address.addr()) {
                    problems.push(format!(
                        "attachment {} has address {}, which another attachment has too: delete one of the two pods",
                        attachment.request.container,
                        address.addr()
                    ));
                }
            }
            entries.insert(domain::key(&attachment), attachment);
        }
        let pools = Pools::new(store.load_cursors());
        let attachments = Attachments {
            records: Arc::new(Mutex::new(Records { settings, entries, taken, released: BTreeSet::new() })),
            disk: store.disk(),
            writer: Arc::new(tokio::sync::Mutex::new(Writer { store, pools })),
        };
        Ok((attachments, problems))
    }

    /// Waits for its turn to change the records.
    pub async fn keeper(&self) -> Keeper {
        Keeper::new(self.clone(), Arc::clone(&self.writer).lock_owned().await)
    }

    /// Changes the records, however long that takes.
    ///
    /// # Errors
    /// Those of `change`, and [`AttachmentError::BrokenOff`].
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Keeper) -> Result<T, AttachmentError> + Send + 'static,
    ) -> Result<T, AttachmentError> {
        Ok(self.keeper().await.work(change).await?.1)
    }

    /// What is wrong with the disk, for people: it has not answered for long, or refused something
    /// and has not done the like since.
    pub fn trouble(&self, now: Instant) -> Option<String> {
        self.disk.trouble(now)
    }

    /// Tries the disk at the start, and again while nothing can be written: what an earlier agent
    /// could not write is on no record, and the next pod may be long in coming.
    pub async fn try_disk(self) {
        loop {
            // Why not is in the status.
            let _ = self.change(Keeper::try_disk).await;
            tokio::time::sleep(TRY).await;
            while !self.disk.refuses() {
                tokio::time::sleep(TRY).await;
            }
        }
    }

    /// Sets what later reservations have in common.
    pub fn set_settings(&self, settings: Settings) {
        self.records().settings = settings;
    }

    /// All attachments, by container and interface.
    pub fn list(&self) -> Vec<Attachment> {
        self.records().entries.values().cloned().collect()
    }

    /// One attachment.
    pub fn find(&self, container: &str, interface: &str) -> Option<Attachment> {
        self.records().entries.get(&AttachmentKey::new(container, interface)).cloned()
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    /// One address of each family that the node has ranges of.
    fn allocate(
        &self,
        pools: &mut Pools,
        container: &str,
        claimed: impl Fn(IpAddr) -> bool,
    ) -> Result<Vec<IpNet>, AttachmentError> {
        let Records { settings, taken, .. } = self;
        if settings.pod_ranges.is_empty() {
            return Err(AttachmentError::NoRanges { container: container.to_owned() });
        }
        let free =
            |address: IpAddr| !taken.contains(&address) && !settings.excluded.contains(&address) && !claimed(address);
        let mut addresses = Vec::new();
        for is_v4 in [true, false] {
            let ranges: Vec<IpNet> =
                settings.pod_ranges.iter().filter(|range| range.addr().is_ipv4() == is_v4).map(IpNet::trunc).collect();
            if ranges.is_empty() {
                continue;
            }
            let Some(address) = ranges.iter().find_map(|range| pools.next(range, free)) else {
                let ranges = ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" and ");
                return Err(AttachmentError::Exhausted { container: container.to_owned(), ranges });
            };
            addresses.push(IpNet::from(address));
        }
        Ok(addresses)
    }

    /// A name for the host side: the same for the same container, but never one that another
    /// attachment has.
    fn host_interface(&self, key: &AttachmentKey) -> String {
        let used = |name: &str| self.entries.values().any(|entry| entry.reservation.host_interface == name);
        let mut hash = fnv1a(FNV_OFFSET, key.container.as_bytes());
        hash = fnv1a(hash, b"/");
        hash = fnv1a(hash, key.interface.as_bytes());
        loop {
            let name = format!("{INTERFACE_PREFIX}{:011x}", hash >> 20);
            if !used(&name) {
                return name;
            }
            hash = fnv1a(hash, b"again");
        }
    }

    fn forget(&mut self, key: &AttachmentKey) -> Option<Attachment> {
        let removed = self.entries.remove(key)?;
        if removed.adopted {
            self.released.insert(key.clone());
        }
        let given = self.entries.values().filter(|entry| !entry.adopted);
        self.taken = given.flat_map(|entry| &entry.reservation.addresses).map(IpNet::addr).collect();
        Some(removed)
    }
}

/// The names become part of a file's name and of a URL: only what the CNI specification allows
/// (section 2).
///
/// # Errors
/// [`AttachmentError::Name`].
pub fn check_names(request: &Reserve) -> Result<(), AttachmentError> {
    let container = &request.container;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if container.len() > MAX_CONTAINER
        || !container.bytes().all(allowed)
        || !container.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
    {
        return Err(AttachmentError::Name {
            what: "container id",
            name: container.clone(),
            expected: "letters, digits, '_', '.' and '-', starting with a letter or digit, at most 200",
        });
    }
    let interface = &request.interface;
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':');
    if interface.is_empty()
        || interface.len() > MAX_INTERFACE
        || interface == "."
        || interface == ".."
        || !interface.bytes().all(allowed)
    {
        return Err(AttachmentError::Name {
            what: "interface name",
            name: interface.clone(),
            expected: "1 to 15 visible characters without '/' and ':'",
        });
    }
    Ok(())
}

/// FNV-1a's offset basis, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: names need to differ, not to resist an attacker; a collision is noticed.
fn fnv1a(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
