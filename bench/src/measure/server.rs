//! The server of a measure: a program in the server's pod, for as long as it is needed.

use std::fs;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};
use hauberk_netns::{Party, eventually};

/// The transport protocol of the requests.
#[derive(Clone, Copy)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A running program. It ends when this value is dropped.
pub struct Server(Child);

impl Server {
    /// Starts a program and waits until its port is open.
    ///
    /// # Errors
    /// It is not installed, or never listens.
    pub fn start(party: &Party, transport: Transport, port: u16, program: &str, arguments: &[&str]) -> Result<Server> {
        let mut command = party.netns.command(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Server(command.spawn().with_context(|| format!("run {program}: is it installed?"))?);
        // Read from the kernel, because the server would take a test connection for a client. The
        // entry has the local port, and for TCP the state LISTEN (proc_net_tcp).
        let (table, entry) = match transport {
            Transport::Tcp => ("/proc/thread-self/net/tcp", format!(":{port:04X} 00000000:0000 0A")),
            Transport::Udp => ("/proc/thread-self/net/udp", format!(":{port:04X} ")),
        };
        eventually(format!("{program} to listen"), || {
            let sockets = party.netns.within(|| fs::read_to_string(table).context("read the namespace's sockets"))?;
            Ok(sockets.contains(&entry).then_some(()))
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
