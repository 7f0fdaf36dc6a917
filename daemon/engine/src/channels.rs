//! The engines of one tunnel: which engine has which peer, and how one engine hands work to
//! another.
//!
//! Each peer belongs to one engine, with its keys, sessions and counters. So packets touch no
//! shared state, and peers spread over the CPUs. The kernel brings packets to the right engine
//! (`io::tun`, `io::udp`); an engine that gets a packet of another engine's peer hands it over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::config::PeerId;
use crate::io::outbox::Outbox;
use crate::protocol::Inbox;

/// The most engines of a tunnel, one thread each. A session's index has bits for this many engine
/// numbers.
pub const MOST_ENGINES: usize = 64;
/// What may wait for an engine: as many packets as a device's queue holds, and as many bytes as a
/// socket's buffer.
const MOST_WAITING: usize = 1_000;
const MOST_BYTES_WAITING: usize = 4 << 20;

/// The bits of a peer's id that select its thread. The program that sends packets to the device
/// writes them to `skb->queue_mapping`, so that the packets reach that thread at once. That field
/// has 16 bits, and one of its values means none.
pub const QUEUE_BITS: u32 = 0x7fff;

/// Work for the protocol: it gets the time, an inbox and an outbox.
pub(crate) type Work<P> = Box<dyn FnOnce(&mut P, Instant, &mut dyn Inbox, &mut Outbox<'_>) + Send>;

/// Work for an engine's thread. It runs between two turns, never in the middle of a packet.
pub(crate) enum Command<P> {
    /// Does something with the protocol.
    Run(Work<P>),
    /// Writes one IP packet to the device, as if it had been received.
    Inject(Vec<u8>),
    /// Ends the engine.
    Stop,
}

/// All engines, as one of them sees them.
pub(crate) struct Crew<P> {
    own: usize,
    lines: Arc<[Line<P>]>,
}

/// The channel to one engine.
struct Line<P> {
    commands: SyncSender<Command<P>>,
    wake: Arc<EventFd>,
    /// Bytes that were handed over and are not processed yet.
    waiting: Arc<AtomicUsize>,
}

/// The engine's end of a line.
pub(crate) struct Orders<P> {
    pub(crate) commands: Receiver<Command<P>>,
    pub(crate) wake: Arc<EventFd>,
}

/// An engine's view of the crew, and its end of its line.
pub(crate) type Place<P> = (Crew<P>, Orders<P>);

impl<P> Crew<P> {
    /// A place for each engine.
    pub(crate) fn new(count: usize) -> Result<Vec<Place<P>>, Errno> {
        let mut lines = Vec::with_capacity(count);
        let mut orders = Vec::with_capacity(count);
        for _ in 0..count {
            let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
            let (commands, received) = sync_channel(MOST_WAITING);
            lines.push(Line { commands, wake: wake.clone(), waiting: Arc::default() });
            orders.push(Orders { commands: received, wake });
        }
        let lines: Arc<[Line<P>]> = lines.into();
        let crew = |own| Crew { own, lines: lines.clone() };
        Ok(orders.into_iter().enumerate().map(|(own, orders)| (crew(own), orders)).collect())
    }

    /// Number of the engine that this view belongs to.
    pub(crate) fn own(&self) -> usize {
        self.own
    }

    pub(crate) fn count(&self) -> usize {
        self.lines.len()
    }

    /// The engine that has a peer, selected by the same bits that the kernel uses to choose a
    /// queue.
    pub(crate) fn engine_of(&self, id: PeerId) -> usize {
        (id.0 & QUEUE_BITS) as usize % self.count()
    }

    /// Whether a peer belongs to this engine.
    pub(crate) fn is_own(&self, id: PeerId) -> bool {
        self.engine_of(id) == self.own
    }

    /// Gives an engine work on `bytes` bytes, without waiting for it. False if the engine has
    /// ended, or if too much waits for it.
    pub(crate) fn hand_over(
        &self,
        engine: usize,
        bytes: usize,
        work: impl FnOnce(&mut P, Instant, &mut dyn Inbox, &mut Outbox<'_>) + Send + 'static,
    ) -> bool {
        let Some(line) = self.lines.get(engine) else { return false };
        let waiting = line.waiting.clone();
        if waiting.fetch_add(bytes, Ordering::Relaxed) < MOST_BYTES_WAITING {
            let work: Work<P> = Box::new(move |protocol, now, inbox, outbox| {
                waiting.fetch_sub(bytes, Ordering::Relaxed);
                work(protocol, now, inbox, outbox);
            });
            if line.commands.try_send(Command::Run(work)).is_ok() {
                line.wake();
                return true;
            }
        }
        line.waiting.fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    /// Sends an engine a command, waiting until there is room. False if it has ended. Engines must
    /// not call this: they must not wait for each other.
    pub(crate) fn tell(&self, engine: usize, command: Command<P>) -> bool {
        let told = self.lines.get(engine).filter(|line| line.commands.send(command).is_ok());
        told.inspect(|line| line.wake()).is_some()
    }
}

impl<P> Clone for Crew<P> {
    fn clone(&self) -> Crew<P> {
        Crew { own: self.own, lines: self.lines.clone() }
    }
}

impl<P> Line<P> {
    fn wake(&self) {
        // Fails only if the counter is at its maximum, and then the eventfd is set anyway.
        let _ = self.wake.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::outbox::{Batch, DatagramSink};
    use crate::stats::Counters;

    struct Nowhere;

    impl DatagramSink for Nowhere {
        fn send(&mut self, _: &Batch) -> usize {
            0
        }

        fn takes_batches(&self) -> bool {
            true
        }
    }

    impl Inbox for Nowhere {
        fn room(&mut self) -> &mut [u8] {
            &mut []
        }

        fn deliver(&mut self, _: usize) {}
    }

    #[test]
    fn what_an_engine_cannot_take_is_refused_and_never_waited_for() {
        let mut crew = Crew::<()>::new(2).unwrap();
        let (second, orders) = crew.pop().unwrap();
        let (first, _) = crew.pop().unwrap();
        assert_eq!((first.own(), second.own(), first.count()), (0, 1, 2));
        let give = |engine, bytes| first.hand_over(engine, bytes, |(), _, _, _| {});
        assert!((0..MOST_WAITING).all(|_| give(1, 100)));
        assert!(!give(1, 100), "too many");
        assert_eq!(orders.wake.read(), Ok(MOST_WAITING as u64));
        let take = || {
            let Ok(Command::Run(work)) = orders.commands.try_recv() else { panic!() };
            let counters = Counters::default();
            let (mut batch, mut sink) = (Batch::new(), Nowhere);
            work(&mut (), Instant::now(), &mut Nowhere, &mut Outbox::new(&mut batch, &mut sink, &counters));
        };
        (0..MOST_WAITING).for_each(|_| take());
        assert!((0..64).all(|_| give(1, 1 << 16)), "all room is free again");
        assert!(!give(1, 1), "too much");
        take();
        assert!(give(1, 1));
        assert!(!give(2, 1), "there is no such engine");
        drop(orders);
        assert!(!give(1, 1), "it has ended");
        assert!(!first.tell(1, Command::Stop));
    }

    #[test]
    fn each_peer_is_one_engines() {
        let crew = Crew::<()>::new(3).unwrap();
        for id in (0..100).chain([0x7fff, 0x8000, 0xdead_beef, u32::MAX]).map(PeerId) {
            let owners: Vec<_> = crew.iter().filter(|(crew, _)| crew.is_own(id)).map(|(crew, _)| crew.own()).collect();
            assert_eq!(owners, [crew[0].0.engine_of(id)]);
        }
    }
}
