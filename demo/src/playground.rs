//! Three nodes, a folder of manifests, and the pods of two namespaces on them.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use hauberk_netns::{Cluster, Context, HostRouting, Netns, Party, Pod, Setup, programs};

use crate::screen;

/// The pods: namespace, name, node (counted from 0).
const PODS: [(Group, &str, usize); 8] = [
    (Group::Payments, "api", 0),
    (Group::Payments, "cache", 0),
    (Group::Payments, "db", 1),
    (Group::Payments, "ledger", 2),
    (Group::Public, "web", 0),
    (Group::Public, "shop", 1),
    (Group::Public, "blog", 1),
    (Group::Public, "docs", 2),
];

/// The group that a party belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Pods of the namespace `payments`: opted in.
    Payments,
    /// Pods of the namespace `public`: not opted in at first.
    Public,
    /// The nodes themselves.
    Nodes,
    /// A host outside the cluster.
    World,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Group::Payments => "payments",
            Group::Public => "public",
            Group::Nodes => "nodes",
            Group::World => "world",
        })
    }
}

/// A party that sends or answers.
#[derive(Clone, Debug)]
pub struct Talker {
    /// Its group.
    pub group: Group,
    /// Its node, counted from 0; none for the world.
    pub node: Option<usize>,
    /// Name, addresses, network namespace.
    pub party: Party,
}

/// The cluster and its parties.
pub struct Playground {
    /// Nodes, wire, capture, manifests.
    pub cluster: Cluster,
    /// Pods, nodes and the world.
    pub talkers: Vec<Talker>,
}

impl Playground {
    /// Builds the playground and prints the progress.
    ///
    /// # Errors
    /// A part could not be built; the message says why and what to do.
    pub fn build(context: &Context) -> Result<Playground> {
        let started = Instant::now();
        let cluster = Cluster::build(
            context,
            Setup { nodes: 3, start: false, host_routing: HostRouting::Bpf, ..Setup::default() },
        )?;
        screen::done(started, "three nodes (network namespaces) on one wire, each cable captured, nothing left out");

        let started = Instant::now();
        check_machine(&cluster)?;
        cluster.namespace("payments", Some("enabled"))?;
        cluster.namespace("public", None)?;
        cluster.start()?;
        screen::done(
            started,
            "hauberkd on each, proven ready by a packet of its own; each has the others' public keys",
        );

        let started = Instant::now();
        let mut pods = Vec::new();
        let mut talkers = Vec::new();
        for (group, name, node) in PODS {
            let pod = cluster.pod(&group.to_string(), name, node)?;
            talkers.push(Talker {
                group,
                node: Some(node),
                party: named(&pod.party, format!("{}@n{}", pod.party.name, node + 1)),
            });
            pods.push(pod);
        }
        cluster.wait_known(&pods.iter().collect::<Vec<&Pod>>())?;
        screen::done(started, format!("{} pods attached by hauberk-cni and known to every node", pods.len()));

        for (number, node) in cluster.nodes.iter().enumerate() {
            talkers.push(Talker { group: Group::Nodes, node: Some(number), party: node.party.clone() });
        }
        talkers.push(Talker { group: Group::World, node: None, party: named(&cluster.outside, "world".into()) });
        Ok(Playground { cluster, talkers })
    }

    /// The party with that name (`payments/api@n1`).
    ///
    /// # Errors
    /// There is none.
    pub fn talker(&self, name: &str) -> Result<&Party> {
        let found = self.talkers.iter().find(|talker| talker.party.name == name);
        Ok(&found.with_context(|| format!("nobody is called {name}"))?.party)
    }

    /// Addresses of all parties in `groups`.
    pub fn addresses(&self, groups: &[Group]) -> HashSet<IpAddr> {
        let members = self.talkers.iter().filter(|talker| groups.contains(&talker.group));
        members.flat_map(|talker| talker.party.addresses()).collect()
    }

    /// Runs the `hauberk` command line on a node (counted from 0): exit code and output.
    ///
    /// # Errors
    /// It is not built.
    pub fn hauberk(&self, node: usize, arguments: &[&str]) -> Result<(i32, String)> {
        let node = &self.cluster.nodes[node];
        let mut command: Command = node.command(programs::ours("hauberk")?);
        command.arg("--socket").arg(node.socket()).args(arguments);
        if screen::is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            command.env("CLICOLOR_FORCE", "1");
        }
        let output = command.output().context("run hauberk")?;
        let printed = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&printed).into_owned()))
    }

    /// The network namespace of the wire.
    pub fn wire(&self) -> &Netns {
        &self.cluster.wire.netns
    }
}

/// The same party under another name.
fn named(party: &Party, name: String) -> Party {
    Party { name, ..party.clone() }
}

/// Asks hauberkd whether this machine has what it needs: its own message is better than a later
/// failure.
fn check_machine(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    let mut command = node.command(programs::ours("hauberkd")?);
    let output = command.arg("--config").arg(node.config()).arg("check").output().context("run hauberkd check")?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("this machine cannot run hauberk:\n{}", String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}
