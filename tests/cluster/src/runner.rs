//! Runs each test in its session.
//!
//! The test program lists its tests. Tests of suites that share a cluster run one after the other
//! in one session (see [`session`](mod@crate::session)); the first of them starts the cluster. A
//! suite with other needs has its own session. A test that does not end takes its session down with
//! it, and the next test begins a new one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::capture::Capture;
use hauberk_netns::programs;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::cluster::{Cluster, Setup};
use crate::session;
use crate::tools;

/// Begins the line in which a session reports the result of a test.
const VERDICT: &str = "\u{1}verdict ";

/// Tests of one subject.
#[derive(Clone, Copy)]
pub struct Suite {
    /// The name of its session; suites with the same name share it.
    pub session: &'static str,
    /// Its tests.
    pub tests: &'static [Test],
}

impl Suite {
    /// A suite on the cluster that most suites share. Its tests leave that cluster as they found
    /// it.
    pub const fn shared(tests: &'static [Test]) -> Suite {
        Suite { session: "shared", tests }
    }

    /// A suite with its own session.
    pub const fn alone(session: &'static str, tests: &'static [Test]) -> Suite {
        Suite { session, tests }
    }
}

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// The suite's name and what must hold: `services::a_cluster_address_is_encrypted_both_ways`.
    pub name: &'static str,
    /// The test.
    pub run: fn(&Context) -> Result<()>,
    /// The test's session is killed after this time.
    pub limit: Duration,
}

impl Test {
    /// A test with the usual time limit, which includes the start of the cluster.
    pub const fn new(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
        Test { name, run, limit: Duration::from_secs(600) }
    }

    /// The same with another time limit.
    pub const fn limit(mut self, seconds: u64) -> Test {
        self.limit = Duration::from_secs(seconds);
        self
    }
}

/// What a test gets as its argument.
pub struct Context {
    /// The test's own folder, `target/cluster/<test>`.
    pub directory: PathBuf,
    session: Arc<Session>,
}

/// What outlives a test: the contents of its session.
struct Session {
    directory: PathBuf,
    cluster: OnceLock<Cluster>,
    captures: Mutex<Vec<Capture>>,
}

impl Context {
    /// A context for a program that is no test.
    pub fn new(directory: &Path) -> Context {
        let session =
            Session { directory: directory.into(), cluster: OnceLock::new(), captures: Mutex::new(Vec::new()) };
        Context { directory: directory.into(), session: Arc::new(session) }
    }

    /// The cluster that the session's tests share, with the default [`Setup`]. The first call
    /// starts it.
    ///
    /// # Errors
    /// It does not start.
    pub fn cluster(&self) -> Result<&Cluster> {
        if let Some(cluster) = self.session.cluster.get() {
            return Ok(cluster);
        }
        // Tests of a session run one after the other.
        let cluster = Cluster::start(self, &Setup::default())?;
        Ok(self.session.cluster.get_or_init(|| cluster))
    }

    /// The session's own folder, `target/cluster/session-<name>`: logs of a cluster that tests
    /// share.
    pub fn session_directory(&self) -> &Path {
        &self.session.directory
    }

    /// Makes the runner write a capture to the test's folder if the test fails.
    pub fn watch(&self, capture: &Capture) {
        self.session.captures.lock().unwrap_or_else(PoisonError::into_inner).push(capture.clone());
    }
}

/// The test program's `main`.
pub fn main(suites: &[Suite]) -> ExitCode {
    if let Some(code) = session::enter(|| inside(suites)) {
        return code;
    }
    let mut arguments = Arguments::from_args();
    if !arguments.list
        && let Err(error) = prerequisites()
    {
        eprintln!("cluster suites cannot run: {error:#}");
        return ExitCode::FAILURE;
    }
    // One test at a time: a cluster is twenty programs.
    arguments.test_threads = Some(1);
    let sessions: Arc<Mutex<BTreeMap<&str, Running>>> = Arc::default();
    let mut trials = Vec::new();
    for suite in suites {
        for test in suite.tests {
            let (sessions, suite) = (sessions.clone(), *suite);
            trials.push(Trial::test(test.name, move || {
                let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
                // Other sessions' clusters are no longer needed: tests run in the order of the
                // suites.
                sessions.retain(|name, _| *name == suite.session);
                run(&mut sessions, suite.session, test).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    sessions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    conclusion.exit_code()
}

fn prerequisites() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "they make namespaces and need root: run them with sudo");
    for program in ["kube-apiserver", "kubectl"] {
        tools::built(program)?;
    }
    for (program, package) in [("etcd", "etcd-server"), ("openssl", "openssl")] {
        tools::installed(program, package)?;
    }
    Ok(())
}

/// A session's process and its output.
struct Running {
    name: String,
    process: Child,
    orders: ChildStdin,
    said: Receiver<String>,
}

impl Running {
    fn start(name: &str) -> Result<Running> {
        fresh(&session_directory(name)?)?;
        let mut command = session::command(["--session", name])?;
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a session")?;
        let orders = process.stdin.take().context("standard input of the session")?;
        let output = process.stdout.take().context("standard output of the session")?;
        let (sender, said) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Running { name: name.into(), process, orders, said })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if let Ok(directory) = session_directory(&self.name) {
            session::clear(&directory);
        }
    }
}

/// Runs one test in a session, which is started if necessary.
fn run(sessions: &mut BTreeMap<&str, Running>, name: &'static str, test: &Test) -> Result<()> {
    let directory = results()?.join(test.name.replace("::", "."));
    fresh(&directory)?;
    if !sessions.contains_key(name) {
        sessions.insert(name, Running::start(name)?);
    }
    let running = sessions.get_mut(name).context("a session")?;
    let result = order(running, test, &directory);
    match &result {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(_) => {
            // The session hangs or is gone: the next test starts a new one.
            sessions.remove(name);
        }
    }
    let path = directory.join("output.log");
    let why = result.err().map(|error| format!("{error:#}; ")).unwrap_or_default();
    bail!("{why}it said ({}):\n{}", path.display(), crate::daemon::tail(&path, 120))
}

/// Whether the test passed.
fn order(running: &mut Running, test: &Test, directory: &Path) -> Result<bool> {
    let path = directory.join("output.log");
    let mut output = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    writeln!(running.orders, "{}", test.name).context("the session has ended")?;
    let deadline = Instant::now() + test.limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match running.said.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("it did not end within {:?}, killed", test.limit),
            Err(RecvTimeoutError::Disconnected) => bail!("its session ended"),
        };
        let Some(verdict) = line.strip_prefix(VERDICT) else {
            writeln!(output, "{line}").with_context(|| format!("write {}", path.display()))?;
            continue;
        };
        if verdict != "passed" && keeps() {
            println!("{} failed, everything is kept until Enter is pressed; see {}", test.name, path.display());
            std::io::stdin().read_line(&mut String::new()).ok();
        }
        return Ok(verdict == "passed");
    }
}

/// The session's process: it runs the tests that it is told to run, one after the other.
fn inside(suites: &[Suite]) -> ExitCode {
    let name = std::env::args().nth(2).unwrap_or_default();
    let Ok(directory) = session_directory(&name) else { return ExitCode::FAILURE };
    let session = Context::new(&directory).session;
    for order in std::io::stdin().lines().map_while(Result::ok) {
        let Some(test) = suites.iter().flat_map(|suite| suite.tests).find(|test| test.name == order) else { continue };
        let Ok(results) = results() else { return ExitCode::FAILURE };
        let context = Context { directory: results.join(test.name.replace("::", ".")), session: session.clone() };
        println!("{VERDICT}{}", if attempt(test, &context) { "passed" } else { "failed" });
    }
    ExitCode::SUCCESS
}

fn attempt(test: &Test, context: &Context) -> bool {
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (test.run)(context))).unwrap_or_else(|_| bail!("it panicked"));
    println!("{} took {:.1} s", test.name, started.elapsed().as_secs_f64());
    let Err(error) = result else { return true };
    explain(context);
    // Printed last, so that it is at the end of the screen and of the log.
    println!("FAILED: {error:#}");
    false
}

fn explain(context: &Context) {
    if let Some(cluster) = context.session.cluster.get() {
        cluster.explain();
    }
    for (number, capture) in context.session.captures.lock().unwrap_or_else(PoisonError::into_inner).iter().enumerate()
    {
        let path = context.directory.join(format!("wire{number}.pcap"));
        match capture.write(&path) {
            Ok(()) => println!("what crossed the wire: {} (ports: {})", path.display(), capture.ports().join(", ")),
            Err(error) => println!("the capture could not be written: {error:#}"),
        }
    }
    println!("logs: {} and {}", context.session.directory.display(), context.directory.display());
    if !keeps() {
        println!("to look around afterwards, run this test with KEEP=1");
        return;
    }
    let id = std::process::id();
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        println!("    nsenter -t {id} -m -p nsenter --net=/run/netns/{}", entry.file_name().to_string_lossy());
    }
}

fn keeps() -> bool {
    std::env::var("KEEP").is_ok_and(|value| value == "1")
}

fn results() -> Result<PathBuf> {
    Ok(programs::target_directory()?.join("cluster"))
}

fn session_directory(name: &str) -> Result<PathBuf> {
    Ok(results()?.join(format!("session-{name}")))
}

fn fresh(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
