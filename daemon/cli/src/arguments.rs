//! The command line, with help texts that explain it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hauberk_api::Encryption;
use ipnet::IpNet;

const EXIT_CODES: &str = "\
Exit codes:
  0  answered; for status: everything that must be encrypted is encrypted
  1  no answer: the agent is not reachable, refused, or the arguments are wrong
  2  something that must be encrypted is not, or the datapath is not proven";

const AFTER_HELP: &str = "\
Examples:
  hauberk status                                  the state of this node, problems first
  hauberk explain payments/api payments/db        whether this traffic is encrypted, and why
  hauberk flows --follow --encryption plain       traffic between nodes in the clear, as it happens
  hauberk drops                                   what was dropped, and what to do about it
  hauberk services payments/api                   where a service is reached, and who answers
  hauberk status -o json | jq .problems           for machines

Every command speaks to the agent (hauberkd) of the node it runs on, through its unix socket.

Exit codes:
  0  answered; for status: everything that must be encrypted is encrypted
  1  no answer: the agent is not reachable, refused, or the arguments are wrong
  2  something that must be encrypted is not, or the datapath is not proven";

/// Shows what a node's agent encrypts between nodes, and why.
#[derive(Debug, Parser)]
#[command(name = "hauberk", version, after_help = AFTER_HELP, max_term_width = 110, propagate_version = true)]
pub(crate) struct Arguments {
    /// The agent's socket
    #[arg(long, global = true, value_name = "PATH", default_value = hauberk_api::client::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,

    /// When to colour the output
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// When to colour.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Also into files and pipes
    Always,
    /// Plain text
    Never,
}

impl Color {
    /// Applies the choice to everything that is printed from now on.
    pub(crate) fn write_global(self) {
        match self {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the state of this node: problems, tunnel, peers, namespaces
    ///
    /// Problems come first, the worst at the top. Then come this node's tunnel in the form of `wg
    /// show`, the other nodes it has tunnels to, and the namespaces that are opted in. `converged:
    /// 2/3 nodes` means: the cluster has three Node objects, and one of these nodes does not
    /// enforce the label yet or has no agent.
    #[command(after_help = EXIT_CODES)]
    Status {
        /// Show everything: offloads, older keys, each allowed range, each node that is waited for
        #[arg(long, short)]
        verbose: bool,
        #[command(flatten)]
        output: Output,
    },

    /// Say whether traffic between two parties is encrypted, and by which rule
    ///
    /// Each party is a pod (NAMESPACE/NAME), a node's name or an address. The answer names the
    /// rule, the peer, its key and epoch, the reasons for which such packets would be dropped, and
    /// the time of the last traffic that proved it.
    #[command(after_help = "\
Examples:
  hauberk explain payments/api 10.244.2.7
  hauberk explain node-1 payments/db -o json

Exit codes:
  0  answered
  1  no answer: the agent is not reachable, or knows no such party
  2  the traffic would be in the clear although one end is opted in")]
    Explain {
        /// The sender
        source: String,
        /// The receiver
        destination: String,
        #[command(flatten)]
        output: Output,
    },

    /// Show the flows seen on this node: encrypted or not, and why
    ///
    /// Without --follow: the flows in the table now. With it: also each start, end and refusal from
    /// now on. A flow must match every kind of filter that is given. If one kind is given several
    /// times, one match is enough.
    #[command(after_help = "\
Examples:
  hauberk flows --namespace payments --encryption plain --encryption refused
  hauberk flows --follow --pod payments/api --port 5432
  hauberk flows -o json | jq 'select(.lost_events > 0)'

With -o json: one object a line.")]
    Flows {
        /// Keep running and show new events
        #[arg(long, short)]
        follow: bool,
        /// Show addresses beside names
        #[arg(long, short)]
        addresses: bool,
        #[command(flatten)]
        filter: FilterArguments,
        #[command(flatten)]
        output: Output,
    },

    /// Show what was dropped, by reason, and what to do about it
    Drops {
        #[command(flatten)]
        output: Output,
    },

    /// Show where services are reached, and which backends connections are led to
    ///
    /// With `services.sockets: true`, hauberk chooses a service's backend when a process of this
    /// node makes a connection: kube-proxy's rules do not see it, and the packets carry the pod's
    /// address from the start. Without a name: one line for each service. BACKENDS `2/3` means:
    /// three may answer, and new connections from this node are led to two of them. With a name:
    /// every address and port, every backend with its node and condition, and how packets from this
    /// node travel to it. With `services.outside: true`, also how clients outside the cluster are
    /// led: to which backends, which clients are admitted, and how many connections they have.
    #[command(after_help = "\
Examples:
  hauberk services                       all of them
  hauberk services api                   the service of this name, in every namespace
  hauberk services payments/api          this one
  hauberk services -o json | jq '.[] | select(any(.frontends[]; .usable == 0 and .left_out == null))'

The last one lists the services to which connections are refused, because nobody can answer. An
address that is left out, as one that is left to kube-proxy, is said to be so, with the reason.

Exit codes:
  0  answered
  1  no answer: the agent is not reachable, does not read services (services.sockets is off), or
     knows no such service")]
    Services {
        /// Only this service
        #[arg(value_name = "NAME|NAMESPACE/NAME")]
        service: Option<String>,
        #[command(flatten)]
        output: Output,
    },

    /// Show the datapath's maps and programs in words
    Bpf {
        /// Only this map
        #[arg(long, value_name = "NAME")]
        map: Option<String>,
        /// Every row of each map
        #[arg(long, short)]
        verbose: bool,
        #[command(flatten)]
        output: Output,
    },

    /// Show what happened to objects: refused keys, rejected manifests, contradictions
    Events {
        #[command(flatten)]
        output: Output,
    },

    /// Print the version of this command and of the agent
    Version {
        #[command(flatten)]
        output: Output,
    },

    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  hauberk completions bash > /etc/bash_completion.d/hauberk
  hauberk completions zsh > \"${fpath[1]}/_hauberk\"")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },

    /// Print the manual page, or write all of them into a folder
    Man {
        /// The folder to write them to
        directory: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Output {
    /// Output format
    #[arg(long = "output", short = 'o', value_name = "FORM", default_value = "text")]
    pub(crate) form: Form,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people
    Text,
    /// For machines: the agent's answer as it is, with absolute times
    Json,
}

impl Output {
    /// Whether the answer is for machines.
    pub(crate) fn is_json(self) -> bool {
        self.form == Form::Json
    }
}

/// Which flows to show.
#[derive(Debug, Default, Args)]
pub(crate) struct FilterArguments {
    /// Either end is a pod of this namespace
    #[arg(long, short, value_name = "NAME")]
    pub(crate) namespace: Vec<String>,
    /// Either end is this pod
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) pod: Vec<String>,
    /// Seen on this node, or to or from it
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Vec<String>,
    /// Either end has this address, or an address in this range
    #[arg(long, value_name = "ADDRESS[/LENGTH]", value_parser = range)]
    pub(crate) address: Vec<IpNet>,
    /// Either end has this port
    #[arg(long, value_name = "NUMBER")]
    pub(crate) port: Vec<u16>,
    /// Protocol: tcp, udp, icmp, icmpv6 or a number
    #[arg(long, value_name = "NAME")]
    pub(crate) protocol: Vec<String>,
    /// How the flow was treated
    #[arg(long, short, value_name = "VALUE")]
    pub(crate) encryption: Vec<EncryptionArgument>,
    /// The flow was dropped for this reason (see `hauberk drops`)
    #[arg(long, value_name = "REASON")]
    pub(crate) drop: Vec<String>,
}

/// How a flow was treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EncryptionArgument {
    /// Through the tunnel
    Encrypted,
    /// In the clear between nodes: neither end asked for more
    Plain,
    /// Within this node
    Local,
    /// To or from outside the cluster
    World,
    /// Dropped
    Refused,
}

impl EncryptionArgument {
    /// What it is in flow records.
    pub(crate) fn meant(self) -> Encryption {
        match self {
            EncryptionArgument::Encrypted => Encryption::Encrypted,
            EncryptionArgument::Plain => Encryption::Plain,
            EncryptionArgument::Local => Encryption::Local,
            EncryptionArgument::World => Encryption::World,
            EncryptionArgument::Refused => Encryption::Refused,
        }
    }
}

/// A range; an address counts as a range with one address.
fn range(text: &str) -> Result<IpNet, String> {
    let address = text.parse().map(|address: std::net::IpAddr| IpNet::from(address));
    address.or_else(|_| text.parse()).map_err(|_| "neither an address nor a range such as 10.244.0.0/16".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn ranges_and_addresses() {
        assert_eq!(range("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(range("fd00::/8").unwrap().to_string(), "fd00::/8");
        assert!(range("payments").is_err());
    }
}
