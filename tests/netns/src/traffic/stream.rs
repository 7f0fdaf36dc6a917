//! Traffic that continues while a test changes the cluster, and that counts its losses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, SockAddr, Socket, Type};

use super::socket;
use crate::marker::Marker;
use crate::party::{Family, Party};
use crate::wait;

/// Numbered datagrams, one way, at a steady pace.
pub struct UdpStreamer {
    /// The marker in every datagram.
    pub marker: Marker,
    sending: Arc<AtomicBool>,
    receiving: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<Vec<Instant>>>>,
}

/// What happened to the datagrams.
#[derive(Clone, Debug)]
pub struct UdpReport {
    /// Handed to the kernel.
    pub sent: u64,
    /// Received.
    pub received: u64,
    /// The longest time without a received datagram.
    pub longest_gap: Duration,
}

impl UdpReport {
    /// Datagrams that were sent and never received.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

impl UdpStreamer {
    /// Starts the stream: `bytes` of payload every `interval`.
    ///
    /// # Errors
    /// No sockets.
    pub fn start(from: &Party, to: &Party, family: Family, bytes: usize, interval: Duration) -> Result<UdpStreamer> {
        let marker = Marker::unique();
        let (receiving, sending) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let receiver_socket = to.netns.within(|| {
            let socket = socket::bound(Type::DGRAM, None, SocketAddr::new(to.address(family), 0))?;
            socket.set_recv_buffer_size(8 << 20).context("SO_RCVBUF")?;
            Ok(UdpSocket::from(socket))
        })?;
        let target = receiver_socket.local_addr().context("local address")?;
        let sender_socket = from.netns.within(|| {
            Ok(UdpSocket::from(socket::bound(Type::DGRAM, None, SocketAddr::new(from.address(family), 0))?))
        })?;
        let payload = marker.fill(bytes.max(Marker::LENGTH));
        let receiver = {
            let (receiving, received, expected) = (receiving.clone(), received.clone(), payload.clone());
            thread::spawn(move || {
                let mut times = Vec::new();
                let mut buffer = vec![0; socket::LARGEST];
                while receiving.load(Ordering::SeqCst) {
                    match receiver_socket.recv(&mut buffer) {
                        Ok(count) if buffer[..count] == expected => {
                            received.fetch_add(1, Ordering::SeqCst);
                            times.push(Instant::now());
                        }
                        Ok(count) => bail!("a datagram of {count} bytes arrived that nobody sent"),
                        Err(error) if socket::is_passing(&error) => {}
                        Err(error) => return Err(error).context("receive"),
                    }
                }
                Ok(times)
            })
        };
        let sender = {
            let (sending, sent) = (sending.clone(), sent.clone());
            thread::spawn(move || {
                while sending.load(Ordering::SeqCst) {
                    match sender_socket.send_to(&payload, target) {
                        Ok(_) => {
                            sent.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) if socket::is_passing(&error) => {}
                        // The pod is being removed during the stream: some tests want that.
                        Err(_) => {}
                    }
                    sleep(interval);
                }
                Ok(Vec::new())
            })
        };
        Ok(UdpStreamer { marker, sending, receiving, sent, received, threads: vec![sender, receiver] })
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }

    /// Waits until datagrams arrive that were sent from now on.
    ///
    /// # Errors
    /// They do not arrive.
    pub fn wait_flowing(&self) -> Result<()> {
        let before = self.received();
        wait::eventually("datagrams to get through", || Ok((self.received() > before + 3).then_some(())))
    }

    /// Stops sending, waits for late datagrams, and returns the totals.
    ///
    /// # Errors
    /// A traffic thread failed.
    pub fn stop(self) -> Result<UdpReport> {
        self.sending.store(false, Ordering::SeqCst);
        // Late datagrams: waits until none has come for a while.
        let mut last = (self.received(), Instant::now());
        while last.1.elapsed() < Duration::from_millis(300) && self.received() < self.sent() {
            sleep(Duration::from_millis(10));
            if self.received() != last.0 {
                last = (self.received(), Instant::now());
            }
        }
        self.receiving.store(false, Ordering::SeqCst);
        let mut times = Vec::new();
        for thread in self.threads {
            times.extend(thread.join().unwrap_or_else(|_| bail!("a traffic thread panicked"))?);
        }
        let longest_gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::ZERO);
        let (sent, received) = (self.sent.load(Ordering::SeqCst), self.received.load(Ordering::SeqCst));
        Ok(UdpReport { sent, received, longest_gap })
    }
}

/// One TCP connection whose chunks are echoed, at a steady pace.
pub struct TcpStreamer {
    /// The marker in every chunk.
    pub marker: Marker,
    running: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    broken: Arc<Mutex<Option<String>>>,
    threads: Vec<JoinHandle<Result<Duration>>>,
}

/// What happened to the connection.
#[derive(Clone, Debug)]
pub struct TcpReport {
    /// Chunks that came back.
    pub echoed: u64,
    /// The longest round trip of one chunk.
    pub longest_stall: Duration,
}

impl TcpStreamer {
    /// Connects and starts: a chunk of `bytes` every `interval`. The next chunk is sent after the
    /// echo of the one before.
    ///
    /// # Errors
    /// No connection.
    pub fn start(from: &Party, to: &Party, family: Family, bytes: usize, interval: Duration) -> Result<TcpStreamer> {
        let marker = Marker::unique();
        let running = Arc::new(AtomicBool::new(true));
        let echoed = Arc::new(AtomicU64::new(0));
        let broken = Arc::new(Mutex::new(None));
        let listener = to.netns.within(|| {
            let socket = socket::bound(Type::STREAM, None, SocketAddr::new(to.address(family), 0))?;
            socket.listen(4).context("listen")?;
            Ok(TcpListener::from(socket))
        })?;
        let target = listener.local_addr().context("local address")?;
        let (accepted_sender, accepted) = channel();
        thread::spawn(move || {
            // The listener's receive timeout also makes accept return early.
            let until = Instant::now() + wait::GENEROUS;
            while Instant::now() < until {
                match listener.accept() {
                    Ok((connection, _)) => return accepted_sender.send(connection).ok(),
                    Err(error) if socket::is_passing(&error) => {}
                    Err(_) => return None,
                }
            }
            None
        });
        let client = from.netns.within(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).context("socket")?;
            socket.bind(&SockAddr::from(SocketAddr::new(from.address(family), 0))).context("bind")?;
            let connected = socket.connect_timeout(&SockAddr::from(target), wait::GENEROUS);
            connected.with_context(|| format!("connect {} to {} ({target})", from.name, to.name))?;
            Ok(TcpStream::from(socket))
        })?;
        let server = accepted.recv_timeout(wait::GENEROUS).context("the server accepts")?;
        let chunk = marker.fill(bytes.max(Marker::LENGTH));
        let threads = vec![
            spawn_echo(server, chunk.len(), running.clone()),
            spawn_client(client, chunk, interval, running.clone(), echoed.clone(), broken.clone()),
        ];
        Ok(TcpStreamer { marker, running, echoed, broken, threads })
    }

    /// Chunks that came back so far.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Ordering::SeqCst)
    }

    /// Waits until chunks come back.
    ///
    /// # Errors
    /// They do not, or the connection broke.
    pub fn wait_flowing(&self) -> Result<()> {
        let before = self.echoed();
        wait::eventually("the TCP stream to go on", || {
            let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
            ensure!(broken.is_none(), "the connection broke: {}", broken.unwrap_or_default());
            Ok((self.echoed() > before + 1).then_some(()))
        })
    }

    /// Ends the stream and returns the totals.
    ///
    /// # Errors
    /// The connection broke.
    pub fn stop(self) -> Result<TcpReport> {
        self.running.store(false, Ordering::SeqCst);
        let mut longest_stall = Duration::ZERO;
        for thread in self.threads {
            longest_stall = longest_stall.max(thread.join().unwrap_or_else(|_| bail!("a traffic thread panicked"))?);
        }
        if let Some(broken) = self.broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bail!("the TCP connection broke: {broken}");
        }
        Ok(TcpReport { echoed: self.echoed.load(Ordering::SeqCst), longest_stall })
    }
}

fn spawn_echo(mut connection: TcpStream, bytes: usize, running: Arc<AtomicBool>) -> JoinHandle<Result<Duration>> {
    thread::spawn(move || {
        connection.set_nodelay(true).ok();
        let mut chunk = vec![0; bytes];
        while read_whole(&mut connection, &mut chunk, &running)? {
            if connection.write_all(&chunk).is_err() {
                break;
            }
        }
        Ok(Duration::ZERO)
    })
}

fn spawn_client(
    mut connection: TcpStream,
    chunk: Vec<u8>,
    interval: Duration,
    running: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    broken: Arc<Mutex<Option<String>>>,
) -> JoinHandle<Result<Duration>> {
    thread::spawn(move || {
        connection.set_nodelay(true).ok();
        let mut longest = Duration::ZERO;
        let mut answer = vec![0; chunk.len()];
        while running.load(Ordering::SeqCst) {
            let sent = Instant::now();
            let result = match connection.write_all(&chunk) {
                Ok(()) => read_whole(&mut connection, &mut answer, &running),
                Err(error) => Err(error.into()),
            };
            match result {
                Ok(true) if answer == chunk => {
                    echoed.fetch_add(1, Ordering::SeqCst);
                    longest = longest.max(sent.elapsed());
                }
                Ok(false) if !running.load(Ordering::SeqCst) => break,
                Ok(true) => {
                    *broken.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some("the echo is not what was sent".into());
                    break;
                }
                Ok(false) => {
                    *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some("closed by the other side".into());
                    break;
                }
                Err(error) => {
                    *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
                    break;
                }
            }
            sleep(interval);
        }
        Ok(longest)
    })
}

/// Fills `chunk`; false if the stream ended or is no longer needed.
fn read_whole(connection: &mut TcpStream, chunk: &mut [u8], running: &AtomicBool) -> Result<bool> {
    connection.set_read_timeout(Some(socket::GLANCE)).context("set timeout")?;
    let mut filled = 0;
    while filled < chunk.len() {
        match connection.read(&mut chunk[filled..]) {
            Ok(0) => return Ok(false),
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if !running.load(Ordering::SeqCst) {
                    return Ok(false);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    Ok(true)
}
