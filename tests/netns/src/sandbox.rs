//! The isolation of one test: its own mounts and network, made before any thread exists. They end
//! with the process.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The sandbox's bpffs, which every node sees at `/sys/fs/bpf`.
pub(crate) const BPF: &str = "/run/bpf";
/// The folder of named network namespaces, as `ip netns` uses it.
pub(crate) const NETNS: &str = "/run/netns";

/// Moves this process into a sandbox. Call it while the process has one thread.
///
/// # Errors
/// No privilege, or a mount that the kernel refuses.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("unshare mount and network namespaces: the netns suites need root")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make all mounts private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
        .context("mount tmpfs on /run")?;
    for directory in [BPF, NETNS, "/run/wireguard", "/run/lock"] {
        fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
    }
    mount(Some("bpf"), BPF, Some("bpf"), MsFlags::empty(), none).context("mount a bpffs of our own")?;
    // `ip netns exec` needs a mount point there that it may share.
    mount(Some(NETNS), NETNS, none, MsFlags::MS_BIND, none).context("make /run/netns a mount point")?;
    if !Path::new("/var/run").exists() {
        fs::create_dir_all("/var/run").context("create /var/run")?;
    }
    Ok(())
}
