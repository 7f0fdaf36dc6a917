//! Other programs' chains on the paths that pods' packets take through the host's stack: which of
//! them drop everything there, and the rules that cure it.

mod judge;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::{Command, Stdio};

use ipnet::IpNet;

use super::super::HostError;
use super::{read, text};
use judge::{Packet, Table};

pub use judge::{Chain, Device, Outcome};

/// A path through this node's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From a pod of this node to another node.
    Out,
    /// From a pod of this node to the world.
    World,
    /// Out of the tunnel to a pod of this node.
    Opened,
    /// In the clear from another node to a pod of this node.
    Plain,
    /// Out of the tunnel to a process of this node.
    ToNode,
    /// The tunnel's own packets.
    Tunnel,
}

/// The devices, ports and ranges of these paths.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ways {
    /// The paths to look at.
    pub ways: Vec<Way>,
    /// The tunnel device's name.
    pub tunnel: String,
    /// The tunnel's UDP port.
    pub port: u16,
    /// The devices by which pods' packets arrive.
    pub pods: BTreeSet<Device>,
    /// The devices that lead to other nodes.
    pub uplinks: BTreeSet<Device>,
    /// The ranges of this node's pods.
    pub own: Vec<IpNet>,
    /// The ranges of all pods.
    pub all: Vec<IpNet>,
}

/// What a chain does on the paths where it may drop something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The chain.
    pub chain: Chain,
    /// By path.
    pub outcomes: BTreeMap<Way, Outcome>,
    /// The program that owns the table, as far as the suggested rules depend on it.
    tool: Tool,
}

/// The tool that adds a rule to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Nft,
    Iptables,
    /// iptables, with Docker's chain for the administrator's own rules.
    Docker,
    Ufw,
    Firewalld,
}

/// Judges all other programs' chains on `ways`.
///
/// # Errors
/// [`HostError::NoNft`].
pub async fn look(ways: Ways) -> Result<Vec<Finding>, HostError> {
    let looked = tokio::task::spawn_blocking(move || look_now(&ways)).await;
    looked.map_err(io::Error::other).flatten().map_err(HostError::NoNft)
}

/// [`look`] for a caller without a runtime.
///
/// # Errors
/// `nft` cannot be run.
pub fn look_now(ways: &Ways) -> io::Result<Vec<Finding>> {
    if ways.ways.is_empty() {
        return Ok(Vec::new());
    }
    let chains = listed(&["-j", "list", "chains"])?;
    let mut findings = Vec::new();
    for (family, table) in tables(&chains) {
        let json = listed(&["-j", "-t", "list", "table", &family, &table])?;
        // Only iptables' own matches need nft's syntax.
        let is_iptables = json.contains("\"xt\"");
        let words = if is_iptables { listed(&["-a", "-t", "list", "table", &family, &table])? } else { String::new() };
        findings.extend(judge(&json, &words, ways));
    }
    Ok(findings)
}

fn listed(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("nft").args(arguments).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Other programs' tables that see forwarded or delivered packets, from `nft -j list chains`.
fn tables(chains: &str) -> BTreeSet<(String, String)> {
    let chains = read::objects(chains, "chain");
    let word = |chain: &serde_json::Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    let sees = |chain: &&serde_json::Value| {
        chain["type"] == "filter"
            && matches!(chain["hook"].as_str(), Some("forward" | "input"))
            && matches!(chain["family"].as_str(), Some("ip" | "ip6" | "inet"))
            && chain["table"] != text::TABLE
    };
    chains.iter().filter(sees).map(|chain| (word(chain, "family"), word(chain, "table"))).collect()
}

/// Judges one table.
fn judge(json: &str, words: &str, ways: &Ways) -> Vec<Finding> {
    let table = Table::read(json, words);
    let mut findings = Vec::new();
    for (chain, drops) in &table.base {
        let mut outcomes = BTreeMap::new();
        for way in ways.ways.iter().filter(|way| way.hook() == chain.hook) {
            let all: BTreeSet<Outcome> = ways
                .packets(*way, &chain.family)
                .iter()
                .map(|packet| table.outcome(&chain.name, *drops, packet))
                .collect();
            let outcome = match (all.first(), all.last()) {
                (Some(first), Some(last)) if first == last => *first,
                // The outcomes differ by device or family: one drop is enough to say "may".
                (Some(_), Some(_)) => Outcome::MayDrop,
                _ => Outcome::Passes,
            };
            if outcome != Outcome::Passes {
                outcomes.insert(*way, outcome);
            }
        }
        if !outcomes.is_empty() {
            findings.push(Finding { chain: chain.clone(), outcomes, tool: tool(chain, &table) });
        }
    }
    findings
}

fn tool(chain: &Chain, table: &Table) -> Tool {
    let is_iptables = matches!(chain.family.as_str(), "ip" | "ip6")
        && chain.table == "filter"
        && matches!(chain.name.as_str(), "FORWARD" | "INPUT")
        && table.is_counted();
    match () {
        () if chain.table == "firewalld" => Tool::Firewalld,
        () if !is_iptables => Tool::Nft,
        () if table.has("ufw-*") || table.has("ufw6-*") => Tool::Ufw,
        () if chain.hook == "forward" && table.has("DOCKER-USER") => Tool::Docker,
        () => Tool::Iptables,
    }
}

impl Way {
    fn hook(self) -> &'static str {
        match self {
            Way::Out | Way::World | Way::Opened | Way::Plain => "forward",
            Way::ToNode | Way::Tunnel => "input",
        }
    }

    /// What is dropped, in words.
    pub fn words(self, tunnel: &str) -> String {
        match self {
            Way::Out => "what this node's pods send to other nodes".into(),
            Way::World => "what this node's pods send to the world".into(),
            Way::Opened => format!("what comes decrypted out of {tunnel} for this node's pods"),
            Way::Plain => "what comes in the clear from other nodes for this node's plain pods".into(),
            Way::ToNode => format!("what comes decrypted out of {tunnel} for processes of this node"),
            Way::Tunnel => "the tunnel's own packets".into(),
        }
    }
}

impl Ways {
    /// A packet of each kind that goes this way.
    fn packets(&self, way: Way, family: &str) -> Vec<Packet> {
        let tunnel = BTreeSet::from([Device::Named(self.tunnel.clone())]);
        let (inputs, outputs) = match way {
            Way::Out | Way::World => (&self.pods, Some(&self.uplinks)),
            Way::Opened => (&tunnel, Some(&self.pods)),
            Way::Plain => (&self.uplinks, Some(&self.pods)),
            Way::ToNode => (&tunnel, None),
            Way::Tunnel => (&self.uplinks, None),
        };
        let outputs: Vec<Option<&Device>> = outputs.map_or(vec![None], |outputs| outputs.iter().map(Some).collect());
        let families = [false, true].into_iter().filter(|ipv6| match family {
            "ip" => !ipv6,
            "ip6" => *ipv6,
            _ => true,
        });
        // A family that no pod has cannot be dropped.
        let families =
            families.filter(|ipv6| self.all.is_empty() || self.all.iter().any(|range| is_ipv6(range) == *ipv6));
        let mut packets = Vec::new();
        for ipv6 in families {
            let (own, all) = (only(&self.own, ipv6), only(&self.all, ipv6));
            let (source, destination) = match way {
                Way::Out => (own, all),
                Way::World => (own, None),
                Way::Opened | Way::Plain => (all, own),
                Way::ToNode => (all, None),
                Way::Tunnel => (None, None),
            };
            let (protocol, port) = if way == Way::Tunnel { ("udp", Some(self.port)) } else { ("tcp", None) };
            for input in inputs {
                for output in &outputs {
                    let (input, output) = (input.clone(), output.cloned());
                    packets.push(Packet { ipv6, input, output, source, destination, protocol, port });
                }
            }
        }
        packets
    }

    /// The rules that let a path through a chain.
    fn cure(&self, way: Way, finding: &Finding) -> Vec<String> {
        let (flag, devices) = match way {
            Way::Out | Way::World => ("i", self.pods.iter().cloned().collect()),
            Way::Plain => ("o", self.pods.iter().cloned().collect()),
            Way::Opened | Way::ToNode => ("i", vec![Device::Named(self.tunnel.clone())]),
            Way::Tunnel => return vec![self.cure_of_tunnel(finding)],
        };
        devices.iter().map(|device| finding.rule(flag, device)).collect()
    }

    fn cure_of_tunnel(&self, finding: &Finding) -> String {
        let (port, Chain { family, table, name, .. }) = (self.port, &finding.chain);
        match finding.tool {
            Tool::Nft => format!("nft insert rule {family} {table} {name} udp dport {port} accept"),
            Tool::Iptables | Tool::Docker => format!("{} -I {name} -p udp --dport {port} -j ACCEPT", finding.command()),
            Tool::Ufw => format!("ufw allow {port}/udp"),
            Tool::Firewalld => format!("firewall-cmd --add-port={port}/udp"),
        }
    }

    /// All commands that let these paths through a chain, to be run one after the other.
    pub fn cures(&self, finding: &Finding, ways: impl IntoIterator<Item = Way>) -> String {
        let mut cures: Vec<String> = Vec::new();
        for cure in ways.into_iter().flat_map(|way| self.cure(way, finding)) {
            if !cures.contains(&cure) {
                cures.push(cure);
            }
        }
        cures.join("; ")
    }
}

fn is_ipv6(range: &IpNet) -> bool {
    range.addr().is_ipv6()
}

/// The only range of a family; none if there are several, because no single one holds all
/// addresses.
fn only(ranges: &[IpNet], ipv6: bool) -> Option<IpNet> {
    let mut found = ranges.iter().filter(|range| is_ipv6(range) == ipv6);
    let first = found.next().copied();
    if found.next().is_some() { None } else { first }
}

impl Chain {
    /// For messages: family, table, name and hook.
    pub fn words(&self) -> String {
        format!("{} {} {} ({})", self.family, self.table, self.name, self.hook)
    }
}

impl Finding {
    /// The paths on which everything is dropped, or, with `may`, those on which some packets may
    /// be.
    pub fn ways(&self, may: bool) -> Vec<Way> {
        let wanted = if may { Outcome::MayDrop } else { Outcome::Drops };
        self.outcomes.iter().filter(|(_, outcome)| **outcome == wanted).map(|(way, _)| *way).collect()
    }

    fn command(&self) -> &'static str {
        if self.chain.family == "ip6" { "ip6tables" } else { "iptables" }
    }

    fn rule(&self, flag: &str, device: &Device) -> String {
        let (name, wildcard) = match device {
            Device::Named(name) => (name.as_str(), ""),
            Device::Prefix(prefix) => (prefix.as_str(), "+"),
            Device::Unknown => ("THE-PODS-BRIDGE", ""),
        };
        let Chain { family, table, name: chain, .. } = &self.chain;
        let command = self.command();
        match self.tool {
            Tool::Nft => {
                // Quoted for the shell, which would expand the asterisk.
                let name = if wildcard.is_empty() { name.to_owned() } else { format!("'\"{name}*\"'") };
                format!("nft insert rule {family} {table} {chain} {flag}ifname {name} accept")
            }
            Tool::Iptables => format!("{command} -I {chain} -{flag} {name}{wildcard} -j ACCEPT"),
            Tool::Docker => format!("{command} -I DOCKER-USER -{flag} {name}{wildcard} -j ACCEPT"),
            Tool::Ufw => {
                let (route, direction) =
                    (if self.chain.hook == "forward" { "route " } else { "" }, if flag == "i" { "in" } else { "out" });
                format!("ufw {route}allow {direction} on {name}{wildcard}")
            }
            Tool::Firewalld if flag == "i" => format!("firewall-cmd --zone=trusted --add-interface={name}{wildcard}"),
            // A zone decides what may arrive by its devices. What may leave by them takes a policy.
            Tool::Firewalld => {
                let policy = "firewall-cmd --permanent --policy hauberk";
                format!(
                    "firewall-cmd --permanent --zone=trusted --add-interface={name}{wildcard}; firewall-cmd --permanent \
                     --new-policy hauberk; {policy} --add-ingress-zone ANY; {policy} --add-egress-zone trusted; \
                     {policy} --set-target ACCEPT; firewall-cmd --reload"
                )
            }
        }
    }
}
