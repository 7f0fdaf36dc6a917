//! `make demo`: hauberk's main job on real packets, told for readers who have never seen it.
//!
//! There are two processes. The outer one (here) waits and cleans up, whatever happens. The inner
//! one moves into its own mount and network namespace and tells the [`story`]. Everything the story
//! makes ends with the inner process.
#![forbid(unsafe_code)]

mod claims;
mod conversation;
mod http;
mod keep;
mod live;
mod outage;
mod playground;
mod rows;
mod screen;
mod story;
mod summary;
mod table;
mod wire;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use hauberk_netns::programs;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};

use crate::story::Options;

/// Shows hauberk's main job on real packets: three nodes, two namespaces, and what the wire between
/// them shows.
#[derive(Parser)]
#[command(name = "hauberk-demo", version)]
struct Arguments {
    /// Show every single flow, not only one row per pair of namespaces.
    #[arg(long, short)]
    verbose: bool,
    /// Leave the playground up afterwards and say how to look around (or set KEEP=1).
    #[arg(long)]
    keep: bool,
    /// The inner process, in its own namespaces.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = if arguments.inside { inside(&arguments) } else { outside() };
    result.unwrap_or_else(|error| {
        screen::failure(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

/// Starts the inner process, waits for it, and removes the files that it leaves.
fn outside() -> Result<ExitCode> {
    prerequisites()?;
    // The lock, and with it the folder, is held until this process ends.
    let _lock = lock()?;
    let directory = fresh_directory()?;
    // Blocked so that Ctrl-C ends the inner process but not the clean-up. The inner process
    // unblocks its own signals.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    let mut inner = Command::new(std::env::current_exe().context("own path")?);
    inner.arg("--inside").args(std::env::args_os().skip(1)).stdin(Stdio::null());
    let mut inner = inner.spawn().context("start the demo's inner process")?;
    let ended = wait(&mut inner, &signals)?;
    // Among other files these are private keys of nodes that no longer exist.
    for leftover in ["state", "manifests.staging"] {
        fs::remove_dir_all(directory.join(leftover)).ok();
    }
    Ok(match ended {
        Some(code) => code,
        // Ended by Ctrl-C: either after the verdict, while the playground was kept, or in the
        // middle.
        None if summary::all_claims_held(&directory) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    })
}

/// The inner process's exit code; none if a signal ended it.
fn wait(inner: &mut Child, signals: &SigSet) -> Result<Option<ExitCode>> {
    loop {
        let signal = signals.wait().context("wait for signals")?;
        if signal != Signal::SIGCHLD {
            inner.kill().context("end the demo's inner process")?;
        }
        if let Some(status) = inner.try_wait().context("wait for the demo's inner process")? {
            return Ok(status.code().map(|code| ExitCode::from(u8::try_from(code).unwrap_or(1))));
        }
    }
}

fn prerequisites() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and loads eBPF programs, which only root may: run it as `sudo make demo`"
    );
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let found = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(found.is_ok(), "`{program}` is missing: install the package {package}");
    }
    for program in ["hauberkd", "hauberk", "hauberk-cni"] {
        programs::ours(program)?;
    }
    Ok(())
}

/// Locks `target/demo`: a second demo would delete the manifests of the first.
fn lock() -> Result<File> {
    let path = demo_directory()?.with_extension("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another demo is running: wait for it, or end it with Ctrl-C"),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// `target/demo`, emptied: the summary, the manifests, the agents' logs.
fn fresh_directory() -> Result<PathBuf> {
    let directory = demo_directory()?;
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}

fn demo_directory() -> Result<PathBuf> {
    let directory = programs::target_directory()?.join("demo");
    std::path::absolute(&directory).with_context(|| format!("absolute path of {}", directory.display()))
}

/// Tells the story. The process has one thread until it is in its own namespaces.
fn inside(arguments: &Arguments) -> Result<ExitCode> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("ask to end with the outer process")?;
    SigSet::all().thread_unblock().context("unblock signals")?;
    let keep = arguments.keep || std::env::var("KEEP").is_ok_and(|value| value == "1");
    let directory = demo_directory()?;
    let held = story::tell(&directory, &Options { verbose: arguments.verbose, keep })?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A path relative to the current directory if possible.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
