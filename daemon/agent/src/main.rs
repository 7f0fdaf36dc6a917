//! `hauberkd`: reads the command line and the configuration, then [`hauberk_agent::run`].
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use hauberk_agent::config::{self, Config, LogFormat};
use hauberk_agent::{apply, cluster_config, install, lock, run, selfcheck};
use hauberk_datapath::chain;

/// How long to wait at the end for work that is still under way.
const END: Duration = Duration::from_secs(2);

/// hauberk's per-node agent: encrypts opted-in pods' traffic between nodes.
///
/// Without a subcommand it runs until it gets SIGTERM or SIGINT. The datapath stays in place when
/// the agent ends: traffic that must be encrypted is then encrypted or dropped as before.
/// `hauberkd uninstall` removes everything.
#[derive(Parser)]
#[command(version, name = "hauberkd")]
struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = config::DEFAULT_PATH, global = true)]
    config: PathBuf,
    /// This node's name, as its Node object has it; overrides the configuration.
    #[arg(long, global = true)]
    node: Option<String>,
    /// The least severe level that is logged: error, warn, info, debug or trace; overrides the
    /// configuration.
    #[arg(long, global = true)]
    log_level: Option<String>,
    /// Check the configuration, print it with its defaults, and exit.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// Run the agent (the default).
    Run,
    /// Remove everything that the agent ever made on this node: programs, maps, devices, routes,
    /// rules. Afterwards this node protects no traffic.
    Uninstall,
    /// Check whether this node has what the agent needs, and say what to do about what it lacks.
    Check,
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hauberkd: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let command = arguments.command.unwrap_or(Command::Run);
    if command == Command::Version {
        println!("hauberkd {}", env!("CARGO_PKG_VERSION"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = Config::load(&arguments.config)?;
    config.resolve_node(arguments.node.as_deref())?;
    if arguments.check_config {
        print!("{}", config.to_yaml()?);
        return Ok(ExitCode::SUCCESS);
    }
    if command == Command::Check {
        return Ok(check(&config));
    }
    log_to_standard_error(&cluster_config::with_copy(&config), arguments.log_level.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match command {
        Command::Uninstall => {
            // A running agent would put back what is removed here, and until then the node would be
            // unprotected.
            if let Some(answers) = runtime.block_on(hauberk_agent::api::answers(&config.paths.socket)) {
                bail!(
                    "an agent runs on this node and answers at {answers}: stop it first (its service, or the DaemonSet hauberk-system/hauberk), then uninstall"
                );
            }
            if lock::is_taken(&config.paths.state) {
                bail!(
                    "an agent runs on this node with the state directory {}, though nothing answers at {}: stop it first, then uninstall",
                    config.paths.state.display(),
                    config.paths.socket.display()
                );
            }
            // The CNI list goes first, so that no pod starts while the rest is removed.
            install::uninstall(&config.cni).context("cannot uninstall the CNI plugin")?;
            runtime.block_on(apply::uninstall(&config)).context("cannot uninstall")?;
        }
        _ => {
            let ended = runtime.block_on(run::run(config));
            // A thread that waits for a disk may never return.
            runtime.shutdown_timeout(END);
            ended?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check(config: &Config) -> ExitCode {
    let items = selfcheck::run_with_programs(config);
    for item in &items {
        let (word, sentence) = match &item.outcome {
            selfcheck::Outcome::Fine(sentence) => ("ok      ", sentence),
            selfcheck::Outcome::Degraded(sentence) => ("degraded", sentence),
            selfcheck::Outcome::Missing(sentence) => ("missing ", sentence),
        };
        println!("{word}  {}: {sentence}", item.name);
    }
    if selfcheck::require(&items).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What libraries may log. boringtun logs the end of every session as an error; the tunnel reports
/// peers' states itself. The others log a dozen `debug` lines for every request to the API server.
const LIBRARIES: &str = "boringtun=off,aya=info,aya_obj=info,hyper_util=info,kube_client=info,rustls=info,tower=info";

fn log_to_standard_error(config: &Config, level: Option<&str>) -> anyhow::Result<()> {
    let level = level.unwrap_or(config.log.level.as_str());
    let directives = format!("{LIBRARIES},{level}");
    let filter = tracing_subscriber::EnvFilter::try_new(directives)
        .with_context(|| format!("log level {level:?} is not valid"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let missing = "/nonexistent/hauberkd.yaml";
        let arguments = Arguments::parse_from(["hauberkd", "--config", missing, "check"]);
        let told = chain(&*execute(&arguments).unwrap_err());
        assert!(told.contains(missing), "{told}");
        assert_eq!(told.matches("No such file").count(), 1, "{told}");
    }
}
