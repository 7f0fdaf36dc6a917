//! `hauberk`: queries a node's agent and prints the answer. The path: arguments -> client -> filter
//! -> render -> exit code.
#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod filter;
mod outcome;
mod render;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;
use crate::outcome::Outcome;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version also arrive here. Clap's exit code for errors, 2, has another
            // meaning in this program.
            let _ = error.print();
            return if error.use_stderr() { Outcome::Error.into() } else { Outcome::Fine.into() };
        }
    };
    arguments.color.write_global();
    match commands::run(&arguments) {
        Ok(outcome) => outcome.into(),
        Err(error) if is_broken_pipe(&error) => Outcome::Fine.into(),
        Err(error) => {
            anstream::eprintln!("{}: {error:#}", render::page::painted(render::page::BAD, "error"));
            Outcome::Error.into()
        }
    }
}

/// The program that reads our output has closed it, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
