//! One function per command: it queries the agent, prints the answer in the chosen form, and
//! determines the exit code.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::CommandFactory;
use hauberk_api::client::Client;
use jiff::Timestamp;
use serde::Serialize;

use crate::arguments::{Arguments, Command, FilterArguments, Output};
use crate::outcome::Outcome;
use crate::render;

/// A user does not wait longer for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs the command that was asked for.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let client = Client::new(&arguments.socket).with_deadline(DEADLINE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &arguments.command {
            Command::Status { verbose, output } => status(&client, *verbose, *output).await,
            Command::Explain { source, destination, output } => explain(&client, source, destination, *output).await,
            Command::Flows { follow, addresses, filter, output } => {
                flows(&client, *follow, *addresses, filter, *output).await
            }
            Command::Drops { output } => {
                let drops = client.drops().await?;
                answer(*output, &drops, || render::drops::page(&drops))
            }
            Command::Services { service, output } => services(&client, service.as_deref(), *output).await,
            Command::Bpf { map, verbose, output } => bpf(&client, map.as_deref(), *verbose, *output).await,
            Command::Events { output } => {
                let events = client.events().await?;
                answer(*output, &events, || render::events::page(&events, Timestamp::now()))
            }
            Command::Version { output } => version(&client, *output).await,
            Command::Completions { shell } => completions(*shell),
            Command::Man { directory } => manual(directory.as_deref()),
        }
    })
}

async fn status(client: &Client, verbose: bool, output: Output) -> anyhow::Result<Outcome> {
    let status = client.status().await?;
    answer(output, &status, || render::status::page(&status, verbose))?;
    Ok(Outcome::of_status(&status))
}

async fn explain(client: &Client, source: &str, destination: &str, output: Output) -> anyhow::Result<Outcome> {
    let explanation = client.explain(source, destination).await?;
    answer(output, &explanation, || render::explain::page(&explanation, Timestamp::now()))?;
    Ok(Outcome::of_explanation(&explanation))
}

async fn flows(
    client: &Client,
    follow: bool,
    addresses: bool,
    filter: &FilterArguments,
    output: Output,
) -> anyhow::Result<Outcome> {
    let mut lines = client.flows(follow).await?;
    let mut losses = render::flows::Losses::default();
    let (mut seen, mut shown) = (0, 0);
    while let Some(flow) = lines.next().await {
        let flow = flow?;
        seen += 1;
        // In JSON, each record has the number itself. A gap matters with any filter: the missing
        // events might have matched.
        if let Some(notice) = losses.notice(&flow).filter(|_| !output.is_json()) {
            anstream::eprintln!("{notice}");
        }
        if !filter.matches(&flow) {
            continue;
        }
        shown += 1;
        match output.is_json() {
            true => print(&format!("{}\n", serde_json::to_string(&flow)?))?,
            false => print(&render::flows::line(&flow, addresses))?,
        }
    }
    if shown == 0 && !follow && !output.is_json() {
        anstream::eprintln!("{}", render::flows::nothing(seen));
    }
    // An answer with `--follow` only ends if the agent closes the connection.
    match follow {
        true => {
            anyhow::bail!("the agent closed the connection: it was probably restarted; its datapath stays in force")
        }
        false => Ok(Outcome::Fine),
    }
}

async fn services(client: &Client, service: Option<&str>, output: Output) -> anyhow::Result<Outcome> {
    let (namespace, name) = match service.map(|service| (service, service.split_once('/'))) {
        None => (None, None),
        Some((_, Some((namespace, name)))) => (Some(namespace), Some(name)),
        Some((name, None)) => (None, Some(name)),
    };
    let services = client.services(namespace, name).await?;
    answer(output, &services, || match service {
        None => render::services::table(&services),
        Some(_) => render::services::details(&services),
    })
}

async fn bpf(client: &Client, map: Option<&str>, verbose: bool, output: Output) -> anyhow::Result<Outcome> {
    let mut maps = client.maps().await?;
    if let Some(name) = map {
        let known = maps.maps.iter().map(|map| map.name.as_str()).collect::<Vec<_>>().join(", ");
        maps.maps.retain(|map| map.name.eq_ignore_ascii_case(name));
        anyhow::ensure!(!maps.maps.is_empty(), "there is no map {name}; there are {known}");
    }
    answer(output, &maps, || render::maps::page(&maps, map.is_some(), verbose))
}

async fn version(client: &Client, output: Output) -> anyhow::Result<Outcome> {
    let agent = client.status().await.map(|status| (status.version, status.node)).map_err(|error| error.to_string());
    let versions = render::version::Versions::new(env!("CARGO_PKG_VERSION"), agent);
    answer(output, &versions, || render::version::page(&versions))
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "hauberk", &mut text);
    print(&String::from_utf8_lossy(&text))?;
    Ok(Outcome::Fine)
}

fn manual(directory: Option<&Path>) -> anyhow::Result<Outcome> {
    match directory {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(Arguments::command(), directory))
                .with_context(|| format!("cannot write the manual pages into {}", directory.display()))?;
        }
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut text)?;
            print(&String::from_utf8_lossy(&text))?;
        }
    }
    Ok(Outcome::Fine)
}

fn answer(output: Output, value: &impl Serialize, page: impl FnOnce() -> String) -> anyhow::Result<Outcome> {
    match output.is_json() {
        true => print(&format!("{}\n", serde_json::to_string_pretty(value)?))?,
        false => print(&page())?,
    }
    Ok(Outcome::Fine)
}

/// Prints with colours only where they are wanted. A closed output is an error, not a panic.
fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = anstream::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
