//! A node's machine: a network and a mount namespace in which every program has its standard path,
//! and a disk that survives a reboot.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::wire::Wire;
use hauberk_netns::{Netns, Party, wire};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::cgroup::Cgroup;
use crate::control_plane::machine_addresses;
use crate::{session, syscalls};

/// The machine's own folders. They are empty at first and survive a reboot. The rest of `/etc` is
/// the host's; writes to it are kept apart.
const DISK: [&str; 6] = ["/var/lib", "/var/log", "/opt", "/etc/cni", "/etc/containerd", "/etc/kubernetes"];
const CGROUPS: &str = "/sys/fs/cgroup";

/// A machine that is up.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name, network namespace and addresses on the wire.
    pub party: Party,
    /// The path of its `/run` outside the machine.
    pub run: PathBuf,
    disk: PathBuf,
    mounts: Arc<File>,
    cgroup: Option<Cgroup>,
}

impl Machine {
    /// Connects a new machine to the wire; `number` counts from 1. Its disk is a folder in `state`.
    /// With a cgroup, its processes are in there, and in no other node's.
    ///
    /// # Errors
    /// A system call fails.
    pub fn boot(wire: &mut Wire, name: &str, number: u8, state: &Path, cgroup: Option<Cgroup>) -> Result<Machine> {
        let netns = Netns::create(name)?;
        wire.plug(&netns, "eth0", 0, 1500)?;
        let (v4, v6) = machine_addresses(10 + number);
        let party = Party { name: name.into(), netns, v4, v6 };
        address(&party)?;
        Machine::furnish(party, &state.join(name), cgroup)
    }

    /// Takes the machine down as a power cut would, and up again on the same cable. Its processes
    /// must have ended before.
    ///
    /// # Errors
    /// A system call fails.
    pub fn reboot(&mut self) -> Result<()> {
        let shelf = Netns::create(&format!("{}-cable", self.party.name))?;
        wire::move_link(&self.party.netns, "eth0", &shelf, "eth0")?;
        // Pins are in memory, so a power cut loses them, and with them everything that would
        // otherwise stay attached to the cable, which is reused. The cable is unplugged first, so
        // that packets the kernel still has to send never find it without a guard.
        // The file system's own two files cannot be removed.
        let pins = ["/sys/fs/bpf", "-mindepth", "1", "-not", "-name", "*.debug", "-delete"];
        let forget = self.command("find").args(pins).status();
        ensure!(forget.context("run find")?.success(), "pins on {} could not be removed", self.party.name);
        self.party.netns.remove()?;
        umount2(&self.run, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", self.run.display()))?;
        self.party.netns = Netns::create(&self.party.name)?;
        wire::move_link(&shelf, "eth0", &self.party.netns, "eth0")?;
        shelf.remove()?;
        self.party.netns.ip("link set eth0 up")?;
        address(&self.party)?;
        *self = Machine::furnish(self.party.clone(), &self.disk, self.cgroup.clone())?;
        Ok(())
    }

    fn furnish(party: Party, disk: &Path, cgroup: Option<Cgroup>) -> Result<Machine> {
        let run = PathBuf::from("/run/machines").join(&party.name);
        let overlay = ["etc.upper", "etc.work"].map(|name| disk.join(name));
        let folders = DISK.iter().map(|folder| on_disk(disk, folder));
        for folder in folders.chain(overlay).chain([run.clone()]) {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
            .with_context(|| format!("mount tmpfs on {}", run.display()))?;
        let mounts = thread::scope(|scope| {
            let furnished = scope.spawn(|| {
                party.netns.enter()?;
                unshare(CloneFlags::CLONE_NEWNS).context("unshare mounts")?;
                furnish_mounts(&run, disk, cgroup.as_ref())?;
                File::open("/proc/thread-self/ns/mnt").context("open the mount namespace")
            });
            furnished.join().unwrap_or_else(|_| bail!("thread panicked"))
        });
        let mounts = Arc::new(mounts.with_context(|| format!("mounts of {}", party.name))?);
        Ok(Machine { party, run, disk: disk.into(), mounts, cgroup })
    }

    /// A command that runs on the machine.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let cgroup = self.cgroup.as_ref().map(Cgroup::processes);
        syscalls::run_inside(&mut command, cgroup, self.party.netns.file(), self.mounts.clone());
        command
    }

    /// The path outside the machine of one of its files, in `/run` or in its own folders
    /// (`/var/lib`, `/var/log`, `/opt`, `/etc/cni`, ...).
    pub fn file(&self, path: &str) -> PathBuf {
        match path.strip_prefix("/run/") {
            Some(rest) => self.run.join(rest),
            None => on_disk(&self.disk, path),
        }
    }

    /// The link target of `/proc/<process>/ns/mnt` for its processes.
    pub(crate) fn mount_identity(&self) -> Option<PathBuf> {
        let inode = nix::sys::stat::fstat(&*self.mounts).ok()?.st_ino;
        Some(PathBuf::from(format!("mnt:[{inode}]")))
    }

    /// Its containers.
    pub(crate) fn containers(&self) -> Vec<String> {
        session::containers(&self.disk)
    }
}

fn address(party: &Party) -> Result<()> {
    let (gateway_v4, gateway_v6) = machine_addresses(1);
    party.netns.ip(&format!(
        "addr add {}/24 dev eth0
         addr add {}/64 dev eth0 nodad
         route add default via {gateway_v4}
         route add default via {gateway_v6}",
        party.v4, party.v6
    ))
}

fn on_disk(disk: &Path, path: &str) -> PathBuf {
    disk.join(path.trim_start_matches('/'))
}

/// Sets up the mounts in a new mount namespace, which is a copy of the session's.
fn furnish_mounts(run: &Path, disk: &Path, cgroup: Option<&Cgroup>) -> Result<()> {
    let none: Option<&str> = None;
    let bind = |from: &Path, to: &str| {
        mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .with_context(|| format!("bind {} to {to}", from.display()))
    };
    let (upper, work) = (disk.join("etc.upper"), disk.join("etc.work"));
    let layers = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .context("overlay on /etc")?;
    for folder in DISK {
        fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
        bind(&on_disk(disk, folder), folder)?;
    }
    bind(run, "/run")?;
    // A sysfs shows the network namespace it was mounted in, so a new one is mounted. The mounts in
    // the old one are moved.
    let shelf = Path::new("/run/cgroup");
    fs::create_dir_all(shelf).context("create /run/cgroup")?;
    bind(Path::new(CGROUPS), "/run/cgroup")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mount /sys")?;
    bind(shelf, CGROUPS)?;
    umount2(shelf, MntFlags::MNT_DETACH).context("unmount /run/cgroup")?;
    if let Some(cgroup) = cgroup {
        let root = cgroup.root();
        mount(Some(cgroup.folder()), root, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind {} to {}", cgroup.folder().display(), root.display()))?;
    }
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).context("mount a bpffs")?;
    // As an init system sets it up: containers that already run also see what the kubelet mounts.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("make all mounts shared")
}
