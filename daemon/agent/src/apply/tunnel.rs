//! The tunnel's device is known by its index: another program may give it another name, or remove it.

use super::{ApplyError, Kernel};
use crate::fault;

/// What became of the tunnel's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelDevice {
    /// It is there under its name.
    There,
    /// It had another name, and has its own again.
    NamedAgain {
        /// The other name.
        was: String,
    },
    /// It is not in this network namespace any more: the tunnel that reads from it is of no use.
    Gone,
}

impl Kernel {
    /// Looks for the tunnel's device, and gives it its name back.
    ///
    /// # Errors
    /// [`ApplyError::Host`], as when another device has the name by now.
    pub async fn keep_tunnel(&self, name: &str) -> Result<TunnelDevice, ApplyError> {
        let Some(link) = self.netlink.link_of(self.settings.tunnel).await? else { return Ok(TunnelDevice::Gone) };
        if link.name == name {
            return Ok(TunnelDevice::There);
        }
        fault::point("give the tunnel its name back");
        // Linux before 6.2 renames no device that is up.
        self.netlink.set_down(link.index).await?;
        self.netlink.set_name(link.index, name).await?;
        self.netlink.set_up(link.index).await?;
        Ok(TunnelDevice::NamedAgain { was: link.name })
    }
}
