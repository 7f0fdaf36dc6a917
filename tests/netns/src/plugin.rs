//! `hauberk-cni` on one node, called as a container runtime calls it: environment and standard
//! input in, JSON out.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::netns::Netns;
use crate::party::Party;
use crate::programs;

/// The plugin on a node.
#[derive(Clone, Debug)]
pub struct Plugin {
    netns: Netns,
    /// The network configuration, as in a runtime's `*.conf`.
    pub config: Value,
    /// The folder it is written to, for runtimes that read files.
    pub config_directory: PathBuf,
}

/// The pod and interface that a call is about.
#[derive(Clone, Debug)]
pub struct Attachment<'a> {
    /// The runtime's id of the sandbox.
    pub container: &'a str,
    /// The pod's network namespace.
    pub netns: &'a Path,
    /// Interface name inside the pod.
    pub interface: &'a str,
    /// `namespace/name`, if the runtime states it.
    pub pod: Option<(&'a str, &'a str)>,
}

/// The plugin's response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Whether it exited with 0.
    pub success: bool,
    /// Its standard output, as JSON (null if empty).
    pub output: Value,
    /// Its standard error.
    pub errors: String,
}

impl Answer {
    /// The result, or the error in one sentence.
    ///
    /// # Errors
    /// The plugin refused.
    pub fn into_result(self) -> Result<Value> {
        ensure!(self.success, "hauberk-cni: {} {}", self.output, self.errors.trim());
        Ok(self.output)
    }
}

impl Plugin {
    /// The plugin on the node of this network namespace, with the agent that listens at `socket`.
    /// Its configuration is written below `run`.
    ///
    /// # Errors
    /// File access fails.
    pub fn new(party: &Party, run: &Path, socket: &Path) -> Result<Plugin> {
        let config = json!({
            "cniVersion": "1.1.0", "name": "hauberk", "type": "hauberk-cni", "socket": socket, "timeoutSeconds": 30
        });
        let config_directory = run.join("net.d");
        std::fs::create_dir_all(&config_directory).with_context(|| format!("create {}", config_directory.display()))?;
        let path = config_directory.join("10-hauberk.conf");
        std::fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(Plugin { netns: party.netns.clone(), config, config_directory })
    }

    /// Runs the plugin.
    ///
    /// # Errors
    /// The plugin is not built, could not be run, or printed something that is not JSON. A refusal
    /// is an [`Answer`].
    pub fn run(&self, verb: &str, attachment: Option<&Attachment<'_>>, config: &Value) -> Result<Answer> {
        let program = programs::ours("hauberk-cni")?;
        let mut command: Command = self.netns.command(&program);
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", program.parent().unwrap_or(Path::new("/")));
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if let Some(attachment) = attachment {
            command.env("CNI_CONTAINERID", attachment.container);
            command.env("CNI_NETNS", attachment.netns);
            command.env("CNI_IFNAME", attachment.interface);
            if let Some((namespace, name)) = attachment.pod {
                let uid = format!("uid-{namespace}-{name}");
                command.env(
                    "CNI_ARGS",
                    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"),
                );
            }
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run hauberk-cni")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.to_string().as_bytes()).ok();
        }
        let output = child.wait_with_output().context("wait for hauberk-cni")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let value = if text.trim().is_empty() {
            Value::Null
        } else {
            match serde_json::from_str(&text) {
                Ok(value) => value,
                Err(error) => bail!("hauberk-cni {verb} printed no JSON ({error}): {text} {errors}"),
            }
        };
        Ok(Answer { success: output.status.success(), output: value, errors })
    }

    /// Calls ADD and returns the result.
    ///
    /// # Errors
    /// The plugin refused.
    pub fn add(&self, attachment: &Attachment<'_>) -> Result<Value> {
        self.run("ADD", Some(attachment), &self.config)?.into_result().context("CNI ADD")
    }

    /// Calls DEL.
    ///
    /// # Errors
    /// The plugin refused.
    pub fn delete(&self, attachment: &Attachment<'_>) -> Result<()> {
        self.run("DEL", Some(attachment), &self.config)?.into_result().context("CNI DEL")?;
        Ok(())
    }
}

/// The addresses in a CNI result.
///
/// # Errors
/// There are none, or they cannot be parsed.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let list = result["ips"].as_array().with_context(|| format!("no ips in the CNI result {result}"))?;
    list.iter()
        .map(|entry| {
            let text = entry["address"].as_str().unwrap_or_default();
            let address = text.split('/').next().unwrap_or_default();
            address.parse().with_context(|| format!("address {text:?} in the CNI result"))
        })
        .collect()
}
