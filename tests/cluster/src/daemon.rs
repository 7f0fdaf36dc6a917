//! A program that runs until it is stopped, and its log.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::{log, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::session;

/// A program with its arguments, running or not.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    command: Mutex<Command>,
    process: Mutex<Option<Child>>,
}

impl Daemon {
    /// A daemon that is not running yet. Its output goes to `<directory>/<name>.log`.
    pub fn new(name: &str, directory: &Path, command: Command) -> Daemon {
        Daemon {
            name: name.into(),
            log: directory.join(format!("{name}.log")),
            command: Mutex::new(command),
            process: Mutex::new(None),
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it and waits for nothing.
    ///
    /// # Errors
    /// It runs already, or cannot be run.
    pub fn start(&self) -> Result<()> {
        let mut process = self.process();
        ensure!(process.is_none(), "{} runs already", self.name);
        let log = self.open_log()?;
        let mut command = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        command.stdin(Stdio::null()).stdout(log.try_clone().context("clone log")?).stderr(log).process_group(0);
        *process = Some(command.spawn().with_context(|| format!("start {}", self.name))?);
        Ok(())
    }

    fn open_log(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        options.open(&self.log).with_context(|| format!("open {}", self.log.display()))
    }

    /// Sends SIGTERM, and SIGKILL if it has not ended after a while. Not an error if it is not
    /// running.
    ///
    /// # Errors
    /// A system call fails.
    pub fn stop(&self) -> Result<()> {
        let Some(id) = self.id() else { return Ok(()) };
        kill(Pid::from_raw(id as i32), Signal::SIGTERM).ok();
        let ended = wait::within(Duration::from_secs(20), "its end", || self.has_ended());
        if ended.is_err() {
            return self.kill();
        }
        *self.process() = None;
        Ok(())
    }

    /// Kills it with SIGKILL, whatever it is doing. Not an error if it is not running.
    ///
    /// # Errors
    /// A system call fails.
    pub fn kill(&self) -> Result<()> {
        let Some(mut child) = self.process().take() else { return Ok(()) };
        child.kill().with_context(|| format!("kill {}", self.name))?;
        child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Its process id, if it was started.
    pub fn id(&self) -> Option<u32> {
        self.process().as_ref().map(Child::id)
    }

    /// Its process id outside the session.
    ///
    /// # Errors
    /// It is not running, or the session was not begun by [`crate::session::command`].
    pub fn host_id(&self) -> Result<u32> {
        let id = self.id().with_context(|| format!("{} is not running", self.name))?;
        session::host_id(id)
    }

    fn has_ended(&self) -> Result<Option<ExitStatus>> {
        match self.process().as_mut() {
            Some(child) => child.try_wait().with_context(|| format!("ask for {}", self.name)),
            None => Ok(None),
        }
    }

    /// Waits until `condition` holds, as long as the program runs.
    ///
    /// # Errors
    /// The program ended, or the condition never held; the message has the end of its log.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> Result<()>) -> Result<()> {
        let mut ended = None;
        let held = wait::within(2 * wait::GENEROUS, format!("{} to {what}", self.name), || {
            ended = self.has_ended()?;
            if ended.is_some() { Ok(Some(())) } else { condition().map(Some) }
        });
        if let Some(status) = ended {
            bail!(
                "{} ended with {status}; its log ({}) ends with:\n{}",
                self.name,
                self.log.display(),
                self.log_tail()
            );
        }
        held.with_context(|| format!("its log ({}) ends with:\n{}", self.log.display(), self.log_tail()))
    }

    /// The path of its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        log::tail(&self.log, 25)
    }
}
