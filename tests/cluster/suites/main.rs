//! The cluster suites: what must hold on a real Kubernetes cluster. One file per subject.

mod admission;
mod api_server;
mod chained;
mod conversation;
mod custom_resource;
mod ear;
mod harness;
mod inventory;
mod labels;
mod lifecycle;
mod nodes;
mod outage;
mod reboot;
mod scale;
mod services;
mod uninstall;
mod without_kube_proxy;

use std::process::ExitCode;

use hauberk_cluster::{Suite, chart, runner};

fn main() -> ExitCode {
    runner::main(&[
        // Whether the harness can see a leak at all.
        Suite::alone("harness", harness::TESTS),
        // Suites that share the whole cluster.
        Suite::shared(nodes::TESTS),
        Suite::shared(services::TESTS),
        Suite::shared(labels::TESTS),
        Suite::shared(lifecycle::TESTS),
        // Nodes that join, reboot and are cleaned up; uninstall comes last.
        Suite::alone("reboot", reboot::TESTS),
        Suite::alone("reboot", uninstall::TESTS),
        Suite::alone("chained", chained::TESTS),
        Suite::alone("without_kube_proxy", without_kube_proxy::TESTS),
        // Suites that need only the API server.
        Suite::alone("api_server", api_server::TESTS),
        Suite::alone("admission", admission::TESTS),
        Suite::alone("custom_resource", custom_resource::TESTS),
        Suite::alone("outage", outage::TESTS),
        Suite::alone("scale", scale::TESTS),
    ])
}
