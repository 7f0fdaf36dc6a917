//! TCP: one connection, a request, a reply.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::Sender;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, SockAddr, Socket, Type};

use super::exchange::Shared;
use super::socket;

pub(super) fn serve(address: SocketAddr, bytes: usize, shared: &Shared, port: &Sender<u16>) -> Result<()> {
    let listener = socket::bound(Type::STREAM, None, address)?;
    listener.listen(16).context("listen")?;
    listener.set_nonblocking(true).context("set nonblocking")?;
    let listener = TcpListener::from(listener);
    port.send(listener.local_addr().context("local address")?.port()).context("report port")?;
    // A client that is refused on the way may connect again: every connection is served.
    while !shared.is_over() {
        match listener.accept() {
            Ok((connection, client)) => serve_one(connection, client, bytes, shared)?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(1)),
            Err(error) => return Err(error).context("accept"),
        }
    }
    Ok(())
}

fn serve_one(mut connection: TcpStream, client: SocketAddr, bytes: usize, shared: &Shared) -> Result<()> {
    connection.set_nonblocking(false).context("set blocking")?;
    connection.set_read_timeout(Some(socket::GLANCE)).context("set timeout")?;
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while request.len() < bytes && !shared.is_over() {
        match connection.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => request.extend_from_slice(&buffer[..count]),
            Err(error) if socket::is_passing(&error) => {}
            Err(_) => return Ok(()),
        }
    }
    if request == shared.request.fill(bytes) {
        shared.deliver(Some(client.ip()));
        connection.write_all(&shared.reply.fill(bytes)).ok();
    }
    Ok(())
}

pub(super) fn ask(
    local: IpAddr,
    target: SocketAddr,
    bytes: usize,
    patience: Duration,
    shared: &Shared,
) -> Result<(bool, String)> {
    let deadline = Instant::now() + patience;
    let mut connection = match connect(local, target, deadline)? {
        Ok(connection) => connection,
        Err(error) => return Ok((false, format!("connect to {target}: {error}"))),
    };
    if let Err(error) = connection.write_all(&shared.request.fill(bytes)) {
        return Ok((false, format!("send: {error}")));
    }
    connection.set_read_timeout(Some(socket::GLANCE)).context("set timeout")?;
    let mut reply = Vec::new();
    let mut buffer = [0; 4096];
    while reply.len() < bytes && Instant::now() < deadline {
        match connection.read(&mut buffer) {
            Ok(0) => return Ok((false, "closed early".into())),
            Ok(count) => reply.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Ok((false, format!("receive: {error}"))),
        }
    }
    let answered = reply == shared.reply.fill(bytes);
    Ok((answered, if answered { String::new() } else { format!("{} of {bytes} bytes of reply", reply.len()) }))
}

/// Connects. It retries after a refusal, as real clients do: a Service refuses until its node knows
/// the endpoints.
fn connect(local: IpAddr, target: SocketAddr, deadline: Instant) -> Result<std::io::Result<TcpStream>> {
    loop {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).context("socket")?;
        socket.bind(&SockAddr::from(SocketAddr::new(local, 0))).with_context(|| format!("bind to {local}"))?;
        let left = deadline.saturating_duration_since(Instant::now()).max(socket::GLANCE);
        match socket.connect_timeout(&SockAddr::from(target), left) {
            Ok(()) => return Ok(Ok(TcpStream::from(socket))),
            Err(error) if socket::is_passing(&error) && Instant::now() < deadline => sleep(socket::GLANCE),
            Err(error) => return Ok(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn who_is_refused_comes_again() {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let free = TcpListener::bind((here, 0)).unwrap().local_addr().unwrap();
        let refused = connect(here, free, Instant::now()).unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| connect(here, free, Instant::now() + Duration::from_secs(60)));
            sleep(4 * socket::GLANCE);
            let listener = TcpListener::bind(free).unwrap();
            client.join().unwrap().unwrap().unwrap();
            listener.accept().unwrap();
        });
    }
}
