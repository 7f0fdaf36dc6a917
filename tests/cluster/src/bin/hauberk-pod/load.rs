//! Requests without end, and how each of them ended.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::http;

const CLIENTS: usize = 2;
/// Time between two requests of a client. It is long because captured frames stay in memory.
const PACE: Duration = Duration::from_millis(20);

/// Sends requests to an address, each on a connection of its own, until standard input ends. Prints
/// a line for each: `answered NAME`, the name of the server, or `failed WHY`.
///
/// # Errors
/// Standard input cannot be read.
pub fn load(target: SocketAddr) -> io::Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    match http::get(target, "load").map(|response| server_of(&response)) {
                        Ok(Some(server)) => println!("answered {server}"),
                        Ok(None) => println!("failed because the answer is not complete"),
                        Err(error) => println!("failed because of {error}"),
                    }
                    thread::sleep(PACE);
                }
            });
        }
        let ended = io::stdin().read_to_end(&mut Vec::new());
        over.store(true, Ordering::SeqCst);
        ended
    })?;
    Ok(())
}

/// The name in a complete response: the body is `<name> load`.
fn server_of(response: &str) -> Option<String> {
    let (head, body) = response.split_once("\r\n\r\n")?;
    let name = body.strip_suffix(" load")?;
    head.starts_with("HTTP/1.0 200 ").then(|| name.to_owned())
}
