//! A node: a network namespace with an uplink, an agent, and its own folders.

use std::ffi::CString;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::netns::feed;
use crate::party::Party;
use crate::plugin::Plugin;
use crate::programs;
use crate::sandbox;
use crate::syscalls::{self, NodeMounts};

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name, namespace and addresses.
    pub party: Party,
    /// Its agent.
    pub agent: Agent,
    /// Its CNI plugin.
    pub plugin: Plugin,
    /// Its IPv4 and IPv6 ranges for pods.
    pub pod_ranges: Vec<String>,
    /// `/run/<name>`: the folder for sockets.
    pub run: PathBuf,
    /// The folder for data that survives a reboot: keys, attachments.
    pub state: PathBuf,
    config: PathBuf,
}

impl Deref for Node {
    type Target = Party;

    fn deref(&self) -> &Party {
        &self.party
    }
}

impl Node {
    pub(crate) fn create(party: Party, pod_ranges: Vec<String>, scratch: &Path, logs: &Path) -> Result<Node> {
        let name = party.name.clone();
        let run = PathBuf::from("/run").join(&name);
        let state = scratch.join(&name);
        for directory in [run.clone(), run.join("wireguard"), state.clone()] {
            fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        }
        // The agent refuses to keep private keys in a folder that other users can read.
        fs::set_permissions(&state, Permissions::from_mode(0o700))
            .with_context(|| format!("chmod 0700 {}", state.display()))?;
        let socket = run.join("agent.sock");
        Ok(Node {
            agent: Agent::new(&name, &socket, &logs.join(format!("{name}.log"))),
            plugin: Plugin::new(&party, &run, &socket)?,
            config: run.join("hauberkd.yaml"),
            party,
            pod_ranges,
            run,
            state,
        })
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// The agent's configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Writes the agent's configuration: the node's own paths, overridden by `extra`.
    ///
    /// # Errors
    /// File access fails.
    pub fn configure(&self, manifests: &Path, extra: &Value) -> Result<()> {
        let mut config = json!({
            "node": self.name,
            "source": {"directory": manifests},
            "metrics": null,
            "log": {"level": "debug"},
            "paths": {
                "state": self.state,
                "socket": self.socket(),
                "uapi": self.run.join("wireguard/hauberk0.sock"),
                "pins": format!("/sys/fs/bpf/{}", self.name),
            },
        });
        overlay(&mut config, extra);
        let text = serde_yaml_ng::to_string(&config).context("write YAML")?;
        fs::write(&self.config, text).with_context(|| format!("write {}", self.config.display()))
    }

    /// A command on this node: in its network namespace, with its `/sys`, its bpffs and its
    /// WireGuard sockets.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let mounts = NodeMounts {
            bpf: CString::new(sandbox::BPF).unwrap_or_default(),
            wireguard: CString::new(format!("/run/{}/wireguard", self.name)).unwrap_or_default(),
        };
        syscalls::run_inside(&mut command, self.netns.file(), self.netns.cgroup(), Some(mounts));
        command
    }

    /// Runs a command on this node and returns its output.
    ///
    /// # Errors
    /// The command fails; the message has its output.
    pub fn run(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments);
        feed(command, "").with_context(|| format!("on {}: {}", self.name, arguments.join(" ")))
    }

    /// Detaches one of the agent's programs, as any program with `CAP_NET_ADMIN` may. `pin` is the
    /// name of its pinned link. On kernels without TCX there is no link, and the program is the
    /// filter of preference 1.
    ///
    /// # Errors
    /// A system call fails.
    pub fn detach_program(&self, pin: &str) -> Result<()> {
        let path = format!("{}/{}/v1/links/{pin}", sandbox::BPF, self.name);
        if !Path::new(&path).exists() {
            let (program, device) = pin.split_once('@').context("a pin is PROGRAM@DEVICE")?;
            let side = if program.starts_with("to_") { "egress" } else { "ingress" };
            return self.run("tc", &["filter", "del", "dev", device, side, "pref", "1"]).map(drop);
        }
        let path = CString::new(path).context("a path")?;
        syscalls::detach_link(&path).with_context(|| format!("detach {pin}"))
    }

    /// Detaches one of the programs that lead sockets, as any program with `CAP_NET_ADMIN` may.
    ///
    /// # Errors
    /// A system call fails.
    pub fn detach_socket_program(&self, program: &str) -> Result<()> {
        let path = CString::new(format!("{}/{}/v1/sockets/{program}", sandbox::BPF, self.name)).context("a path")?;
        syscalls::detach_link(&path).with_context(|| format!("detach {program}"))
    }

    /// Detaches the last program at the egress of a device, as another program may. With TCX it
    /// detaches the program's link, otherwise it removes the whole queueing discipline.
    ///
    /// # Errors
    /// There is no such program, a system call fails, or `tc` fails.
    pub fn detach_last(&self, device: &str) -> Result<()> {
        let index = self.netns.interface(device)?;
        let detached = self.netns.within(|| Ok(syscalls::detach_last_tcx(index, syscalls::TCX_EGRESS)?))?;
        if detached.is_none() {
            self.run("tc", &["qdisc", "del", "dev", device, "clsact"])?;
        }
        Ok(())
    }

    /// Starts the agent without waiting for it.
    ///
    /// # Errors
    /// It is not built or cannot be run.
    pub fn start_agent(&self) -> Result<()> {
        self.start_agent_from(&programs::ours("hauberkd")?, &[])
    }

    /// Starts the agent from another program file, with more environment variables.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start_agent_from(&self, program: &Path, environment: &[(&str, &str)]) -> Result<()> {
        let mut command = self.command(program);
        command.arg("--config").arg(&self.config).envs(environment.iter().copied());
        self.agent.start(command)
    }

    /// Runs the `hauberk` command line on this node: exit code, standard output, standard error.
    ///
    /// # Errors
    /// It is not built or cannot be run.
    pub fn cli(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let mut command = self.command(programs::ours("hauberk")?);
        command.arg("--socket").arg(self.socket()).args(arguments);
        let output = command.output().context("run hauberk")?;
        Ok((
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

/// Overrides `bottom` with `top`: objects are merged, any other value is replaced.
fn overlay(bottom: &mut Value, top: &Value) {
    match (bottom, top) {
        (Value::Object(bottom), Value::Object(top)) => {
            for (key, value) in top {
                overlay(bottom.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (bottom, top) => *bottom = top.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_merged_not_replaced() {
        let mut config = json!({"tunnel": {"port": 1, "mtu": 2}, "node": "a"});
        overlay(&mut config, &json!({"tunnel": {"mtu": 3}, "uplinks": ["eth0"]}));
        assert_eq!(config, json!({"tunnel": {"port": 1, "mtu": 3}, "node": "a", "uplinks": ["eth0"]}));
    }
}
