//! Lists everything that is impossible in a configuration of the right shape: one sentence for each
//! problem, with what to do.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::{Automatic, CniInstall, Config, ConfigError, HostRouting, Source};

/// Longest path of a unix socket (`sun_path` holds 108 bytes, the last one zero: unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// Longest interface name (`IFNAMSIZ` is 16, the last byte zero).
const MAX_DEVICE_NAME: usize = 15;
/// Smallest tunnel MTU: IPv6 needs links of 1280 (RFC 8200 section 5).
const MIN_MTU: u32 = 1280;
/// The longest IP packet whose length both families' headers can say, bytes.
const LONGEST_PACKET: u32 = 65_535;
/// Longest time to poll for the next packet, microseconds.
const MAX_SPIN: u32 = 1000;
const NO_CLUSTER_RANGES: &str = "`clusterRanges` is required: the ranges that all nodes' pod addresses come from, because an address \
    in them that belongs to nobody known is protected; they are kube-controller-manager's --cluster-cidr, or cover every node's \
    spec.podCIDRs (kubectl get nodes -o jsonpath='{.items[*].spec.podCIDRs}')";
/// Longest label of a DNS name (RFC 1123), hence longest name of a namespace.
const MAX_LABEL: usize = 63;
/// Longest name of a file, bytes (`NAME_MAX`).
const MAX_FILE_NAME: usize = 255;
/// More entries than this would lock gigabytes of kernel memory.
const MAX_ENTRIES: u32 = 1 << 24;

impl Config {
    /// Checks the effective configuration, in which the cluster's own overrides the file's:
    /// [`Config::validate`], and that one of the two has the cluster's ranges.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem.
    pub fn validate_effective(&self) -> Result<(), ConfigError> {
        let mut problems = self.problems();
        if self.cluster_ranges.is_empty() && !problems.iter().any(|problem| problem == NO_CLUSTER_RANGES) {
            problems.push(NO_CLUSTER_RANGES.into());
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let problems = self.problems();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(self.node.as_deref().and_then(node_name));
        self.ranges(&mut problems);
        self.tunnel(&mut problems);
        self.uplinks(&mut problems);
        if self.mark_shift > 28 {
            problems.push(format!(
                "`markShift` is {}: four bits do not fit in the 32-bit mark beyond 28; 20 is the default",
                self.mark_shift
            ));
        }
        self.source(&mut problems);
        self.services(&mut problems);
        self.cni(&mut problems);
        self.paths(&mut problems);
        self.limits(&mut problems);
        problems
    }

    fn ranges(&self, problems: &mut Vec<String>) {
        // With a cluster, the cluster's own configuration may have them.
        if self.cluster_ranges.is_empty() && matches!(self.source, Source::Directory(_)) {
            problems.push(NO_CLUSTER_RANGES.into());
        }
        for (field, ranges) in [("clusterRanges", &self.cluster_ranges), ("nodeRanges", &self.node_ranges)] {
            let mut seen = BTreeSet::new();
            for range in ranges {
                problems.extend(range_problem(field, range));
                if !seen.insert(range) {
                    problems.push(format!("`{field}` has {range} twice"));
                }
            }
        }
        for pods in &self.cluster_ranges {
            for nodes in &self.node_ranges {
                if pods.contains(nodes) || nodes.contains(pods) {
                    problems.push(format!(
                        "{pods} of `clusterRanges` and {nodes} of `nodeRanges` overlap: an address would be a pod's and a node's"
                    ));
                }
            }
        }
    }

    fn tunnel(&self, problems: &mut Vec<String>) {
        let tunnel = &self.tunnel;
        let mechanism = tunnel.backend.mechanism();
        let max_mtu = LONGEST_PACKET - mechanism.overhead();
        let max_threads = mechanism.most_threads() as u32;
        problems.extend(device_name("tunnel.device", &tunnel.device));
        if tunnel.port == 0 {
            problems.push("`tunnel.port` is 0: peers must know it; 51840 is the default".into());
        }
        if let Automatic::Value(mtu) = tunnel.mtu
            && !(MIN_MTU..=max_mtu).contains(&mtu)
        {
            problems.push(format!("`tunnel.mtu` is {mtu}: it must be {MIN_MTU} to {max_mtu}, or auto"));
        }
        if let Automatic::Value(threads) = tunnel.threads
            && !(1..=max_threads).contains(&threads)
        {
            problems.push(format!("`tunnel.threads` is {threads}: it must be 1 to {max_threads}, or auto"));
        }
        if tunnel.handshakes_per_second == 0 {
            problems.push("`tunnel.handshakesPerSecond` is 0: no peer could ever connect; 100 is the default".into());
        }
        if tunnel.spin_microseconds > MAX_SPIN {
            let value = tunnel.spin_microseconds;
            problems.push(format!("`tunnel.spinMicroseconds` is {value}: at most {MAX_SPIN}, or a CPU does nothing else; 100 is the default"));
        }
    }

    fn uplinks(&self, problems: &mut Vec<String>) {
        let Automatic::Value(uplinks) = &self.uplinks else { return };
        if uplinks.is_empty() {
            problems.push("`uplinks` is empty: name the devices that lead to other nodes, or write auto".into());
        }
        let mut seen = BTreeSet::new();
        for uplink in uplinks {
            problems.extend(device_name("uplinks", uplink));
            if !seen.insert(uplink) {
                problems.push(format!("`uplinks` has {uplink} twice"));
            }
            if *uplink == self.tunnel.device {
                problems.push(format!("`uplinks` has {uplink}, which is the tunnel's own device"));
            }
        }
    }

    fn source(&self, problems: &mut Vec<String>) {
        let Source::Kubernetes(kubernetes) = &self.source else { return };
        if let Some(kubeconfig) = &kubernetes.kubeconfig {
            problems.extend(path_problem("source.kubernetes.kubeconfig", kubeconfig));
        }
        if kubernetes.namespace.len() > MAX_LABEL || !dns_label(&kubernetes.namespace) {
            problems.push(format!(
                "`source.kubernetes.namespace` is {:?}, which no namespace can be named: name the one hauberk is installed in",
                kubernetes.namespace
            ));
        }
    }

    fn services(&self, problems: &mut Vec<String>) {
        if self.services.outside && !self.services.sockets {
            problems.push(
                "`services.outside` is true and `services.sockets` is false: the agent reads services, and leads this node's own \
                 processes to them, only with services.sockets; write services.sockets: true too, or services.outside: false"
                    .into(),
            );
        }
    }

    fn cni(&self, problems: &mut Vec<String>) {
        let cni = &self.cni;
        let name = &cni.configuration_name;
        // The runtime reads no other names (libcni's ConfFiles), and a list only from this one.
        if !name.ends_with(".conflist") || name.starts_with('.') || name.contains('/') || name.len() > MAX_FILE_NAME {
            problems.push(format!(
                "`cni.configurationName` is {name:?}: a file's name that ends in .conflist is needed, such as 05-hauberk.conflist"
            ));
        }
        if cni.install == CniInstall::Chained && self.host_routing != HostRouting::Stack {
            problems.push(
                "`cni.install` is chained and `hostRouting` is bpf: the other plugin's routes and translations are in the IP stack, \
                 which bpf goes past; write hostRouting: stack"
                    .into(),
            );
        }
    }

    fn paths(&self, problems: &mut Vec<String>) {
        let paths = &self.paths;
        let mut seen = BTreeSet::new();
        let manifests = match &self.source {
            Source::Directory(directory) => Some(("source.directory", directory)),
            Source::Kubernetes(_) => None,
        };
        for (field, path) in manifests.into_iter().chain([
            ("paths.state", &paths.state),
            ("paths.socket", &paths.socket),
            ("paths.uapi", &paths.uapi),
            ("paths.pins", &paths.pins),
            ("cni.binaryDirectory", &self.cni.binary_directory),
            ("cni.configurationDirectory", &self.cni.configuration_directory),
            ("cni.resultsDirectory", &self.cni.results_directory),
        ]) {
            problems.extend(path_problem(field, path));
            if !seen.insert(path) {
                problems.push(format!("`{field}` is {}, which another field already has", path.display()));
            }
        }
        if let Some(cgroup) = &paths.cgroup {
            problems.extend(path_problem("paths.cgroup", cgroup));
        }
        for (field, path) in [("paths.socket", &paths.socket), ("paths.uapi", &paths.uapi)] {
            let length = path.as_os_str().len();
            if length > MAX_SOCKET_PATH {
                problems
                    .push(format!("`{field}` has {length} bytes: a unix socket's path has at most {MAX_SOCKET_PATH}"));
            }
        }
    }

    fn limits(&self, problems: &mut Vec<String>) {
        let limits = &self.limits;
        for (field, entries) in [
            ("endpoints", limits.endpoints),
            ("ranges", limits.ranges),
            ("flows", limits.flows),
            ("attachments", limits.attachments),
            ("frontends", limits.frontends),
            ("backends", limits.backends),
            ("sockets", limits.sockets),
            ("connections", limits.connections),
        ] {
            if !(1..=MAX_ENTRIES).contains(&entries) {
                problems.push(format!("`limits.{field}` is {entries}: it must be 1 to {MAX_ENTRIES}"));
            }
        }
        if !limits.events.is_power_of_two() || !(4096..=1 << 30).contains(&limits.events) {
            problems.push(format!(
                "`limits.events` is {}: the ring buffer's size must be a power of two from 4096 to {}",
                limits.events,
                1u32 << 30
            ));
        }
    }
}

/// What is wrong with a node's name (Kubernetes requires an RFC 1123 subdomain), if anything.
pub(super) fn node_name(name: &str) -> Option<String> {
    if name.len() <= 253 && name.split('.').all(dns_label) {
        return None;
    }
    Some(format!(
        "`node` is {name:?}, which no Node object can be named: lower-case letters, digits, '-' and '.' only, at most 253"
    ))
}

/// Whether it is one label of a DNS name in lower case (RFC 1123).
fn dns_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn range_problem(field: &str, range: &IpNet) -> Option<String> {
    let network = range.network();
    if *range != range.trunc() {
        return Some(format!("`{field}` has {range}, which is an address in a range; write {}", range.trunc()));
    }
    if range.prefix_len() == 0 {
        return Some(format!(
            "`{field}` has {range}, the whole Internet: no address would be outside the cluster; name the ranges"
        ));
    }
    if let IpAddr::V6(v6) = network
        && v6.to_ipv4_mapped().is_some()
    {
        return Some(format!("`{field}` has {range}, an IPv4-mapped range: write it as IPv4"));
    }
    if network.is_loopback() || network.is_multicast() || is_link_local(network) {
        return Some(format!("`{field}` has {range}, in which no address leaves its link or belongs to one party"));
    }
    None
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn device_name(field: &str, name: &str) -> Option<String> {
    // The kernel's dev_valid_name(), and '%', which the kernel would replace by a number.
    let valid = (1..=MAX_DEVICE_NAME).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%' | b'"' | b'\\'));
    (!valid).then(|| format!("`{field}` has {name:?}, which no network device can be named: 1 to {MAX_DEVICE_NAME} visible characters without / : % \" \\"))
}

fn path_problem(field: &str, path: &Path) -> Option<String> {
    let plain = path.is_absolute() && !path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    (!plain).then(|| format!("`{field}` is {:?}: an absolute path without .. is needed", path.display().to_string()))
}
