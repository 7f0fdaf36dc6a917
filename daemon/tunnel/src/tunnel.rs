//! The handle the agent holds: starts the engine's thread and speaks with it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use hauberk_cipher::Implementation;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::config::{LocalKey, PeerChange, PeerConfig, PeerId, TunnelConfig};
use crate::engine::{Command, Engine};
use crate::error::Error;
use crate::io::outbox::Outbox;
use crate::io::tun::Device;
use crate::io::udp::Sockets;
use crate::stats::{Counters, Health, OffloadFeatures, TunnelStats};
use crate::wireguard::WireGuard;

/// A running tunnel. Dropping it ends it, like [`Tunnel::close`].
///
/// The methods wait for the engine's thread to finish the packets it has in hand: microseconds.
pub struct Tunnel {
    commands: Sender<Command<WireGuard>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
    health: Arc<Mutex<Health>>,
    features: OffloadFeatures,
    cipher: Implementation,
    index: u32,
}

impl Tunnel {
    /// Opens the device and the sockets in the calling thread's network namespace and starts the
    /// engine. No peer is known yet, so nothing passes.
    pub fn start(config: TunnelConfig) -> Result<Tunnel, Error> {
        let failed = |step| move |source| Error::Engine { step, source };
        let counters = Arc::new(Counters::default());
        // Before anything is opened: wrong keys should not leave a device behind.
        let protocol = WireGuard::new(
            config.keys,
            config.handshake_limit_per_second,
            config.device.mtu as usize,
            config.copy_dscp,
            config.cipher,
            config.on_state,
            counters.clone(),
        )?;
        let device = Device::open(&config.device)?;
        let sockets = Sockets::bind(config.listen_port, config.fwmark)?;
        let features = OffloadFeatures {
            udp_gso: sockets.gso(),
            udp_gro: sockets.gro(),
            ipv6: sockets.v6.is_some(),
            ..device.features()
        };
        let index = device.index();
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(std::io::Error::from)
            .map_err(failed("make an eventfd"))?;
        let wake = Arc::new(wake);
        let (commands, received) = channel();
        device.attach()?;
        let engine = Engine::new(device, sockets, protocol, received, wake.clone(), counters.clone(), config.spin)?;

        let health = Arc::new(Mutex::new(Health::Running));
        let thread = std::thread::Builder::new()
            .name("hauberk-tunnel".to_owned())
            .spawn({
                let health = health.clone();
                move || {
                    let reason = run_to_the_end(engine);
                    *health.lock().unwrap_or_else(PoisonError::into_inner) = Health::Stopped { reason };
                }
            })
            .map_err(failed("start its thread"))?;
        let (device, port, cipher) = (config.device.name, config.listen_port, config.cipher.name());
        tracing::info!(device, index, port, cipher, ?features, "tunnel running");
        Ok(Tunnel { commands, wake, thread: Some(thread), counters, health, features, cipher: config.cipher, index })
    }

    /// Applies the changes as a whole, or none of them; returns once the engine has.
    pub fn apply(&self, changes: Vec<PeerChange>) -> Result<(), Error> {
        self.ask(move |protocol, now, outbox| protocol.apply(changes, now, outbox))?
    }

    /// Replaces our own keys: one or two, sessions of keys that stay are kept.
    pub fn set_keys(&self, keys: Vec<LocalKey>) -> Result<(), Error> {
        self.ask(move |protocol, now, outbox| protocol.set_keys(keys, now, outbox))?
    }

    /// Starts a handshake with the peer although there is nothing to send to it; its result comes as a change of state.
    pub fn handshake(&self, id: PeerId) -> Result<(), Error> {
        self.ask(move |protocol, now, outbox| protocol.greet(id, now, outbox))
    }

    /// What is installed, in the order of the ids; keys newest first, prefixes sorted and without host
    /// bits, so that it compares equal to a desired state in the same form.
    pub fn peers(&self) -> Result<Vec<PeerConfig>, Error> {
        self.ask(|protocol, _, _| protocol.configs())
    }

    /// What happened so far.
    pub fn stats(&self) -> Result<TunnelStats, Error> {
        let (peers, udp_gso) = self.ask(|protocol, _, outbox| (protocol.stats(), outbox.takes_batches()))?;
        Ok(TunnelStats {
            peers,
            drops: self.counters.drops(),
            probes_seen: self.counters.probes_seen(),
            // A path may have turned out not to take what the kernel agreed to.
            features: OffloadFeatures { udp_gso, ..self.features },
        })
    }

    /// Writes one IP packet to the device as if a peer had sent it. For the self-test alone: no
    /// check is made of it.
    pub fn inject(&self, packet: Vec<u8>) {
        // A stopped engine shows in `health`; there is no packet to lose.
        let _ = self.send(Command::Inject(packet));
    }

    /// Packets to [`crate::SELF_TEST_DESTINATION`] that came out of the device.
    pub fn probes_seen(&self) -> u64 {
        self.counters.probes_seen()
    }

    /// Whether the engine runs; if not, why.
    pub fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the kernel agreed to do in bulk when the tunnel was started; [`Tunnel::stats`] has what it does now.
    pub fn features(&self) -> OffloadFeatures {
        self.features
    }

    /// What seals and opens the packets; its name is for the status.
    pub fn cipher(&self) -> Implementation {
        self.cipher
    }

    /// Ends the engine. A persistent device stays, and the kernel drops what is sent into it.
    pub fn close(self) {
        drop(self);
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut WireGuard, Instant, &mut Outbox<'_>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = sync_channel(1);
        self.send(Command::Run(Box::new(move |protocol, now, outbox| {
            // Whoever asked may have gone.
            let _ = answer.send(question(protocol, now, outbox));
        })))?;
        answered.recv().map_err(|_| self.stopped())
    }

    fn send(&self, command: Command<WireGuard>) -> Result<(), Error> {
        self.commands.send(command).map_err(|_| self.stopped())?;
        // Fails only when it is already at its highest, that is, set.
        let _ = self.wake.write(1);
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

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // The thread catches its own panics.
            let _ = thread.join();
        }
    }
}

/// Runs the engine and says why it ended.
fn run_to_the_end(engine: Engine<WireGuard>) -> String {
    // What the engine owned is gone after a panic, so no half-done state can be seen.
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
