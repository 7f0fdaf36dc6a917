//! A node: a machine with containerd, kubelet and kube-proxy.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::agent::Agent;
use hauberk_netns::netns::feed;
use hauberk_netns::{Netns, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, DNS, POD_RANGES};
use crate::daemon::Daemon;
use crate::machine::Machine;
use crate::session;
use crate::tools;

/// The image that pods and their sandboxes run.
pub const POD_IMAGE: &str = "hauberk.test/pod:1";
/// The taint of a new node until pods there are protected.
pub const NOT_READY_TAINT: &str = "hauberk.io/agent-not-ready";
/// The folder of the system's reference CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// The machine it runs on.
    pub machine: Machine,
    /// The container runtime.
    pub containerd: Daemon,
    /// The kubelet.
    pub kubelet: Daemon,
    /// kube-proxy, in clusters that have it. It runs on the host, unlike in real clusters; its
    /// effect on packets is the same.
    pub proxy: Option<Daemon>,
    /// The API of its agent. The agent's process belongs to a pod.
    pub agent: Agent,
    logs: PathBuf,
    kubeconfig: PathBuf,
}

impl Deref for Node {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Node {
    /// A node on a machine, with no programs running yet; with or without kube-proxy.
    ///
    /// # Errors
    /// A program is missing, or file access fails.
    pub fn new(machine: Machine, control_plane: &ControlPlane, logs: &Path, has_proxy: bool) -> Result<Node> {
        let name = machine.party.name.clone();
        let kubeconfig = control_plane.kubeconfig(&name);
        configure(&machine, &kubeconfig)?;
        Ok(Node {
            containerd: containerd(&machine, logs)?,
            kubelet: kubelet(&machine, &kubeconfig, logs)?,
            proxy: has_proxy.then(|| proxy(&machine, logs)).transpose()?,
            agent: Agent::new(
                &name,
                &machine.file("/run/hauberk/agent.sock"),
                &logs.join(format!("hauberkd-{name}.log")),
            ),
            machine,
            logs: logs.into(),
            kubeconfig,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.machine.party.name
    }

    /// Starts the container runtime and imports images.
    ///
    /// # Errors
    /// It does not start, or refuses an image.
    pub fn start_runtime(&self, images: &[PathBuf]) -> Result<()> {
        self.containerd.start()?;
        self.containerd.wait_until("answer", || self.ctr(&["version"]).map(drop))?;
        images.iter().try_for_each(|image| self.import(image))
    }

    /// Imports an image into the container runtime.
    ///
    /// # Errors
    /// The runtime refuses it.
    pub fn import(&self, image: &Path) -> Result<()> {
        let path = image.display().to_string();
        self.ctr(&["images", "import", "--digests", &path]).with_context(|| format!("import {path}"))?;
        Ok(())
    }

    /// Starts the kubelet, and kube-proxy if the cluster has it.
    ///
    /// # Errors
    /// They cannot be run.
    pub fn start(&self) -> Result<()> {
        self.proxy.iter().try_for_each(Daemon::start)?;
        self.kubelet.start()
    }

    /// Installs reference CNI plugins (`bridge`, `host-local`, ...) and a configuration that uses
    /// them, as another installer would.
    ///
    /// # Errors
    /// A plugin is not installed, or file access fails.
    pub fn install_plugins(&self, plugins: &[&str], file: &str, configuration: &Value) -> Result<()> {
        let binaries = self.machine.file("/opt/cni/bin");
        for plugin in plugins {
            let (from, to) = (Path::new(CNI_PLUGINS).join(plugin), binaries.join(plugin));
            fs::copy(&from, &to)
                .with_context(|| format!("copy {}: is containernetworking-plugins installed?", from.display()))?;
        }
        let to = self.machine.file("/etc/cni/net.d").join(file);
        let unfinished = to.with_extension("new");
        fs::write(&unfinished, configuration.to_string()).with_context(|| format!("write {}", unfinished.display()))?;
        fs::rename(&unfinished, &to).with_context(|| format!("rename {}", unfinished.display()))
    }

    /// Runs `ctr` on Kubernetes' containers of this node.
    ///
    /// # Errors
    /// It fails; the message is its own.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.machine.command(tools::built("ctr")?);
        command.args(["--namespace", "k8s.io"]).args(arguments);
        feed(command, "").with_context(|| format!("ctr {} on {}", arguments.join(" "), self.name()))
    }

    /// Runs a program on this node and returns its output.
    ///
    /// # Errors
    /// The program failed; the message has its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.machine.command(program);
        command.args(arguments);
        feed(command, "").with_context(|| format!("on {}: {program} {}", self.name(), arguments.join(" ")))
    }

    /// The id of a container's first process. `id` is as in a pod's status: `containerd://...`.
    ///
    /// # Errors
    /// It is not running.
    pub fn process(&self, id: &str) -> Result<u32> {
        let id = id.strip_prefix("containerd://").unwrap_or(id);
        let path = self.machine.file(&format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/init.pid"));
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{}: {text}", path.display()))
    }

    /// The network namespace of a container.
    ///
    /// # Errors
    /// It is not running.
    pub fn netns_of(&self, name: &str, id: &str) -> Result<Netns> {
        Netns::adopt(name, &PathBuf::from(format!("/proc/{}/ns/net", self.process(id)?)))
    }

    /// Ends all daemons and containers of the node at once, as in a power cut. Its disk is kept.
    ///
    /// # Errors
    /// A process does not end.
    pub fn cut_power(&self) -> Result<()> {
        for daemon in [&self.kubelet, &self.containerd].into_iter().chain(&self.proxy) {
            daemon.kill()?;
        }
        let containers = self.machine.containers();
        ensure!(!containers.is_empty(), "{} has no containers, or they are not where they are looked for", self.name());
        wait::within(Duration::from_secs(30), format!("processes on {} to end", self.name()), || {
            let processes = self.container_processes(&containers);
            for process in &processes {
                kill(Pid::from_raw(*process), Signal::SIGKILL).ok();
            }
            Ok(processes.is_empty().then_some(()))
        })?;
        session::remove_cgroups(&containers);
        Ok(())
    }

    /// Takes the node down with [`Node::cut_power`] and starts it again, with new namespaces and an
    /// empty `/run`.
    ///
    /// # Errors
    /// A process does not end or does not start.
    pub fn reboot(&mut self) -> Result<()> {
        self.cut_power()?;
        self.machine.reboot()?;
        self.containerd = containerd(&self.machine, &self.logs)?;
        self.kubelet = kubelet(&self.machine, &self.kubeconfig, &self.logs)?;
        self.proxy = self.proxy.is_some().then(|| proxy(&self.machine, &self.logs)).transpose()?;
        self.start_runtime(&[])?;
        self.start()
    }

    /// Processes in the machine's mount namespace, which are the daemons' children, and in its
    /// containers.
    fn container_processes(&self, containers: &[String]) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let contained = fs::read_to_string(entry.path().join("cgroup"))
                .is_ok_and(|cgroup| session::contains(containers, &cgroup));
            let shim = fs::read_link(entry.path().join("ns/mnt")).ok();
            if contained || (shim.is_some() && shim == self.machine.mount_identity()) {
                found.push(id);
            }
        }
        found
    }
}

fn configure(machine: &Machine, kubeconfig: &Path) -> Result<()> {
    let name = &machine.party.name;
    let plugins = machine.file("/opt/cni/bin");
    for folder in ["/etc/kubernetes/manifests", "/etc/cni/net.d", "/etc/containerd"].map(|path| machine.file(path)) {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::create_dir_all(&plugins).with_context(|| format!("create {}", plugins.display()))?;
    let loopback = Path::new(CNI_PLUGINS).join("loopback");
    fs::copy(&loopback, plugins.join("loopback"))
        .with_context(|| format!("copy {}: is containernetworking-plugins installed?", loopback.display()))?;
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failCgroupV1": false,
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "staticPodPath": "/etc/kubernetes/manifests",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
        "registerWithTaints": [{"key": NOT_READY_TAINT, "effect": "NoSchedule"}],
    });
    let proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig.with_file_name("admin.conf")},
        "hostnameOverride": name,
        "clusterCIDR": POD_RANGES.join(","),
        "bindAddress": "0.0.0.0",
        // These settings cannot be changed in a network namespace other than the initial one.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"syncPeriod": "30s", "minSyncPeriod": "100ms"},
    });
    let containerd = format!(
        r#"version = 3
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{POD_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#
    );
    for (path, text) in [
        ("/etc/kubernetes/kubelet.yaml", kubelet.to_string()),
        ("/etc/kubernetes/proxy.yaml", proxy.to_string()),
        ("/etc/containerd/config.toml", containerd),
    ] {
        let file = machine.file(path);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn containerd(machine: &Machine, logs: &Path) -> Result<Daemon> {
    let program = tools::built("containerd")?;
    let tools_folder = program.parent().map(|folder| folder.display().to_string()).unwrap_or_default();
    let mut command = machine.command(&program);
    // It starts the shim from its own folder, and runc.
    command.env("PATH", format!("{tools_folder}:/usr/sbin:/usr/bin:/sbin:/bin"));
    Ok(Daemon::new(&format!("containerd-{}", machine.party.name), logs, command))
}

fn kubelet(machine: &Machine, kubeconfig: &Path, logs: &Path) -> Result<Daemon> {
    let mut command = machine.command(tools::built("kubelet")?);
    command.arg("--kubeconfig").arg(kubeconfig).args([
        "--config=/etc/kubernetes/kubelet.yaml",
        &format!("--hostname-override={}", machine.party.name),
        &format!("--node-ip={},{}", machine.party.v4, machine.party.v6),
    ]);
    Ok(Daemon::new(&format!("kubelet-{}", machine.party.name), logs, command))
}

fn proxy(machine: &Machine, logs: &Path) -> Result<Daemon> {
    let mut command = machine.command(tools::built("kube-proxy")?);
    command.arg("--config=/etc/kubernetes/proxy.yaml");
    Ok(Daemon::new(&format!("kube-proxy-{}", machine.party.name), logs, command))
}

/// The name of a pod's network namespace, beside the namespaces of machines.
pub(crate) fn pod_netns(namespace: &str, name: &str) -> Result<String> {
    ensure!(!namespace.is_empty() && !name.is_empty(), "a pod has a namespace and a name");
    Ok(format!("{namespace}.{name}"))
}
