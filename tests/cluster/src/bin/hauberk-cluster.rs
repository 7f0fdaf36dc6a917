//! A cluster for manual use: `hauberk-cluster up` starts one, prints how to reach it, and takes it
//! down when Enter is pressed. `hauberk-cluster up --bare` leaves hauberk out: the nodes then wait
//! for a CNI plugin.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use hauberk_cluster::{Cluster, Context, Setup, session};
use hauberk_netns::programs;

fn main() -> ExitCode {
    if let Some(code) = session::enter(|| report(inside())) {
        return code;
    }
    report(outside())
}

fn report(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hauberk-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn outside() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["up"] | ["up", "--bare"] => {}
        _ => bail!("usage: hauberk-cluster up [--bare]"),
    }
    let directory = directory()?;
    if directory.exists() {
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("clear {}: is one up already?", directory.display()))?;
    }
    let mut process = session::command(&arguments)?.spawn().context("start the sandbox")?;
    let status = process.wait().context("wait for the sandbox")?;
    session::clear(&directory);
    if status.success() { Ok(()) } else { bail!("it did not come up; logs: {}", directory.display()) }
}

fn inside() -> Result<()> {
    let directory = directory()?;
    let bare = std::env::args().any(|argument| argument == "--bare");
    let setup = if bare { Setup { hauberk: None, ..Setup::default() } } else { Setup::default() };
    let cluster = Cluster::start(&Context::new(&directory), &setup)?;
    say_how_to_use(&cluster, &directory)?;
    std::io::stdin().read_line(&mut String::new()).context("wait for Enter")?;
    Ok(())
}

fn say_how_to_use(cluster: &Cluster, directory: &Path) -> Result<()> {
    let kubectl = hauberk_cluster::tools::built("kubectl")?;
    let server = cluster.control_plane.etcd.host_id()?;
    println!("the cluster is up. For kubectl, and for a shell on a node, in other terminals:");
    println!(
        "    alias kubectl='nsenter -t {server} -n {} --kubeconfig {}'",
        kubectl.display(),
        cluster.kubectl().kubeconfig().display()
    );
    for node in &cluster.nodes {
        println!("    nsenter -t {} -m -n -p bash    # {}", node.containerd.host_id()?, node.name());
    }
    println!("logs: {}. Enter takes it down.", directory.display());
    Ok(())
}

fn directory() -> Result<PathBuf> {
    Ok(programs::target_directory()?.join("cluster/up"))
}
