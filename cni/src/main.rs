//! `hauberk-cni`: see the library for everything but the process around it.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A variable that is not UTF-8 is none that the specification knows, hence as good as absent.
    let outcome = hauberk_cni::run(|name| std::env::var(name).ok(), std::io::stdin().lock());
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(outcome.stdout.as_bytes()).and_then(|()| stdout.flush());
    if outcome.success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
