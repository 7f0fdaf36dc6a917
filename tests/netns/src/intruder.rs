//! A third-party program on a device.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context as _, Result};

use crate::netns::Netns;
use crate::syscalls;

/// A direction through a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the device.
    In,
    /// Out of the device.
    Out,
}

/// What the program answers to every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The next program decides (`TCX_NEXT`).
    Next,
    /// The packet passes, and no program after it runs (`TCX_PASS`).
    Pass,
}

/// Where the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    Front,
    /// After all others, which is the kernel's default.
    End,
}

/// A program that TCX runs on a device until this value is dropped.
pub struct Intruder {
    id: u32,
    device: (Netns, String),
    way: Way,
    place: Place,
    program: OwnedFd,
    link: OwnedFd,
}

impl Intruder {
    /// Attaches the program.
    ///
    /// # Errors
    /// A system call fails.
    pub fn attach(netns: &Netns, device: &str, way: Way, place: Place, answer: Answer) -> Result<Intruder> {
        let answer = if answer == Answer::Pass { 0 } else { -1 };
        let program = syscalls::foreign_program(answer).context("load a program")?;
        let link = link(&program, netns, device, way, place)?;
        let information = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
        let id = information.lines().find_map(|line| line.strip_prefix("prog_id:"));
        let id = id.context("no id of the program")?.trim().parse()?;
        Ok(Intruder { id, device: (netns.clone(), device.into()), way, place, program, link })
    }

    /// Moves the program to its place again.
    ///
    /// # Errors
    /// A system call fails.
    pub fn push(self) -> Result<Intruder> {
        // The kernel does not attach the same program twice.
        drop(self.link);
        let link = link(&self.program, &self.device.0, &self.device.1, self.way, self.place)?;
        Ok(Intruder { link, ..self })
    }

    /// The number of programs before it, and after it.
    ///
    /// # Errors
    /// A system call fails.
    pub fn others(&self) -> Result<(usize, usize)> {
        let index = self.device.0.interface(&self.device.1)?;
        let programs = self.device.0.within(|| Ok(syscalls::tcx_programs(index, kind(self.way))?))?;
        let place = programs.iter().position(|id| *id == self.id).context("it does not run")?;
        Ok((place, programs.len() - 1 - place))
    }
}

fn link(program: &OwnedFd, netns: &Netns, device: &str, way: Way, place: Place) -> Result<OwnedFd> {
    let index = netns.interface(device)?;
    let flags = if place == Place::Front { 8 } else { 0 };
    netns.within(|| syscalls::tcx_link(program, index, kind(way), flags).context("attach a program"))
}

fn kind(way: Way) -> u32 {
    match way {
        Way::In => syscalls::TCX_INGRESS,
        Way::Out => syscalls::TCX_EGRESS,
    }
}
