//! A system interface that the standard library does not offer safely: work between fork and exec.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Makes the kernel kill the command's process when the thread that spawns it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let die = || set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(die) };
}

/// Runs `command` in a network and a mount namespace and, if there is one, in the cgroup with this
/// `cgroup.procs`.
pub(crate) fn run_inside(command: &mut Command, cgroup: Option<Arc<File>>, network: Arc<File>, mounts: Arc<File>) {
    let enter = move || -> io::Result<()> {
        if let Some(cgroup) = &cgroup {
            nix::unistd::write(&**cgroup, b"0")?;
        }
        setns(&*network, CloneFlags::CLONE_NEWNET)?;
        setns(&*mounts, CloneFlags::CLONE_NEWNS)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls with descriptors opened before;
    // it allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
}
