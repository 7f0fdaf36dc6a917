//! `hauberk-cni`: the process around the library, which does everything else.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // No variable of the specification has a value that is not UTF-8, so such a variable counts as
    // absent.
    let outcome = hauberk_cni::run(|name| std::env::var(name).ok(), std::io::stdin().lock());
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(outcome.stdout.as_bytes()).and_then(|()| stdout.flush());
    if outcome.success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
