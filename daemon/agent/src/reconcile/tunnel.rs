//! The tunnel's device, which another program may rename or remove.

use tracing::error;

use super::{Reconciler, Stage};
use crate::apply::TunnelDevice;
use crate::restart::restart;

impl Reconciler {
    /// Has the tunnel's device be there under its name. Without it the agent starts anew in place, which makes another one: the
    /// programs, and with them every denial, stay meanwhile.
    pub(super) async fn keep_tunnel(&mut self) {
        let Stage::Running(kernel) = &self.stage else { return };
        let device = &self.config.tunnel.device;
        match kernel.keep_tunnel(device).await {
            Ok(TunnelDevice::There) => {
                self.succeed("tunnel device");
            }
            Ok(TunnelDevice::NamedAgain { was }) => {
                let message = format!("{device} was renamed to {was} by another program and has its name again");
                self.succeed("tunnel device");
                self.restored("tunnel device".into(), message);
            }
            Ok(TunnelDevice::Gone) => {
                error!(
                    device,
                    "the tunnel's device was removed by another program: hauberkd starts anew; the datapath stays"
                );
                let error = restart();
                let message = format!(
                    "{device} was removed by another program, and hauberkd could not start anew to make another: {error}; \
                     restart the agent; protected pods reach no other node until then"
                );
                self.fail("tunnel device", message);
            }
            Err(error) => {
                self.fail("tunnel device", format!("cannot be looked after: {error}"));
            }
        }
    }
}
