//! A named network namespace, and work done inside it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::sandbox;
use crate::syscalls;

/// A network namespace with a name under `/run/netns`. Clones refer to the same namespace. It lives
/// until it is removed or the test's process ends.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
    /// By which its processes and threads enter their node's cgroup, if the test has cgroups.
    cgroup: Option<Arc<File>>,
}

impl Netns {
    /// Makes a namespace with its loopback interface up.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses.
    pub fn create(name: &str) -> Result<Netns> {
        Netns::create_in(name, None)
    }

    /// The same on the node of this one: processes are in the same cgroup.
    ///
    /// # Errors
    /// As [`Netns::create`].
    pub fn create_beside(&self, name: &str) -> Result<Netns> {
        Netns::create_in(name, self.cgroup.clone())
    }

    /// The same, for processes of this cgroup.
    pub(crate) fn create_in(name: &str, cgroup: Option<Arc<File>>) -> Result<Netns> {
        let path = PathBuf::from(sandbox::NETNS).join(name);
        File::create_new(&path).with_context(|| format!("network namespace {name}: create {}", path.display()))?;
        let result = thread::scope(|scope| {
            let made = scope.spawn(|| -> nix::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let none: Option<&str> = None;
                mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)
            });
            made.join()
        });
        result
            .map_err(|_| anyhow::anyhow!("thread panicked"))?
            .with_context(|| format!("make network namespace {name}"))?;
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let netns = Netns { name: name.into(), file: Arc::new(file), cgroup };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Names a namespace that another program made, for example `/proc/<process>/ns/net`. A name
    /// that is taken now refers to this namespace.
    ///
    /// # Errors
    /// There is no namespace at `namespace`, or the kernel refuses.
    pub fn adopt(name: &str, namespace: &Path) -> Result<Netns> {
        let path = PathBuf::from(sandbox::NETNS).join(name);
        if path.exists() {
            umount2(&path, MntFlags::MNT_DETACH).ok();
        } else {
            File::create_new(&path).with_context(|| format!("network namespace {name}: create {}", path.display()))?;
        }
        let none: Option<&str> = None;
        mount(Some(namespace), &path, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind {} to {}", namespace.display(), path.display()))?;
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Netns { name: name.into(), file: Arc::new(file), cgroup: None })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's path, which a CNI runtime passes to plugins.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(sandbox::NETNS).join(&*self.name)
    }

    /// Removes the namespace's name. The namespace ends when nothing uses it any more.
    ///
    /// # Errors
    /// A system call fails.
    pub fn remove(&self) -> Result<()> {
        let path = self.path();
        umount2(&path, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", path.display()))?;
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Moves the calling thread into the namespace for good.
    ///
    /// # Errors
    /// A system call fails.
    pub fn enter(&self) -> Result<()> {
        if let Some(cgroup) = &self.cgroup {
            (&**cgroup).write_all(b"0").with_context(|| format!("enter the cgroup of {}", self.name))?;
        }
        setns(&*self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter network namespace {}", self.name))
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    ///
    /// # Errors
    /// Those of `work`, and a panic in it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|_| bail!("panic in network namespace {}", self.name))
        })
    }

    /// A command that runs inside the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        syscalls::run_inside(&mut command, self.file.clone(), self.cgroup.clone(), None);
        command
    }

    /// The namespace's open file, for commands that enter further namespaces as well.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// The file by which processes enter the cgroup, for commands that enter further namespaces as
    /// well.
    pub(crate) fn cgroup(&self) -> Option<Arc<File>> {
        self.cgroup.clone()
    }

    /// Runs lines of `ip` commands (without the word `ip`).
    ///
    /// # Errors
    /// `ip` refuses a line; the message is its own.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]);
        let script: String =
            lines.lines().map(str::trim).filter(|line| !line.is_empty()).flat_map(|l| [l, "\n"]).collect();
        feed(command, &script).with_context(|| format!("ip in {}:\n{script}", self.name))?;
        Ok(())
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    /// `nft` fails; the message is its own.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        feed(command, &format!("{ruleset}\n")).with_context(|| format!("nft in {}:\n{ruleset}", self.name))?;
        Ok(())
    }

    /// Sets a sysctl of this namespace, for example `net.ipv4.ip_forward`. Dots separate, so
    /// interface names must not contain dots.
    ///
    /// # Errors
    /// A system call fails.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.within(|| fs::write(&path, value).with_context(|| format!("write {value} to {path}")))
    }

    /// Index of an interface inside.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn interface(&self, name: &str) -> Result<u32> {
        self.within(|| {
            nix::net::if_::if_nametoindex(name).with_context(|| format!("interface {name} in {}", self.name))
        })
    }

    /// Names of all interfaces inside.
    ///
    /// # Errors
    /// A system call fails.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        self.within(|| {
            let list = nix::net::if_::if_nameindex().context("list interfaces")?;
            Ok(list.iter().map(|entry| entry.name().to_string_lossy().into_owned()).collect())
        })
    }
}

/// Runs a command with `input` on its standard input and returns its standard output.
///
/// # Errors
/// The command cannot be run, or it fails; the message has its standard error.
pub fn feed(mut command: Command, input: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}: is it installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading early prints the reason to its standard error.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let printed = String::from_utf8_lossy(&output.stdout);
        bail!("{program} failed ({}): {} {}", output.status, said.trim(), printed.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
