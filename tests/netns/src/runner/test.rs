//! A test, and what its harness adds to it.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use super::worker;
use crate::capture::Capture;
use crate::programs;
use crate::sandbox;

/// What a test gets as its argument.
pub trait Harness {
    /// Its name: `target/<name>` has the tests' folders.
    const NAME: &'static str;
    /// A test is killed after this time, unless it says otherwise.
    const LIMIT: Duration;

    /// The test's own folder.
    fn directory(&self) -> &Path;

    /// What is written to that folder if the test fails.
    fn captures(&self) -> &Captures;

    /// Prints what else helps to investigate a failure.
    fn explain(&self);

    /// The arguments with which `nsenter` enters what the test is isolated in.
    fn entrance(&self) -> String;
}

/// A test.
pub struct Test<H> {
    /// The suite's name and what must hold: `matrix::bpf_every_pair_every_protocol`.
    pub name: &'static str,
    /// The test.
    pub run: fn(&H) -> Result<()>,
    /// The test is killed after this time.
    pub limit: Duration,
}

// Derived, these would ask the same of the harness.
impl<H> Copy for Test<H> {}

impl<H> Clone for Test<H> {
    fn clone(&self) -> Test<H> {
        *self
    }
}

impl<H: Harness> Test<H> {
    /// A test with the usual time limit.
    pub const fn new(name: &'static str, run: fn(&H) -> Result<()>) -> Test<H> {
        Test { name, run, limit: H::LIMIT }
    }

    /// The same with another time limit.
    pub const fn limit(mut self, seconds: u64) -> Test<H> {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// The path of its own folder, `target/<harness>/<test>`.
    ///
    /// # Errors
    /// This program is not in a target directory.
    pub fn directory(&self) -> Result<PathBuf> {
        Ok(results::<H>()?.join(self.name.replace("::", ".")))
    }

    /// The test as the test program lists it; `run` runs it in a process of its own.
    pub fn trial(&self, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
        Trial::test(self.name, move || run().map_err(|error| Failed::from(format!("{error:#}"))))
    }

    /// Runs it in this process, reports the result to the runner, and prints what is needed to
    /// investigate a failure. Returns whether it passed.
    pub fn attempt(&self, context: &H) -> bool {
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (self.run)(context))).unwrap_or_else(|_| bail!("it panicked"));
        println!("{} took {:.1} s", self.name, started.elapsed().as_secs_f64());
        if let Err(error) = &result {
            explain(context);
            // Printed last, so that it is at the end of the screen and of the log.
            println!("FAILED: {error:#}");
        }
        worker::report(result.is_ok());
        result.is_ok()
    }
}

fn explain(context: &impl Harness) {
    context.explain();
    context.captures().write(context.directory());
    if !keeps() {
        println!("to look around in the namespaces afterwards, run this test with KEEP=1");
        return;
    }
    println!("to go into one of the namespaces, which are kept:");
    for entry in fs::read_dir(sandbox::NETNS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        println!("    nsenter {} nsenter --net=/run/netns/{}", context.entrance(), name.to_string_lossy());
    }
}

/// The test program's command line; none if it asks for tests that cannot run here. Why is printed.
pub fn arguments<H: Harness>(prerequisites: impl FnOnce() -> Result<()>) -> Option<Arguments> {
    let arguments = Arguments::from_args();
    if arguments.list {
        return Some(arguments);
    }
    let root = || {
        ensure!(nix::unistd::geteuid().is_root(), "they make namespaces and need root: run them with sudo");
        prerequisites()
    };
    match root() {
        Ok(()) => Some(arguments),
        Err(error) => {
            eprintln!("{} suites cannot run: {error:#}", H::NAME);
            None
        }
    }
}

/// Captures to write if a test fails.
#[derive(Default)]
pub struct Captures(Mutex<Vec<Capture>>);

impl Captures {
    /// Adds one.
    pub fn watch(&self, capture: &Capture) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(capture.clone());
    }

    fn write(&self, directory: &Path) {
        for (number, capture) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().enumerate() {
            let path = directory.join(format!("wire{number}.pcap"));
            match capture.write(&path) {
                Ok(()) => println!("what crossed the wire: {} (ports: {})", path.display(), capture.ports().join(", ")),
                Err(error) => println!("the capture could not be written: {error:#}"),
            }
        }
    }
}

/// Whether everything stays up after a failure, until Enter is pressed.
pub(super) fn keeps() -> bool {
    std::env::var("KEEP").is_ok_and(|value| value == "1")
}

/// `target/<harness>`, for results that outlive a test.
///
/// # Errors
/// This program is not in a target directory.
pub fn results<H: Harness>() -> Result<PathBuf> {
    Ok(programs::target_directory()?.join(H::NAME))
}

/// Makes an empty folder, whatever was there before.
///
/// # Errors
/// The file system refuses.
pub fn fresh(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
