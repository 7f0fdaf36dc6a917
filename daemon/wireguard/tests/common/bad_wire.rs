//! A wire that loses, repeats and reorders: a relay through which the nodes send to each other.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Node, PORT, Playground};

/// Length of a data message without a packet.
const KEEPALIVE: usize = 32;
/// The most datagrams that are held back, until as many later ones have passed.
const HELD: usize = 48;

/// Rates of each fault, in datagrams per thousand.
#[derive(Default)]
pub struct Badness {
    pub lost: AtomicU32,
    pub repeated: AtomicU32,
    pub delayed: AtomicU32,
    /// Number of data messages that were lost.
    pub losses: AtomicU64,
    /// Number of data messages that were repeated or delayed.
    pub others: AtomicU64,
}

pub struct BadWire {
    pub badness: Arc<Badness>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BadWire {
    /// The address that nodes send to.
    pub const ADDRESS: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), PORT));

    /// Starts the relay without faults.
    pub fn start(playground: &Playground) -> BadWire {
        playground.wire.ip("addr add 192.0.2.9/24 dev bridge0");
        let socket = playground.wire.within(|| UdpSocket::bind(BadWire::ADDRESS).unwrap());
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let badness = Arc::new(Badness::default());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (badness, stop) = (badness.clone(), stop.clone());
            move || relay(&socket, &badness, &stop)
        });
        BadWire { badness, stop, thread: Some(thread) }
    }
}

impl Drop for BadWire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn relay(socket: &UdpSocket, badness: &Badness, stop: &AtomicBool) {
    let dice = Mutex::new(0x9e37_79b9_7f4a_7c15u64);
    let thrown = |chance: &AtomicU32| {
        let mut state = dice.lock().unwrap();
        // Xorshift: the same sequence in every run.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % 1000 < u64::from(chance.load(Ordering::Relaxed))
    };
    // Held-back datagrams, each with the number of datagrams that must pass before it.
    let mut held: Vec<(usize, Vec<u8>, SocketAddr)> = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            held.drain(..).for_each(|(_, datagram, to)| drop(socket.send_to(&datagram, to)));
            continue;
        };
        let datagram = &buffer[..length];
        let to = if from == Node::A.outer_v4() { Node::B.outer_v4() } else { Node::A.outer_v4() };
        let is_data = datagram[0] == 4 && length > KEEPALIVE;
        if is_data && thrown(&badness.lost) {
            badness.losses.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if is_data && thrown(&badness.repeated) {
            badness.others.fetch_add(1, Ordering::Relaxed);
            held.push((HELD, datagram.to_vec(), to));
        }
        if is_data && thrown(&badness.delayed) {
            badness.others.fetch_add(1, Ordering::Relaxed);
            held.push((1 + held.len() % HELD, datagram.to_vec(), to));
        } else {
            let _ = socket.send_to(datagram, to);
        }
        for (left, ..) in &mut held {
            *left = left.saturating_sub(1);
        }
        held.retain(|(left, datagram, to)| *left > 0 || socket.send_to(datagram, to).is_err());
    }
}
