//! Processes of pods and nodes that ask services.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow, ensure};
use hauberk_cluster::{Cluster, Node};
use hauberk_netns::netns::feed;
use hauberk_netns::{Party, eventually, programs};

/// Where a process runs that asks.
pub enum Client<'a> {
    /// In a pod, `namespace/name`.
    Pod(&'a Cluster, String),
    /// On a node, outside of pods.
    Host(&'a Node),
    /// On a machine that is no node.
    Outside(&'a Party),
}

impl fmt::Display for Client<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Client::Pod(_, name) => write!(f, "the pod {name}"),
            Client::Host(node) => write!(f, "a process on {}", node.name()),
            Client::Outside(machine) => write!(f, "a process on {}, which is no node", machine.name),
        }
    }
}

impl Client<'_> {
    /// `hauberk-pod` with these arguments, not started yet.
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        match self {
            Client::Pod(cluster, name) => {
                let (namespace, name) = name.split_once('/').context("a pod is namespace/name")?;
                let entry = ["exec", "-i", "-n", namespace, name, "--", "/usr/bin/hauberk-pod"];
                cluster.kubectl().command(&[&entry, arguments].concat())
            }
            Client::Host(node) => {
                let mut command = node.machine.command(programs::ours("hauberk-pod")?);
                command.args(arguments);
                Ok(command)
            }
            Client::Outside(machine) => {
                let mut command = machine.netns.command(programs::ours("hauberk-pod")?);
                command.args(arguments);
                Ok(command)
            }
        }
    }

    /// Sends one request over `tcp` or `udp`, and returns the whole answer.
    pub fn ask(&self, protocol: &str, service: SocketAddr, text: &str) -> Result<String> {
        let command = self.command(&["ask", protocol, &service.to_string(), text])?;
        feed(command, "").with_context(|| format!("{self} asks {service} over {protocol}"))
    }

    /// Asks over TCP until an answer comes.
    pub fn wait_answered(&self, service: SocketAddr) -> Result<String> {
        eventually(format!("{self} to get an answer from {service}"), || self.ask("tcp", service, "who").map(Some))
    }
}

/// A client that sends requests without end.
pub struct Load {
    /// Who asks whom.
    pub name: String,
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Load {
    pub fn start(client: &Client<'_>, service: SocketAddr) -> Result<Load> {
        let name = format!("{client}, of {service}");
        let mut command = client.command(&["load", &service.to_string()])?;
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| format!("start {name}"))?;
        let output = process.stdout.take().context("no standard output")?;
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = lines.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Load { name, process, lines, reader })
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until each of these servers has answered some more requests.
    pub fn wait_answered_by(&self, servers: &[&str]) -> Result<()> {
        let before = self.lines().len();
        eventually(format!("{}, to be answered by each of {servers:?}", self.name), || {
            let new = self.lines().split_off(before);
            let count = |server: &str| new.iter().filter(|line| line.strip_prefix("answered ") == Some(server)).count();
            let counts: Vec<usize> = servers.iter().map(|server| count(server)).collect();
            ensure!(counts.iter().all(|count| *count >= 5), "{counts:?} answers of {} requests", new.len());
            Ok(Some(()))
        })
    }

    /// Ends it. Fails if a request failed at any time. Returns how many were answered.
    pub fn stop(mut self) -> Result<usize> {
        drop(self.process.stdin.take());
        let status = self.process.wait().with_context(|| format!("wait for {}", self.name))?;
        self.reader.join().map_err(|_| anyhow!("the reader of {} panicked", self.name))?;
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let failed: Vec<&String> = lines.iter().filter(|line| !line.starts_with("answered ")).collect();
        ensure!(failed.is_empty(), "{}: {} of {} requests: {failed:?}", self.name, failed.len(), lines.len());
        ensure!(status.success(), "{}: ended with {status}", self.name);
        Ok(lines.len())
    }
}
