//! One node's `hauberkd`: its process, and a client of its API.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_api::{Drops, Event, Explanation, FlowRecord, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::log;
use crate::wait::{self, GENEROUS};

/// The agent of one node, running or not. An agent that has restarted itself no longer dies with
/// the thread that started it; dropping this value kills it.
#[derive(Debug)]
pub struct Agent {
    node: String,
    socket: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

impl Agent {
    /// The agent of `node` that listens at `socket`. The output of an agent that is started here
    /// goes to `log`.
    pub fn new(node: &str, socket: &Path, log: &Path) -> Agent {
        Agent { node: node.into(), socket: socket.into(), log: log.into(), process: Mutex::new(None) }
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the agent. Call it on the test's main thread: the agent dies with the thread that
    /// starts it.
    pub(crate) fn start(&self, mut command: Command) -> Result<()> {
        let mut process = self.process();
        ensure!(process.is_none(), "agent of {} runs already", self.node);
        let log = self.open_log()?;
        command.stdout(log.try_clone().context("clone log")?).stderr(log);
        *process = Some(command.spawn().with_context(|| format!("start hauberkd on {}", self.node))?);
        Ok(())
    }

    fn open_log(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        options.open(&self.log).with_context(|| format!("open {}", self.log.display()))
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The process id, if this harness started the agent.
    pub fn id(&self) -> Option<u32> {
        self.process().as_ref().map(Child::id)
    }

    /// Whether the process runs.
    ///
    /// # Errors
    /// A system call fails.
    pub fn is_running(&self) -> Result<bool> {
        match self.process().as_mut() {
            Some(child) => Ok(child.try_wait().context("ask for hauberkd")?.is_none()),
            None => Ok(false),
        }
    }

    /// Kills the agent with SIGKILL, whatever it is doing. Not an error if it has already ended.
    ///
    /// # Errors
    /// A system call fails.
    pub fn kill(&self) -> Result<()> {
        let Some(mut child) = self.process().take() else { return Ok(()) };
        child.kill().with_context(|| format!("kill hauberkd on {}", self.node))?;
        child.wait().context("wait for hauberkd")?;
        Ok(())
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// The agent does not end, or does not exit with success.
    pub fn terminate(&self) -> Result<()> {
        let id = self.id().with_context(|| format!("no hauberkd on {}", self.node))?;
        kill(Pid::from_raw(id as i32), Signal::SIGTERM).context("SIGTERM to hauberkd")?;
        let status = self.wait()?;
        ensure!(status.success(), "hauberkd on {} ended with {status} after SIGTERM", self.node);
        Ok(())
    }

    /// Waits until the agent has ended.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(&self) -> Result<ExitStatus> {
        let status = wait::eventually(format!("hauberkd on {} to end", self.node), || match self.process().as_mut() {
            Some(child) => child.try_wait().context("wait for hauberkd"),
            None => bail!("not started"),
        })?;
        *self.process() = None;
        Ok(status)
    }

    /// Sends a GET request to the agent's API: status code and body.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("connect to the agent on {} at {}", self.node, self.socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).context("set timeout")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: hauberk\r\nConnection: close\r\n\r\n").context("send request")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(|| format!("read the answer to {path} from {}", self.node))?;
        parse_answer(&answer).with_context(|| format!("answer to {path} from the agent on {}", self.node))
    }

    /// Asks the agent's API for JSON.
    ///
    /// # Errors
    /// The agent does not answer, the status is not 200, or the body is not of this type.
    pub fn ask<T: for<'de> serde::Deserialize<'de>>(&self, path: &str) -> Result<T> {
        let (code, body) = self.get(path)?;
        ensure!(code == 200, "{path} on {}: HTTP {code}: {}", self.node, body.trim());
        serde_json::from_str(&body).with_context(|| format!("{path} on {}: {body}", self.node))
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn status(&self) -> Result<Status> {
        self.ask("/v1/status")
    }

    /// `GET /v1/events`.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn events(&self) -> Result<Vec<Event>> {
        self.ask("/v1/events")
    }

    /// `GET /v1/explain`.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn explain(&self, source: IpAddr, destination: IpAddr) -> Result<Explanation> {
        self.ask(&format!("/v1/explain?source={source}&destination={destination}"))
    }

    /// `GET /v1/flows`.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn flows(&self) -> Result<Vec<FlowRecord>> {
        let (code, body) = self.get("/v1/flows")?;
        ensure!(code == 200, "/v1/flows on {}: HTTP {code}: {}", self.node, body.trim());
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("flow record {line}"));
        body.lines().filter(|line| !line.is_empty()).map(parse).collect()
    }

    /// Packets dropped so far, by reason.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn all_drops(&self) -> Result<BTreeMap<String, u64>> {
        let drops: Drops = self.ask("/v1/drops")?;
        Ok(drops.reasons.into_iter().map(|count| (count.reason, count.packets)).collect())
    }

    /// Packets dropped so far for one reason.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let drops: Drops = self.ask("/v1/drops")?;
        Ok(drops.reasons.iter().filter(|count| count.reason == reason).map(|count| count.packets).sum())
    }

    /// Waits until the agent is ready: the datapath is attached and has passed the self-test.
    ///
    /// # Errors
    /// The agent ended or never became ready; the message has the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        let mut ended = false;
        let ready = wait::within(GENEROUS, format!("hauberkd on {} to be ready", self.node), || {
            if !self.is_running()? {
                ended = true;
                return Ok(Some(()));
            }
            let (code, body) = self.get("/readyz")?;
            ensure!(code == 200, "/readyz says {code}: {}", body.trim());
            Ok(Some(()))
        });
        if ended {
            bail!("hauberkd on {} ended; its log ({}) ends with:\n{}", self.node, self.log.display(), self.log_tail());
        }
        ready.with_context(|| format!("its log ({}) ends with:\n{}", self.log.display(), self.log_tail()))
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        log::tail(&self.log, 25)
    }
}

/// Status code and body of an HTTP/1.1 response that ends with the connection.
fn parse_answer(answer: &[u8]) -> Result<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    let chunked = head.lines().any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    Ok((code, if chunked { unchunked(body) } else { body.to_owned() }))
}

/// A body without its chunk lengths (RFC 9112 section 7.1).
fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        let Some(chunk) = after.get(..length).filter(|chunk| !chunk.is_empty()) else { break };
        body.push_str(chunk);
        rest = after[length..].trim_start_matches("\r\n");
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_answers_with_and_without_chunks() {
        assert_eq!(parse_answer(b"HTTP/1.1 200 OK\r\na: b\r\n\r\n{}").unwrap(), (200, "{}".into()));
        let chunked = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse_answer(chunked).unwrap(), (503, "abcde".into()));
        assert!(parse_answer(b"").is_err());
    }
}
