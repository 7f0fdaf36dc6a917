//! A list of CNI plugins on one node. It is run as libcni runs it: each plugin gets the result of
//! the one before, and the last result is kept in a file that other programs may read.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::manifests::{self, Manifests};
use crate::node::Node;
use crate::plugin;
use crate::pod::Pod;
use crate::programs;

/// Where Debian installs the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// A list of plugins, and the results that the runtime keeps.
#[derive(Clone, Debug)]
pub struct Chain {
    node: Arc<Node>,
    /// The list, as a runtime's `*.conflist` has it.
    pub list: Value,
    /// Where results are kept.
    pub results: PathBuf,
}

impl Chain {
    /// A chain on this node that keeps results in its own folder.
    ///
    /// # Errors
    /// The reference plugins are not installed, or the folder cannot be made.
    pub fn new(node: &Arc<Node>, list: Value) -> Result<Chain> {
        ensure!(
            Path::new(REFERENCE).join("bridge").is_file(),
            "{REFERENCE}/bridge is missing: apt-get install containernetworking-plugins"
        );
        let results = node.state.join("results");
        fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
        Ok(Chain { node: node.clone(), list, results })
    }

    /// The same runtime with another list.
    pub fn with_list(&self, list: Value) -> Chain {
        Chain { list, ..self.clone() }
    }

    /// Runs a pod: creates its object and its namespace, and calls ADD of every plugin.
    ///
    /// # Errors
    /// Any of these steps failed.
    pub fn run(&self, manifests: &Manifests, namespace: &str, name: &str) -> Result<Pod> {
        let netns = self.node.netns.create_beside(&format!("{namespace}-{name}"))?;
        let mut object = manifests::pod(namespace, name, &self.node.name);
        let file = format!("{namespace}-{name}");
        manifests.put("pod", &file, &object)?;
        let container = format!("sandbox-{}-{namespace}-{name}", self.node.name);
        let result = self.add(&container, &netns.path(), namespace, name)?;
        let addresses = plugin::addresses(&result)?;
        manifests::set_addresses(&mut object, &addresses);
        manifests.put("pod", &file, &object)?;
        Pod::with_addresses(netns, &self.node, namespace, name, container, &addresses)
    }

    fn add(&self, container: &str, netns: &Path, namespace: &str, name: &str) -> Result<Value> {
        let mut result = None;
        for one in self.plugins()? {
            result = Some(self.call("ADD", one, container, netns, (namespace, name), result)?);
        }
        let result = result.context("the list has no plugins")?;
        let arguments = [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", namespace], ["K8S_POD_NAME", name]];
        let kept = json!({
            "kind": "cniCacheV1", "containerId": container, "config": "", "ifName": "eth0", "networkName": self.list["name"],
            "netns": netns, "cniArgs": arguments, "result": result,
        });
        let path = self.path(container);
        fs::write(&path, kept.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(result)
    }

    /// Calls DEL of every plugin, the last one first, and then removes the result.
    ///
    /// # Errors
    /// A plugin refused. The result is kept then.
    pub fn delete(&self, pod: &Pod) -> Result<()> {
        let path = self.path(&pod.container);
        let kept = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let result = kept.map(|kept| kept["result"].clone());
        let name = (pod.namespace.as_str(), pod.name.as_str());
        for one in self.plugins()?.into_iter().rev() {
            self.call("DEL", one, &pod.container, &pod.netns.path(), name, result.clone())?;
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Calls CHECK of every plugin.
    ///
    /// # Errors
    /// A plugin reported an error.
    pub fn check(&self, pod: &Pod) -> Result<()> {
        let text = fs::read(self.path(&pod.container)).context("no result kept")?;
        let result = serde_json::from_slice::<Value>(&text)?["result"].clone();
        let name = (pod.namespace.as_str(), pod.name.as_str());
        for one in self.plugins()? {
            self.call("CHECK", one, &pod.container, &pod.netns.path(), name, Some(result.clone()))?;
        }
        Ok(())
    }

    fn path(&self, container: &str) -> PathBuf {
        self.results.join(format!("{}-{container}-eth0", self.list["name"].as_str().unwrap_or_default()))
    }

    fn plugins(&self) -> Result<Vec<Value>> {
        self.list["plugins"].as_array().cloned().context("the list has no plugins")
    }

    fn call(
        &self,
        verb: &str,
        mut config: Value,
        container: &str,
        netns: &Path,
        (namespace, name): (&str, &str),
        previous: Option<Value>,
    ) -> Result<Value> {
        let kind = config["type"].as_str().unwrap_or_default().to_owned();
        config["cniVersion"] = self.list["cniVersion"].clone();
        config["name"] = self.list["name"].clone();
        if let Some(previous) = previous {
            config["prevResult"] = previous;
        }
        let ours = programs::ours("hauberk-cni")?;
        let ours = ours.parent().context("folder of hauberk-cni")?;
        let folder = if kind == "hauberk-cni" { ours } else { Path::new(REFERENCE) };
        let mut command = self.node.command(folder.join(&kind));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0");
        command.env("CNI_PATH", format!("{REFERENCE}:{}", ours.display())).env("CNI_NETNS", netns);
        command
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("run {kind}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.to_string().as_bytes()).ok();
        }
        let output = child.wait_with_output().with_context(|| format!("wait for {kind}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{kind} {verb} for {namespace}/{name}: {text} {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        if text.trim().is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text).context("parse the result") }
    }
}
