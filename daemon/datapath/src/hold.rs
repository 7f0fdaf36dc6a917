//! Open handles to the links of devices' guards. A link lives as long as a pin or a handle refers
//! to it. The pins keep it while no agent runs; the handles keep it if another program removes the
//! pins while the agent runs.

use std::collections::BTreeMap;
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use hauberk_abi::layout::Hook;
use tracing::warn;

use crate::links::pin_path;
use crate::{DatapathError, chain, is_on_bpf_file_system};

/// Links of devices and the tunnel. Pods' interfaces are left out: there are many of them, and what
/// pods send also passes a device's guard.
#[derive(Debug, Default)]
pub(crate) struct Held(BTreeMap<(Hook, String), Handle>);

#[derive(Debug)]
struct Handle {
    /// Keeps the program attached.
    _link: FdLink,
    /// Pinning consumes a handle, so there is a second one.
    spare: Option<FdLink>,
}

impl Held {
    /// Opens the link that is pinned for the hook on the interface, and drops the handle held
    /// before.
    pub(crate) fn hold(&mut self, links: &Path, hook: Hook, interface: &str) {
        if matches!(hook, Hook::FromPod | Hook::ToPod) {
            return;
        }
        let open = || PinnedLink::from_pin(pin_path(links, hook, interface)).map(FdLink::from);
        match (open(), open()) {
            (Ok(link), Ok(spare)) => {
                let handle = Handle { _link: link, spare: Some(spare) };
                self.0.insert((hook, interface.to_owned()), handle);
            }
            (Err(error), _) | (_, Err(error)) => {
                warn!(program = hook.as_str(), interface, error = chain(&error), "who removes its pin detaches it");
                self.let_go(hook, interface);
            }
        }
    }

    /// Drops the handle: from now on only the pin keeps the link.
    pub(crate) fn let_go(&mut self, hook: Hook, interface: &str) {
        self.0.remove(&(hook, interface.to_owned()));
    }

    /// Devices were renamed, all of them at once.
    pub(crate) fn rename(&mut self, names: &[(String, String)]) {
        let renamed = |interface: String| {
            names.iter().find(|(old, _)| *old == interface).map_or(interface.clone(), |(_, new)| new.clone())
        };
        let held = std::mem::take(&mut self.0).into_iter();
        self.0 = held.map(|((hook, interface), handle)| ((hook, renamed(interface)), handle)).collect();
    }

    /// Pins again the links whose pins are gone. Returns whether there were any.
    ///
    /// # Errors
    /// [`DatapathError::Attach`] for the first link that cannot be pinned; its handle stays open.
    pub(crate) fn pin_again(&mut self, links: &Path) -> Result<bool, DatapathError> {
        let is_gone = |(hook, interface): &&(Hook, String)| !pin_path(links, *hook, interface).exists();
        let gone: Vec<(Hook, String)> = self.0.keys().filter(is_gone).cloned().collect();
        for (hook, interface) in &gone {
            let refused = |reason: String| DatapathError::Attach {
                program: hook.as_str(),
                interface: interface.clone(),
                reason: format!("its link cannot be pinned again: {reason}"),
            };
            // A failed attempt consumes the spare handle, so none is made where it must fail.
            if !is_on_bpf_file_system(links) {
                return Err(refused(format!("{} is not on a BPF file system", links.display())));
            }
            let spare = self.0.get_mut(&(*hook, interface.clone())).and_then(|handle| handle.spare.take());
            let spare = spare.ok_or_else(|| refused("it could not before".into()))?;
            hauberk_fault::point("pin a link again");
            drop(spare.pin(pin_path(links, *hook, interface)).map_err(|error| refused(chain(&error)))?);
            self.hold(links, *hook, interface);
        }
        Ok(!gone.is_empty())
    }
}
