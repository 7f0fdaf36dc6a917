//! Checks, before anything is touched, whether this process can do on this kernel what it must.
//!
//! Each [`Item`] is one check, with one sentence: what was found, or what is missing and what to
//! do. `hauberkd run` stops if something is missing; `hauberkd check` prints all items. The only
//! change made here is to mount the BPF file system where it belongs if it is not mounted
//! ([`mount_bpf_file_system`]).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hauberk_datapath::{BPF_FILE_SYSTEM, query, try_kinds, try_programs};
use hauberk_host::INTERFACE_PREFIX;
use hauberk_host::netfilter::firewall::{self, Device, Way, Ways};
use hauberk_host::netfilter::{self, BRIDGE_PROBE, EGRESS_PROBE, ROUTING_PROBE};
use nix::mount::MsFlags;

use crate::apply;
use crate::config::{AttachMode, Automatic, CniInstall, Config, HostRouting};
use crate::observe::firewalls::Firewalls;

/// An older kernel refuses the programs, because it lacks helpers that they call.
const OLDEST_KERNEL: (u32, u32) = (5, 11);
/// The oldest kernel that hauberk supports.
const PROMISED_KERNEL: (u32, u32) = (6, 1);

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What was checked.
    pub name: &'static str,
    /// The result.
    pub outcome: Outcome,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As needed; says what was found.
    Fine(String),
    /// hauberk runs, but with less; says what is lacking, and what to do.
    Degraded(String),
    /// hauberk cannot run; says what to do.
    Missing(String),
}

/// What is missing.
#[derive(Debug, thiserror::Error)]
#[error("this node cannot run hauberk:{}", .0.iter().map(|sentence| format!("\n  - {sentence}")).collect::<String>())]
pub struct SelfCheckError(pub Vec<String>);

/// Runs all checks.
pub fn run(config: &Config) -> Vec<Item> {
    let item = |name, outcome| Item { name, outcome };
    let mut items = vec![
        item("capabilities", capabilities()),
        item("kernel", kernel()),
        item("bpf", bpf()),
        item("attach", attach(config.attach)),
        item("bpf file system", bpf_file_system(&config.paths.pins)),
        item("kernel types (BTF)", kernel_types()),
        item("tun", tunnel(config)),
        item("nftables", nftables()),
        item("firewalls", firewalls(config)),
    ];
    items.extend(config.services.sockets.then(|| item("cgroup", cgroup(config))));
    items
}

/// Runs all checks, and loads the programs into the kernel: for `hauberkd check`. An agent that
/// starts loads them anyway.
pub fn run_with_programs(config: &Config) -> Vec<Item> {
    let mut items = run(config);
    let bpf = items.iter_mut().find(|item| item.name == "bpf");
    if let Some(item) = bpf.filter(|item| matches!(item.outcome, Outcome::Fine(_))) {
        item.outcome = programs(&config.paths.pins);
    }
    items
}

/// Succeeds if nothing is missing.
///
/// # Errors
/// [`SelfCheckError`] with a sentence for each missing thing.
pub fn require(items: &[Item]) -> Result<(), SelfCheckError> {
    let missing: Vec<String> = items
        .iter()
        .filter_map(|item| match &item.outcome {
            Outcome::Missing(sentence) => Some(format!("{}: {sentence}", item.name)),
            _ => None,
        })
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(SelfCheckError(missing)) }
}

/// Mounts the BPF file system for `pins`, if they are to be below `/sys/fs/bpf` and nothing is
/// there yet.
///
/// # Errors
/// The sentence that [`run`] would give.
pub fn mount_bpf_file_system(pins: &Path) -> Result<(), String> {
    if is_on_bpf_file_system(pins) {
        return Ok(());
    }
    let is_empty = fs::read_dir(BPF_FILE_SYSTEM).is_ok_and(|mut entries| entries.next().is_none());
    if !pins.starts_with(BPF_FILE_SYSTEM) || !is_empty {
        return Err(not_mounted(pins, None));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("bpf"), BPF_FILE_SYSTEM, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|error| not_mounted(pins, Some(error.into())))
}

/// The needed capabilities (`linux/capability.h`), by number and name. One of each row is enough.
const CAPABILITIES: [(&[(u32, &str)], &str); 4] = [
    (&[(12, "CAP_NET_ADMIN")], "to set up devices, routes and rules"),
    (&[(13, "CAP_NET_RAW")], "to send the self-test's packets"),
    (&[(39, "CAP_BPF"), (21, "CAP_SYS_ADMIN")], "to load programs"),
    (&[(38, "CAP_PERFMON"), (21, "CAP_SYS_ADMIN")], "to let programs compare pointers, as packet access does"),
];

fn capabilities() -> Outcome {
    let status = match fs::read_to_string("/proc/self/status") {
        Ok(status) => status,
        Err(error) => return Outcome::Missing(format!("cannot read /proc/self/status: {error}; mount /proc")),
    };
    judge_capabilities(&status)
}

fn judge_capabilities(status: &str) -> Outcome {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let lacking: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(any, _)| !any.iter().any(|(number, _)| effective >> number & 1 == 1))
        .map(|(any, why)| format!("{} ({why})", any.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" or ")))
        .collect();
    if lacking.is_empty() {
        return Outcome::Fine("all that are needed".into());
    }
    Outcome::Missing(format!("this process lacks {}; run it as root, or give it these", lacking.join(", ")))
}

fn kernel() -> Outcome {
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => judge_kernel(release.trim()),
        Err(error) => Outcome::Missing(format!("cannot read the kernel's version: {error}; mount /proc")),
    }
}

fn judge_kernel(release: &str) -> Outcome {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= PROMISED_KERNEL => Outcome::Fine(release.to_owned()),
        (Some(major), Some(minor)) if (major, minor) >= OLDEST_KERNEL => Outcome::Degraded(format!(
            "Linux {release} is older than {}.{}, for which hauberk is made; `bpf` says whether its programs are taken",
            PROMISED_KERNEL.0, PROMISED_KERNEL.1
        )),
        _ => Outcome::Missing(format!(
            "Linux {release} is older than {}.{}; boot a newer kernel",
            PROMISED_KERNEL.0, PROMISED_KERNEL.1
        )),
    }
}

fn bpf() -> Outcome {
    match try_kinds() {
        Ok(()) => Outcome::Fine("programs and maps can be loaded".into()),
        Err(refused) => Outcome::Missing(format!(
            "the kernel refuses {refused}; it needs CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF, no lockdown, and in a \
             container the bpf() system call must not be filtered"
        )),
    }
}

/// Loads the programs beside the pins, with maps of their own.
fn programs(pins: &Path) -> Outcome {
    let folder = nearest_existing(pins).filter(|folder| is_on_bpf_file_system(folder));
    let Some(folder) = folder else {
        return Outcome::Degraded(format!(
            "whether the kernel takes the programs is not known: their maps need a BPF file system, and {} (`paths.pins`) is on none; \
             run: mount -t bpf bpf {BPF_FILE_SYSTEM}",
            pins.display()
        ));
    };
    match try_programs(&folder.join(format!("hauberk-check-{}", std::process::id()))) {
        Ok(count) => Outcome::Fine(format!("the kernel takes all {count} programs, and the leak detector's")),
        Err(refused) => Outcome::Missing(format!(
            "{refused}; hauberk needs Linux {}.{} or newer, with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF",
            PROMISED_KERNEL.0, PROMISED_KERNEL.1
        )),
    }
}

fn attach(mode: AttachMode) -> Outcome {
    match (mode, query::has_tcx()) {
        (AttachMode::Clsact, _) => Outcome::Fine("clsact, as configured".into()),
        (_, true) => Outcome::Fine("TCX".into()),
        (AttachMode::Auto, false) => Outcome::Fine("clsact, as this kernel has no TCX".into()),
        (AttachMode::Tcx, false) => {
            Outcome::Missing("this kernel has no TCX (it came with 6.6); set `attach` to auto or clsact".into())
        }
    }
}

fn bpf_file_system(pins: &Path) -> Outcome {
    if is_on_bpf_file_system(pins) {
        return Outcome::Fine(format!("{} is on one", pins.display()));
    }
    let is_empty = fs::read_dir(BPF_FILE_SYSTEM).is_ok_and(|mut entries| entries.next().is_none());
    if pins.starts_with(BPF_FILE_SYSTEM) && is_empty {
        return Outcome::Fine(format!("{BPF_FILE_SYSTEM} is not mounted; hauberkd mounts it when it starts"));
    }
    Outcome::Missing(not_mounted(pins, None))
}

fn is_on_bpf_file_system(pins: &Path) -> bool {
    nearest_existing(pins).is_some_and(|path| hauberk_datapath::is_on_bpf_file_system(&path))
}

fn nearest_existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|ancestor| ancestor.exists()).map(Path::to_owned)
}

fn not_mounted(pins: &Path, error: Option<io::Error>) -> String {
    let parent = pins.parent().unwrap_or(pins).display();
    let error = error.map(|error| format!(" and cannot be made so: {error}")).unwrap_or_default();
    format!("{} (`paths.pins`) is not on a BPF file system{error}; run: mount -t bpf bpf {parent}", pins.display())
}

/// Without it, connections to services are left to kube-proxy.
fn cgroup(config: &Config) -> Outcome {
    match apply::cgroup(config) {
        Ok(cgroup) => Outcome::Fine(cgroup.display().to_string()),
        Err(why) => Outcome::Degraded(format!("`services.sockets` has no effect: {why}")),
    }
}

fn kernel_types() -> Outcome {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Outcome::Fine("/sys/kernel/btf/vmlinux".into());
    }
    Outcome::Fine("none, and none are needed".into())
}

fn tunnel(config: &Config) -> Outcome {
    match config.tunnel.backend.mechanism().available() {
        Ok(found) => Outcome::Fine(found),
        Err(missing) => Outcome::Missing(missing),
    }
}

fn nftables() -> Outcome {
    let output = match Command::new("nft").args(["list", "tables"]).output() {
        Ok(output) => output,
        Err(error) => return Outcome::Missing(format!("cannot run nft: {error}; install nftables")),
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or_default();
        return Outcome::Missing(format!("nft cannot list tables: {words}; the kernel needs CONFIG_NF_TABLES"));
    }
    let all = [EGRESS_PROBE, ROUTING_PROBE, BRIDGE_PROBE].map(accepts);
    match all {
        [Ok(true), Ok(true), Ok(true)] => Outcome::Fine("nft, with all that guards against packet sockets and bridges".into()),
        [Ok(true), Ok(false), _] => Outcome::Degraded(
            "this kernel's nftables cannot match routing entries (CONFIG_IP_ROUTE_CLASSID): a process with CAP_NET_RAW on this \
             node that sets hauberk's mark bits could send plaintext past the queueing discipline unnoticed here; receivers \
             with hauberk still refuse it"
                .into(),
        ),
        [Ok(true), _, Ok(false)] => Outcome::Degraded(
            "this kernel's nftables has no chains at bridges (CONFIG_NF_TABLES_BRIDGE): pods' packets do not leave by a bridge".into(),
        ),
        [Ok(false), ..] => Outcome::Degraded(
            "this kernel has no netdev egress hook (it came with 5.16, CONFIG_NETFILTER_EGRESS): a privileged process on this \
             node could send plaintext past the queueing discipline (PACKET_QDISC_BYPASS) unnoticed here; receivers with \
             hauberk still refuse it"
                .into(),
        ),
        [Err(error), ..] | [_, Err(error), _] | [.., Err(error)] => {
            Outcome::Missing(format!("cannot run nft: {error}; install nftables"))
        }
    }
}

/// Judges other programs' chains on the paths of pods' packets and of the tunnel's own.
fn firewalls(config: &Config) -> Outcome {
    let mut wanted = vec![Way::ToNode, Way::Tunnel];
    let is_chained = config.cni.install == CniInstall::Chained;
    if config.host_routing == HostRouting::Stack || is_chained {
        wanted.extend([Way::Out, Way::Opened, Way::Plain]);
    } else {
        // Packets between nodes bypass the stack; what pods send to the world passes through it.
        wanted.push(Way::World);
    }
    let named = match &config.uplinks {
        Automatic::Auto => default_devices(),
        Automatic::Value(names) => names.clone(),
    };
    let uplinks: BTreeSet<Device> = named.into_iter().map(Device::Named).collect();
    let unknown = BTreeSet::from([Device::Unknown]);
    let ways = Ways {
        ways: wanted,
        tunnel: config.tunnel.device.clone(),
        port: config.tunnel.port,
        pods: if is_chained { unknown.clone() } else { [Device::Prefix(INTERFACE_PREFIX.to_owned())].into() },
        uplinks: if uplinks.is_empty() { unknown } else { uplinks },
        own: Vec::new(),
        all: config.cluster_ranges.clone(),
    };
    let findings = match firewall::look_now(&ways) {
        Ok(findings) => findings,
        Err(error) => return Outcome::Missing(format!("cannot run nft: {error}; install nftables")),
    };
    if let Some(summary) = (Firewalls { ways, findings }).summary() {
        return Outcome::Degraded(summary);
    }
    if netfilter::has_legacy_tables() {
        return Outcome::Degraded(format!(
            "iptables-legacy has tables here, which nft cannot show: `iptables-legacy -S FORWARD` says whether they drop what comes in \
             by {INTERFACE_PREFIX}+ and by {}",
            config.tunnel.device
        ));
    }
    Outcome::Fine("no chain of others drops what pods and the tunnel send".into())
}

/// Devices of default routes (`/proc/net/route`, `/proc/net/ipv6_route`).
fn default_devices() -> Vec<String> {
    let lines = |path| fs::read_to_string(path).unwrap_or_default();
    let mut devices = BTreeSet::new();
    for line in lines("/proc/net/route").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [device, "00000000", ..] = words[..] {
            devices.insert(device.to_owned());
        }
    }
    for line in lines("/proc/net/ipv6_route").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let (Some(&"00000000000000000000000000000000"), Some(&"00"), Some(device)) =
            (words.first(), words.get(1), words.last())
            && *device != "lo"
        {
            devices.insert((*device).to_owned());
        }
    }
    devices.into_iter().collect()
}

/// Asks `nft` to check rules without installing them.
fn accepts(rules: &str) -> io::Result<bool> {
    let mut child = Command::new("nft")
        .args(["-c", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // If `nft` stops reading early, its exit code reports a refusal.
        let _ = stdin.write_all(rules.as_bytes());
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_when_they_lack() {
        assert_eq!(
            judge_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            Outcome::Fine("all that are needed".into())
        );
        let Outcome::Missing(sentence) = judge_capabilities("CapEff:\t0000000000001000\n") else {
            panic!("not missing")
        };
        assert!(sentence.contains("CAP_NET_RAW") && sentence.contains("CAP_BPF or CAP_SYS_ADMIN"), "{sentence}");
        assert!(!sentence.contains("CAP_NET_ADMIN"), "{sentence}");
        for broken in ["", "CapEff:", "CapEff:\tzz"] {
            assert!(matches!(judge_capabilities(broken), Outcome::Missing(_)));
        }
    }

    #[test]
    fn kernels_are_compared_by_number() {
        for good in ["6.1", "6.1.0-13-amd64", "6.18.4", "10.0"] {
            assert!(matches!(judge_kernel(good), Outcome::Fine(_)), "{good}");
        }
        for old in ["5.11", "5.15.0-101-generic", "6.0.9"] {
            assert!(matches!(judge_kernel(old), Outcome::Degraded(_)), "{old}");
        }
        for bad in ["5.10.0-13-amd64", "5.9.16", "4.19.0", "", "x", "6"] {
            assert!(matches!(judge_kernel(bad), Outcome::Missing(_)), "{bad}");
        }
    }

    #[test]
    fn a_folder_that_is_no_bpf_file_system_is_refused_with_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let pins = folder.path().join("hauberk");
        let Outcome::Missing(sentence) = bpf_file_system(&pins) else { panic!("not missing") };
        assert!(sentence.contains("mount -t bpf bpf"), "{sentence}");
        assert_eq!(mount_bpf_file_system(&pins), Err(sentence));
    }

    #[test]
    fn what_is_missing_is_listed_whole() {
        let item = |outcome| Item { name: "x", outcome };
        assert!(require(&[item(Outcome::Fine(String::new())), item(Outcome::Degraded("y".into()))]).is_ok());
        let error = require(&[item(Outcome::Missing("a".into())), item(Outcome::Missing("b".into()))]).unwrap_err();
        assert_eq!(error.to_string(), "this node cannot run hauberk:\n  - x: a\n  - x: b");
    }

    #[test]
    fn everything_is_looked_at_wherever_this_runs() {
        let items = run_with_programs(&Config::default());
        assert_eq!(items.len(), 9);
        let bpf = items.iter().find(|item| item.name == "bpf").map(|item| &item.outcome);
        // Not every machine that runs tests has a BPF file system.
        assert!(!matches!(bpf, Some(Outcome::Fine(sentence)) if !sentence.contains("takes all 7 programs")), "{bpf:?}");
    }
}
