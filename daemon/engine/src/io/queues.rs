//! The queues of the device that one engine reads, in turn.
//!
//! All packets for one peer come through one queue, so a full queue affects only the peers that use
//! it.

use std::io;

use super::tun::Device;
use crate::channels::MOST_ENGINES;

/// Queues of each engine, if the kernel lets the tunnel choose the queue of a packet.
pub(crate) const QUEUES_PER_ENGINE: usize = 4;
/// The kernel's limit for a device (MAX_TAP_QUEUES, drivers/net/tun.c).
const _: () = assert!(QUEUES_PER_ENGINE * MOST_ENGINES <= 256);

/// At least one queue of a device.
pub(crate) struct Queues {
    all: Vec<Device>,
    ready: [bool; QUEUES_PER_ENGINE],
    /// The queue to read next.
    next: usize,
}

impl Queues {
    /// Queues of one device, at most [`QUEUES_PER_ENGINE`].
    pub(crate) fn new(all: Vec<Device>) -> Queues {
        Queues { all, ready: [false; QUEUES_PER_ENGINE], next: 0 }
    }

    /// The device, as its first queue.
    #[inline]
    pub(crate) fn device(&self) -> &Device {
        &self.all[0]
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = &Device> {
        self.all.iter()
    }

    /// Records which queues may have packets, by their position.
    pub(crate) fn are_ready(&mut self, is_ready: impl Fn(usize) -> bool) {
        self.ready = std::array::from_fn(is_ready);
    }

    /// Reads one packet or super-packet from a queue that has one.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        for _ in 0..self.all.len() {
            let queue = self.next;
            self.next = (queue + 1) % self.all.len();
            if !self.ready[queue] {
                continue;
            }
            match self.all[queue].read(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if is_temporary(&error) => self.ready[queue] = false,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
