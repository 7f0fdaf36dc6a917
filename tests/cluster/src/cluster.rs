//! The whole cluster: control plane, nodes, the wire between them and the capture on it, CoreDNS,
//! and hauberk as users install it.

use std::fmt::Display;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::analysis::{self, Sighting};
use hauberk_netns::capture::{Capture, Moment};
use hauberk_netns::{Party, eventually, log};
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::control_plane::{ControlPlane, DNS, Options, node_name};
use crate::kubectl::Kubectl;
use crate::machine::Machine;
use crate::node::{NOT_READY_TAINT, Node, POD_IMAGE, pod_netns};
use crate::runner::Context;
use crate::{chart, images, session};

/// The kind of cluster a test needs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many nodes.
    pub nodes: usize,
    /// Machines that are on the wire and captured, but are no nodes yet. [`Cluster::join`] makes
    /// them nodes.
    pub joining: usize,
    /// The chart's values (`key=value`) if hauberk is to be installed. If none, nodes have no
    /// network for pods.
    pub hauberk: Option<Vec<String>>,
    /// Whether CoreDNS runs.
    pub dns: bool,
    /// Whether kube-proxy runs. Without it, each node has a cgroup, so that hauberk's programs for
    /// services run for the processes of their own node.
    pub proxy: bool,
    /// Options of the control plane. Controllers and scheduler always run.
    pub options: Options,
}

impl Default for Setup {
    /// Three nodes, hauberk as primary CNI beside kube-proxy, CoreDNS.
    fn default() -> Setup {
        let values = ["cni.install=primary", "config.log.level=debug"];
        let hauberk = Some(values.map(str::to_owned).to_vec());
        Setup { nodes: 3, joining: 0, hauberk, dns: true, proxy: true, options: Options::default() }
    }
}

/// A running cluster. All of it ends with its session.
pub struct Cluster {
    /// etcd, API server, controllers, scheduler.
    pub control_plane: ControlPlane,
    /// The nodes, `n1` first.
    pub nodes: Vec<Node>,
    /// Machines on which nothing runs yet.
    pub waiting: Vec<Node>,
    /// The traffic on the wire.
    pub capture: Capture,
    /// The folder for logs.
    pub directory: PathBuf,
    /// The Node objects as they were before hauberk was installed.
    pub bare_nodes: Vec<Value>,
    images: Vec<PathBuf>,
    chart: PathBuf,
}

/// Prints how long each part of the start took.
struct Stopwatch(Instant);

impl Stopwatch {
    fn lap(&mut self, what: impl Display) {
        println!("time: {what} took {:.1} s", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

impl Cluster {
    /// Starts a cluster and waits until nodes are ready (if they have a network) and CoreDNS serves
    /// (if it runs).
    ///
    /// # Errors
    /// A step failed; the message says where to look.
    pub fn start(context: &Context, setup: &Setup) -> Result<Cluster> {
        let mut cluster = Cluster::start_control_plane(context, setup)?;
        let mut watch = Stopwatch(Instant::now());
        cluster.start_nodes()?;
        watch.lap("starting container runtimes, images and kubelets");
        if setup.dns {
            cluster.kubectl().apply(&dns_manifests())?;
        }
        if let Some(values) = &setup.hauberk {
            cluster.bare_nodes = cluster.wait_bare()?;
            watch.lap("until the nodes waited for a network");
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            cluster.install(&values)?;
            if setup.dns {
                let mut watch = Stopwatch(Instant::now());
                cluster.wait_available("kube-system", "coredns").inspect_err(|_| cluster.explain())?;
                watch.lap("until CoreDNS served");
            }
        }
        Ok(cluster)
    }

    /// Installs hauberk as its users do, with these values (`key=value`) in addition to the pods'
    /// ranges, and waits until every node is ready with it.
    ///
    /// # Errors
    /// Helm fails, or a node does not become ready.
    pub fn install(&self, values: &[&str]) -> Result<()> {
        let mut watch = Stopwatch(Instant::now());
        let image = images::agent()?;
        on_all(&self.nodes, |node| node.import(&image))?;
        watch.lap("giving the nodes the agent's image");
        chart::install_release(self.kubectl(), &self.chart, values)?;
        watch.lap("helm install");
        self.wait_ready().inspect_err(|_| self.explain())?;
        watch.lap("until all nodes were ready");
        Ok(())
    }

    /// Makes the next of the waiting machines a node of this cluster, with hauberk. Does not wait
    /// until it is ready.
    ///
    /// # Errors
    /// No machine is waiting, or a program does not start.
    pub fn join(&mut self) -> Result<()> {
        ensure!(!self.waiting.is_empty(), "no machine is waiting to join");
        let node = self.waiting.remove(0);
        node.start_runtime(&self.images)?;
        node.import(&images::agent()?)?;
        node.start()?;
        self.nodes.push(node);
        Ok(())
    }

    fn start_control_plane(context: &Context, setup: &Setup) -> Result<Cluster> {
        let directory = context.session_directory();
        let images = images::archives()?;
        let machines = setup.nodes + setup.joining;
        let mut options = setup.options.clone();
        options.controllers = true;
        options.scheduler = true;
        options.nodes = machines.max(options.nodes);
        let mut control_plane = ControlPlane::start(directory, &options)?;
        let state = session::state(directory);
        let (mut nodes, mut chart) = (Vec::new(), chart::folder());
        for number in 1..=machines {
            let name = node_name(number);
            let cgroup = (!setup.proxy).then(|| Cgroup::create(directory, &name)).transpose()?;
            if let Some(cgroup) = &cgroup {
                chart = chart::with_cgroups(cgroup.root(), directory)?;
            }
            let machine = Machine::boot(&mut control_plane.wire, &name, number as u8, &state, cgroup)?;
            nodes.push(Node::new(machine, &control_plane, directory, setup.proxy)?);
        }
        let waiting = nodes.split_off(setup.nodes);
        let capture = Capture::start(control_plane.wire.ports())?;
        context.watch(&capture);
        let (directory, bare_nodes) = (directory.into(), Vec::new());
        Ok(Cluster { control_plane, nodes, waiting, capture, directory, bare_nodes, images, chart })
    }

    fn start_nodes(&self) -> Result<()> {
        on_all(&self.nodes, |node| {
            node.start_runtime(&self.images)?;
            node.start()
        })?;
        for node in &self.nodes {
            node.kubelet
                .wait_until("register its node", || self.kubectl().run(&["get", "node", node.name()]).map(drop))?;
        }
        Ok(())
    }

    /// Waits until the kubelets have reported the condition of their nodes.
    fn wait_bare(&self) -> Result<Vec<Value>> {
        let has_said = |object: &Value| object["status"]["conditions"].as_array().is_some_and(|all| !all.is_empty());
        let ask = |node: &Node| self.kubectl().wait_for(&["node", node.name()], "say how it is", has_said);
        self.nodes.iter().map(ask).collect()
    }

    /// `kubectl` as the cluster's administrator.
    pub fn kubectl(&self) -> &Kubectl {
        &self.control_plane.kubectl
    }

    /// The node with that name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node {name}"))
    }

    /// Waits until every node is Ready and has no start-up taint, and its agent reports that it is
    /// ready.
    ///
    /// # Errors
    /// A node never was; the message has its object.
    pub fn wait_ready(&self) -> Result<()> {
        for node in &self.nodes {
            self.kubectl().wait_for(&["node", node.name()], "be ready for pods", is_ready)?;
            self.wait_agent(node)?;
        }
        Ok(())
    }

    /// Waits until a node's agent reports that it is ready.
    ///
    /// # Errors
    /// It never did; the message has its last report.
    pub fn wait_agent(&self, node: &Node) -> Result<()> {
        eventually(format!("the agent on {} to be ready", node.name()), || {
            let (code, body) = node.agent.get("/readyz")?;
            ensure!(code == 200, "/readyz says {code}: {}", body.trim());
            Ok(Some(()))
        })
    }

    /// Waits until all replicas of a Deployment are available.
    ///
    /// # Errors
    /// They never were.
    pub fn wait_available(&self, namespace: &str, deployment: &str) -> Result<()> {
        let available = |object: &Value| {
            let status = &object["status"];
            status["availableReplicas"].as_u64() == object["spec"]["replicas"].as_u64()
                && status["observedGeneration"] == object["metadata"]["generation"]
        };
        self.kubectl().wait_for(&["deployment", "-n", namespace, deployment], "be available", available).map(drop)
    }

    /// The pod ranges of a node, IPv4 and IPv6. Waits until it has them.
    ///
    /// # Errors
    /// It never gets them.
    pub fn pod_ranges(&self, node: &Node) -> Result<[String; 2]> {
        let object = self.kubectl().wait_for(&["node", node.name()], "have ranges for pods", |object| {
            object["spec"]["podCIDRs"].as_array().is_some_and(|ranges| ranges.len() == 2)
        })?;
        Ok([0, 1].map(|index| object["spec"]["podCIDRs"][index].as_str().unwrap_or_default().to_owned()))
    }

    /// Connects pods with a reference plugin per node, `bridge` or `ptp`, and plain routes between
    /// the nodes: a cluster without hauberk. Waits until the nodes are ready.
    ///
    /// # Errors
    /// A step fails.
    pub fn connect_plainly(&self, plugins: &[&str]) -> Result<()> {
        ensure!(plugins.len() == self.nodes.len(), "not a plugin for each of {} nodes: {plugins:?}", self.nodes.len());
        let ranges = self.nodes.iter().map(|node| self.pod_ranges(node)).collect::<Result<Vec<_>>>()?;
        for (node, ranges) in self.nodes.iter().zip(&ranges) {
            let party = &node.machine.party;
            let routes = format!("route add {} via {}\nroute add {} via {}", ranges[0], party.v4, ranges[1], party.v6);
            self.control_plane.netns().ip(&routes)?;
        }
        for ((node, own), plugin) in self.nodes.iter().zip(&ranges).zip(plugins) {
            let netns = &node.machine.party.netns;
            netns.sysctl("net.ipv4.ip_forward", "1")?;
            netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
            for (other, ranges) in self.nodes.iter().zip(&ranges).filter(|(other, _)| other.name() != node.name()) {
                let via = &other.machine.party;
                netns.ip(&format!("route add {} via {}\nroute add {} via {}", ranges[0], via.v4, ranges[1], via.v6))?;
            }
            let addresses = json!({"type": "host-local", "ranges": [[{"subnet": own[0]}], [{"subnet": own[1]}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
            let configuration = json!({"cniVersion": "1.0.0", "name": "plain", "plugins": [
                {"type": plugin, "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": addresses}]});
            node.install_plugins(&[plugin, "host-local"], "10-plain.conflist", &configuration)?;
        }
        for node in &self.nodes {
            let says_ready = |object: &Value| {
                let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
                conditions.into_iter().any(|each| each["type"] == "Ready" && each["status"] == "True")
            };
            self.kubectl().wait_for(&["node", node.name()], "be Ready", says_ready)?;
        }
        Ok(())
    }

    /// Removes the start-up taint from a node, as its agent would.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn open_for_pods(&self, node: &Node) -> Result<()> {
        self.kubectl().run(&["taint", "node", node.name(), &format!("{NOT_READY_TAINT}-")]).map(drop)
    }

    /// Makes a namespace with or without the encryption label, or labels an existing one.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn namespace(&self, name: &str, encryption: Option<&str>) -> Result<()> {
        let mut object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        if let Some(encryption) = encryption {
            object["metadata"]["labels"] = json!({"hauberk.io/encryption": encryption});
        }
        self.kubectl().apply(&object.to_string())?;
        // The API server refuses pods until this account exists.
        self.kubectl().wait_for(&["serviceaccount", "-n", name, "default"], "exist", |_| true)?;
        Ok(())
    }

    /// Deletes a namespace and waits until everything in it is gone.
    ///
    /// # Errors
    /// It is not deleted in time.
    pub fn delete_namespace(&self, name: &str) -> Result<()> {
        self.kubectl().run(&["delete", "namespace", name, "--timeout=300s"]).map(drop)
    }

    /// Creates an idle pod on a node and waits until it runs. The test sends its traffic through
    /// the [`Party`].
    ///
    /// # Errors
    /// It never runs.
    pub fn pod(&self, namespace: &str, name: &str, node: &str) -> Result<Party> {
        self.kubectl().apply(&pod_manifest(namespace, name, node).to_string())?;
        self.party(namespace, name)
    }

    /// Waits until a pod runs, and returns it.
    ///
    /// # Errors
    /// It never does.
    pub fn party(&self, namespace: &str, name: &str) -> Result<Party> {
        let runs = |object: &Value| object["status"]["containerStatuses"][0]["state"]["running"].is_object();
        let object = self.kubectl().wait_for(&["pod", "-n", namespace, name], "run", runs)?;
        let status = &object["status"];
        let node = self.node(object["spec"]["nodeName"].as_str().unwrap_or_default())?;
        let container = status["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
        let netns = node.netns_of(&pod_netns(namespace, name)?, container)?;
        let addresses: Vec<IpAddr> = status["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["ip"].as_str()?.parse().ok())
            .collect();
        ensure!(addresses.len() == 2, "{namespace}/{name} has the addresses {addresses:?}, not one of each family");
        Party::new(format!("{namespace}/{name}"), netns, &addresses)
    }

    /// Fails if a packet of one of `pods` crossed the wire in the clear since a moment.
    ///
    /// # Errors
    /// A packet did; the message shows the frames. Or the capture is incomplete.
    pub fn assert_no_cleartext(&self, pods: &[&Party], since: Moment) -> Result<()> {
        let sightings = self.cleartext(pods, since)?;
        ensure!(sightings.is_empty(), "packets of protected pods in the clear: {}", analysis::list(&sightings));
        Ok(())
    }

    /// Frames with packets of `pods` in the clear since a moment.
    ///
    /// # Errors
    /// The capture is incomplete.
    pub fn cleartext(&self, pods: &[&Party], since: Moment) -> Result<Vec<Sighting>> {
        let addresses: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.addresses()).collect();
        Ok(analysis::cleartext_of(&self.capture.since(since)?, &addresses))
    }

    /// Takes a node down as a power cut does, and up again.
    ///
    /// # Errors
    /// A process does not end or does not start.
    pub fn reboot(&mut self, node: usize) -> Result<()> {
        self.nodes[node].reboot()
    }

    /// Prints and writes what is needed to find out why a test failed.
    pub fn explain(&self) {
        let say = |arguments: &[&str]| match self.kubectl().answer(arguments, "") {
            Ok(answer) => println!("$ kubectl {}\n{}{}", arguments.join(" "), answer.stdout, answer.stderr),
            Err(error) => println!("kubectl {}: {error:#}", arguments.join(" ")),
        };
        say(&["get", "nodes,pods", "-A", "-o", "wide"]);
        say(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        for (arguments, file) in [
            (&["describe", "nodes"][..], "nodes.txt"),
            (&["describe", "pods", "-A"], "pods.txt"),
            (&["get", "namespaces", "-o", "yaml"], "namespaces.yaml"),
        ] {
            if let Ok(answer) = self.kubectl().answer(arguments, "") {
                fs::write(self.directory.join(file), answer.stdout).ok();
            }
        }
        for node in &self.nodes {
            let log = self.directory.join(format!("hauberkd-{}.log", node.name()));
            collect_agent_logs(node, &log);
            println!("the agent on {} ({}):\n{}", node.name(), log.display(), log::tail(&log, 15));
        }
    }
}

/// Runs `work` on these nodes at the same time.
fn on_all(nodes: &[Node], work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    // Daemons end with the session, not with the threads that started them.
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a node's thread panicked")))
    })
}

/// Copies the logs of all agents that ran on a node into one file. The kubelet keeps them on the
/// node's disk.
fn collect_agent_logs(node: &Node, to: &Path) {
    let pods = node.machine.file("/var/log/pods");
    let mut text = Vec::new();
    for pod in fs::read_dir(&pods).into_iter().flatten().flatten() {
        if !pod.file_name().to_string_lossy().starts_with(chart::NAMESPACE) {
            continue;
        }
        for container in fs::read_dir(pod.path()).into_iter().flatten().flatten() {
            let mut files: Vec<_> = fs::read_dir(container.path()).into_iter().flatten().flatten().collect();
            files.sort_by_key(fs::DirEntry::file_name);
            for file in files {
                text.extend(fs::read(file.path()).unwrap_or_default());
            }
        }
    }
    fs::write(to, text).ok();
}

/// Whether the node is Ready and open for pods.
pub fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|each| each["type"] == "Ready" && each["status"] == "True");
    ready && node["spec"]["taints"].as_array().is_none_or(Vec::is_empty)
}

/// An idle pod on a node.
pub fn pod_manifest(namespace: &str, name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "containers": [{"name": "pod", "image": POD_IMAGE, "imagePullPolicy": "Never", "args": ["pause"]}],
        },
    })
}

/// CoreDNS as in most clusters: one replica, the usual Corefile, its role and its Service.
fn dns_manifests() -> String {
    let corefile = ".:53 {
    errors
    health {
        lameduck 1s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
    }
    cache 30
    reload
}";
    let metadata = |name: &str| json!({"name": name, "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}});
    let probe = |path: &str, port: u16| json!({"httpGet": {"path": path, "port": port}, "periodSeconds": 2});
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
    "metadata": {"name": "coredns"}, "rules": [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
        "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}]});
    let pod = json!({
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "containers": [{
            "name": "coredns",
            "image": images::DNS_IMAGE,
            "imagePullPolicy": "Never",
            "args": ["-conf", "/etc/coredns/Corefile"],
            "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}],
            "readinessProbe": probe("/ready", 8181),
            "livenessProbe": probe("/health", 8080),
        }],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    });
    let objects = [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("coredns")}),
        role,
        binding,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("coredns"), "data": {"Corefile": corefile}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("coredns"), "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"k8s-app": "kube-dns"}},
            "template": {"metadata": {"labels": {"k8s-app": "kube-dns"}}, "spec": pod},
        }}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata("kube-dns"), "spec": {
            "selector": {"k8s-app": "kube-dns"},
            "clusterIP": DNS,
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        }}),
    ];
    objects.map(|object| object.to_string()).join("\n---\n")
}
