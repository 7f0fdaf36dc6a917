//! Keeps programs attached when devices are renamed, when another program detaches them, and when
//! their pin folders are removed.

use aya::Ebpf;
use hauberk_abi::framing::Framing;
use hauberk_abi::layout::Hook;

use crate::links::{self, Seat};
use crate::loader::{load, open, program};
use crate::tables::identities;
use crate::{Datapath, DatapathError, chain};

impl Datapath {
    /// [`Datapath::attach`], and then asks the kernel whether the program runs, and runs first. A
    /// pinned link may belong to a device of the same name that was moved to another network
    /// namespace; then a new link is made. Other programs may have come before an earlier agent's.
    ///
    /// # Errors
    /// [`DatapathError::Attach`].
    pub fn attach_and_look(&mut self, hook: Hook, interface: &str, framing: Framing) -> Result<(), DatapathError> {
        self.attach(hook, interface, framing)?;
        if self.is_clsact() {
            // Only netlink tells which filter is the first, so it is made the first in any case.
            return self.reseat(hook, interface, framing);
        }
        let mut seat = self.seat(hook, interface, framing)?;
        if seat == Seat::Missing {
            self.detach(hook, interface)?;
            self.attach(hook, interface, framing)?;
            seat = self.seat(hook, interface, framing)?;
        }
        match seat {
            Seat::Attached { before, .. } if before.is_empty() => Ok(()),
            Seat::Attached { .. } => self.reseat(hook, interface, framing),
            Seat::Missing => Err(DatapathError::Attach {
                program: hook.as_str(),
                interface: interface.into(),
                reason: "the kernel took it and does not run it".into(),
            }),
        }
    }

    /// Moves `hook` back to the front after other programs got there. The hook runs at every
    /// moment: a copy is attached in front first, then the program behind is detached.
    ///
    /// # Errors
    /// [`DatapathError`]; also if the hook does not have its place afterwards.
    pub fn reseat(&mut self, hook: Hook, interface: &str, framing: Framing) -> Result<(), DatapathError> {
        let name = framing.program(hook);
        if self.is_clsact() {
            hauberk_fault::point("take a filter's place back");
            return links::reseat_filter(program(&mut self.ebpf, name)?, hook, interface);
        }
        let refused = |reason: &str| DatapathError::Attach {
            program: hook.as_str(),
            interface: interface.into(),
            reason: reason.into(),
        };
        let first = id(&mut self.ebpf, name)?;
        let idle = if links::is_attached(first, hook, interface)? {
            let copies = match self.copies.take() {
                Some(copies) => copies,
                None => open(&self.pins, &self.limits)?.ebpf,
            };
            let copies = self.copies.insert(copies);
            load(copies, name)?;
            copies
        } else {
            &mut self.ebpf
        };
        hauberk_fault::point("take a program's place back");
        links::reseat(program(idle, name)?, &self.pins.links(), hook, interface)?;
        self.held.hold(&self.pins.links(), hook, interface);
        match self.seat(hook, interface, framing)? {
            Seat::Attached { before, .. } if before.is_empty() => Ok(()),
            _ => Err(refused("others took its place again at once")),
        }
    }

    /// Ids of all copies of a program.
    pub(crate) fn ids(&mut self, name: &'static str) -> Result<Vec<u32>, DatapathError> {
        let first = id(&mut self.ebpf, name)?;
        // A copy that was never needed is not loaded.
        let copy = self.copies.as_mut().and_then(|copies| id(copies, name).ok());
        Ok([Some(first), copy].into_iter().flatten().collect())
    }

    /// Another hook's program has taken over from `hook` on the interface. With clsact it has
    /// replaced `hook`'s filter; with TCX it runs beside `hook`'s program, which is detached now.
    ///
    /// # Errors
    /// [`DatapathError::Attach`].
    pub fn give_up(&mut self, hook: Hook, interface: &str) -> Result<(), DatapathError> {
        if self.is_clsact() {
            return links::forget(&self.pins.links(), hook, interface);
        }
        self.detach(hook, interface)
    }

    /// Devices were renamed: what is attached to them continues under the new names.
    ///
    /// # Errors
    /// [`DatapathError::Pins`].
    pub fn rename(&mut self, names: &[(String, String)]) -> Result<(), DatapathError> {
        // By way of a third name, because two devices may have swapped names.
        let between = |name: &str| format!("{name}%");
        for (old, _) in names {
            links::rename(&self.pins.links(), old, &between(old))?;
        }
        for (old, new) in names {
            links::rename(&self.pins.links(), &between(old), new)?;
        }
        self.held.rename(names);
        Ok(())
    }

    /// Creates the pin folders again if they were removed, and pins the maps that the programs use
    /// and the links of devices' guards. Returns whether anything was missing.
    ///
    /// # Errors
    /// [`DatapathError`].
    pub fn restore_pins(&mut self) -> Result<bool, DatapathError> {
        let complete = self.pins.map(&identities::ENDPOINTS).exists() && self.pins.links().exists();
        if complete {
            return self.held.pin_again(&self.pins.links());
        }
        hauberk_fault::point("make the folders of pins again");
        self.pins.create()?;
        self.maps.pin_again(&self.pins)?;
        self.held.pin_again(&self.pins.links())?;
        Ok(true)
    }
}

fn id(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, DatapathError> {
    let info = program(ebpf, name)?.info();
    info.map(|info| info.id()).map_err(|error| DatapathError::Program { program: name, reason: chain(&error) })
}
