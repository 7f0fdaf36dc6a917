//! A server that says who it is, and its clients: HTTP/1.0 over TCP, and datagrams.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// How long a peer may take for anything.
const PATIENCE: Duration = Duration::from_secs(10);
/// A datagram that is not answered is sent again.
const DATAGRAMS: u32 = 20;
/// The longest request.
const REQUEST: usize = 4096;

/// Serves a port at all addresses of both families, until the process ends. Each answer has the
/// pod's name and what the client asked for.
///
/// # Errors
/// The port is taken.
pub fn serve(port: u16) -> io::Result<()> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let (listener, socket) = (TcpListener::bind(at)?, UdpSocket::bind(at)?);
    let own = name.clone();
    thread::spawn(move || {
        let mut buffer = [0; REQUEST];
        loop {
            let Ok((count, client)) = socket.recv_from(&mut buffer) else { continue };
            let text = String::from_utf8_lossy(&buffer[..count]);
            socket.send_to(format!("{own} {text}").as_bytes(), client).ok();
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            // A client may be gone before it has its answer; it is the one that counts failures.
            thread::spawn(move || answer(stream, &name).ok());
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut buffer = [0; REQUEST];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") && request.len() < REQUEST {
        match stream.read(&mut buffer)? {
            // A probe that only connects.
            0 => return Ok(()),
            count => request.extend_from_slice(&buffer[..count]),
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split_whitespace().nth(1).unwrap_or_default();
    let body = format!("{name} {}", path.trim_start_matches('/'));
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// Asks with one request of HTTP/1.0, and returns the whole response.
///
/// # Errors
/// No connection, or no complete answer in time.
pub fn get(target: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {target}\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    if response.is_empty() {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection ended without an answer"));
    }
    Ok(response)
}

/// Asks with a datagram, and returns the answer.
///
/// # Errors
/// No answer in time, or one from another address than the one that was asked.
pub fn datagram(target: SocketAddr, text: &str) -> io::Result<String> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE / DATAGRAMS))?;
    let mut buffer = [0; REQUEST];
    for _ in 0..DATAGRAMS {
        socket.send_to(text.as_bytes(), target)?;
        match socket.recv_from(&mut buffer) {
            Ok((count, from)) if from == target => return Ok(String::from_utf8_lossy(&buffer[..count]).into_owned()),
            Ok((_, from)) => return Err(io::Error::other(format!("{from} answered in the place of {target}"))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(ErrorKind::TimedOut, format!("no answer to {DATAGRAMS} datagrams")))
}
