//! The isolation of a cluster: its own network, mounts and processes, so that several clusters can
//! run side by side and nothing of a cluster is left, however it ends.
//!
//! It consists of three processes. The outermost asks the kernel for a process namespace and starts
//! its first process. That process builds the sandbox, starts the third one and then only collects
//! orphans (container runtimes leave many). The third does the work. When any of them dies, the
//! kernel ends everything in the namespace.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hauberk_netns::wait;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, wait as wait_for_child};
use nix::unistd::Pid;

use crate::{cgroup, syscalls};

/// Tells a process which of the three it is.
const LEVEL: &str = "HAUBERK_CLUSTER_LEVEL";
/// Where a session mounts the `/proc` of the machine around it.
const OUTER_PROC: &str = "/run/outer-proc";
/// This machine's cgroups: one folder per hierarchy, or the only hierarchy itself.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The folder on a node's disk that has one folder, named by its id, for each container that
/// containerd has not removed.
const CONTAINERS: &str = "/var/lib/containerd/io.containerd.runtime.v2.task/k8s.io";

/// A command that starts this program again, isolated. It ends with the thread that spawns it;
/// [`clear`] must be called afterwards.
///
/// # Errors
/// The path of this program is not known.
pub fn command(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("own path")?);
    command.args(arguments.into_iter().map(Into::into)).env(LEVEL, "1");
    syscalls::die_with_parent(&mut command);
    Ok(command)
}

/// Call this first in `main`, while the process has one thread. In a process that [`command`]
/// started, it goes through the levels and runs `work` on the innermost one. In any other process
/// it does nothing.
pub fn enter(work: impl FnOnce() -> ExitCode) -> Option<ExitCode> {
    let result = match env::var(LEVEL).ok()?.as_str() {
        "1" => outermost(),
        "2" => first_process(),
        _ => return Some(work()),
    };
    Some(result.unwrap_or_else(|error| {
        println!("cannot make a sandbox: {error:#}");
        ExitCode::FAILURE
    }))
}

fn outermost() -> Result<ExitCode> {
    unshare(CloneFlags::CLONE_NEWPID).context("unshare the process namespace: the cluster suites need root")?;
    let mut inner = next("2")?;
    let status = inner.wait().context("wait for the first process of the sandbox")?;
    Ok(ExitCode::from(status.code().unwrap_or(1) as u8))
}

fn first_process() -> Result<ExitCode> {
    hauberk_netns::sandbox::enter()?;
    let none: Option<&str> = None;
    fs::create_dir_all(OUTER_PROC).with_context(|| format!("create {OUTER_PROC}"))?;
    mount(Some("/proc"), OUTER_PROC, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .context("keep the machine's /proc")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("mount /proc of the new processes")?;
    let worker = Pid::from_raw(next("3")?.id() as i32);
    loop {
        match wait_for_child().context("wait for processes of the sandbox")? {
            WaitStatus::Exited(process, code) if process == worker => return Ok(ExitCode::from(code as u8)),
            WaitStatus::Signaled(process, ..) if process == worker => return Ok(ExitCode::FAILURE),
            _ => {}
        }
    }
}

fn next(level: &str) -> Result<Child> {
    let mut command = Command::new(env::current_exe().context("own path")?);
    command.args(env::args_os().skip(1)).env(LEVEL, level);
    syscalls::die_with_parent(&mut command);
    command.spawn().with_context(|| format!("start level {level} of the sandbox"))
}

/// Inside a session: the id of one of its processes outside the session.
///
/// # Errors
/// There is no such process.
pub fn host_id(process: u32) -> Result<u32> {
    // The sandbox's /proc shows the ids inside the session. The machine's own /proc is mounted
    // beside it.
    for entry in fs::read_dir(OUTER_PROC).with_context(|| format!("list {OUTER_PROC}"))?.flatten() {
        let Some(outer) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let inner: Vec<u32> = ids.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        let same = fs::read_link(entry.path().join("ns/pid")).ok() == fs::read_link("/proc/self/ns/pid").ok();
        if same && inner.last() == Some(&process) {
            return Ok(outer);
        }
    }
    bail!("no process {process} in this session")
}

/// Inside a session: the folder for its machines' disks. It is removed with the session.
pub fn state(directory: &Path) -> PathBuf {
    directory.join("state")
}

/// Removes what an ended session leaves behind: the cgroups of its containers and nodes, and its
/// machines' disks. Logs stay.
pub fn clear(directory: &Path) {
    let machines = fs::read_dir(state(directory)).into_iter().flatten().flatten();
    let containers: Vec<String> = machines.flat_map(|machine| containers(&machine.path())).collect();
    let nodes = cgroup::root().map(|root| cgroup::of_session(&root, directory));
    // The kernel ends the inner processes a moment after the process that held the namespace. Until
    // then, what they use cannot be removed.
    let gone = || {
        remove_cgroups(&containers);
        nodes.iter().for_each(|cgroup| remove_cgroup(cgroup));
        let left = containers.iter().flat_map(|id| cgroups(id)).chain(nodes.clone()).any(|cgroup| cgroup.exists());
        Ok((!left).then_some(()))
    };
    if let Err(error) = wait::within(Duration::from_secs(10), "cgroups of the session's containers to be removed", gone)
    {
        println!("{error:#}");
    }
    fs::remove_dir_all(state(directory)).ok();
}

/// The containers of a machine with this disk.
pub fn containers(disk: &Path) -> Vec<String> {
    let folder = disk.join(CONTAINERS.trim_start_matches('/'));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether a process with this text in its `/proc/<process>/cgroup` is in one of the containers.
pub fn contains(containers: &[String], cgroup: &str) -> bool {
    containers.iter().any(|id| cgroup.contains(&in_hierarchy(id)))
}

/// Removes the cgroups of containers without processes.
pub fn remove_cgroups(containers: &[String]) {
    containers.iter().flat_map(|id| cgroups(id)).for_each(|cgroup| remove_cgroup(&cgroup));
}

/// The cgroups of a container: one in each hierarchy of the machine.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let inside = in_hierarchy(id);
    let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = hierarchies.chain([PathBuf::from(CGROUPS)]);
    all.map(|hierarchy| hierarchy.join(inside.trim_start_matches('/'))).filter(|cgroup| cgroup.exists()).collect()
}

/// The path that containerd gives a container without a cgroup from the kubelet, as with
/// `cgroupsPerQOS: false`.
fn in_hierarchy(id: &str) -> String {
    format!("/k8s.io/{id}")
}

fn remove_cgroup(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // A cgroup in use stays; the caller checks what is left.
    fs::remove_dir(directory).ok();
}
