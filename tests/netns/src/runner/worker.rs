//! A process that runs tests, as the test program sees it: its output, up to the line that says
//! how a test ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::test::{Harness, Test, keeps};
use crate::{log, wait};

/// Begins what a worker prints when a test has ended.
const VERDICT: &str = "\u{1}verdict ";
const PASSED: &str = "passed";

/// In the worker: says how a test ended.
pub(super) fn report(passed: bool) {
    println!("{VERDICT}{}", if passed { PASSED } else { "failed" });
}

/// The process. It is killed when this is dropped.
pub struct Worker {
    process: Child,
    said: Receiver<String>,
}

impl Worker {
    /// Starts it.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn start(mut command: Command) -> Result<Worker> {
        let (output, writer) = std::io::pipe().context("make a pipe for a test's output")?;
        command.stdout(writer.try_clone().context("clone a pipe")?).stderr(writer);
        let process = command.spawn().context("start a process for tests")?;
        // It has the pipe's other end: without it, the output ends with the process.
        drop(command);
        let (sender, said) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Worker { process, said })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Child {
        &mut self.process
    }

    /// Waits until it has run a test, and returns whether the test passed. What it says until then
    /// goes to `output.log` in the test's folder.
    ///
    /// With KEEP=1 there is no time limit, and after a failure this waits for Enter.
    ///
    /// # Errors
    /// The test did not end in time, or the process ended: this worker is of no more use.
    pub fn verdict<H: Harness>(&self, test: &Test<H>) -> Result<bool> {
        let path = test.directory()?.join("output.log");
        let mut output = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let deadline = (!keeps()).then(|| Instant::now() + test.limit);
        loop {
            let line = match deadline {
                Some(deadline) => self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())),
                None => self.said.recv().map_err(RecvTimeoutError::from),
            };
            let line = match line {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("it did not end within {:?}, killed", test.limit),
                Err(RecvTimeoutError::Disconnected) => bail!("its process ended"),
            };
            // A program of the test may have begun a line and not ended it.
            let (text, verdict) = match line.split_once(VERDICT) {
                Some((text, verdict)) => (text, Some(verdict)),
                None => (line.as_str(), None),
            };
            if verdict.is_none() || !text.is_empty() {
                writeln!(output, "{text}").with_context(|| format!("write {}", path.display()))?;
                if keeps() {
                    println!("{text}");
                }
            }
            let Some(verdict) = verdict else { continue };
            if verdict != PASSED && keeps() {
                wait_for_enter(test.name, &path);
            }
            return Ok(verdict == PASSED);
        }
    }

    /// Waits until it has ended by itself, as it does when its standard input ends. Then it has
    /// also ended what does not die with its parent, such as an agent that has restarted itself.
    ///
    /// # Errors
    /// It does not end.
    pub fn finish(&mut self) -> Result<ExitStatus> {
        drop(self.process.stdin.take());
        wait::eventually("the test's process to end", || self.process.try_wait().context("ask for a process"))
    }

    /// Kills it and waits for its end.
    pub fn end(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

fn wait_for_enter(name: &str, log: &Path) {
    println!("{name} failed, everything is kept until Enter is pressed; see {}", log.display());
    std::io::stdin().read_line(&mut String::new()).ok();
}

/// A test's result from its verdict. That of a failed test has the end of what it said.
///
/// # Errors
/// The test failed, or there is no verdict.
pub fn conclude<H: Harness>(test: &Test<H>, verdict: Result<bool>) -> Result<()> {
    let why = match verdict {
        Ok(true) => return Ok(()),
        Ok(false) => String::new(),
        Err(error) => format!("{error:#}; "),
    };
    let path = test.directory()?.join("output.log");
    bail!("{why}it said ({}):\n{}", path.display(), log::tail(&path, 120))
}
