//! The agent knows its devices by index: another program may rename one, or remove the tunnel's.

use hauberk_fault as fault;

use super::{ApplyError, Kernel};

/// What happened to the agent's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Devices that were renamed and have their own name again: the own name first.
    pub renamed: Vec<(String, String)>,
    /// The tunnel's device is not in this network namespace any more, so the tunnel that reads from
    /// it is useless.
    pub tunnel_gone: bool,
}

impl Kernel {
    /// Looks for the tunnel's device and the pods' interfaces that the agent made, and gives them
    /// their names back.
    ///
    /// # Errors
    /// [`ApplyError::Host`], for example when another device has the name now.
    pub async fn keep_names(&self, tunnel: &str) -> Result<Kept, ApplyError> {
        let links = self.netlink.links().await?;
        let pods = self.pods.iter().filter(|(_, pod)| !pod.adopted);
        let ours = pods.map(|(index, pod)| (*index, pod.host_interface.as_str()));
        let mut kept = Kept { tunnel_gone: true, ..Kept::default() };
        for (index, name) in ours.chain([(self.settings.tunnel, tunnel)]) {
            let Some(link) = links.iter().find(|link| link.index == index) else { continue };
            kept.tunnel_gone &= index != self.settings.tunnel;
            if link.name == name {
                continue;
            }
            fault::point("give a device its name back");
            // Before Linux 6.2 a device that is up cannot be renamed.
            self.netlink.set_down(index).await?;
            self.netlink.set_name(index, name).await?;
            self.netlink.set_up(index).await?;
            kept.renamed.push((name.to_owned(), link.name.clone()));
        }
        Ok(kept)
    }
}
