//! The netns suites: what must hold on real packets, one file per point of the list in `docs/ARCHITECTURE.md`.

mod harness;

use std::process::ExitCode;

fn main() -> ExitCode {
    let suites: [&[hauberk_netns::Test]; _] = [harness::TESTS];
    hauberk_netns::runner::main(&suites.concat())
}
