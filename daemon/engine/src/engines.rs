//! Starts the engines of a tunnel, each on its own thread, and sends them work.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::channels::{Channels, Command, MOST_ENGINES};
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Error;
use crate::io::outbox::Outbox;
use crate::io::queues::{QUEUES_PER_ENGINE, Queues};
use crate::io::tun::Device;
use crate::io::udp::Sockets;
use crate::protocol::Protocol;
use crate::stats::{Counters, Health, OffloadFeatures};

/// The engine for what any engine could do.
const FIRST: usize = 0;

/// The running engines of one tunnel. Dropping them stops them. A persistent device stays, and the
/// kernel drops what is sent into it.
///
/// The methods wait for the engines' threads to finish the packets they have in hand: microseconds.
pub struct Engines<P> {
    channels: Channels<P>,
    threads: Vec<JoinHandle<()>>,
    counters: Arc<Counters>,
    health: Arc<Mutex<Health>>,
    features: OffloadFeatures,
    index: u32,
}

impl<P: Protocol> Engines<P> {
    /// Opens the device and the sockets in the calling thread's network namespace, and starts the
    /// engines. `protocol` makes the protocol of each engine.
    ///
    /// `filter` is a classic BPF program that sees the payload of a datagram and returns the number
    /// of the engine that should get it.
    ///
    /// # Errors
    /// [`Error`]: no TUN device, the port is taken, ...; then no engine runs.
    pub fn start(
        config: &Config,
        filter: &[libc::sock_filter],
        counters: Arc<Counters>,
        protocol: impl Fn(Channels<P>) -> P,
    ) -> Result<Engines<P>, Error> {
        let count = config.threads;
        if !(1..=MOST_ENGINES).contains(&count) {
            return Err(Error::Threads { threads: count });
        }
        let mut devices = vec![Device::open(&config.device)?];
        let queues_steered = devices[0].steer();
        // Without steering, the kernel assigns flows to queues itself and may move one, so there
        // are no more queues than engines.
        let queues = if queues_steered { count * QUEUES_PER_ENGINE } else { count };
        for _ in 1..queues {
            devices.push(devices[0].another()?);
        }
        let (sockets, sockets_steered) = Sockets::bind_group(config.listen_port, config.fwmark, count, filter)?;
        let features = OffloadFeatures {
            udp_gso: sockets[0].gso(),
            udp_gro: sockets[0].gro(),
            ipv6: sockets[0].v6.is_some(),
            steering: (queues_steered || count == 1) && sockets_steered,
            ..devices[0].features()
        };
        let index = devices[0].index();
        let ends = Channels::new(count)?;
        let mut engines = Engines {
            channels: ends[0].0.clone(),
            threads: Vec::with_capacity(count),
            counters: counters.clone(),
            health: Arc::new(Mutex::new(Health::Running)),
            features,
            index,
        };
        // A queue's number is its position in the order of attaching.
        for device in &devices {
            device.attach()?;
        }
        // A peer's packets must come through a queue of the engine that has the peer. The peer's
        // number modulo the number of queues gives the queue, modulo the number of engines the
        // engine; the number of queues is a multiple of the number of engines.
        let mut queues: Vec<Vec<Device>> = (0..count).map(|_| Vec::new()).collect();
        for (number, device) in devices.into_iter().enumerate() {
            queues[number % count].push(device);
        }
        for ((queues, sockets), (channels, commands)) in queues.into_iter().zip(sockets).zip(ends) {
            let protocol = protocol(channels.clone());
            let ends = (channels.clone(), commands);
            let engine = Engine::new(Queues::new(queues), sockets, protocol, ends, counters.clone(), config.spin)?;
            engines.run(engine, channels)?;
        }
        Ok(engines)
    }

    /// Asks one engine's protocol something, between two turns, and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn ask<T: Send + 'static>(
        &self,
        engine: usize,
        question: impl FnOnce(&mut P, Instant, &mut Outbox<'_>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = sync_channel(1);
        let sent = self.channels.send(
            engine,
            Command::Run(Box::new(move |protocol, now, _, outbox| {
                // The caller may no longer wait for the answer.
                let _ = answer.send(question(protocol, now, outbox));
            })),
        );
        if !sent {
            return Err(self.stopped());
        }
        answered.recv().map_err(|_| self.stopped())
    }

    /// Writes one IP packet to the device as if a peer had sent it. Only for the self-test: the
    /// packet is not checked.
    pub fn inject(&self, packet: Vec<u8>) {
        // `health` reports a stopped engine; this packet may be lost.
        self.channels.send(FIRST, Command::Inject(packet));
    }

    /// How many engines there are, a thread each.
    pub fn count(&self) -> usize {
        self.channels.count()
    }

    /// The engine that has a peer.
    pub fn engine_of(&self, peer: u32) -> usize {
        self.channels.engine_of(peer)
    }

    /// The counters that all engines share.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the engines run; if not, why.
    pub fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the kernel agreed to do in bulk when the engines started.
    pub fn features(&self) -> OffloadFeatures {
        self.features
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Runs an engine on a thread of its own until it ends.
    fn run(&mut self, engine: Engine<P>, channels: Channels<P>) -> Result<(), Error> {
        let health = self.health.clone();
        let thread = std::thread::Builder::new()
            .name(format!("hauberk-tun-{}", channels.own()))
            .spawn(move || {
                let reason = run_to_the_end(engine);
                let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
                if *health == Health::Running {
                    *health = Health::Stopped { reason };
                }
                drop(health);
                // If one engine has stopped, the others would carry some peers' packets and lose
                // the rest.
                stop_all(&channels);
            })
            .map_err(|source| Error::Engine { step: "start its thread", source })?;
        self.threads.push(thread);
        Ok(())
    }

    fn stopped(&self) -> Error {
        let reason = match self.health() {
            Health::Stopped { reason } => reason,
            Health::Running => "it is stopping".to_owned(),
        };
        Error::Stopped { reason }
    }
}

impl<P> Drop for Engines<P> {
    fn drop(&mut self) {
        stop_all(&self.channels);
        for thread in self.threads.drain(..) {
            // The threads catch their own panics.
            let _ = thread.join();
        }
    }
}

fn stop_all<P>(channels: &Channels<P>) {
    for engine in 0..channels.count() {
        channels.send(engine, Command::Stop);
    }
}

/// Runs the engine and returns why it ended.
fn run_to_the_end<P: Protocol>(engine: Engine<P>) -> String {
    // After a panic the engine and all it owned are gone, so no inconsistent state remains.
    match catch_unwind(AssertUnwindSafe(|| engine.run())) {
        Ok(Ok(())) => "it was closed".to_owned(),
        Ok(Err(error)) => {
            tracing::error!(%error, "the tunnel engine stopped: was the device removed?");
            format!("reading from the device failed: {error}; was the device removed?")
        }
        Err(panic) => {
            let text = panic_text(panic.as_ref());
            tracing::error!(text, "the tunnel engine panicked: please report this");
            format!("it panicked: {text}")
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
