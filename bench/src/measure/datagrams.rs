//! Small packets, as many as get through without loss.
//!
//! The receiver tells the sender, a thread of the same process, how many it has received, and there
//! is never more than a window of packets in flight. So the sender is as fast as the slowest part
//! of the path, and the count is of packets that arrived. Packets are handed to the kernel and read
//! from it in batches (sendmmsg, recvmmsg), but each is a separate packet: no UDP_SEGMENT, no
//! UDP_GRO. The receiver polls at intervals, because a wake-up for each packet would cost more than
//! the packet itself.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hauberk_netns::Party;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt};

/// Largest number of packets in flight: fewer than any queue on the path holds.
const WINDOW: u64 = 256;
/// Packets in one system call.
const BATCH: usize = 32;
/// How long the receiver sleeps when no packet is there.
const NAP: Duration = Duration::from_micros(20);
/// If nothing arrives for this long, the packets in flight are lost.
const PATIENCE: Duration = Duration::from_millis(50);

/// The result of a run, in packets.
pub struct Count {
    /// Packets that arrived.
    pub received: u64,
    /// Packets that did not.
    pub lost: u64,
}

struct Shared {
    received: AtomicU64,
    over: AtomicBool,
}

/// Sends packets with this many bytes of payload for some seconds.
pub fn run(client: &Party, server: &Party, bytes: usize, seconds: u32) -> Result<Count> {
    let receiver = server.netns.within(|| socket(SocketAddr::from((server.v4, 0))))?;
    let to = receiver.local_addr().context("the receiver's address")?;
    let sender = client.netns.within(|| socket(SocketAddr::from((client.v4, 0))))?;
    let shared = Shared { received: AtomicU64::new(0), over: AtomicBool::new(false) };
    let lost = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, bytes, &shared));
        let lost = send(&sender, to, bytes, Duration::from_secs(seconds.into()), &shared);
        shared.over.store(true, Ordering::Relaxed);
        receiving.join().unwrap_or_else(|_| bail!("the receiver panicked"))?;
        lost
    })?;
    let received = shared.received.load(Ordering::Relaxed);
    ensure!(received > 0, "no packet arrived");
    Ok(Count { received, lost })
}

fn socket(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("bind to {address}"))?;
    for result in
        [setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)), setsockopt(&socket, sockopt::SndBufForce, &(8 << 20))]
    {
        result.context("enlarge a socket's buffer")?;
    }
    Ok(socket)
}

/// Sends the packets and returns how many were lost.
fn send(socket: &UdpSocket, to: SocketAddr, bytes: usize, length: Duration, shared: &Shared) -> Result<u64> {
    let payload = vec![0x42; bytes];
    let slices = [[IoSlice::new(&payload)]; BATCH];
    let addresses = [Some(SockaddrStorage::from(to)); BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let (mut sent, mut lost) = (0, 0);
    let (started, mut progress, mut seen) = (Instant::now(), Instant::now(), 0);
    while started.elapsed() < length {
        let received = shared.received.load(Ordering::Relaxed);
        if received != seen {
            (progress, seen) = (Instant::now(), received);
        }
        let under_way = sent - lost - received;
        let room = (WINDOW - under_way.min(WINDOW)) as usize;
        if room < BATCH {
            if progress.elapsed() > PATIENCE {
                lost += under_way;
                progress = Instant::now();
            }
            thread::sleep(NAP);
            continue;
        }
        let result = sendmmsg(socket.as_raw_fd(), &mut headers, &slices, addresses, [], MsgFlags::empty());
        sent += result.context("send packets")?.count() as u64;
    }
    Ok(lost)
}

fn receive(socket: &UdpSocket, bytes: usize, shared: &Shared) -> Result<()> {
    let mut buffers = vec![vec![0; bytes + 1]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    while !shared.over.load(Ordering::Relaxed) {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
            Ok(messages) => {
                let whole = messages.filter(|message| message.bytes == bytes).count();
                shared.received.fetch_add(whole as u64, Ordering::Relaxed);
            }
            Err(Errno::EAGAIN) => thread::sleep(NAP),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("receive packets"),
        }
    }
    Ok(())
}
