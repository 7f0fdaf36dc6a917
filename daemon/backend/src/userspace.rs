//! User-space WireGuard: `hauberk-wireguard` behind the [`Backend`] trait.

use std::collections::BTreeSet;
use std::time::Duration;

use hauberk_core::desired::Peer;
use hauberk_core::model::NodeNumber;
use hauberk_wireguard::{
    CipherImplementation, DeviceConfig, Health, LocalKey, PeerChange, PeerConfig, PeerId, PeerKey, PeerState, Tunnel,
    TunnelConfig,
};

use super::{Backend, BackendError, PeerStats, PeerStep, Progress, Stats};

/// The eBPF programs must choose the same thread as the tunnel.
const _: () = assert!(hauberk_engine::QUEUE_BITS == hauberk_abi::layout::QUEUE_BITS);

/// What the tunnel needs to start. No `Debug`: it holds secrets.
pub struct UserspaceConfig {
    /// Device name.
    pub device: String,
    /// Largest inner packet, bytes.
    pub mtu: u32,
    /// UDP port.
    pub port: u16,
    /// This node's keys, newest epoch first.
    pub keys: Vec<LocalKey>,
    /// Handshakes per second above which senders must prove their address.
    pub handshakes_per_second: u64,
    /// How long to poll for the next packet before sleeping.
    pub spin: Duration,
    /// Whether outer packets take over the DSCP of the inner ones.
    pub copy_dscp: bool,
    /// Threads that carry packets.
    pub threads: usize,
    /// The implementation that seals and opens packets.
    pub cipher: CipherImplementation,
    /// Called whenever a peer's state changes.
    pub on_state: Box<dyn Fn(NodeNumber, Progress) + Send + Sync>,
}

/// The running tunnel.
pub struct Userspace {
    tunnel: Tunnel,
}

impl Userspace {
    /// Opens the device, or takes over the one that an earlier agent left, and starts.
    ///
    /// # Errors
    /// [`BackendError`]: no TUN device, the port is taken, ...
    pub fn start(config: UserspaceConfig) -> Result<Userspace, BackendError> {
        let on_state = config.on_state;
        let tunnel = Tunnel::start(TunnelConfig {
            device: DeviceConfig { name: config.device, mtu: config.mtu, persist: true },
            threads: config.threads,
            listen_port: config.port,
            keys: config.keys,
            fwmark: None,
            handshake_limit_per_second: config.handshakes_per_second,
            spin: config.spin,
            copy_dscp: config.copy_dscp,
            cipher: config.cipher,
            on_state: Some(Box::new(move |id, state| on_state(NodeNumber(id.0), progress(state)))),
        })?;
        Ok(Userspace { tunnel })
    }
}

impl Backend for Userspace {
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
            drops: stats.drops.iter().map(|(reason, count)| (reason.as_str(), count)).collect(),
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
            strangers: stats.strangers,
            stopped: match self.tunnel.health() {
                Health::Running => None,
                Health::Stopped { reason } => Some(reason),
            },
        })
    }

    fn greet(&self, peer: NodeNumber, anew: bool) -> Result<(), BackendError> {
        Ok(self.tunnel.handshake(PeerId(peer.0), anew)?)
    }

    fn inject(&self, packet: Vec<u8>) {
        self.tunnel.inject(packet);
    }
}

/// The changes that install `peer`, and take from other peers what is now its own. Prefixes that
/// stay are not touched.
fn put(peer: &Peer, present: &[PeerConfig]) -> Vec<PeerChange> {
    let id = PeerId(peer.number.0);
    let keys: BTreeSet<[u8; 32]> = peer.keys.iter().map(|(_, key)| *key).collect();
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
        keys: peer.keys.iter().map(|(epoch, public)| PeerKey { epoch: *epoch, public: *public }).collect(),
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
        keys: config.keys.into_iter().map(|key| (key.epoch, key.public)).collect(),
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
