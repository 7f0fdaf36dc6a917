//! One cgroup per node, for programs that run for a node's processes alone. All nodes share one
//! kernel, so a program at the root would run for the processes of every node.
//!
//! Clients of a test are threads of one process. So the cgroups are threaded ones (cgroup v2,
//! "Threads"), and each thread enters its node's.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

/// Where the cgroup2 file system is mounted in the sandbox.
const MOUNT: &str = "/run/cgroup";
const PREFIX: &str = "hauberk-netns-";

/// The cgroups of a test. They are removed by a later test: while the process runs, it is in them.
#[derive(Debug)]
pub struct Cgroups {
    root: PathBuf,
}

impl Cgroups {
    /// Moves this process into a cgroup of its own.
    ///
    /// # Errors
    /// The kernel has no cgroup v2, or a system call fails.
    pub fn create() -> Result<Cgroups> {
        fs::create_dir_all(MOUNT).with_context(|| format!("create {MOUNT}"))?;
        let none: Option<&str> = None;
        mount(Some("cgroup2"), MOUNT, Some("cgroup2"), MsFlags::empty(), none).context("mount cgroup2")?;
        remove_unused();
        let root = Path::new(MOUNT).join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
        write(&root.join("cgroup.procs"), "0")?;
        Ok(Cgroups { root })
    }

    /// Makes a node's cgroup. Returns its folder, and the file by which a thread enters it.
    ///
    /// # Errors
    /// A system call fails.
    pub fn node(&self, name: &str) -> Result<(PathBuf, Arc<File>)> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        write(&folder.join("cgroup.type"), "threaded")?;
        let threads = folder.join("cgroup.threads");
        let file = OpenOptions::new().write(true).open(&threads);
        Ok((folder, Arc::new(file.with_context(|| format!("open {}", threads.display()))?)))
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {text} to {}", path.display()))
}

/// Removes the cgroups of tests that have ended.
fn remove_unused() {
    let is_over = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        process.is_some_and(|process| !Path::new("/proc").join(process).exists())
    };
    for test in fs::read_dir(MOUNT).into_iter().flatten().flatten().filter(is_over) {
        for node in fs::read_dir(test.path()).into_iter().flatten().flatten() {
            fs::remove_dir(node.path()).ok();
        }
        fs::remove_dir(test.path()).ok();
    }
}
