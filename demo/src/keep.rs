//! Keeps the playground up and tells the user how to look around in it.

use std::thread::park;

use anyhow::Result;
use hauberk_netns::programs;

use crate::playground::Playground;
use crate::{screen, shown};

/// Prints how to look around, and waits for Ctrl-C.
///
/// # Errors
/// A program is no longer at its path.
pub fn wait(playground: &Playground) -> Result<()> {
    let id = std::process::id();
    let hauberk = programs::ours("hauberk")?;
    let hauberk = hauberk.display();
    screen::line("");
    screen::line(screen::styled(screen::BOLD, "The playground is up. From another terminal, as root:"));
    for node in &playground.cluster.nodes {
        let Some(agent) = node.agent.id() else { continue };
        let socket = node.socket();
        let socket = socket.display();
        screen::line("");
        screen::note(screen::styled(
            screen::BOLD,
            format!("on {} (network, /sys/fs/bpf and sockets of that node)", node.name),
        ));
        screen::note(format!("nsenter -t {agent} -m -n {hauberk} --socket {socket} status"));
        screen::note(format!("nsenter -t {agent} -m -n {hauberk} --socket {socket} flows --follow"));
        screen::note(format!("nsenter -t {agent} -m -n wg show hauberk0"));
        screen::note(format!("nsenter -t {agent} -m -n bash"));
        screen::note(format!("curl --unix-socket /proc/{id}/root{socket} http://hauberk/v1/status"));
    }
    screen::line("");
    screen::note(screen::styled(screen::BOLD, "in a pod, and the wire"));
    let enter = |name: &str| format!("nsenter -t {id} -m nsenter --net=/run/netns/{name}");
    let db = playground.talker("payments/db@n2")?;
    screen::note(format!("{} ping {}", enter("payments-api"), db.v4));
    screen::note(format!("{} tcpdump -ni wire0", enter(playground.wire().name())));
    screen::line("");
    screen::note(screen::styled(screen::BOLD, "the cluster's objects: edit one and watch"));
    screen::note(shown(playground.cluster.manifests.directory()));
    screen::line("");
    screen::line("Ctrl-C ends it and leaves nothing behind.");
    loop {
        park();
    }
}
