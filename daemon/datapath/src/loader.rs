//! Brings the programs into the kernel, with the maps that are pinned already.

use std::io;

use aya::maps::MapInfo;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

use crate::{DatapathError, Limits, Pins, chain, tables};

pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hauberk.bpf.o"));

/// The programs with the pinned maps, not yet loaded into the kernel, and the maps whose size
/// differs from `limits`.
pub(crate) fn open(pins: &Pins, limits: &Limits) -> Result<(Ebpf, Vec<String>), DatapathError> {
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(pins.maps());
    let mut resized = Vec::new();
    for table in tables::all() {
        let Some(size) = table.size(limits) else { continue };
        let name = table.name;
        // A pinned map keeps its size. Told another one, aya would map the ring buffer with the
        // wrong size.
        let pinned = MapInfo::from_pin(pins.maps().join(name)).ok().map(|info| info.max_entries());
        loader.map_max_entries(name, pinned.unwrap_or(size));
        if let Some(pinned) = pinned.filter(|pinned| *pinned != size) {
            resized.push(format!("{name} has room for {pinned}, not the {size} configured"));
        }
    }
    let ebpf = loader.load(OBJECT).map_err(|source| DatapathError::Load { source: Box::new(source) })?;
    Ok((ebpf, resized))
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
    let mut attempt = 1;
    loop {
        match program.load() {
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
