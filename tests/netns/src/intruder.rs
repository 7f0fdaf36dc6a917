//! A third-party program on a device that also wants to be next to the wire (or the pod). It lets
//! everything pass.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context as _, Result};

use crate::netns::Netns;
use crate::syscalls;

/// A direction through a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the device: the first program is next to the wire.
    In,
    /// Out of the device: the last program is next to the wire.
    Out,
}

/// A program that TCX runs on a device until this value is dropped.
pub struct Intruder {
    id: u32,
    device: (Netns, String),
    way: Way,
    program: OwnedFd,
    link: OwnedFd,
}

impl Intruder {
    /// Attaches the program next to the wire.
    ///
    /// # Errors
    /// A system call fails.
    pub fn attach(netns: &Netns, device: &str, way: Way) -> Result<Intruder> {
        let program = syscalls::passing_program().context("load a program")?;
        let link = link(&program, netns, device, way)?;
        let information = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
        let id = information.lines().find_map(|line| line.strip_prefix("prog_id:"));
        let id = id.context("no id of the program")?.trim().parse()?;
        Ok(Intruder { id, device: (netns.clone(), device.into()), way, program, link })
    }

    /// Moves the program next to the wire again.
    ///
    /// # Errors
    /// A system call fails.
    pub fn push(self) -> Result<Intruder> {
        // The kernel does not attach the same program twice.
        drop(self.link);
        let link = link(&self.program, &self.device.0, &self.device.1, self.way)?;
        Ok(Intruder { link, ..self })
    }

    /// The number of programs between it and the wire, and of the other programs.
    ///
    /// # Errors
    /// A system call fails.
    pub fn others(&self) -> Result<(usize, usize)> {
        let index = self.device.0.interface(&self.device.1)?;
        let programs = self.device.0.within(|| Ok(syscalls::tcx_programs(index, kind(self.way))?))?;
        let place = programs.iter().position(|id| *id == self.id).context("it does not run")?;
        let behind = programs.len() - 1 - place;
        Ok(if self.way == Way::In { (place, behind) } else { (behind, place) })
    }
}

fn link(program: &OwnedFd, netns: &Netns, device: &str, way: Way) -> Result<OwnedFd> {
    let index = netns.interface(device)?;
    let flags = if way == Way::In { 8 } else { 0 };
    netns.within(|| syscalls::tcx_link(program, index, kind(way), flags).context("attach a program"))
}

fn kind(way: Way) -> u32 {
    match way {
        Way::In => syscalls::TCX_INGRESS,
        Way::Out => syscalls::TCX_EGRESS,
    }
}
