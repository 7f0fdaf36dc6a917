//! The cluster as its users see it: Kubernetes' own command line, with somebody's token.

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

/// What a call printed and how it ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// It succeeded.
    pub success: bool,
    /// What it printed.
    pub stdout: String,
    /// What it complained of: a refusal by the API server is in here, in its words.
    pub stderr: String,
}

impl Kubectl {
    /// A command line that runs in a network namespace and uses a kubeconfig.
    pub fn new(netns: &Netns, kubeconfig: &Path) -> Kubectl {
        let cache = kubeconfig.with_extension("cache");
        Kubectl { netns: netns.clone(), kubeconfig: kubeconfig.into(), cache }
    }

    /// Where it runs: what else asks the API server can run there.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The same with somebody else's token: for service accounts and users that a test makes up.
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

    /// The command with these arguments, not run yet.
    ///
    /// # Errors
    /// The program is not built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.netns.command(tools::built("kubectl")?);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache).args(arguments);
        Ok(command)
    }

    /// Runs it with `input` on its standard input, and says how it ended: also for what should be refused.
    ///
    /// # Errors
    /// It could not be run.
    pub fn answer(&self, arguments: &[&str], input: &str) -> Result<Answer> {
        let mut command = self.command(arguments)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that stops reading early says why on its standard error.
            stdin.write_all(input.as_bytes()).ok();
        }
        let output = child.wait_with_output().context("wait for kubectl")?;
        Ok(Answer {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it; what it printed.
    ///
    /// # Errors
    /// It failed: what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.feed(arguments, "")
    }

    fn feed(&self, arguments: &[&str], input: &str) -> Result<String> {
        let answer = self.answer(arguments, input)?;
        ensure!(answer.success, "kubectl {}: {}", arguments.join(" "), answer.stderr.trim());
        Ok(answer.stdout)
    }

    /// Runs what should be refused; the refusal, in the API server's words.
    ///
    /// # Errors
    /// It was accepted.
    pub fn refused(&self, arguments: &[&str], input: &str) -> Result<String> {
        let answer = self.answer(arguments, input)?;
        ensure!(!answer.success, "kubectl {} was accepted: {}", arguments.join(" "), answer.stdout.trim());
        Ok(answer.stderr)
    }

    /// Runs it with `-o json`, for example `get(&["pods", "-A"])`; the answer as `T`, often [`Value`].
    ///
    /// # Errors
    /// It failed, or the answer is no `T`.
    pub fn get<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {}", arguments.join(" ")))
    }

    /// Applies manifests (YAML or JSON, several documents) on the server's side, so that it validates all of them.
    ///
    /// # Errors
    /// One was refused.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.feed(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests)
    }

    /// Applies manifests of which one should be refused; the refusal.
    ///
    /// # Errors
    /// All were accepted.
    pub fn apply_refused(&self, manifests: &str) -> Result<String> {
        self.refused(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests)
    }

    /// A new token for a service account (`namespace/name`). With a node it is bound to that Node object, as the token of a
    /// pod running there is, and names it to the API server.
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

    /// Runs a command in a pod (`namespace/name`, or `namespace/kind/name`); what it printed.
    ///
    /// # Errors
    /// It failed: what it said.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let (namespace, name) = pod.split_once('/').context("a pod is namespace/name")?;
        self.run(&[&["exec", "-n", namespace, name, "--"], command].concat())
    }

    /// Waits until an object satisfies a condition. `object` is what `get` is asked for.
    ///
    /// # Errors
    /// It never did: the object as it was last.
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

/// An object without what nobody reads.
fn brief(object: &Value) -> String {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    serde_yaml_ng::to_string(&object).unwrap_or_default()
}
