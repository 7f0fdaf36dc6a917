//! The queues of the device that one engine reads, each in its turn.
//!
//! What is for one peer comes by one of them, so one that is full is not everybody's.

use std::io;

use super::tun::Device;
use crate::crew::MOST_ENGINES;

/// Queues of each engine, where the kernel lets us choose among them.
pub(crate) const QUEUES_PER_ENGINE: usize = 4;
/// The kernel's limit for a device (MAX_TAP_QUEUES, drivers/net/tun.c).
const _: () = assert!(QUEUES_PER_ENGINE * MOST_ENGINES <= 256);

/// At least one queue of a device.
pub(crate) struct Queues {
    all: Vec<Device>,
    ready: [bool; QUEUES_PER_ENGINE],
    /// Which is read next.
    next: usize,
}

impl Queues {
    /// Of one device, at most [`QUEUES_PER_ENGINE`].
    pub(crate) fn new(all: Vec<Device>) -> Queues {
        Queues { all, ready: [false; QUEUES_PER_ENGINE], next: 0 }
    }

    /// The device, by the first of them.
    pub(crate) fn device(&self) -> &Device {
        &self.all[0]
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = &Device> {
        self.all.iter()
    }

    /// Takes note of those that may have something, by their places.
    pub(crate) fn are_ready(&mut self, is_ready: impl Fn(usize) -> bool) {
        self.ready = std::array::from_fn(is_ready);
    }

    /// Reads one packet or super-packet from one that has something.
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
