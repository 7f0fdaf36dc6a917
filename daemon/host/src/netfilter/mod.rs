//! hauberk's netfilter rules, in three tables of its own, always changed in one transaction.
//!
//! `inet hauberk` marks packets that went through the IP stack (before source translation),
//! masquerades what pods send to the world, and keeps pods' packets from every device that is not
//! guarded. `bridge hauberk` does the last for the ports of bridges.
//!
//! `netdev hauberk` is the guard against packet sockets. What the IP stack sends has a routing
//! entry, which no packet socket can set on its frame. A frame that has none, belongs to a socket
//! of this network namespace and carries a pod's address was written by hand. This hook runs before
//! any queueing discipline and before TCX. It is the only one that sees frames sent with
//! `PACKET_QDISC_BYPASS`.
//!
//! Beside another CNI plugin's network, `inet hauberk` also exempts tunnel traffic from that
//! plugin's masquerading, and lowers TCP's segment size to fit the tunnel.
//!
//! [`neighbours`] lists other programs' chains, and [`firewall`] judges them.
//!
//! [`text`] writes the rules ([`stack`] and [`frames`] a part each), [`read`] parses `nft`'s JSON,
//! this module runs `nft`.

pub mod firewall;
mod frames;
mod neighbours;
mod read;
mod stack;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::{fs, io};

use ipnet::IpNet;
use nix::net::if_::{if_indextoname, if_nametoindex};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::HostError;
use text::Tables;

pub use neighbours::{Neighbours, has_legacy_tables};
pub use text::{BRIDGE_PROBE, EGRESS_PROBE, ROUTING_PROBE};

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// How far left hauberk's mark bits are shifted: 0..=28.
    pub mark_shift: u32,
    /// The tunnel device's name.
    pub tunnel: String,
    /// Names of all guarded devices: each gets a chain at its egress.
    pub uplinks: Vec<String>,
    /// Names of the devices that lead to other nodes and to the world.
    pub outward: Vec<String>,
    /// Indices of the devices by which packets with pods' addresses may leave. By name, a replaced
    /// device could not be told from its predecessor.
    pub passable: BTreeSet<u32>,
    /// Bridges, by index: pods' packets may leave by them if the kernel can guard their ports.
    pub bridges: BTreeMap<u32, String>,
    /// This node's pod ranges, and pods outside of them: what they send to the world is
    /// masqueraded.
    pub local: BTreeSet<IpNet>,
    /// Destinations that are not the world: traffic to them is not masqueraded.
    pub untranslated: BTreeSet<IpNet>,
    /// Addresses that no packet socket may send from or to, and that may not leave by an unguarded
    /// device: the cluster's ranges, and pods outside of them.
    pub guarded: BTreeSet<IpNet>,
    /// Another CNI plugin's network, if pods are connected by one.
    pub chained: Option<Beside>,
}

/// What the rules must know beside another CNI plugin's network.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Beside {
    /// Largest packet inside the tunnel, bytes of IP: pods may not know it.
    pub tunnel_mtu: u32,
}

/// What the rules have counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames of packet sockets that were dropped.
    pub packet_socket: u64,
    /// Packets of pods that were dropped because they would have left by an unguarded device.
    pub unguarded_device: u64,
    /// Packets that came out of the tunnel into the stack.
    pub decrypted: u64,
    /// The part of `decrypted` that the stack forwarded or delivered after all other programs'
    /// rules.
    pub carried_on: u64,
}

/// How well packet sockets are kept from sending as a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketSocketGuard {
    /// Frames that bypass queueing are not stopped: the kernel has no egress hook for nftables (it
    /// came with 5.16).
    None,
    /// By the packet's mark, which a process with CAP_NET_RAW can forge: this kernel does not show
    /// routing entries to nftables.
    ByMark,
    /// By the routing entry, which no process can forge.
    Whole,
}

/// What this kernel's nftables can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Abilities {
    /// Chains at a device's egress.
    egress: bool,
    /// Matches on the routing entry and the socket there.
    routing: bool,
    /// Chains at bridges' ports.
    bridge: bool,
}

impl Abilities {
    /// Asks `nft` in check mode, which installs nothing.
    async fn ask() -> Result<Abilities, HostError> {
        Ok(Abilities {
            egress: accepts(EGRESS_PROBE).await?,
            routing: accepts(ROUTING_PROBE).await?,
            bridge: accepts(BRIDGE_PROBE).await?,
        })
    }

    /// The families that have a table.
    fn families(self) -> impl Iterator<Item = &'static str> {
        [(true, "inet"), (self.egress, "netdev"), (self.bridge, "bridge")]
            .into_iter()
            .filter_map(|(has, family)| has.then_some(family))
    }
}

/// A device that gets a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device {
    index: u32,
    /// Whether a packet of the stack still has its routing entry at this device's egress. A bond,
    /// team or similar may remove it before it passes a packet on to one of its ports; a bridge
    /// does not.
    keeps_routes: bool,
    /// Whether its frames have a header of their own.
    ethernet: bool,
}

/// `linux/if_arp.h`: ARPHRD_ETHER.
const ETHERNET: &str = "1";

impl Device {
    fn find(name: &str) -> Option<Device> {
        let index = if_nametoindex(name).ok()?;
        let folder = Path::new("/sys/class/net").join(name);
        let master = folder.join("master");
        let keeps_routes = !master.exists() || master.join("bridge").exists();
        let ethernet = fs::read_to_string(folder.join("type")).is_ok_and(|kind| kind.trim() == ETHERNET);
        Some(Device { index, keeps_routes, ethernet })
    }
}

/// What one listing of the tables shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// Whether the kernel still has every chain, rule and set that was installed, and every element
    /// of the sets.
    pub intact: bool,
    /// What the rules have counted since the first install.
    pub counters: Counters,
}

/// The rules as they are in the kernel.
#[derive(Debug)]
pub struct Netfilter {
    installed: Tables,
    abilities: Abilities,
    /// Chains and set definitions as the kernel listed them after the install; none if it did not.
    rules: Option<read::Rules>,
}

impl Netfilter {
    /// Installs the rules in place of an earlier agent's. The elements of that agent's sets stay
    /// until the next [`Netfilter::apply`], because this agent may not know all of them yet.
    /// Counters continue.
    ///
    /// # Errors
    /// [`HostError::NoNft`], [`HostError::Nft`]; the earlier rules are then in force unchanged.
    pub async fn install(ruleset: &Ruleset) -> Result<Netfilter, HostError> {
        let abilities = Abilities::ask().await?;
        let mut netfilter = Netfilter { installed: Tables::default(), abilities, rules: None };
        let earlier = read::sets(&netfilter.list(&[]).await?);
        let mut ruleset = ruleset.clone();
        if ruleset.chained.is_none() {
            ruleset.local.extend(earlier.local);
        }
        ruleset.untranslated.extend(earlier.untranslated);
        ruleset.guarded.extend(earlier.guarded);
        ruleset.passable.extend(earlier.passable.into_iter().filter(|index| if_indextoname(*index).is_ok()));
        netfilter.installed = netfilter.tables(&ruleset);
        netfilter.replace().await?;
        Ok(netfilter)
    }

    /// How well this kernel can guard against packet sockets.
    pub fn packet_socket_guard(&self) -> PacketSocketGuard {
        match (self.abilities.egress, self.abilities.routing) {
            (false, _) => PacketSocketGuard::None,
            (true, false) => PacketSocketGuard::ByMark,
            (true, true) => PacketSocketGuard::Whole,
        }
    }

    /// Whether the ports of bridges can be guarded. If not, pods' packets may not leave by a
    /// bridge.
    pub fn guards_bridges(&self) -> bool {
        self.abilities.bridge
    }

    /// Changes the rules to the wanted ones. Only differences are written, and nothing if there are
    /// none. Call it after every change of devices too: a device may have been replaced by another
    /// one of its name.
    ///
    /// # Errors
    /// [`HostError::Nft`]; the earlier rules are then in force unchanged.
    pub async fn apply(&mut self, ruleset: &Ruleset) -> Result<(), HostError> {
        let wanted = self.tables(ruleset);
        if wanted == self.installed {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.installed, wanted);
        let result = if self.installed.differs_in_sets_alone(&before) {
            self.change(&before).await
        } else {
            self.replace().await
        };
        if result.is_err() {
            self.installed = before;
        }
        result
    }

    /// Lets packets with pods' addresses leave by one more device, and changes nothing else.
    ///
    /// # Errors
    /// [`HostError::Nft`].
    pub async fn open(&mut self, index: u32) -> Result<(), HostError> {
        let mut ruleset = self.installed.ruleset.clone();
        ruleset.passable.insert(index);
        self.apply(&ruleset).await
    }

    async fn change(&mut self, before: &Tables) -> Result<(), HostError> {
        let exists = |name: &str| if_nametoindex(name).is_ok();
        let difference = text::difference(before, &self.installed, self.abilities, exists);
        if difference.is_empty() {
            return Ok(());
        }
        if transaction("change its sets", &difference).await.is_err() {
            // The expected state is not there: another program removed rules, or a device has just
            // disappeared.
            return self.replace().await;
        }
        if difference.contains(" chain ") || before.devices != self.installed.devices {
            self.remember().await;
        }
        Ok(())
    }

    /// Lists the tables once, for both: whether the kernel still has what was installed, and what
    /// the rules have counted.
    ///
    /// # Errors
    /// [`HostError::NoNft`].
    pub async fn look(&self) -> Result<Look, HostError> {
        let listed = self.list(&[]).await?;
        Ok(Look { intact: self.is_intact(&listed), counters: read::counters(&listed) })
    }

    fn is_intact(&self, listed: &str) -> bool {
        let Tables { ruleset, passable, devices } = &self.installed;
        let sets = read::sets(listed);
        let has_sets = read::covers_the_same(&sets.local, &ruleset.local)
            && read::covers_the_same(&sets.untranslated, &ruleset.untranslated)
            && read::covers_the_same(&sets.guarded, &ruleset.guarded)
            && (!self.abilities.bridge || read::covers_the_same(&sets.bridge_guarded, &ruleset.guarded))
            && sets.passable == *passable
            && (!self.abilities.bridge || sets.bridge_passable == *passable);
        let mut rules = read::rules(listed);
        let Some(mut expected) = self.rules.clone() else { return false };
        for (name, device) in devices {
            match if_nametoindex(name.as_str()) {
                Ok(index) if index == device.index => {}
                Ok(_) => return false,
                // The chain may have disappeared with its device.
                Err(_) => {
                    let chain = ("netdev".to_owned(), frames::egress_chain(name));
                    rules.remove(&chain);
                    expected.remove(&chain);
                }
            }
        }
        has_sets && rules == expected
    }

    /// Installs everything again, whatever is there.
    ///
    /// # Errors
    /// [`HostError::Nft`].
    pub async fn restore(&mut self) -> Result<(), HostError> {
        self.installed = self.tables(&self.installed.ruleset);
        self.replace().await
    }

    /// Removes hauberk's tables, if they exist, and nothing else.
    ///
    /// # Errors
    /// [`HostError::NoNft`], [`HostError::Nft`].
    pub async fn remove() -> Result<(), HostError> {
        transaction("remove hauberk's tables", &text::remove(Abilities::ask().await?)).await
    }

    /// What should be in the kernel. Devices that are gone are left out: nftables would refuse
    /// everything because of one.
    fn tables(&self, ruleset: &Ruleset) -> Tables {
        let names = ruleset.uplinks.iter().chain(ruleset.bridges.values());
        let mut passable = ruleset.passable.clone();
        if self.abilities.bridge {
            passable.extend(ruleset.bridges.keys());
        }
        let mut devices = BTreeMap::new();
        for name in names {
            let Some(device) = Device::find(name) else { continue };
            if can_be_quoted(name) {
                devices.insert(name.clone(), device);
            } else {
                passable.remove(&device.index);
            }
        }
        Tables { ruleset: ruleset.clone(), passable, devices }
    }

    async fn replace(&mut self) -> Result<(), HostError> {
        let counters = read::counters(&self.list(&["-t"]).await?);
        let text = text::whole(&self.installed, counters, self.abilities);
        transaction("install hauberk's tables", &text).await?;
        self.remember().await;
        Ok(())
    }

    async fn remember(&mut self) {
        self.rules = self.list(&["-t"]).await.ok().map(|listed| read::rules(&listed));
    }

    /// All tables as JSON, one after the other.
    async fn list(&self, options: &[&str]) -> Result<String, HostError> {
        let mut all = String::new();
        for family in self.abilities.families() {
            all += &list(family, options).await?;
            all.push('\n');
        }
        Ok(all)
    }
}

/// Whether a device of this name can be written in nftables syntax: Linux allows these characters
/// in names, but nftables gives them a meaning.
fn can_be_quoted(name: &str) -> bool {
    !name.contains(['"', '*', '\\'])
}

/// Whether nft and the kernel would accept these rules.
async fn accepts(rules: &str) -> Result<bool, HostError> {
    let output = run(&["-c", "-f", "-"], rules).await?;
    Ok(output.status.success())
}

/// One table as JSON; empty if there is none.
async fn list(family: &str, options: &[&str]) -> Result<String, HostError> {
    let arguments: Vec<&str> =
        ["-j"].iter().chain(options).copied().chain(["list", "table", family, text::TABLE]).collect();
    let output = run(&arguments, "").await?;
    if !output.status.success() {
        return Ok(String::new());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn transaction(action: &'static str, text: &str) -> Result<(), HostError> {
    let output = run(&["-f", "-"], text).await?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    // nft repeats the input with markers below each message; only the messages are kept.
    let message = message.lines().filter(|line| line.contains("rror")).collect::<Vec<_>>().join("; ");
    Err(HostError::Nft { action, message })
}

async fn run(arguments: &[&str], input: &str) -> Result<std::process::Output, HostError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(HostError::NoNft)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()).await {
            // nft stopped reading; its exit code and output say why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(HostError::NoNft(error)),
            _ => {}
        }
    }
    child.wait_with_output().await.map_err(HostError::NoNft)
}
