//! etcd and Kubernetes' API server, and if requested its controllers and scheduler, on their own
//! machine.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::wire::Wire;
use hauberk_netns::{Netns, Party};
use serde_json::json;

use crate::certificates::Certificates;
use crate::daemon::Daemon;
use crate::kubectl::Kubectl;
use crate::tools;

/// Ranges of services' addresses.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
/// Ranges of pods' addresses.
pub const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
/// The cluster's DNS server.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The ranges of the addresses of machines on the wire.
pub const MACHINES: [&str; 2] = ["10.99.0.0/24", "fd00:99::/64"];

/// The address of a machine on the wire. The control plane is number 1, nodes are 11 and higher.
pub fn machine_addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(10, 99, 0, number), Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, u16::from(number)))
}

/// What a test needs from the control plane.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the controller manager runs: ranges for nodes, endpoints of services, default
    /// service accounts, ...
    pub controllers: bool,
    /// Whether the scheduler runs.
    pub scheduler: bool,
    /// The number of nodes that may join, `n1`, `n2`, ...: their kubelets' tokens are made
    /// beforehand.
    pub nodes: usize,
    /// More users, with their names as tokens: (name, groups).
    pub users: Vec<(String, Vec<String>)>,
    /// More arguments for the API server.
    pub api_server_arguments: Vec<String>,
}

impl Default for Options {
    /// The API server without controllers, with tokens for three nodes.
    fn default() -> Options {
        Options { controllers: false, scheduler: false, nodes: 3, users: Vec::new(), api_server_arguments: Vec::new() }
    }
}

/// A running control plane. Its processes end with the test's process.
#[derive(Debug)]
pub struct ControlPlane {
    /// The machine it runs on, and its addresses on the wire.
    pub party: Party,
    /// The wire that the machine is on.
    pub wire: Wire,
    /// `kubectl` as the cluster's administrator.
    pub kubectl: Kubectl,
    /// etcd.
    pub etcd: Daemon,
    /// The API server.
    pub api_server: Daemon,
    /// The controller manager, if requested.
    pub controllers: Option<Daemon>,
    /// The scheduler, if requested.
    pub scheduler: Option<Daemon>,
    /// Its certificates and keys.
    pub certificates: Certificates,
    directory: PathBuf,
}

impl ControlPlane {
    /// Starts a control plane and waits until the API server is ready. Logs and files are in
    /// `directory`. A test's process has at most one.
    ///
    /// # Errors
    /// A program is missing or does not become ready; the message has the end of its log.
    pub fn start(directory: &Path, options: &Options) -> Result<ControlPlane> {
        let started = Instant::now();
        let directory = std::path::absolute(directory).context("absolute path")?;
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let mut wire = Wire::create(1)?;
        let party = plug(&mut wire)?;
        let services = [Ipv4Addr::new(10, 96, 0, 1).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1).into()];
        let own = [party.v4.into(), party.v6.into(), Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let addresses: Vec<IpAddr> = own.into_iter().chain(services).collect();
        let certificates = Certificates::create(&directory.join("certificates"), &addresses)?;
        write_tokens(&directory, options)?;
        let server = format!("https://{}:6443", party.v4);
        for name in ["admin".to_owned()].into_iter().chain((1..=options.nodes).map(node_name)).chain(users(options)) {
            write_kubeconfig(&directory, &server, &certificates, &name)?;
        }
        let control_plane = ControlPlane {
            kubectl: Kubectl::new(&party.netns, &directory.join("admin.conf")),
            etcd: etcd(&party, &directory)?,
            api_server: api_server(&party, &directory, &certificates, options)?,
            controllers: options.controllers.then(|| controllers(&party, &directory, &certificates)).transpose()?,
            scheduler: options.scheduler.then(|| scheduler(&party, &directory)).transpose()?,
            party,
            wire,
            certificates,
            directory,
        };
        control_plane.etcd.start()?;
        control_plane.start_api_server()?;
        for daemon in [&control_plane.controllers, &control_plane.scheduler].into_iter().flatten() {
            daemon.start()?;
        }
        println!("time: control plane up after {:.1} s", started.elapsed().as_secs_f64());
        Ok(control_plane)
    }

    /// The network namespace it runs in. Clients of the API server run there, or on a machine on
    /// the wire.
    pub fn netns(&self) -> &Netns {
        &self.party.netns
    }

    /// Runs `work` on a thread that can reach the API server. Threads that it starts can reach it
    /// as well.
    ///
    /// # Errors
    /// Those of `work`, and a panic in it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.party.netns.within(work)
    }

    /// The kubeconfig of `admin`, of a node (`n1`: of its kubelet) or of a user of
    /// [`Options::users`].
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.conf"))
    }

    /// `kubectl` as `admin`, a node's kubelet (`n1`) or a user of [`Options::users`].
    pub fn kubectl_as(&self, name: &str) -> Kubectl {
        Kubectl::new(&self.party.netns, &self.kubeconfig(name))
    }

    /// Starts the API server, also after [`ControlPlane::stop_api_server`], and waits until it is
    /// ready.
    ///
    /// # Errors
    /// It does not become ready; the message has the end of its log.
    pub fn start_api_server(&self) -> Result<()> {
        self.api_server.start()?;
        self.api_server.wait_until("be ready", || {
            let answer = self.kubectl.answer(&["get", "--raw", "/readyz"], "")?;
            ensure!(answer.success, "{}", answer.stderr.trim());
            Ok(())
        })
    }

    /// Stops the API server: connections to it are refused.
    ///
    /// # Errors
    /// A system call fails.
    pub fn stop_api_server(&self) -> Result<()> {
        self.api_server.kill()
    }

    /// Stops the API server with SIGSTOP, so that it neither answers nor refuses, or continues it.
    ///
    /// # Errors
    /// It is not running.
    pub fn freeze_api_server(&self, freeze: bool) -> Result<()> {
        use nix::sys::signal::{Signal, kill};
        let id = self.api_server.id().context("the API server is not running")?;
        let signal = if freeze { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(nix::unistd::Pid::from_raw(id as i32), signal).context("signal to the API server")
    }

    /// Empties etcd while the API server is stopped: what then starts is another cluster with the
    /// same name.
    ///
    /// # Errors
    /// The API server is running, or file access fails.
    pub fn wipe_etcd(&self) -> Result<()> {
        ensure!(self.api_server.id().is_none(), "stop the API server before etcd is wiped");
        self.etcd.kill()?;
        let data = self.directory.join("etcd");
        fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
        self.etcd.start()
    }

    /// The folder for its logs and files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The name of a node, counted from 1.
pub fn node_name(number: usize) -> String {
    format!("n{number}")
}

fn users(options: &Options) -> impl Iterator<Item = String> + '_ {
    options.users.iter().map(|(name, _)| name.clone())
}

fn plug(wire: &mut Wire) -> Result<Party> {
    let netns = Netns::create("control-plane")?;
    let (v4, v6) = machine_addresses(1);
    wire.plug(&netns, "eth0", 0, 1500)?;
    netns.ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"))?;
    Ok(Party { name: "control-plane".into(), netns, v4, v6 })
}

/// Every user's token is the user's name.
fn write_tokens(directory: &Path, options: &Options) -> Result<()> {
    let mut lines = vec!["admin,admin,admin,system:masters".to_owned()];
    for node in (1..=options.nodes).map(node_name) {
        lines.push(format!("{node},system:node:{node},{node},system:nodes"));
    }
    for (name, groups) in &options.users {
        lines.push(format!("{name},{name},{name},\"{}\"", groups.join(",")));
    }
    fs::write(directory.join("tokens.csv"), lines.join("\n") + "\n").context("write tokens.csv")
}

fn write_kubeconfig(directory: &Path, server: &str, certificates: &Certificates, name: &str) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": certificates.authority}}],
        "users": [{"name": name, "user": {"token": name}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        "current-context": "test",
    });
    let path = directory.join(format!("{name}.conf"));
    let text = serde_yaml_ng::to_string(&config).context("write YAML")?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn etcd(party: &Party, directory: &Path) -> Result<Daemon> {
    let mut command = party.netns.command(tools::installed("etcd", "etcd-server")?);
    command.arg("--data-dir").arg(directory.join("etcd")).args([
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--quota-backend-bytes=8589934592",
    ]);
    Ok(Daemon::new("etcd", directory, command))
}

fn api_server(party: &Party, directory: &Path, certificates: &Certificates, options: &Options) -> Result<Daemon> {
    let mut command = party.netns.command(tools::built("kube-apiserver")?);
    let file = |argument: &str, path: &Path| format!("--{argument}={}", path.display());
    command
        .args([
            file("service-account-key-file", &certificates.account_public),
            file("service-account-signing-key-file", &certificates.account_key),
            file("token-auth-file", &directory.join("tokens.csv")),
            file("tls-cert-file", &certificates.server),
            file("tls-private-key-file", &certificates.server_key),
            file("client-ca-file", &certificates.authority),
            file("cert-dir", &directory.join("certificates")),
            format!("--service-cluster-ip-range={}", SERVICE_RANGES.join(",")),
            format!("--advertise-address={}", party.v4),
        ])
        .args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--secure-port=6443",
            "--bind-address=::",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
        ])
        .args(&options.api_server_arguments);
    Ok(Daemon::new("kube-apiserver", directory, command))
}

fn controllers(party: &Party, directory: &Path, certificates: &Certificates) -> Result<Daemon> {
    let mut command = party.netns.command(tools::built("kube-controller-manager")?);
    command
        .arg("--kubeconfig")
        .arg(directory.join("admin.conf"))
        .arg("--service-account-private-key-file")
        .arg(&certificates.account_key)
        .arg("--root-ca-file")
        .arg(&certificates.authority)
        .arg(format!("--cluster-cidr={}", POD_RANGES.join(",")))
        .arg(format!("--service-cluster-ip-range={}", SERVICE_RANGES.join(",")))
        .args([
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=true",
            "--node-cidr-mask-size-ipv6=64",
            "--leader-elect=false",
        ]);
    Ok(Daemon::new("kube-controller-manager", directory, command))
}

fn scheduler(party: &Party, directory: &Path) -> Result<Daemon> {
    let mut command = party.netns.command(tools::built("kube-scheduler")?);
    command.arg("--kubeconfig").arg(directory.join("admin.conf")).arg("--leader-elect=false");
    Ok(Daemon::new("kube-scheduler", directory, command))
}
