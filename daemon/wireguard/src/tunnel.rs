//! The agent's handle for the tunnel: starts the engines' threads and sends them commands.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use hauberk_cipher::Implementation;

use crate::config::{LocalKey, PeerChange, PeerConfig, PeerId, TunnelConfig};
use crate::crew::{Command, Crew, MOST_ENGINES};
use crate::engine::Engine;
use crate::error::Error;
use crate::io::outbox::Outbox;
use crate::io::queues::{QUEUES_PER_ENGINE, Queues};
use crate::io::tun::Device;
use crate::io::udp::Sockets;
use crate::stats::{Counters, Health, OffloadFeatures, TunnelStats};
use crate::wireguard::{self, Identities, WireGuard};

/// The engine for questions that any engine could answer.
const FIRST: usize = 0;

/// A running tunnel. Dropping it ends it, like [`Tunnel::close`].
///
/// The methods wait for the engines' threads to finish the packets they have in hand: microseconds.
pub struct Tunnel {
    crew: Crew<WireGuard>,
    threads: Vec<JoinHandle<()>>,
    counters: Arc<Counters>,
    health: Arc<Mutex<Health>>,
    /// Held while peers or keys are changed: all engines must apply changes in the same order.
    changing: Mutex<()>,
    features: OffloadFeatures,
    handshake_limit: u64,
    cipher: Implementation,
    index: u32,
}

impl Tunnel {
    /// Opens the device and the sockets in the calling thread's network namespace and starts the
    /// engines. No peer is known yet, so no packet passes.
    pub fn start(config: TunnelConfig) -> Result<Tunnel, Error> {
        let failed = |step| move |source| Error::Engine { step, source };
        let count = config.threads;
        if !(1..=MOST_ENGINES).contains(&count) {
            return Err(Error::Threads { threads: count });
        }
        // Before anything is opened: invalid keys should not leave a device behind.
        let identities = Identities::new(config.keys, config.handshake_limit_per_second)?;
        let counters = Arc::new(Counters::default());
        let settings = wireguard::Settings {
            counters: counters.clone(),
            on_state: config.on_state.map(Arc::new),
            mtu: config.device.mtu as usize,
            copy_dscp: config.copy_dscp,
            cipher: config.cipher,
        };
        let mut devices = vec![Device::open(&config.device)?];
        let queues_steered = devices[0].steer();
        // Without steering, the kernel assigns flows to queues itself and may move one, so there
        // are no more queues than engines.
        let queues = if queues_steered { count * QUEUES_PER_ENGINE } else { count };
        for _ in 1..queues {
            devices.push(devices[0].another()?);
        }
        let (sockets, sockets_steered) =
            Sockets::bind_group(config.listen_port, config.fwmark, count, &wireguard::filter())?;
        let features = OffloadFeatures {
            udp_gso: sockets[0].gso(),
            udp_gro: sockets[0].gro(),
            ipv6: sockets[0].v6.is_some(),
            steering: (queues_steered || count == 1) && sockets_steered,
            ..devices[0].features()
        };
        let index = devices[0].index();
        let crew = Crew::new(count).map_err(std::io::Error::from).map_err(failed("make an eventfd"))?;
        let mut tunnel = Tunnel {
            crew: crew[0].0.clone(),
            threads: Vec::with_capacity(count),
            counters: counters.clone(),
            health: Arc::new(Mutex::new(Health::Running)),
            changing: Mutex::new(()),
            features,
            handshake_limit: config.handshake_limit_per_second,
            cipher: config.cipher,
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
        for ((queues, sockets), (crew, orders)) in queues.into_iter().zip(sockets).zip(crew) {
            let protocol = WireGuard::new(identities.clone(), settings.clone(), crew.clone());
            let engine = Engine::new(
                Queues::new(queues),
                sockets,
                protocol,
                (crew.clone(), orders),
                counters.clone(),
                config.spin,
            )?;
            let health = tunnel.health.clone();
            let thread = std::thread::Builder::new()
                .name(format!("hauberk-tun-{}", crew.own()))
                .spawn(move || {
                    let reason = run_to_the_end(engine);
                    let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
                    if *health == Health::Running {
                        *health = Health::Stopped { reason };
                    }
                    drop(health);
                    // If one engine has stopped, the others would carry some peers' packets and
                    // lose the rest.
                    stop_all(&crew);
                })
                .map_err(failed("start its thread"))?;
            tunnel.threads.push(thread);
        }
        let (device, port, cipher) = (config.device.name, config.listen_port, config.cipher.name());
        tracing::info!(device, index, port, cipher, threads = count, ?features, "tunnel running");
        Ok(tunnel)
    }

    /// Applies all the changes or none of them. Returns once every engine has applied them, one
    /// after the other.
    pub fn apply(&self, changes: Vec<PeerChange>) -> Result<(), Error> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // All engines know the same peers, so the plan is the same for all.
        let plan = self.ask(FIRST, |protocol, _, _| protocol.plan(changes))??;
        for engine in 0..self.crew.count() {
            let plan = plan.clone();
            self.ask(engine, |protocol, now, outbox| protocol.carry_out(plan, now, outbox))?;
        }
        Ok(())
    }

    /// Replaces this node's keys, one or two. Sessions of keys that stay are kept.
    pub fn set_keys(&self, keys: Vec<LocalKey>) -> Result<(), Error> {
        let identities = Identities::new(keys, self.handshake_limit)?;
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = identities.clone();
        self.ask(FIRST, move |protocol, _, _| protocol.check_keys(&checked))??;
        for engine in 0..self.crew.count() {
            let identities = identities.clone();
            self.ask(engine, |protocol, now, outbox| protocol.set_keys(identities, now, outbox))?;
        }
        Ok(())
    }

    /// Starts a handshake with the peer although there is nothing to send to it. With `anew`, also
    /// if it has a session, so that its other addresses are tried too. The result is reported as a
    /// change of state.
    pub fn handshake(&self, id: PeerId, anew: bool) -> Result<(), Error> {
        self.ask(self.crew.engine_of(id), move |protocol, now, outbox| protocol.greet(id, anew, now, outbox))
    }

    /// The installed peers, ordered by id. Keys are newest first, and prefixes sorted and without
    /// host bits, so that the result can be compared with a desired state in the same form.
    pub fn peers(&self) -> Result<Vec<PeerConfig>, Error> {
        self.ask(FIRST, |protocol, _, _| protocol.configs())
    }

    /// Counters and states so far.
    pub fn stats(&self) -> Result<TunnelStats, Error> {
        let (mut peers, mut udp_gso) = (Vec::new(), true);
        for engine in 0..self.crew.count() {
            let (own, gso) = self.ask(engine, |protocol, _, outbox| (protocol.stats(), outbox.takes_batches()))?;
            peers.extend(own);
            udp_gso &= gso;
        }
        peers.sort_by_key(|peer| peer.id);
        Ok(TunnelStats {
            peers,
            drops: self.counters.drops(),
            probes_seen: self.counters.probes_seen(),
            handed_over: self.counters.handed_over(),
            strangers: self.counters.strangers(Instant::now()),
            // A path may have refused what the kernel agreed to.
            features: OffloadFeatures { udp_gso, ..self.features },
        })
    }

    /// Writes one IP packet to the device as if a peer had sent it. Only for the self-test: the
    /// packet is not checked.
    pub fn inject(&self, packet: Vec<u8>) {
        // `health` reports a stopped engine; this packet may be lost.
        self.crew.tell(FIRST, Command::Inject(packet));
    }

    /// Packets to [`crate::SELF_TEST_DESTINATION`] that came out of the device.
    pub fn probes_seen(&self) -> u64 {
        self.counters.probes_seen()
    }

    /// Whether the engines run; if not, why.
    pub fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many threads carry packets.
    pub fn threads(&self) -> usize {
        self.crew.count()
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the kernel agreed to do in bulk when the tunnel started; [`Tunnel::stats`] has the
    /// present state.
    pub fn features(&self) -> OffloadFeatures {
        self.features
    }

    /// The cipher implementation; status shows its name.
    pub fn cipher(&self) -> Implementation {
        self.cipher
    }

    /// Stops the engines. A persistent device stays, and the kernel drops what is sent into it.
    pub fn close(self) {
        drop(self);
    }

    fn ask<T: Send + 'static>(
        &self,
        engine: usize,
        question: impl FnOnce(&mut WireGuard, Instant, &mut Outbox<'_>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = sync_channel(1);
        let told = self.crew.tell(
            engine,
            Command::Run(Box::new(move |protocol, now, _, outbox| {
                // The caller may no longer wait for the answer.
                let _ = answer.send(question(protocol, now, outbox));
            })),
        );
        if !told {
            return Err(self.stopped());
        }
        answered.recv().map_err(|_| self.stopped())
    }

    fn stopped(&self) -> Error {
        let reason = match self.health() {
            Health::Stopped { reason } => reason,
            Health::Running => "it is stopping".to_owned(),
        };
        Error::Stopped { reason }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        stop_all(&self.crew);
        for thread in self.threads.drain(..) {
            // The threads catch their own panics.
            let _ = thread.join();
        }
    }
}

fn stop_all(crew: &Crew<WireGuard>) {
    for engine in 0..crew.count() {
        crew.tell(engine, Command::Stop);
    }
}

/// Runs the engine and returns why it ended.
fn run_to_the_end(engine: Engine<WireGuard>) -> String {
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
