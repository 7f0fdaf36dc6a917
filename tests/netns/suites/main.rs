//! The netns suites: what must hold on real packets. There is one file per subject, in order of
//! doubt: first whether the harness can see a leak at all, then whether every pair talks as the
//! policy says, then everything that can go wrong.

mod addresses;
mod answers;
mod births;
mod chained;
mod cli;
mod cni;
mod denial;
mod devices;
mod fallback;
mod floods;
mod harness;
mod ingress;
mod injection;
mod interop;
mod intruders;
mod kill;
mod labels;
mod leaks;
mod marks;
mod matrix;
mod mtu;
mod neighbours;
mod outages;
mod outside;
mod plain;
mod pod_ranges;
mod restart;
mod scale;
mod services;
mod serving;
mod strangers;
mod threads;
mod whereabouts;

use std::process::ExitCode;

use hauberk_netns::{Test, runner};

fn main() -> ExitCode {
    let suites: [&[Test]; _] = [
        harness::TESTS,
        kill::TESTS,
        matrix::TESTS,
        addresses::TESTS,
        births::TESTS,
        denial::TESTS,
        injection::TESTS,
        answers::TESTS,
        marks::TESTS,
        strangers::TESTS,
        labels::TESTS,
        leaks::TESTS,
        mtu::TESTS,
        floods::TESTS,
        neighbours::TESTS,
        plain::TESTS,
        ingress::TESTS,
        restart::TESTS,
        fallback::TESTS,
        interop::TESTS,
        threads::TESTS,
        scale::TESTS,
        services::TESTS,
        outside::TESTS,
        cni::TESTS,
        chained::TESTS,
        devices::TESTS,
        intruders::TESTS,
        outages::TESTS,
        whereabouts::TESTS,
        pod_ranges::TESTS,
        cli::TESTS,
    ];
    runner::main(&suites.concat())
}
