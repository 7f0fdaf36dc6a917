//! The agent's devices, which another program may rename or remove.

use tracing::error;

use super::{Reconciler, Stage};
use crate::restart::restart;

impl Reconciler {
    /// Restores the names of the agent's devices. If the tunnel's device is gone, the agent
    /// restarts in place and makes another one; the programs, and with them every denial, stay
    /// meanwhile.
    pub(super) async fn keep_names(&mut self) {
        let Stage::Running(kernel) = &self.stage else { return };
        let device = &self.config.tunnel.device;
        let kept = match kernel.keep_names(device).await {
            Ok(kept) => kept,
            Err(error) => {
                self.fail("device names", format!("cannot be put back: {error}"));
                return;
            }
        };
        if kept.tunnel_gone {
            error!(device, "another program removed the tunnel's device: hauberkd starts anew; the datapath stays");
            let error = restart();
            let message = format!(
                "another program removed {device}, and hauberkd cannot start anew to make another: {error}; restart the \
                 agent; protected pods reach no other node until then"
            );
            self.fail("tunnel", message);
        }
        self.succeed("device names");
        for (name, was) in kept.renamed {
            self.restored(
                format!("device/{name}"),
                format!("renamed to {was} by another program; it has its name again"),
            );
        }
    }
}
