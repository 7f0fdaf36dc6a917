//! One process per test.
//!
//! The test program lists its tests, and for each test starts itself again with `--inside NAME`.
//! That process moves into a sandbox before it has a second thread, runs the test and ends. Its
//! namespaces, agents and mounts end with it.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::capture::Capture;
use crate::node::Node;
use crate::programs;
use crate::sandbox;
use crate::syscalls;

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// The suite's name and what must hold: `matrix::bpf_every_pair_every_protocol`.
    pub name: &'static str,
    /// The test.
    pub run: fn(&Context) -> Result<()>,
    /// The test is killed after this time.
    pub limit: Duration,
}

impl Test {
    /// A test with the usual time limit.
    pub const fn new(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
        Test { name, run, limit: Duration::from_secs(240) }
    }

    /// The same with another time limit.
    pub const fn limit(mut self, seconds: u64) -> Test {
        self.limit = Duration::from_secs(seconds);
        self
    }
}

/// What a test gets as its argument.
pub struct Context {
    /// The test's own folder, `target/netns/<test>`: logs, manifests, captures.
    pub directory: PathBuf,
    captures: Mutex<Vec<Capture>>,
    nodes: Mutex<Vec<Arc<Node>>>,
}

impl Context {
    /// A context for a program that is no test. What the program builds keeps its logs in
    /// `directory`.
    pub fn new(directory: PathBuf) -> Context {
        Context { directory, captures: Mutex::default(), nodes: Mutex::default() }
    }

    /// Makes the runner write this capture to the folder if the test fails.
    pub(crate) fn watch(&self, capture: &Capture) {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner).push(capture.clone());
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
pub fn main(tests: &[Test]) -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--inside") {
        let name = arguments.next().unwrap_or_default();
        return match tests.iter().find(|test| test.name == name) {
            Some(test) => run_inside(test),
            None => ExitCode::FAILURE,
        };
    }
    outside(tests)
}

/// The parent: lists, starts, reports.
fn outside(tests: &[Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list
        && let Err(error) = prerequisites()
    {
        eprintln!("netns suites cannot run: {error:#}");
        return ExitCode::FAILURE;
    }
    // More tests at once would only make each wait longer: every test runs several programs.
    arguments.test_threads.get_or_insert(2);
    let trials =
        tests.iter().copied().map(|test| Trial::test(test.name, move || start(&test).map_err(failed))).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!("{} passed, {} failed", conclusion.num_passed, conclusion.num_failed);
    }
    conclusion.exit_code()
}

fn failed(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}

fn prerequisites() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "they make network namespaces and need root: run them with sudo");
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let found = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(found.is_ok(), "`{program}` is missing: install the package {package}");
    }
    Ok(())
}

/// Runs one test in a process of its own.
fn start(test: &Test) -> Result<()> {
    let directory = programs::target_directory()?.join("netns").join(test.name.replace("::", "."));
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let output_path = directory.join("output.log");
    let output = File::create(&output_path).with_context(|| format!("create {}", output_path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("own path")?);
    command.args(["--inside", test.name]).env("HAUBERK_TEST_DIRECTORY", &directory);
    syscalls::die_with_parent(&mut command);
    if keeps() {
        command.stdin(Stdio::inherit());
    } else {
        command.stdin(Stdio::null()).stdout(output.try_clone().context("clone output")?).stderr(output);
    }
    let mut child = command.spawn().context("start the test's process")?;
    let deadline = Instant::now() + test.limit;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for the test's process")? {
            break status;
        }
        if Instant::now() > deadline && !keeps() {
            child.kill().context("kill the test's process")?;
            child.wait().context("wait for the test's process")?;
            bail!("did not end within {:?}, killed; {}", test.limit, said(&output_path));
        }
        sleep(Duration::from_millis(10));
    };
    ensure!(status.success(), "{}", said(&output_path));
    Ok(())
}

fn said(output: &PathBuf) -> String {
    let text = fs::read(output).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(80)..].join("\n");
    format!("it said ({}):\n{tail}", output.display())
}

fn keeps() -> bool {
    std::env::var("KEEP").is_ok_and(|value| value == "1")
}

/// The child: enters the sandbox, runs the test, and prints what is needed to investigate a
/// failure.
fn run_inside(test: &Test) -> ExitCode {
    let directory = PathBuf::from(std::env::var_os("HAUBERK_TEST_DIRECTORY").unwrap_or_default());
    let context = Context::new(directory);
    if let Err(error) = sandbox::enter() {
        println!("cannot make a sandbox: {error:#}");
        return ExitCode::FAILURE;
    }
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (test.run)(&context))).unwrap_or_else(|_| bail!("it panicked"));
    println!("{} took {:.1} s", test.name, started.elapsed().as_secs_f64());
    let Err(error) = result else { return ExitCode::SUCCESS };
    println!("FAILED: {error:#}");
    explain(&context);
    ExitCode::FAILURE
}

fn explain(context: &Context) {
    for (number, capture) in context.captures.lock().unwrap_or_else(PoisonError::into_inner).iter().enumerate() {
        let path = context.directory.join(format!("wire{number}.pcap"));
        match capture.write(&path) {
            Ok(()) => println!("what crossed the wire: {} (ports: {})", path.display(), capture.ports().join(", ")),
            Err(error) => println!("the capture could not be written: {error:#}"),
        }
    }
    for node in context.nodes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // That an agent does not run is reported elsewhere.
        if let Ok((_, drops)) = node.agent.get("/v1/drops") {
            println!("dropped on {}: {}", node.name, drops.trim());
        }
    }
    println!("logs and manifests: {}", context.directory.display());
    if !keeps() {
        println!("to look around in the namespaces afterwards, run this test with KEEP=1");
        return;
    }
    let id = std::process::id();
    println!("the namespaces are kept until Enter is pressed; to go into one:");
    for entry in fs::read_dir(sandbox::NETNS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        println!("    nsenter -t {id} -m nsenter --net=/run/netns/{}", name.to_string_lossy());
    }
    std::io::stdin().read_line(&mut String::new()).ok();
}
