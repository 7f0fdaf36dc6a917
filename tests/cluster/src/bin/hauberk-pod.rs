//! The program in the test cluster's pods.
//!
//! `hauberk-pod pause` waits for its end and collects orphans, as the first process of a pod must.
//! `hauberk-pod shout TARGET TEXT` sends datagrams with TEXT to TARGET (address:port) from its
//! first moment on, every millisecond for a second and then ten times a second, until it is
//! stopped. If TEXT is on the wire in the clear, the pod sent it before it was protected.

use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};

fn main() -> ExitCode {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    if let Err(error) = signals.thread_block() {
        eprintln!("hauberk-pod: block signals: {error}");
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["pause"] => {}
        ["shout", target, text] => {
            let (target, text) = ((*target).to_owned(), (*text).to_owned());
            thread::spawn(move || shout(&target, &text));
        }
        _ => {
            eprintln!("usage: hauberk-pod pause | hauberk-pod shout ADDRESS:PORT TEXT");
            return ExitCode::FAILURE;
        }
    }
    wait_for_the_end(&signals)
}

fn wait_for_the_end(signals: &SigSet) -> ExitCode {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|child| child.pid().is_some()) {}
            }
            Ok(_) => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("hauberk-pod: wait for signals: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

fn shout(target: &str, text: &str) {
    let Ok(target) = target.parse::<SocketAddr>() else {
        eprintln!("hauberk-pod: {target} is no address:port");
        return;
    };
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let started = Instant::now();
    let (mut sent, mut refused) = (0_u64, 0_u64);
    loop {
        // A new socket each time: an error from an earlier datagram must not affect this one.
        match UdpSocket::bind(any).and_then(|socket| socket.send_to(text.as_bytes(), target)) {
            Ok(_) => sent += 1,
            Err(_) => refused += 1,
        }
        if (sent + refused).is_power_of_two() {
            println!("sent {sent}, refused by the kernel {refused}");
        }
        let pause = if started.elapsed() < Duration::from_secs(1) { 1 } else { 100 };
        thread::sleep(Duration::from_millis(pause));
    }
}
