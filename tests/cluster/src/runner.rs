//! Runs each test in its session.
//!
//! The test program lists its tests. Tests of suites that share a cluster run one after the other
//! in one session (see [`session`](mod@crate::session)); the first of them starts the cluster. A
//! suite with other needs has its own session. A test that does not end takes its session down with
//! it, and the next test begins a new one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitCode, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hauberk_netns::capture::Capture;
use hauberk_netns::runner::{self, Captures, Harness, Worker, fresh};

use crate::cluster::{Cluster, Setup};
use crate::session;
use crate::tools;

/// A test. Its usual time limit includes the start of the cluster.
pub type Test = runner::Test<Context>;

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
    captures: Captures,
}

impl Context {
    /// A context for a program that is no test.
    pub fn new(directory: &Path) -> Context {
        let session = Session { directory: directory.into(), cluster: OnceLock::new(), captures: Captures::default() };
        Context { directory: directory.into(), session: Arc::new(session) }
    }

    /// The cluster that the session's tests share, with the default [`Setup`]. The first call
    /// starts it.
    ///
    /// # Errors
    /// It does not start.
    pub fn cluster(&self) -> Result<&Cluster> {
        self.cluster_of(&Setup::default())
    }

    /// The same with another [`Setup`], which all tests of the session have to name.
    ///
    /// # Errors
    /// It does not start.
    pub fn cluster_of(&self, setup: &Setup) -> Result<&Cluster> {
        if let Some(cluster) = self.session.cluster.get() {
            return Ok(cluster);
        }
        // Tests of a session run one after the other.
        let cluster = Cluster::start(self, setup)?;
        Ok(self.session.cluster.get_or_init(|| cluster))
    }

    /// The session's own folder, `target/cluster/session-<name>`: logs of a cluster that tests
    /// share.
    pub fn session_directory(&self) -> &Path {
        &self.session.directory
    }

    /// Makes the runner write a capture to the test's folder if the test fails.
    pub fn watch(&self, capture: &Capture) {
        self.session.captures.watch(capture);
    }
}

impl Harness for Context {
    const NAME: &'static str = "cluster";
    const LIMIT: Duration = Duration::from_secs(600);

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn captures(&self) -> &Captures {
        &self.session.captures
    }

    fn explain(&self) {
        if let Some(cluster) = self.session.cluster.get() {
            cluster.explain();
        }
        println!("logs: {} and {}", self.session.directory.display(), self.directory.display());
    }

    fn entrance(&self) -> String {
        format!("-t {} -m -p", std::process::id())
    }
}

/// The test program's `main`.
pub fn main(suites: &[Suite]) -> ExitCode {
    if let Some(code) = session::enter(|| inside(suites)) {
        return code;
    }
    let Some(mut arguments) = runner::arguments::<Context>(prerequisites) else { return ExitCode::FAILURE };
    // One test at a time: a cluster is twenty programs.
    arguments.test_threads = Some(1);
    let sessions: Arc<Mutex<BTreeMap<&str, Running>>> = Arc::default();
    let mut trials = Vec::new();
    for suite in suites {
        for test in suite.tests {
            let (sessions, suite) = (sessions.clone(), *suite);
            trials.push(test.trial(move || {
                let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
                // Other sessions' clusters are no longer needed: tests run in the order of the
                // suites.
                sessions.retain(|name, _| *name == suite.session);
                run(&mut sessions, suite.session, test)
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    sessions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    conclusion.exit_code()
}

fn prerequisites() -> Result<()> {
    for program in ["kube-apiserver", "kubectl"] {
        tools::built(program)?;
    }
    for (program, package) in [("etcd", "etcd-server"), ("openssl", "openssl")] {
        tools::installed(program, package)?;
    }
    Ok(())
}

/// A session's process, which is told what to run.
struct Running {
    directory: PathBuf,
    worker: Worker,
    orders: ChildStdin,
}

impl Running {
    fn start(name: &str) -> Result<Running> {
        let directory = session_directory(name)?;
        fresh(&directory)?;
        let mut command = session::command(["--session", name])?;
        command.stdin(Stdio::piped());
        let mut worker = Worker::start(command)?;
        let orders = worker.process().stdin.take().context("standard input of the session")?;
        Ok(Running { directory, worker, orders })
    }

    /// Whether the test passed.
    fn order(&mut self, test: &Test) -> Result<bool> {
        writeln!(self.orders, "{}", test.name).context("the session has ended")?;
        self.worker.verdict(test)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.worker.end();
        session::clear(&self.directory);
    }
}

/// Runs one test in a session, which is started if necessary.
fn run(sessions: &mut BTreeMap<&str, Running>, name: &'static str, test: &Test) -> Result<()> {
    fresh(&test.directory()?)?;
    if !sessions.contains_key(name) {
        sessions.insert(name, Running::start(name)?);
    }
    let verdict = sessions.get_mut(name).context("a session")?.order(test);
    if verdict.is_err() {
        // The session hangs or is gone: the next test starts a new one.
        sessions.remove(name);
    }
    runner::conclude(test, verdict)
}

/// The session's process: it runs the tests that it is told to run, one after the other.
fn inside(suites: &[Suite]) -> ExitCode {
    let name = std::env::args().nth(2).unwrap_or_default();
    let Ok(directory) = session_directory(&name) else { return ExitCode::FAILURE };
    let session = Context::new(&directory).session;
    for order in std::io::stdin().lines().map_while(Result::ok) {
        let Some(test) = suites.iter().flat_map(|suite| suite.tests).find(|test| test.name == order) else { continue };
        let Ok(directory) = test.directory() else { return ExitCode::FAILURE };
        test.attempt(&Context { directory, session: session.clone() });
    }
    ExitCode::SUCCESS
}

fn session_directory(name: &str) -> Result<PathBuf> {
    Ok(runner::results::<Context>()?.join(format!("session-{name}")))
}
