//! The tunnel as the standard `wg show` sees it: a node with two keys is two peers.

use std::collections::BTreeMap;

use crate::state::SharedState;
use crate::uapi::{Interface, PeerView, UapiView};

/// See the module.
pub(super) struct View {
    pub(super) agent: SharedState,
    pub(super) port: u16,
}

impl UapiView for View {
    fn interface(&self) -> Interface {
        let agent = self.agent.read();
        let stats = agent.running.as_ref().and_then(|running| running.backend.stats().ok()).unwrap_or_default();
        let stats: BTreeMap<_, _> = stats.peers.iter().map(|peer| (peer.number, peer)).collect();
        let mut peers = Vec::new();
        for peer in agent.desired.state.tunnels.peers.values() {
            let seen = stats.get(&peer.number);
            let newest = peer.keys.first().map(|key| key.epoch);
            let used = seen.and_then(|seen| seen.epoch).or(newest);
            for key in &peer.keys {
                let seen = seen.filter(|_| Some(key.epoch) == used);
                peers.push(PeerView {
                    public_key: key.bytes,
                    endpoint: seen.and_then(|seen| seen.endpoint).or(peer.endpoint),
                    // Both keys have the same allowed IPs; WireGuard shows each prefix under one
                    // peer only.
                    allowed_ips: if Some(key.epoch) == used {
                        peer.allowed.iter().copied().collect()
                    } else {
                        Vec::new()
                    },
                    latest_handshake: seen.and_then(|seen| seen.latest_handshake),
                    received_bytes: seen.map_or(0, |seen| seen.received),
                    sent_bytes: seen.map_or(0, |seen| seen.sent),
                    keepalive_seconds: 0,
                });
            }
        }
        Interface { port: self.port, peers }
    }
}
