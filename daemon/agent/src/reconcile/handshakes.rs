//! Handshakes with peers that permissive traffic waits for.

use std::time::Duration;

use hauberk_abi::layout::peer_flag;
use tokio::time::Instant;
use tracing::warn;

use super::{Reconciler, Stage};

/// Between two attempts to start a handshake with a peer that may not answer.
pub(super) const HANDSHAKE_PAUSE: Duration = Duration::from_secs(30);

impl Reconciler {
    /// Permissive traffic is encrypted only after a handshake has succeeded, and nothing else would
    /// start one.
    pub(super) fn start_handshakes(&mut self) {
        let Stage::Running(kernel) = &self.stage else { return };
        let agent = self.agent.read();
        let wanted = &agent.desired;
        if wanted.permissive_endpoints == 0 {
            return;
        }
        let now = Instant::now();
        for (number, entry) in &wanted.state.tunnels.peer_entries {
            let lately = self.handshakes.get(number).is_some_and(|at| now.duration_since(*at) < HANDSHAKE_PAUSE);
            if entry.flags & peer_flag::READY == 0 && wanted.state.tunnels.peers.contains_key(number) && !lately {
                self.handshakes.insert(*number, now);
                if let Err(error) = kernel.backend().start_handshake(*number, false) {
                    warn!(%error, peer = number.0, "cannot start a handshake");
                }
            }
        }
    }
}
