//! The state of a node outside the agent.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use hauberk_cluster::Node;

/// One line per object.
pub type Inventory = BTreeSet<String>;

/// Netfilter tables that kube-proxy and the kubelet make at any time.
const OTHERS_TABLES: [&str; 4] = ["kube-proxy", "mangle", "filter", "nat"];

/// Interfaces, routes, rules, programs, pins, tables and CNI files.
pub fn inventory(node: &Node) -> Result<Inventory> {
    let mut found = Inventory::new();
    let interfaces = node.party.netns.interfaces()?;
    found.extend(programs(node, &interfaces)?);
    found.extend(interfaces.into_iter().map(|name| format!("interface {name}")));
    for arguments in [
        &["-o", "-4", "route", "show", "table", "all"][..],
        &["-o", "-6", "route", "show", "table", "all"],
        &["-4", "rule", "show"],
        &["-6", "rule", "show"],
        &["-o", "neigh", "show", "nud", "permanent"],
    ] {
        let lines = node.run("ip", arguments)?;
        // The kernel adds and removes link-local entries by itself. Anycast entries come with
        // forwarding, which stays on.
        let passing = ["169.254.", "fe80::", "anycast "];
        let lasting = lines.lines().filter(|line| passing.iter().all(|word| !line.contains(word)));
        found.extend(lasting.map(|line| format!("ip {}: {}", arguments.join(" "), line.trim())));
    }
    let disciplines = node.run("tc", &["qdisc", "show"])?;
    found.extend(disciplines.lines().filter(|line| line.contains("clsact")).map(|line| format!("tc {}", line.trim())));
    let tables = node.run("nft", &["list", "tables"])?;
    let is_others = |line: &&str| OTHERS_TABLES.iter().any(|name| line.split_whitespace().last() == Some(*name));
    found.extend(tables.lines().filter(|line| !is_others(line)).map(|line| format!("nft {line}")));
    let pins = node.run("find", &["/sys/fs/bpf", "-mindepth", "1"])?;
    found.extend(pins.lines().map(|line| format!("pin {line}")));
    for folder in ["/etc/cni/net.d", "/opt/cni/bin"] {
        let path = node.machine.file(folder);
        for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?.flatten() {
            found.insert(format!("file {folder}/{}", entry.file_name().to_string_lossy()));
        }
    }
    Ok(found)
}

/// Programs on the interfaces, if the kernel has TCX. Otherwise the queueing disciplines show them.
fn programs(node: &Node, interfaces: &[String]) -> Result<Vec<String>> {
    node.party.netns.within(|| {
        let mut found = Vec::new();
        for interface in interfaces {
            for (way, hook) in [("into", TcAttachType::Ingress), ("out of", TcAttachType::Egress)] {
                let Ok((_, programs)) = SchedClassifier::query_tcx(interface, hook) else { continue };
                let names = programs.iter().map(|program| program.name_as_str().unwrap_or("?").to_owned());
                found.extend(names.map(|name| format!("program {name} {way} {interface}")));
            }
        }
        Ok(found)
    })
}

/// Fails unless a node is in the same state as before.
pub fn assert_same(node: &Node, before: &Inventory) -> Result<()> {
    let after = inventory(node)?;
    let left: Vec<&String> = after.difference(before).collect();
    let lost: Vec<&String> = before.difference(&after).collect();
    ensure!(left.is_empty(), "left on {}: {left:#?}", node.name());
    ensure!(lost.is_empty(), "gone from {}, though not hauberk's: {lost:#?}", node.name());
    Ok(())
}
