//! The channels between the engines of one tunnel: which engine has which peer, and how one engine
//! hands work to another.
//!
//! Each peer belongs to one engine, with all the state that the protocol keeps for it. So packets
//! touch no shared state, and peers spread over the CPUs. The kernel brings packets to the right
//! engine (`io::tun`, `io::udp`); an engine that gets a packet of another engine's peer hands it
//! over. A peer is a number here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::Error;
use crate::io::outbox::Outbox;
use crate::protocol::Inbox;

/// The most engines of a tunnel, one thread each. A power of two, so that a protocol can keep an
/// engine's number in a few bits of its messages.
pub const MOST_ENGINES: usize = 64;
/// What may wait for an engine: as many packets as a device's queue holds, and as many bytes as a
/// socket's buffer.
const MOST_WAITING: usize = 1_000;
const MOST_BYTES_WAITING: usize = 4 << 20;

/// The bits of a peer's number that select its thread. The program that sends packets to the device
/// writes them to `skb->queue_mapping`, so that the packets reach that thread at once. That field
/// has 16 bits, and one of its values means none.
pub const QUEUE_BITS: u32 = 0x7fff;

/// Work for the protocol: it gets the time, an inbox and an outbox.
pub type Work<P> = Box<dyn FnOnce(&mut P, Instant, &mut dyn Inbox, &mut Outbox<'_>) + Send>;

/// Work for an engine's thread. It runs between two turns, never in the middle of a packet.
pub enum Command<P> {
    /// Does something with the protocol.
    Run(Work<P>),
    /// Writes one IP packet to the device, as if it had been received.
    Inject(Vec<u8>),
    /// Ends the engine.
    Stop,
}

/// The channels to all engines, as one of the engines holds them.
pub struct Channels<P> {
    own: usize,
    all: Arc<[Channel<P>]>,
}

/// The channel to one engine.
struct Channel<P> {
    commands: SyncSender<Command<P>>,
    wake: Arc<EventFd>,
    /// Bytes that were handed over and are not processed yet.
    waiting: Arc<AtomicUsize>,
}

/// The engine's end of its channel.
pub struct Commands<P> {
    pub(crate) received: Receiver<Command<P>>,
    pub(crate) wake: Arc<EventFd>,
}

/// What one engine holds: the ends to send commands to all engines, and its own end.
pub type Ends<P> = (Channels<P>, Commands<P>);

impl<P> Channels<P> {
    /// A channel for each of `count` engines. Each engine gets its own end, and the other ends of
    /// all channels.
    ///
    /// # Errors
    /// [`Error::Engine`]: the kernel makes no eventfd.
    pub fn new(count: usize) -> Result<Vec<Ends<P>>, Error> {
        let failed = |errno: Errno| Error::Engine { step: "make an eventfd", source: errno.into() };
        let mut all = Vec::with_capacity(count);
        let mut ends = Vec::with_capacity(count);
        for _ in 0..count {
            let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed)?);
            let (commands, received) = sync_channel(MOST_WAITING);
            all.push(Channel { commands, wake: wake.clone(), waiting: Arc::default() });
            ends.push(Commands { received, wake });
        }
        let all: Arc<[Channel<P>]> = all.into();
        let channels = |own| Channels { own, all: all.clone() };
        Ok(ends.into_iter().enumerate().map(|(own, commands)| (channels(own), commands)).collect())
    }

    /// Number of the engine that this view belongs to.
    #[inline]
    pub fn own(&self) -> usize {
        self.own
    }

    /// Number of engines.
    #[inline]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The engine that has a peer, selected by the same bits that the kernel uses to choose a
    /// queue.
    #[inline]
    pub fn engine_of(&self, peer: u32) -> usize {
        (peer & QUEUE_BITS) as usize % self.count()
    }

    /// Whether a peer belongs to this engine.
    #[inline]
    pub fn is_own(&self, peer: u32) -> bool {
        self.engine_of(peer) == self.own
    }

    /// Gives an engine work on `bytes` bytes, without waiting for it. False if the engine has
    /// ended, or if too much waits for it.
    pub fn hand_over(
        &self,
        engine: usize,
        bytes: usize,
        work: impl FnOnce(&mut P, Instant, &mut dyn Inbox, &mut Outbox<'_>) + Send + 'static,
    ) -> bool {
        let Some(channel) = self.all.get(engine) else { return false };
        let waiting = channel.waiting.clone();
        if waiting.fetch_add(bytes, Ordering::Relaxed) < MOST_BYTES_WAITING {
            let work: Work<P> = Box::new(move |protocol, now, inbox, outbox| {
                waiting.fetch_sub(bytes, Ordering::Relaxed);
                work(protocol, now, inbox, outbox);
            });
            if channel.commands.try_send(Command::Run(work)).is_ok() {
                channel.wake();
                return true;
            }
        }
        channel.waiting.fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    /// Sends an engine a command, waiting until there is room. False if it has ended. Engines must
    /// not call this: they must not wait for each other.
    pub fn send(&self, engine: usize, command: Command<P>) -> bool {
        let sent = self.all.get(engine).filter(|channel| channel.commands.send(command).is_ok());
        sent.inspect(|channel| channel.wake()).is_some()
    }
}

impl<P> Clone for Channels<P> {
    fn clone(&self) -> Channels<P> {
        Channels { own: self.own, all: self.all.clone() }
    }
}

impl<P> Commands<P> {
    /// The next command, if one waits.
    pub fn next(&self) -> Option<Command<P>> {
        self.received.try_recv().ok()
    }
}

impl<P> Channel<P> {
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
        let mut channels = Channels::<()>::new(2).unwrap();
        let (second, commands) = channels.pop().unwrap();
        let (first, _) = channels.pop().unwrap();
        assert_eq!((first.own(), second.own(), first.count()), (0, 1, 2));
        let give = |engine, bytes| first.hand_over(engine, bytes, |(), _, _, _| {});
        assert!((0..MOST_WAITING).all(|_| give(1, 100)));
        assert!(!give(1, 100), "too many");
        assert_eq!(commands.wake.read(), Ok(MOST_WAITING as u64));
        let take = || {
            let Some(Command::Run(work)) = commands.next() else { panic!() };
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
        drop(commands);
        assert!(!give(1, 1), "it has ended");
        assert!(!first.send(1, Command::Stop));
    }

    #[test]
    fn each_peer_is_one_engines() {
        let channels = Channels::<()>::new(3).unwrap();
        for peer in (0..100).chain([0x7fff, 0x8000, 0xdead_beef, u32::MAX]) {
            let owners: Vec<_> = channels
                .iter()
                .filter(|(channels, _)| channels.is_own(peer))
                .map(|(channels, _)| channels.own())
                .collect();
            assert_eq!(owners, [channels[0].0.engine_of(peer)]);
        }
    }
}
