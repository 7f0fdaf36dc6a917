//! The program in the test cluster's pods.
//!
//! `hauberk-pod pause` waits for its end and collects orphans, as the first process of a pod must.
//! `hauberk-pod serve PORT` does so too, and answers what `ask` and `load` ask.
//! `hauberk-pod shout TARGET TEXT` sends datagrams with TEXT to TARGET (address:port) from its
//! first moment on, every millisecond for a second and then ten times a second, until it is
//! stopped. If TEXT is on the wire in the clear, the pod sent it before it was protected.
//!
//! `hauberk-pod ask tcp|udp TARGET TEXT` sends one request and prints the answer.
//! `hauberk-pod load TARGET` sends requests until standard input ends, and says how they ended.

mod http;
mod load;
mod shout;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};

const USAGE: &str = "usage: hauberk-pod pause | serve PORT | shout ADDRESS:PORT TEXT | \
    ask tcp|udp ADDRESS:PORT TEXT | load ADDRESS:PORT";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["pause"] => first_process(|| Ok(())),
        ["serve", port] => first_process(|| http::serve(port.parse().map_err(io::Error::other)?)),
        ["shout", target, text] => first_process(|| {
            let (target, text) = (address(target)?, (*text).to_owned());
            thread::spawn(move || shout::shout(target, &text));
            Ok(())
        }),
        ["ask", "tcp", target, text] => address(target).and_then(|target| http::get(target, text)).map(say),
        ["ask", "udp", target, text] => address(target).and_then(|target| http::datagram(target, text)).map(say),
        ["load", target] => address(target).and_then(load::load),
        _ => Err(io::Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hauberk-pod {}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn address(text: &str) -> io::Result<SocketAddr> {
    text.parse().map_err(|error| io::Error::other(format!("{text} is no address:port: {error}")))
}

fn say(answer: String) {
    println!("{answer}");
}

/// Does a pod's work on other threads, and what its first process must do on this one.
fn first_process(begin: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // Threads that are started later block them too.
    signals.thread_block()?;
    begin()?;
    while signals.wait()? == Signal::SIGCHLD {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|child| child.pid().is_some()) {}
    }
    Ok(())
}
