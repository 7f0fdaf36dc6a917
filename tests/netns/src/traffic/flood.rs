//! Sends more datagrams than any path can carry.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use socket2::Type;

use super::socket;
use crate::{Family, Party};

/// The size of one send: about the largest IPv4 packet, made of datagrams of this many bytes.
const DATAGRAM: usize = 1_300;
const DATAGRAMS: usize = 48;

/// Datagrams from one party to another, as fast as the kernel takes them, until stopped. No program
/// receives them.
pub struct Flood {
    flowing: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Flood {
    /// Starts the flood.
    ///
    /// # Errors
    /// No sockets.
    pub fn start(from: &Party, to: &Party, family: Family) -> Result<Flood> {
        // A socket holds the port: without it the flood would be answered by ICMP errors.
        let receiver = to.netns.within(|| {
            Ok(UdpSocket::from(socket::bound(Type::DGRAM, None, SocketAddr::new(to.address(family), 0))?))
        })?;
        let target = receiver.local_addr().context("local address")?;
        let sender = from.netns.within(|| socket::segmenting(SocketAddr::new(from.address(family), 0), DATAGRAM))?;
        let flowing = Arc::new(AtomicBool::new(true));
        let goes_on = flowing.clone();
        let thread = thread::spawn(move || {
            let bytes = vec![0; DATAGRAM * DATAGRAMS];
            while goes_on.load(Ordering::SeqCst) {
                match sender.send_to(&bytes, target) {
                    Err(error) if !socket::is_passing(&error) => return Err(error).context("flood"),
                    _ => {}
                }
            }
            drop(receiver);
            Ok(())
        });
        Ok(Flood { flowing, thread })
    }

    /// Stops the flood.
    ///
    /// # Errors
    /// The sender failed.
    pub fn stop(self) -> Result<()> {
        self.flowing.store(false, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow!("the flood panicked"))?
    }
}
