//! Brings the programs into the kernel, with the maps that are pinned already.

use std::io;
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

use crate::tables::{self, Table};
use crate::{DatapathError, Limits, Pins, chain};

pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hauberk.bpf.o"));

/// The programs with the pinned maps, not yet loaded into the kernel.
pub(crate) struct Opened {
    pub(crate) ebpf: Ebpf,
    /// Maps whose size differs from the limits, one sentence each.
    pub(crate) resized: Vec<String>,
    /// Whether a map by which packets are judged was not pinned.
    pub(crate) begins_empty: bool,
}

/// Opens the programs with the maps that are pinned, and makes those that are not.
///
/// # Errors
/// [`DatapathError::Load`], [`DatapathError::Shape`].
pub(crate) fn open(pins: &Pins, limits: &Limits) -> Result<Opened, DatapathError> {
    let mut loader = EbpfLoader::new();
    let (mut resized, mut begins_empty) = (Vec::new(), false);
    for table in tables::all() {
        let (name, pin) = (table.name(), pins.map(table));
        let mut pinned = MapInfo::from_pin(&pin).ok();
        let wanted = table.size(limits);
        if table.renewed && pinned.as_ref().is_some_and(|info| Some(info.max_entries()) != wanted) {
            std::fs::remove_file(&pin).map_err(|source| DatapathError::Pins { path: pin.clone(), source })?;
            pinned = None;
        }
        begins_empty |= table.governs && pinned.is_none();
        if let Some(info) = &pinned {
            check_shape(table, &pin, info)?;
        }
        loader.map_pin_path(name, pin);
        let Some(size) = wanted else { continue };
        // A pinned map keeps its size. Told another one, aya would map the ring buffer with the
        // wrong size.
        let pinned = pinned.map(|info| info.max_entries());
        loader.map_max_entries(name, pinned.unwrap_or(size));
        if let Some(pinned) = pinned.filter(|pinned| *pinned != size) {
            resized.push(format!("{name} has room for {pinned}, not the {size} configured"));
        }
    }
    let ebpf = loader.load(OBJECT).map_err(|source| DatapathError::Load { source: Box::new(source) })?;
    Ok(Opened { ebpf, resized, begins_empty })
}

/// Neither aya nor the kernel compares a pinned map with what a program expects.
fn check_shape(table: &Table, pin: &Path, info: &MapInfo) -> Result<(), DatapathError> {
    let (pinned, expected) = ((info.key_size(), info.value_size()), (table.layout.key_size, table.layout.value_size));
    if pinned == expected {
        return Ok(());
    }
    Err(DatapathError::Shape { pin: pin.to_owned(), pinned, expected })
}

/// Loads a program into the kernel, unless it is loaded.
pub(crate) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    match load_program(program(ebpf, name)?) {
        Err(error) if !matches!(error, ProgramError::AlreadyLoaded) => {
            Err(DatapathError::Program { program: name, reason: chain(&error) })
        }
        _ => Ok(()),
    }
}

/// Attempts to load a program; libbpf makes as many.
const ATTEMPTS: u32 = 5;

/// Loads a program into the kernel. The verifier gives up with EAGAIN when the thread gets a
/// signal, for example because a child ended.
///
/// # Errors
/// The kernel's, with the verifier's text.
pub(crate) fn load_program(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    attempt(|| program.load())
}

/// The same for a program of any type.
pub(crate) fn attempt(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut attempt = 1;
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, program: &'static str) -> Result<&'a mut SchedClassifier, DatapathError> {
    let refused = |reason: String| DatapathError::Program { program, reason };
    ebpf.program_mut(program)
        .ok_or_else(|| refused("it is not in the object this agent was built with".into()))?
        .try_into()
        .map_err(|error: ProgramError| refused(chain(&error)))
}
