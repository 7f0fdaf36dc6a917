//! The handle for a running tunnel: WireGuard on engines, and commands for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hauberk_cipher::Implementation;
use hauberk_engine::{Config, Counters, Engines, Health, OffloadFeatures};

use crate::config::{LocalKey, PeerChange, PeerConfig, PeerId, TunnelConfig};
use crate::error::Error;
use crate::protocol::{self, Identities, WireGuard};
use crate::stats::TunnelStats;
use crate::strangers::Strangers;

/// The engine for questions that any engine could answer.
const FIRST: usize = 0;

/// A running tunnel. Dropping it ends it, like [`Tunnel::close`].
///
/// The methods wait for the engines' threads to finish the packets they have in hand: microseconds.
pub struct Tunnel {
    engines: Engines<WireGuard>,
    strangers: Arc<Strangers>,
    /// Held while peers or keys are changed: all engines must apply changes in the same order.
    changing: Mutex<()>,
    handshake_limit: u64,
    cipher: Implementation,
}

impl Tunnel {
    /// Opens the device and the sockets in the calling thread's network namespace and starts the
    /// engines. No peer is known yet, so no packet passes.
    pub fn start(config: TunnelConfig) -> Result<Tunnel, Error> {
        // Before anything is opened: invalid keys should not leave a device behind.
        let identities = Identities::new(config.keys, config.handshake_limit_per_second)?;
        let (counters, strangers) = (Arc::new(Counters::default()), Arc::new(Strangers::default()));
        let settings = protocol::Settings {
            counters: counters.clone(),
            strangers: strangers.clone(),
            on_state: config.on_state.map(Arc::new),
            mtu: config.device.mtu as usize,
            copy_dscp: config.copy_dscp,
            cipher: config.cipher,
        };
        let engines = Config {
            device: config.device,
            threads: config.threads,
            listen_port: config.listen_port,
            fwmark: config.fwmark,
            spin: config.spin,
        };
        let (device, threads, port) = (engines.device.name.clone(), engines.threads, engines.listen_port);
        let engines = Engines::start(&engines, &protocol::filter(), counters, |channels| {
            WireGuard::new(identities.clone(), settings.clone(), channels)
        })?;
        let (index, features, cipher) = (engines.index(), engines.features(), config.cipher.name());
        tracing::info!(device, index, port, cipher, threads, ?features, "tunnel running");
        Ok(Tunnel {
            engines,
            strangers,
            changing: Mutex::new(()),
            handshake_limit: config.handshake_limit_per_second,
            cipher: config.cipher,
        })
    }

    /// Applies all the changes or none of them. Returns once every engine has applied them, one
    /// after the other.
    pub fn apply(&self, changes: Vec<PeerChange>) -> Result<(), Error> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // All engines know the same peers, so the plan is the same for all.
        let plan = self.engines.ask(FIRST, |protocol, _, _| protocol.plan(changes))??;
        for engine in 0..self.engines.count() {
            let plan = plan.clone();
            self.engines.ask(engine, |protocol, now, outbox| protocol.carry_out(plan, now, outbox))?;
        }
        Ok(())
    }

    /// Replaces this node's keys, one or two. Sessions of keys that stay are kept.
    pub fn set_keys(&self, keys: Vec<LocalKey>) -> Result<(), Error> {
        let identities = Identities::new(keys, self.handshake_limit)?;
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = identities.clone();
        self.engines.ask(FIRST, move |protocol, _, _| protocol.check_keys(&checked))??;
        for engine in 0..self.engines.count() {
            let identities = identities.clone();
            self.engines.ask(engine, |protocol, now, outbox| protocol.set_keys(identities, now, outbox))?;
        }
        Ok(())
    }

    /// Starts a handshake with the peer although there is nothing to send to it. With `anew`, also
    /// if it has a session, so that its other addresses are tried too. The result is reported as a
    /// change of state.
    pub fn handshake(&self, id: PeerId, anew: bool) -> Result<(), Error> {
        let engine = self.engines.engine_of(id.0);
        Ok(self.engines.ask(engine, move |protocol, now, outbox| protocol.greet(id, anew, now, outbox))?)
    }

    /// The installed peers, ordered by id. Keys are newest first, and prefixes sorted and without
    /// host bits, so that the result can be compared with a desired state in the same form.
    pub fn peers(&self) -> Result<Vec<PeerConfig>, Error> {
        Ok(self.engines.ask(FIRST, |protocol, _, _| protocol.configs())?)
    }

    /// Counters and states so far.
    pub fn stats(&self) -> Result<TunnelStats, Error> {
        let (mut peers, mut udp_gso) = (Vec::new(), true);
        for engine in 0..self.engines.count() {
            let (own, gso) =
                self.engines.ask(engine, |protocol, _, outbox| (protocol.stats(), outbox.takes_batches()))?;
            peers.extend(own);
            udp_gso &= gso;
        }
        peers.sort_by_key(|peer| peer.id);
        let counters = self.engines.counters();
        Ok(TunnelStats {
            peers,
            drops: counters.drops(),
            probes_seen: counters.probes_seen(),
            handed_over: counters.handed_over(),
            strangers: self.strangers.list(Instant::now()),
            // A path may have refused what the kernel agreed to.
            features: OffloadFeatures { udp_gso, ..self.engines.features() },
        })
    }

    /// Writes one IP packet to the device as if a peer had sent it. Only for the self-test: the
    /// packet is not checked.
    pub fn inject(&self, packet: Vec<u8>) {
        self.engines.inject(packet);
    }

    /// Packets to [`hauberk_engine::SELF_TEST_DESTINATION`] that came out of the device.
    pub fn probes_seen(&self) -> u64 {
        self.engines.counters().probes_seen()
    }

    /// Whether the engines run; if not, why.
    pub fn health(&self) -> Health {
        self.engines.health()
    }

    /// How many threads carry packets.
    pub fn threads(&self) -> usize {
        self.engines.count()
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.engines.index()
    }

    /// What the kernel agreed to do in bulk when the tunnel started; [`Tunnel::stats`] has the
    /// present state.
    pub fn features(&self) -> OffloadFeatures {
        self.engines.features()
    }

    /// The cipher implementation; status shows its name.
    pub fn cipher(&self) -> Implementation {
        self.cipher
    }

    /// Stops the engines. A persistent device stays, and the kernel drops what is sent into it.
    pub fn close(self) {
        drop(self);
    }
}
