//! One HTTP request and its response, each with a unique body.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hauberk_netns::{Family, Marker, Party};
use socket2::{Domain, SockAddr, Socket, Type};

/// How long a receive waits before it checks whether to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// The result of a request.
pub struct Answered {
    /// The marker in the request's body.
    pub request: Marker,
    /// The marker in the response's body.
    pub response: Marker,
    /// Empty if the client received the whole response.
    pub trouble: String,
}

/// Sends a POST request from `client` to `server` and reads the response.
///
/// # Errors
/// Sockets could not be made. A request that does not get through is a result.
pub fn post(client: &Party, server: &Party, family: Family, patience: Duration) -> Result<Answered> {
    let (request, response) = (Marker::unique(), Marker::unique());
    let listener = server.netns.within(|| {
        let listener = TcpListener::bind(SocketAddr::new(server.address(family), 0)).context("listen")?;
        listener.set_nonblocking(true).context("set nonblocking")?;
        Ok(listener)
    })?;
    let target = listener.local_addr().context("local address")?;
    let over = AtomicBool::new(false);
    let trouble = thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&listener, response, &over));
        let trouble = client.netns.within(|| ask(client, target, family, (request, response), patience));
        over.store(true, Ordering::SeqCst);
        serving.join().unwrap_or_else(|_| bail!("the HTTP server panicked"))?;
        trouble
    })?;
    Ok(Answered { request, response, trouble })
}

fn serve(listener: &TcpListener, response: Marker, over: &AtomicBool) -> Result<()> {
    while !over.load(Ordering::SeqCst) {
        match listener.accept() {
            // The client notices if its connection fails.
            Ok((connection, _)) => drop(serve_one(connection, response, over)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(1)),
            Err(error) => return Err(error).context("accept"),
        }
    }
    Ok(())
}

fn serve_one(mut connection: TcpStream, response: Marker, over: &AtomicBool) -> std::io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(GLANCE))?;
    let mut request = Vec::new();
    // The body ends with a marker and a brace.
    while !request.ends_with(b">\"}") && !over.load(Ordering::SeqCst) {
        let mut buffer = [0; 4096];
        match connection.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => request.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let body = format!("{{\"receipt\": \"{response}\"}}");
    let head = format!("HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    connection.write_all(format!("{head}\r\nConnection: close\r\n\r\n{body}").as_bytes())
}

/// What went wrong; empty if nothing did.
fn ask(
    client: &Party,
    target: SocketAddr,
    family: Family,
    (request, response): (Marker, Marker),
    patience: Duration,
) -> Result<String> {
    let deadline = Instant::now() + patience;
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).context("socket")?;
    socket.bind(&SockAddr::from(SocketAddr::new(client.address(family), 0))).context("bind")?;
    if let Err(error) = socket.connect_timeout(&SockAddr::from(target), patience) {
        return Ok(format!("connect to {target}: {error}"));
    }
    let mut connection = TcpStream::from(socket);
    let body = format!("{{\"card\": \"{request}\"}}");
    let head = format!("POST /orders HTTP/1.1\r\nHost: {}\r\nContent-Length: {}", target, body.len());
    connection.set_read_timeout(Some(GLANCE)).context("set timeout")?;
    if let Err(error) = connection.write_all(format!("{head}\r\nConnection: close\r\n\r\n{body}").as_bytes()) {
        return Ok(format!("send: {error}"));
    }
    let mut answer = Vec::new();
    while Instant::now() < deadline && !response.is_in(&answer) {
        let mut buffer = [0; 4096];
        match connection.read(&mut buffer) {
            Ok(0) => return Ok("closed without a response".into()),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Ok(format!("receive: {error}")),
        }
    }
    Ok(if response.is_in(&answer) { String::new() } else { "no response in time".into() })
}
