//! One process per test.
//!
//! The test program lists its tests, and for each test starts itself again with `--inside NAME`.
//! That process moves into a sandbox before it has a second thread, runs the test and ends. Its
//! namespaces, agents and mounts end with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::capture::Capture;
use crate::node::Node;
use crate::sandbox;
use crate::syscalls;

mod test;
mod worker;

pub use test::{Captures, Harness, Test, arguments, fresh, results};
pub use worker::{Worker, conclude};

use self::test::keeps;

/// What a test gets as its argument.
pub struct Context {
    /// The test's own folder, `target/netns/<test>`: logs, manifests, captures.
    pub directory: PathBuf,
    captures: Captures,
    nodes: Mutex<Vec<Arc<Node>>>,
}

impl Context {
    /// A context for a program that is no test. What the program builds keeps its logs in
    /// `directory`.
    pub fn new(directory: PathBuf) -> Context {
        Context { directory, captures: Captures::default(), nodes: Mutex::default() }
    }

    /// Makes the runner write this capture to the folder if the test fails.
    pub(crate) fn watch(&self, capture: &Capture) {
        self.captures.watch(capture);
    }

    /// Makes the runner print what the agents on these nodes have dropped if the test fails.
    pub(crate) fn attend(&self, nodes: &[Arc<Node>]) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(nodes);
    }

    /// `target/netns`, for results that outlive a test.
    pub fn results(&self) -> PathBuf {
        self.directory.parent().map(PathBuf::from).unwrap_or_default()
    }
}

impl Harness for Context {
    const NAME: &'static str = "netns";
    const LIMIT: Duration = Duration::from_secs(240);

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn captures(&self) -> &Captures {
        &self.captures
    }

    fn explain(&self) {
        for node in self.nodes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // That an agent does not run is reported elsewhere.
            if let Ok((_, drops)) = node.agent.get("/v1/drops") {
                println!("dropped on {}: {}", node.name, drops.trim());
            }
        }
        println!("logs and manifests: {}", self.directory.display());
    }

    fn entrance(&self) -> String {
        format!("-t {} -m", std::process::id())
    }
}

/// Moves this process into a sandbox, for programs other than tests. Call it while the process has
/// one thread.
///
/// # Errors
/// The kernel refuses: usually the user is not root.
pub fn sandboxed(directory: &Path) -> Result<Context> {
    sandbox::enter()?;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(Context::new(directory.to_owned()))
}

/// The test program's `main`.
pub fn main(tests: &[Test<Context>]) -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--inside") {
        let name = arguments.next().unwrap_or_default();
        return match tests.iter().find(|test| test.name == name) {
            Some(test) => inside(test),
            None => ExitCode::FAILURE,
        };
    }
    outside(tests)
}

/// The parent: lists, starts, reports.
fn outside(tests: &[Test<Context>]) -> ExitCode {
    let Some(mut arguments) = arguments::<Context>(prerequisites) else { return ExitCode::FAILURE };
    // More tests at once would only make each wait longer: every test runs several programs.
    arguments.test_threads.get_or_insert(2);
    let trials = tests.iter().copied().map(|test| test.trial(move || start(&test))).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!("{} passed, {} failed", conclusion.num_passed, conclusion.num_failed);
    }
    conclusion.exit_code()
}

fn prerequisites() -> Result<()> {
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let found = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(found.is_ok(), "`{program}` is missing: install the package {package}");
    }
    Ok(())
}

/// Runs one test in a process of its own.
fn start(test: &Test<Context>) -> Result<()> {
    fresh(&test.directory()?)?;
    let mut command = Command::new(std::env::current_exe().context("own path")?);
    command.args(["--inside", test.name]).stdin(if keeps() { Stdio::piped() } else { Stdio::null() });
    syscalls::die_with_parent(&mut command);
    let mut worker = Worker::start(command)?;
    let verdict = worker.verdict(test).and_then(|passed| Ok(worker.finish()?.success() && passed));
    conclude(test, verdict)
}

/// The child: enters the sandbox and runs the test.
fn inside(test: &Test<Context>) -> ExitCode {
    if let Err(error) = sandbox::enter() {
        println!("cannot make a sandbox: {error:#}");
        return ExitCode::FAILURE;
    }
    let Ok(directory) = test.directory() else { return ExitCode::FAILURE };
    let context = Context::new(directory);
    if test.attempt(&context) {
        return ExitCode::SUCCESS;
    }
    // Nodes and namespaces stay until standard input ends: with KEEP=1 when Enter has been pressed,
    // otherwise it has none.
    std::io::stdin().read_line(&mut String::new()).ok();
    ExitCode::FAILURE
}
