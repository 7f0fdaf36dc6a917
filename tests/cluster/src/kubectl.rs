//! The cluster as its users see it: Kubernetes' own command line, with a user's token.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::{Netns, wait};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::tools;

/// `kubectl`, as one user.
#[derive(Clone, Debug)]
pub struct Kubectl {
    netns: Netns,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

/// A call's output and result.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Whether it succeeded.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error. If the API server refused the request, its message is in here.
    pub stderr: String,
}

impl Kubectl {
    /// A command line that runs in a network namespace and uses a kubeconfig.
    pub fn new(netns: &Netns, kubeconfig: &Path) -> Kubectl {
        let cache = kubeconfig.with_extension("cache");
        Kubectl { netns: netns.clone(), kubeconfig: kubeconfig.into(), cache }
    }

    /// The namespace it runs in. Other clients of the API server can run there too.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The same with another token: for service accounts and users that a test makes.
    ///
    /// # Errors
    /// The kubeconfig cannot be read or written.
    pub fn with_token(&self, name: &str, token: &str) -> Result<Kubectl> {
        let text = fs::read_to_string(&self.kubeconfig).context("read kubeconfig")?;
        let mut config: Value = serde_yaml_ng::from_str(&text).context("parse kubeconfig")?;
        config["users"][0]["user"] = json!({"token": token});
        let path = self.kubeconfig.with_file_name(format!("{name}.conf"));
        fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(Kubectl::new(&self.netns, &path))
    }

    /// The command with these arguments, not started yet.
    ///
    /// # Errors
    /// The program is not built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.netns.command(tools::built("kubectl")?);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache).args(arguments);
        Ok(command)
    }

    /// Runs the command with `input` on its standard input and returns its result, also if it
    /// fails: for requests that should be refused.
    ///
    /// # Errors
    /// The command could not be run.
    pub fn answer(&self, arguments: &[&str], input: &str) -> Result<Answer> {
        let mut command = self.command(arguments)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that stops reading early prints the reason to its standard error.
            stdin.write_all(input.as_bytes()).ok();
        }
        let output = child.wait_with_output().context("wait for kubectl")?;
        Ok(Answer {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the command and returns its output.
    ///
    /// # Errors
    /// The command failed; the message has its output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.feed(arguments, "")
    }

    fn feed(&self, arguments: &[&str], input: &str) -> Result<String> {
        let answer = self.answer(arguments, input)?;
        ensure!(answer.success, "kubectl {}: {}", arguments.join(" "), answer.stderr.trim());
        Ok(answer.stdout)
    }

    /// Runs a command that should be refused, and returns the API server's message.
    ///
    /// # Errors
    /// The request was accepted.
    pub fn refused(&self, arguments: &[&str], input: &str) -> Result<String> {
        let answer = self.answer(arguments, input)?;
        ensure!(!answer.success, "kubectl {} was accepted: {}", arguments.join(" "), answer.stdout.trim());
        Ok(answer.stderr)
    }

    /// Runs `get` with `-o json`, for example `get(&["pods", "-A"])`. Returns the answer as `T`,
    /// often [`Value`].
    ///
    /// # Errors
    /// The command failed, or the answer is no `T`.
    pub fn get<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {}", arguments.join(" ")))
    }

    /// Applies manifests (YAML or JSON, several documents) on the server's side, so that it
    /// validates all of them.
    ///
    /// # Errors
    /// One was refused.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.feed(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests)
    }

    /// Applies manifests of which one should be refused, and returns the refusal.
    ///
    /// # Errors
    /// All were accepted.
    pub fn apply_refused(&self, manifests: &str) -> Result<String> {
        self.refused(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests)
    }

    /// A new token for a service account (`namespace/name`). With a node, the token is bound to
    /// that Node object and names it to the API server, like the token of a pod that runs there.
    ///
    /// # Errors
    /// There is no such account or node.
    pub fn token(&self, account: &str, node: Option<&str>) -> Result<String> {
        let (namespace, name) = account.split_once('/').context("an account is namespace/name")?;
        let mut arguments = vec!["create", "token", name, "-n", namespace];
        let uid;
        if let Some(node) = node {
            uid = self.get::<Value>(&["node", node])?["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            arguments.extend(["--bound-object-kind", "Node", "--bound-object-name", node, "--bound-object-uid", &uid]);
        }
        Ok(self.run(&arguments)?.trim().to_owned())
    }

    /// Runs a command in a pod (`namespace/name`, or `namespace/kind/name`) and returns its output.
    ///
    /// # Errors
    /// The command failed; the message has its output.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let (namespace, name) = pod.split_once('/').context("a pod is namespace/name")?;
        self.run(&[&["exec", "-n", namespace, name, "--"], command].concat())
    }

    /// Waits until an object satisfies a condition. `object` has the arguments for `get`.
    ///
    /// # Errors
    /// It never did; the message has the last state of the object.
    pub fn wait_for(&self, object: &[&str], what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait::within(3 * wait::GENEROUS, format!("{} to {what}", object.join(" ")), || {
            last = self.get(object)?;
            if holds(&last) { Ok(Some(last.clone())) } else { Ok(None) }
        });
        match found {
            Ok(value) => Ok(value),
            Err(error) => bail!("{error:#}; it is {}", brief(&last)),
        }
    }
}

/// An object without the fields that no reader needs.
fn brief(object: &Value) -> String {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    serde_yaml_ng::to_string(&object).unwrap_or_default()
}
