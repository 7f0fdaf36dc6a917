//! The kernel half: eBPF programs, their links and their maps.
//!
//! Everything here outlives the agent: maps and links are pinned, and a new agent takes them over
//! without a gap. It loads its programs against the pinned maps and swaps them in, link by link,
//! each in one atomic step. The exception is the [`observer`], which lives as long as the agent.

mod hold;
mod keep;
mod limits;
mod links;
mod loader;
pub mod observer;
mod pins;
#[cfg(test)]
mod program_tests;
pub mod query;
pub mod rivals;
mod sockets;
#[allow(unsafe_code, reason = "see the module")]
mod syscalls;
pub mod tables;
#[cfg(test)]
mod testing;
mod trial;

use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::MapError;
use hauberk_abi::framing::Framing;
use hauberk_abi::layout::{Hook, Settings};
use hauberk_host::Filter;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use hold::Held;
pub use limits::Limits;
pub use links::{AttachMode, Attachment, CLSACT_MINOR, CLSACT_NEXT_MINOR, How, Seat};
use loader::{Opened, load, open, program};
pub use pins::Pins;
use sockets::Sockets;
pub use tables::Maps;
pub use tables::counters::Counted;
pub use tables::events::Events;
pub use trial::{try_kinds, try_programs};

/// Where the BPF file system is mounted by convention.
pub const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// The kernel refused a request.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The programs or maps could not be loaded.
    #[error("cannot load the eBPF programs: {source}; run `hauberkd check` to see what this kernel lacks")]
    Load {
        /// What aya or the verifier said.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// A program is missing from the object or could not be loaded.
    #[error("cannot load the eBPF program {program}: {reason}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The verifier's last lines.
        reason: String,
    },
    /// A program could not be attached or detached.
    #[error("cannot attach {program} to {interface}: {reason}; is the interface still there?")]
    Attach {
        /// Program.
        program: &'static str,
        /// Interface.
        interface: String,
        /// What the kernel said.
        reason: String,
    },
    /// A program could not be attached to a cgroup.
    #[error(
        "cannot attach {program} to the cgroup {cgroup}: {reason}; is a cgroup2 file system mounted there? `paths.cgroup` names it"
    )]
    Cgroup {
        /// Program.
        program: &'static str,
        /// The cgroup's folder.
        cgroup: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("cannot access the map {map}: {}", chain(source))]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
    /// A pinned map is not of the shape that the programs expect.
    #[error(
        "the pinned map {pin} has keys of {} and values of {} bytes, and this agent's have {} and {}: another hauberk made it; stop that one, run `hauberkd uninstall`, and start again",
        pinned.0, pinned.1, expected.0, expected.1
    )]
    Shape {
        /// Its pin.
        pin: PathBuf,
        /// Sizes of its keys and values, bytes.
        pinned: (u32, u32),
        /// The sizes in this agent's programs, bytes.
        expected: (u32, u32),
    },
    /// The pin directory could not be used.
    #[error("cannot use the pin directory {path}: {source}; is a BPF file system mounted there?")]
    Pins {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The loaded programs, their maps and links.
pub struct Datapath {
    ebpf: Ebpf,
    pins: Pins,
    mode: AttachMode,
    maps: Maps,
    limits: Limits,
    /// A second set of the programs, each loaded only when it must be in one chain twice for a
    /// moment: the kernel does not attach the same program twice.
    copies: Option<Ebpf>,
    held: Held,
    sockets: Sockets,
    /// Maps whose pinned size differs from the configured one.
    resized: Vec<String>,
    /// Whether a map by which packets are judged was not pinned.
    begins_empty: bool,
}

impl Datapath {
    /// Loads the programs against the pinned maps, and creates missing maps. Attaches nothing.
    ///
    /// # Errors
    /// [`DatapathError`], with the verifier's text if it refused.
    pub fn load(root: &Path, limits: &Limits, mode: AttachMode) -> Result<Datapath, DatapathError> {
        let pins = Pins::new(root);
        pins.create()?;
        let Opened { mut ebpf, resized, begins_empty } = open(&pins, limits)?;
        for name in Framing::PROGRAMS {
            load(&mut ebpf, name)?;
        }
        let maps = Maps::take(&mut ebpf)?;
        let mode = links::choose(mode);
        Ok(Datapath {
            ebpf,
            pins,
            mode,
            maps,
            limits: limits.clone(),
            copies: None,
            held: Held::default(),
            sockets: Sockets::default(),
            resized,
            begins_empty,
        })
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps, for writing.
    pub fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// A second set of handles to the maps, for readers.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn observe(&self) -> Result<Maps, DatapathError> {
        Maps::open(&self.pins)
    }

    /// The pin folder.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The maps whose pinned size differs from the configuration, one sentence each. Pinned maps
    /// keep their size.
    pub fn resized(&self) -> &[String] {
        &self.resized
    }

    /// Whether a map by which packets are judged was made anew, for example because its version
    /// has changed. Then the settings must not say that the maps are complete.
    pub fn begins_empty(&self) -> bool {
        self.begins_empty
    }

    /// How programs are attached.
    pub fn how(&self) -> How {
        if self.mode == AttachMode::Clsact { How::Clsact } else { How::Tcx }
    }

    /// Attaches `hook` to the interface, or swaps the program in where an earlier agent attached
    /// one. Hooks on a wire have two programs; this takes the one for the interface's framing.
    ///
    /// # Errors
    /// [`DatapathError::Attach`].
    pub fn attach(&mut self, hook: Hook, interface: &str, framing: Framing) -> Result<(), DatapathError> {
        // A program whose link is held still runs, and the kernel would not attach it twice.
        self.held.pin_again(&self.pins.links())?;
        let program = program(&mut self.ebpf, framing.program(hook))?;
        links::attach(program, &self.pins.links(), self.mode, hook, interface)?;
        if !self.is_clsact() {
            self.held.hold(&self.pins.links(), hook, interface);
        }
        Ok(())
    }

    /// Asks the kernel whether `hook` runs on the interface, and which programs run before and
    /// after it. With clsact this always says attached: there the caller asks by netlink
    /// ([`hauberk_host::Netlink`]).
    ///
    /// # Errors
    /// [`DatapathError::Attach`] if the kernel gives no answer, for example because the interface
    /// is gone.
    pub fn seat(&mut self, hook: Hook, interface: &str, framing: Framing) -> Result<Seat, DatapathError> {
        if self.mode == AttachMode::Clsact {
            return Ok(Seat::Attached { before: Vec::new(), behind: Vec::new() });
        }
        let own = self.ids(framing.program(hook))?;
        links::seat(&own, hook, interface)
    }

    /// Whether a filter of a clsact queueing discipline is `hook`'s: by its handle, and by its
    /// program, because another program can replace a filter's program.
    ///
    /// # Errors
    /// [`DatapathError::Program`].
    pub fn is_filter_of(
        &mut self,
        hook: Hook,
        framing: Framing,
    ) -> Result<impl Fn(&Filter) -> bool + use<>, DatapathError> {
        let own = self.ids(framing.program(hook))?;
        Ok(move |filter: &Filter| {
            [CLSACT_MINOR, CLSACT_NEXT_MINOR].contains(&filter.handle)
                && filter.program.is_some_and(|program| own.contains(&program))
        })
    }

    /// Whether the programs are filters of a clsact queueing discipline.
    pub fn is_clsact(&self) -> bool {
        self.mode == AttachMode::Clsact
    }

    /// Detaches `hook` from the interface. Does nothing if it is not attached or the interface is
    /// gone.
    ///
    /// # Errors
    /// [`DatapathError::Attach`].
    pub fn detach(&mut self, hook: Hook, interface: &str) -> Result<(), DatapathError> {
        self.held.let_go(hook, interface);
        links::detach(&self.pins.links(), self.mode, hook, interface)
    }

    /// Writes the node's settings; programs see them at once.
    ///
    /// # Errors
    /// [`DatapathError::Map`].
    pub fn configure(&mut self, settings: &Settings) -> Result<(), DatapathError> {
        self.maps.write_settings(settings)
    }
}

/// Removes every program that an agent attached, and every map. Returns the interfaces on which an
/// agent made a clsact queueing discipline; the caller removes these.
///
/// # Errors
/// [`DatapathError`] for the first thing that could not be removed.
pub fn remove(root: &Path) -> Result<Vec<String>, DatapathError> {
    let pins = Pins::new(root);
    let disciplines = links::made_disciplines(&pins.links())?;
    for attachment in pins.attached()? {
        let mode = if attachment.how == How::Clsact { AttachMode::Clsact } else { AttachMode::Tcx };
        links::detach(&pins.links(), mode, attachment.hook, &attachment.interface)?;
    }
    disciplines.iter().for_each(|interface| links::remove_observer(interface));
    pins.remove()?;
    Ok(disciplines)
}

/// The clock that the programs use for flows: the coarse monotonic one, nanoseconds; 0 if it cannot
/// be read.
pub fn now() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .map_or(0, |time| std::time::Duration::from(time).as_nanos() as u64)
}

/// Whether the folder lies on a BPF file system. False if there is no such folder.
pub fn is_on_bpf_file_system(folder: &Path) -> bool {
    statfs(folder).is_ok_and(|file_system| file_system.filesystem_type() == BPF_FS_MAGIC)
}

/// An error with its causes, on one line; what it says of a cause itself is not said twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
