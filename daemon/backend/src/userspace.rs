//! User-space WireGuard: `hauberk-wireguard` as a [`Mechanism`] and a [`Backend`].

use std::collections::BTreeSet;
use std::fs::OpenOptions;

use hauberk_core::names::NodeNumber;
use hauberk_core::tunnels::Peer;
use hauberk_keyring::PublicKey;
use hauberk_wireguard::{
    CipherImplementation, DeviceConfig, Error, Health, LocalKey, PeerChange, PeerConfig, PeerId, PeerKey, PeerState,
    Tunnel, TunnelConfig,
};

use crate::backend::{Backend, PeerStats, PeerStep, Progress, Stats, Stranger};
use crate::error::BackendError;
use crate::mechanism::{Cipher, Mechanism, StartConfig};

/// The eBPF programs must choose the same thread as the tunnel.
const _: () = assert!(hauberk_engine::QUEUE_BITS == hauberk_abi::layout::QUEUE_BITS);

/// What every tunnel device is opened through.
const TUN: &str = "/dev/net/tun";
/// What an outer IPv6 header, UDP and WireGuard add to a packet, bytes. With IPv4 it is 60; a
/// node's peers may use either.
const OVERHEAD: u32 = 80;

/// The agent's own WireGuard.
pub(crate) struct Userspace;

/// A running tunnel.
struct Running {
    tunnel: Tunnel,
}

impl Mechanism for Userspace {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn available(&self) -> Result<String, String> {
        match OpenOptions::new().read(true).write(true).open(TUN) {
            Ok(_) => Ok(TUN.into()),
            Err(error) => {
                Err(format!("cannot open {TUN}: {error}; run: modprobe tun (in a container, pass the device in)"))
            }
        }
    }

    fn overhead(&self) -> u32 {
        OVERHEAD
    }

    fn gso_max_size(&self, mtu: u32) -> u32 {
        hauberk_wireguard::gso_max_size(mtu)
    }

    fn most_threads(&self) -> usize {
        hauberk_engine::MOST_ENGINES
    }

    fn start(&self, config: StartConfig) -> Result<Box<dyn Backend>, BackendError> {
        let on_state = config.on_state;
        let key = |key: crate::LocalKey| LocalKey { epoch: key.epoch, secret: key.secret };
        let tunnel = Tunnel::start(TunnelConfig {
            device: DeviceConfig { name: config.device, mtu: config.mtu, persist: true },
            threads: config.threads,
            listen_port: config.port,
            keys: config.keys.into_iter().map(key).collect(),
            fwmark: None,
            handshake_limit_per_second: config.handshakes_per_second,
            spin: config.spin,
            copy_dscp: config.copy_dscp,
            cipher: match config.cipher {
                Cipher::Auto => CipherImplementation::best(),
                Cipher::Ring => CipherImplementation::Ring,
            },
            on_state: Some(Box::new(move |id, state| on_state(NodeNumber(id.0), progress(state)))),
        })?;
        Ok(Box::new(Running { tunnel }))
    }
}

impl Backend for Running {
    fn read(&self) -> Result<Vec<Peer>, BackendError> {
        Ok(self.tunnel.peers()?.into_iter().map(to_peer).collect())
    }

    fn apply(&self, steps: &[PeerStep<'_>]) -> Result<(), BackendError> {
        let mut present = self.tunnel.peers()?;
        let mut changes = Vec::new();
        for step in steps {
            let more = match step {
                PeerStep::Put(peer) => put(peer, &present),
                PeerStep::Remove(number) => vec![PeerChange::Remove(PeerId(number.0))],
            };
            follow(&mut present, &more);
            changes.extend(more);
        }
        Ok(self.tunnel.apply(changes)?)
    }

    fn stats(&self) -> Result<Stats, BackendError> {
        let stats = self.tunnel.stats()?;
        let offloads = [
            ("TSO", stats.features.tso),
            ("USO", stats.features.uso),
            ("UDP GSO", stats.features.udp_gso),
            ("UDP GRO", stats.features.udp_gro),
            ("IPv6", stats.features.ipv6),
            ("steering", stats.features.steering),
        ];
        Ok(Stats {
            peers: stats
                .peers
                .iter()
                .map(|peer| PeerStats {
                    number: NodeNumber(peer.id.0),
                    state: progress(peer.state),
                    unanswered: peer.unanswered,
                    thread: peer.thread,
                    latest_handshake: peer.latest_handshake,
                    epoch: peer.remote_epoch,
                    received: peer.rx_bytes,
                    sent: peer.tx_bytes,
                    endpoint: peer.endpoint,
                })
                .collect(),
            drops: stats.drops.iter().collect(),
            probes: stats.probes_seen,
            offloads: offloads
                .iter()
                .map(|(name, on)| {
                    if *on {
                        (*name).to_owned()
                    } else {
                        format!("no {name} (refused by this kernel or by the way out)")
                    }
                })
                .collect(),
            cipher: format!("ChaCha20-Poly1305 ({})", self.tunnel.cipher().name()),
            threads: self.tunnel.threads(),
            handed_over: stats.handed_over,
            strangers: stats
                .strangers
                .iter()
                .map(|stranger| Stranger {
                    from: stranger.from,
                    asked_for: stranger.last.duration_since(stranger.first),
                })
                .collect(),
            stopped: match self.tunnel.health() {
                Health::Running => None,
                Health::Stopped { reason } => Some(reason),
            },
        })
    }

    fn start_handshake(&self, peer: NodeNumber, anew: bool) -> Result<(), BackendError> {
        Ok(self.tunnel.handshake(PeerId(peer.0), anew)?)
    }

    fn probe(&self, packet: Vec<u8>) {
        self.tunnel.inject(packet);
    }
}

impl From<Error> for BackendError {
    fn from(error: Error) -> BackendError {
        let message = error.to_string();
        match error {
            // An ended tunnel does not begin again, and an impossible configuration stays so.
            Error::Engine(
                hauberk_engine::Error::Stopped { .. }
                | hauberk_engine::Error::DeviceName { .. }
                | hauberk_engine::Error::Threads { .. },
            )
            | Error::LocalKeys { .. } => BackendError::Fatal(message),
            _ => BackendError::Recoverable(message),
        }
    }
}

/// The changes that install `peer`, and take from other peers what is now its own. Prefixes that
/// stay are not touched.
fn put(peer: &Peer, present: &[PeerConfig]) -> Vec<PeerChange> {
    let id = PeerId(peer.number.0);
    let keys: BTreeSet<[u8; 32]> = peer.keys.iter().map(|key| key.bytes).collect();
    let mut changes = Vec::new();
    for other in present.iter().filter(|other| other.id != id) {
        let kept: Vec<PeerKey> = other.keys.iter().filter(|key| !keys.contains(&key.public)).cloned().collect();
        let lost: Vec<_> = other.allowed.iter().filter(|prefix| peer.allowed.contains(prefix)).copied().collect();
        if kept.is_empty() {
            changes.push(PeerChange::Remove(other.id));
        } else if kept.len() != other.keys.len() {
            let allowed = other.allowed.iter().filter(|prefix| !lost.contains(prefix)).copied().collect();
            changes.push(PeerChange::Put(PeerConfig { keys: kept, allowed, ..other.clone() }));
        } else if !lost.is_empty() {
            changes.push(PeerChange::Allowed { id: other.id, add: Vec::new(), remove: lost });
        }
    }
    changes.push(PeerChange::Put(PeerConfig {
        id,
        name: peer.name.clone(),
        keys: peer.keys.iter().map(|key| PeerKey { epoch: key.epoch, public: key.bytes }).collect(),
        endpoint: peer.endpoint,
        fallbacks: peer.fallbacks.clone(),
        allowed: peer.allowed.iter().copied().collect(),
    }));
    changes
}

/// Updates `present` to what the tunnel will hold after these changes.
fn follow(present: &mut Vec<PeerConfig>, changes: &[PeerChange]) {
    for change in changes {
        match change {
            PeerChange::Put(config) => {
                present.retain(|other| other.id != config.id);
                present.push(config.clone());
            }
            PeerChange::Remove(id) => present.retain(|other| other.id != *id),
            PeerChange::Allowed { id, add, remove } => {
                if let Some(peer) = present.iter_mut().find(|peer| peer.id == *id) {
                    peer.allowed.retain(|prefix| !remove.contains(prefix));
                    peer.allowed.extend(add);
                }
            }
            PeerChange::Endpoint { .. } => {}
        }
    }
}

fn to_peer(config: PeerConfig) -> Peer {
    Peer {
        number: NodeNumber(config.id.0),
        name: config.name,
        keys: config.keys.into_iter().map(|key| PublicKey { epoch: key.epoch, bytes: key.public }).collect(),
        endpoint: config.endpoint,
        fallbacks: config.fallbacks,
        allowed: config.allowed.into_iter().collect(),
    }
}

fn progress(state: PeerState) -> Progress {
    match state {
        PeerState::Idle => Progress::Idle,
        PeerState::Handshaking { .. } => Progress::Handshaking,
        PeerState::Established => Progress::Established,
        PeerState::Failed { .. } => Progress::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(id: u32, key: u8, allowed: &[&str]) -> PeerConfig {
        PeerConfig {
            id: PeerId(id),
            name: format!("n{id}"),
            keys: vec![PeerKey { epoch: 1, public: [key; 32] }],
            endpoint: None,
            fallbacks: Vec::new(),
            allowed: allowed.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_tunnel_that_has_ended_is_not_asked_again_and_one_that_refuses_is() {
        let ended = hauberk_engine::Error::Stopped { reason: "it was closed".into() };
        assert!(BackendError::from(Error::from(ended)).is_fatal());
        let taken = hauberk_engine::Error::Socket {
            address: ([0, 0, 0, 0], 1).into(),
            step: "bind it",
            source: std::io::Error::from(std::io::ErrorKind::AddrInUse),
        };
        let taken = Error::from(taken);
        let message = taken.to_string();
        assert_eq!(BackendError::from(taken), BackendError::Recoverable(message));
        assert!(!BackendError::from(Error::UnknownPeer { id: PeerId(7) }).is_fatal());
    }

    #[test]
    fn a_tunnel_that_cannot_exist_is_refused_before_a_device_is_made() {
        let config = StartConfig {
            device: "hauberk-none".into(),
            mtu: 1420,
            port: 0,
            keys: Vec::new(),
            handshakes_per_second: 100,
            spin: std::time::Duration::ZERO,
            copy_dscp: false,
            threads: 1,
            cipher: Cipher::Auto,
            on_state: Box::new(|_, _| {}),
        };
        let refused = Userspace.start(config).err().unwrap();
        assert!(refused.is_fatal() && refused.to_string().contains("0 keys"), "{refused}");
        assert!(!std::path::Path::new("/sys/class/net/hauberk-none").exists());
    }

    #[test]
    fn a_prefix_moves_without_touching_what_stays() {
        let present = [config(1, 1, &["10.0.1.0/24", "10.0.9.9/32"]), config(2, 2, &["10.0.2.0/24"])];
        let peer = to_peer(config(2, 2, &["10.0.2.0/24", "10.0.9.9/32"]));
        let changes = put(&peer, &present);
        assert_eq!(
            changes[0],
            PeerChange::Allowed { id: PeerId(1), add: vec![], remove: vec!["10.0.9.9/32".parse().unwrap()] }
        );
        assert_eq!(changes.len(), 2);
    }

    #[test]
    fn a_key_moves_and_its_old_holder_goes() {
        let present = [config(1, 7, &["10.0.1.0/24"])];
        let changes = put(&to_peer(config(2, 7, &["10.0.2.0/24"])), &present);
        assert_eq!(changes[0], PeerChange::Remove(PeerId(1)));
    }
}
