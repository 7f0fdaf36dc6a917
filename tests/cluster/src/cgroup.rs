//! A cgroup for each node, for programs that run for a node's processes alone: all nodes share one
//! kernel, so a program at the root would run for the processes of every node.
//!
//! A machine sees its own cgroup where this machine has the root of the cgroup2 file system. So
//! containers get their cgroups below it, and what is attached to "the root" is attached to it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};

/// The cgroup of the node's daemons. Containers have cgroups beside it: where controllers are used,
/// a cgroup that has others inside must not have processes of its own.
const DAEMONS: &str = "daemons";

/// A node's cgroup.
#[derive(Clone, Debug)]
pub struct Cgroup {
    root: PathBuf,
    folder: PathBuf,
    processes: Arc<File>,
}

impl Cgroup {
    /// Makes the cgroup of a node. It is removed with the session whose folder is `session`.
    ///
    /// # Errors
    /// No cgroup2 file system is mounted, or a system call fails.
    pub fn create(session: &Path, node: &str) -> Result<Cgroup> {
        let root = root().context("no cgroup2 file system is mounted, which nodes without kube-proxy need")?;
        let session = of_session(&root, session);
        let folder = session.join(node);
        let daemons = folder.join(DAEMONS);
        fs::create_dir_all(&daemons).with_context(|| format!("create {}", daemons.display()))?;
        for parent in [&session, &folder] {
            delegate(parent)?;
        }
        let path = daemons.join("cgroup.procs");
        let processes =
            OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Cgroup { root, folder, processes: Arc::new(processes) })
    }

    /// The root of the cgroup2 file system, on this machine and on the node.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cgroup's folder on this machine.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A process that writes `0` to this file enters the cgroup of the node's daemons.
    pub(crate) fn processes(&self) -> Arc<File> {
        self.processes.clone()
    }
}

/// The cgroup that has those of a session's nodes inside. `session` is the session's folder.
pub(crate) fn of_session(root: &Path, session: &Path) -> PathBuf {
    root.join(format!("hauberk-cluster{}", session.display().to_string().replace('/', "-")))
}

/// Where the cgroup2 file system is mounted: at `/sys/fs/cgroup`, or below it where controllers are
/// still in hierarchies of version 1.
pub(crate) fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // Fields before " - " and after it: see proc_pid_mountinfo(5).
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Lets the cgroups inside use all controllers that this one has: those that the root delegates.
/// Where that fails, a container runtime says what it misses.
fn delegate(cgroup: &Path) -> Result<()> {
    let path = cgroup.join("cgroup.controllers");
    let controllers = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for controller in controllers.split_whitespace() {
        fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}")).ok();
    }
    Ok(())
}
