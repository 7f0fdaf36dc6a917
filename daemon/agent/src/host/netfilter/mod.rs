//! hauberk's netfilter rules, in two tables of its own, always changed in one transaction.
//!
//! `inet hauberk` marks what went through the IP stack (before source translation) and masquerades what pods send to the
//! world. `netdev hauberk` is the guard against packet sockets: a frame that leaves an uplink, carries a pod's address and
//! neither mark did not come from the stack nor through a pod's interface, so somebody on the node wrote it by hand. That
//! hook runs before any queueing discipline and before TCX: it sees `PACKET_QDISC_BYPASS`, which nothing else does.
//!
//! Beside another CNI plugin's network, `inet hauberk` also keeps that plugin's masquerading off what goes through the tunnel,
//! tells TCP of the tunnel's size, and drops what would leave by an overlay that is not guarded (yet).
//!
//! [`text`] writes the rules, [`read`] understands `nft`'s JSON, this module runs it.

mod read;
mod text;

use std::collections::BTreeSet;
use std::io;
use std::process::Stdio;

use ipnet::IpNet;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::HostError;

pub(crate) use text::EGRESS_PROBE;

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// How far left hauberk's mark bits are shifted: 0..=28.
    pub mark_shift: u32,
    /// The uplinks' names.
    pub uplinks: Vec<String>,
    /// Names of those that lead to other nodes and the world.
    pub masquerade: Vec<String>,
    /// Indices of the devices by which packets with pods' addresses may leave.
    pub passable: BTreeSet<u32>,
    /// This node's pod ranges: what they send to the world is masqueraded.
    pub local: BTreeSet<IpNet>,
    /// Destinations that are not the world.
    pub untranslated: BTreeSet<IpNet>,
    /// Addresses that no packet socket may send from or to: the cluster's ranges, and pods outside of them.
    pub guarded: BTreeSet<IpNet>,
    /// Another CNI plugin's network, if pods are connected by one.
    pub chained: Option<Beside>,
}

/// What the rules must know beside another CNI plugin's network.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Beside {
    /// Indices of the devices that are guarded. By name, one that was replaced would pass for its predecessor.
    pub guarded: BTreeSet<u32>,
    /// Largest packet inside the tunnel, bytes of IP: pods may not have been told.
    pub tunnel_mtu: u32,
}

/// What the rules have counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames of packet sockets that were dropped.
    pub packet_socket: u64,
    /// Packets of pods that were about to leave by an overlay that is not guarded.
    pub unguarded_overlay: u64,
}

/// The rules as they are in the kernel.
#[derive(Debug)]
pub struct Netfilter {
    installed: Ruleset,
    has_guard: bool,
}

impl Netfilter {
    /// Puts the rules in, in place of an earlier agent's. What the earlier one's sets held stays in them until the next
    /// [`Netfilter::apply`]: this agent may not have heard of all of it yet. Counters go on.
    ///
    /// # Errors
    /// [`HostError::NoNft`], [`HostError::Nft`]; the earlier rules are then in force unchanged.
    pub async fn install(ruleset: &Ruleset) -> Result<Netfilter, HostError> {
        let has_guard = has_egress_hook().await?;
        let mut installed = ruleset.clone();
        let earlier = read::sets(&list_tables().await?);
        installed.untranslated.extend(earlier.untranslated);
        installed.guarded.extend(earlier.guarded);
        let netfilter = Netfilter { installed, has_guard };
        netfilter.replace().await?;
        Ok(netfilter)
    }

    /// Whether the kernel has the hook that the guard against packet sockets needs (5.16).
    pub fn has_packet_socket_guard(&self) -> bool {
        self.has_guard
    }

    /// Makes the rules what they should be. Only sets that differ are touched; nothing is done if none does.
    ///
    /// # Errors
    /// [`HostError::Nft`]; the earlier rules are then in force unchanged.
    pub async fn apply(&mut self, ruleset: &Ruleset) -> Result<(), HostError> {
        let same_rules = self.installed.mark_shift == ruleset.mark_shift
            && self.installed.uplinks == ruleset.uplinks
            && self.installed.chained == ruleset.chained;
        let before = std::mem::replace(&mut self.installed, ruleset.clone());
        let result = if same_rules {
            match text::difference(&before, ruleset, self.has_guard) {
                difference if difference.is_empty() => Ok(()),
                difference => transaction("change its sets", &difference).await,
            }
        } else {
            self.replace().await
        };
        if result.is_err() {
            self.installed = before;
        }
        result
    }

    /// Whether the tables are still there, as a check against somebody's `nft flush ruleset`.
    ///
    /// # Errors
    /// [`HostError::NoNft`].
    pub async fn is_intact(&self) -> Result<bool, HostError> {
        let tables = list_tables().await?;
        Ok(tables.contains("\"mark_stack\"") && (!self.has_guard || tables.contains("\"tagged\"")))
    }

    /// Puts everything in again, whatever is there.
    ///
    /// # Errors
    /// [`HostError::Nft`].
    pub async fn restore(&self) -> Result<(), HostError> {
        self.replace().await
    }

    /// What the rules have counted since they were first put in.
    ///
    /// # Errors
    /// [`HostError::NoNft`].
    pub async fn counters(&self) -> Result<Counters, HostError> {
        if !self.has_guard && self.installed.chained.is_none() {
            return Ok(Counters::default());
        }
        Ok(read::counters(&list_tables().await?))
    }

    /// Removes both tables, if they are there, and nothing else.
    ///
    /// # Errors
    /// [`HostError::NoNft`], [`HostError::Nft`].
    pub async fn remove() -> Result<(), HostError> {
        let guard =
            if has_egress_hook().await? || !list("netdev").await?.is_empty() { text::remove_guard() } else { "" };
        transaction("remove hauberk's tables", &format!("{}{guard}", text::remove_stack())).await
    }

    async fn replace(&self) -> Result<(), HostError> {
        let counters = self.counters().await?;
        transaction("install hauberk's tables", &text::whole(&self.installed, counters, self.has_guard)).await
    }
}

/// Whether the kernel takes a netdev egress chain: asked without putting one in.
async fn has_egress_hook() -> Result<bool, HostError> {
    let output = run(&["-c", "-f", "-"], EGRESS_PROBE).await?;
    Ok(output.status.success())
}

/// Both tables as JSON, one after the other.
async fn list_tables() -> Result<String, HostError> {
    Ok(list("inet").await? + "\n" + &list("netdev").await?)
}

/// One table as JSON; empty if there is none.
async fn list(family: &str) -> Result<String, HostError> {
    let output = run(&["-j", "list", "table", family, text::TABLE], "").await?;
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
    // nft repeats the text with markers below each message; the messages alone say what is wrong.
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
            // It stopped reading; its exit code and words say why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(HostError::NoNft(error)),
            _ => {}
        }
    }
    child.wait_with_output().await.map_err(HostError::NoNft)
}
