//! Sends bytes over one TCP connection as fast as the path allows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, SockAddr, Socket, Type};

use super::socket;
use crate::marker::Marker;
use crate::party::{Family, Party};
use crate::wait;

/// The result of a bulk transfer.
#[derive(Clone, Copy, Debug)]
pub struct BulkReport {
    /// The marker that fills the transfer.
    pub marker: Marker,
    /// The number of bytes.
    pub bytes: usize,
    /// The time they took.
    pub duration: Duration,
}

/// Sends `bytes` from one party to the other and checks them on arrival.
///
/// # Errors
/// They did not arrive, or were changed.
pub fn bulk_tcp(from: &Party, to: &Party, family: Family, bytes: usize) -> Result<BulkReport> {
    let marker = Marker::unique();
    let listener = to.netns.within(|| {
        let socket = socket::bound(Type::STREAM, None, SocketAddr::new(to.address(family), 0))?;
        socket.listen(4).context("listen")?;
        // The receive timeout also applies to accept and is inherited by the connection: a transfer
        // that hangs ends with an error.
        socket.set_read_timeout(Some(wait::GENEROUS)).context("set timeout")?;
        Ok(TcpListener::from(socket))
    })?;
    let target = listener.local_addr().context("local address")?;
    let started = Instant::now();
    thread::scope(|scope| {
        let receiver = scope.spawn(move || -> Result<usize> {
            let (mut connection, _) = listener.accept().context("accept")?;
            connection.set_read_timeout(Some(wait::GENEROUS)).context("set timeout")?;
            let mut buffer = vec![0; 1 << 18];
            let pattern = marker.fill(buffer.len() + Marker::LENGTH);
            let mut total = 0;
            loop {
                let count = connection.read(&mut buffer).with_context(|| format!("receive after {total} bytes"))?;
                if count == 0 {
                    return Ok(total);
                }
                let offset = total % Marker::LENGTH;
                ensure!(buffer[..count] == pattern[offset..offset + count], "bytes changed on the way, after {total}");
                total += count;
            }
        });
        from.netns.within(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).context("socket")?;
            socket.bind(&SockAddr::from(SocketAddr::new(from.address(family), 0))).context("bind")?;
            socket.connect_timeout(&SockAddr::from(target), wait::GENEROUS).context("connect")?;
            socket.set_write_timeout(Some(wait::GENEROUS)).context("set timeout")?;
            TcpStream::from(socket).write_all(&marker.fill(bytes)).context("send")
        })?;
        let total = receiver.join().unwrap_or_else(|_| bail!("the receiver panicked"))?;
        ensure!(total == bytes, "{total} of {bytes} bytes arrived");
        Ok(BulkReport { marker, bytes, duration: started.elapsed() })
    })
    .with_context(|| format!("{bytes} bytes over TCP {family} from {} to {}", from.name, to.name))
}
