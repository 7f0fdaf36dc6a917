//! Kernels without TCX get the programs as filters on a clsact queueing discipline: the same promises, taken over by the
//! next agent and removed by uninstall like links.

use anyhow::{Result, ensure};
use hauberk_netns::capture::Moment;
use hauberk_netns::traffic::{Exchange, Protocol, exchange};
use hauberk_netns::{Cluster, Context, Family, Setup, Test, programs};
use serde_json::json;

pub const TESTS: &[Test] = &[Test::new("fallback::clsact_keeps_every_promise", clsact)];

fn clsact(context: &Context) -> Result<()> {
    let setup = Setup { config: json!({ "attach": "clsact" }), ..Setup::default() };
    let cluster = Cluster::build(context, setup)?;
    cluster.namespace("payments", Some("enabled"))?;
    cluster.namespace("public", None)?;
    let (a, b) = (cluster.pod("payments", "a", 0)?, cluster.pod("payments", "b", 1)?);
    let plain = cluster.pod("public", "p", 1)?;
    cluster.wait_known(&[&a, &b, &plain])?;
    let node = &cluster.nodes[0];
    ensure!(node.agent.status()?.attach == "clsact", "the status names another way of attaching");
    let filters = node.run("tc", &["filter", "show", "dev", "eth0", "egress"])?;
    ensure!(filters.contains("to_wire"), "no filter of ours on the uplink:\n{filters}");

    let talk = || -> Result<()> {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Fragments] {
                for (client, server) in [(&a, &b), (&b, &a), (&a, &plain), (&plain, &a)] {
                    exchange(&Exchange::new(protocol, family, client, server))?;
                }
            }
        }
        Ok(())
    };
    talk()?;
    // The next agent replaces the filters, it does not add to them.
    node.agent.kill()?;
    node.start_agent()?;
    node.agent.wait_ready()?;
    talk()?;
    let filters = node.run("tc", &["filter", "show", "dev", "eth0", "egress"])?;
    ensure!(filters.matches("handle ").count() == 1, "one filter was wanted:\n{filters}");
    cluster.assert_no_cleartext(&[&a, &b], Moment::START)?;

    node.agent.terminate()?;
    let config = node.config().to_string_lossy().into_owned();
    node.run(programs::ours("hauberkd")?, &["--config", &config, "uninstall"])?;
    let left = node.run("tc", &["filter", "show", "dev", "eth0", "egress"])?;
    ensure!(!left.contains("to_wire"), "uninstall left a filter:\n{left}");
    let disciplines = node.run("tc", &["qdisc", "show", "dev", "eth0"])?;
    ensure!(!disciplines.contains("clsact"), "uninstall left the queueing discipline it made:\n{disciplines}");
    Ok(())
}
