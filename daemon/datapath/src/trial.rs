//! Loads the programs and leaves nothing behind: what `hauberkd check` asks the kernel and its
//! verifier, and what their answers mean.

use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use hauberk_abi::framing::Framing;

use crate::loader::{load, open};
use crate::observer::Observer;
use crate::{DatapathError, Limits, Pins};

/// Kernel helpers that the programs call and that not every Linux has: number (linux/bpf.h), name,
/// and first version.
const HELPERS: [(u32, &str, &str); 5] = [
    (69, "bpf_fib_lookup", "4.18"),
    (131, "bpf_ringbuf_reserve", "5.8"),
    (152, "bpf_redirect_neigh", "5.10"),
    (155, "bpf_redirect_peer", "5.10"),
    (160, "bpf_ktime_get_coarse_ns", "5.11"),
];
/// Small, because the maps exist only for a moment.
const ROOM: u32 = 64;

/// Asks the kernel for the kinds of maps and programs that not every kernel has.
///
/// # Errors
/// The kind that it refuses, and why.
pub fn try_kinds() -> Result<(), String> {
    let maps = [
        (MapType::LpmTrie, "longest-prefix maps"),
        (MapType::LruHash, "least-recently-used maps"),
        (MapType::RingBuf, "ring buffers"),
    ];
    let maps = maps.map(|(kind, name)| (is_map_supported(kind).map_err(|error| error.to_string()), name));
    let programs = is_program_supported(ProgramType::SchedClassifier).map_err(|error| error.to_string());
    for (supported, name) in maps.into_iter().chain([(programs, "traffic control programs")]) {
        match supported {
            Ok(true) => {}
            Ok(false) => return Err(format!("{name}: not supported")),
            Err(error) => return Err(format!("{name}: {error}")),
        }
    }
    Ok(())
}

/// Loads every program, with maps of its own that are pinned below `folder` meanwhile. Returns the
/// number of programs.
///
/// # Errors
/// Which program was refused, why, and which kernel would accept it.
pub fn try_programs(folder: &Path) -> Result<usize, String> {
    let pins = Pins::new(folder);
    let tried = try_below(&pins);
    let removed = pins.remove();
    let count = tried.map_err(|error| explain(&error))?;
    removed.map_err(|error| format!("cannot tidy up after the trial: {error}"))?;
    Ok(count)
}

fn try_below(pins: &Pins) -> Result<usize, DatapathError> {
    pins.create()?;
    let limits = Limits {
        endpoints: ROOM,
        ranges: ROOM,
        flows: ROOM,
        attachments: ROOM,
        events: 1 << 16,
        frontends: ROOM,
        backends: ROOM,
        sockets: ROOM,
        connections: ROOM,
    };
    let mut ebpf = open(pins, &limits)?.ebpf;
    for name in Framing::PROGRAMS {
        load(&mut ebpf, name)?;
    }
    Observer::load(pins, false)
        .map_err(|error| DatapathError::Program { program: "observe", reason: error.to_string() })?;
    Ok(Framing::PROGRAMS.len())
}

fn explain(error: &DatapathError) -> String {
    let DatapathError::Program { program, reason } = error else { return error.to_string() };
    if let Some((_, helper, version)) = missing_helper(reason) {
        return format!(
            "the kernel does not take {program}: it has no helper {helper}, which came with Linux {version}"
        );
    }
    format!("the kernel does not take {program}: {}", last_words(reason))
}

/// The helper that the verifier does not know or does not allow ("unknown func
/// bpf_redirect_peer#155", "invalid func unknown#160").
fn missing_helper(reason: &str) -> Option<(u32, &'static str, &'static str)> {
    let line = reason.lines().rev().find(|line| line.contains("unknown func") || line.contains("invalid func"))?;
    let (_, after) = line.rsplit_once('#')?;
    let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
    let number: u32 = digits.parse().ok()?;
    HELPERS.into_iter().find(|(known, ..)| *known == number)
}

/// The verifier's last line before its statistics; the whole text if there is none.
fn last_words(reason: &str) -> &str {
    let is_statistics = |line: &&str| {
        ["processed ", "verification time", "stack depth"].iter().any(|word| line.trim_start().starts_with(word))
    };
    let mut lines = reason.lines().rev().filter(|line| !line.trim().is_empty()).filter(|line| !is_statistics(line));
    lines.next().map_or(reason, str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: &str) -> String {
        explain(&DatapathError::Program { program: "to_wire", reason: reason.into() })
    }

    #[test]
    fn what_the_verifier_refuses_is_said_in_words() {
        let old = refused(
            "Invalid argument (os error 22). Verifier output: 0: (bf) r6 = r1\n85: (85) call unknown#160\ninvalid func unknown#160\nprocessed 9 insns",
        );
        assert!(old.ends_with("it has no helper bpf_ktime_get_coarse_ns, which came with Linux 5.11"), "{old}");
        assert!(
            refused("unknown func bpf_redirect_peer#155\n").contains("bpf_redirect_peer, which came with Linux 5.10")
        );
        let long = refused(
            "Permission denied. Verifier output: 1: r0 = 0\nR4 !read_ok\nverification time 3 usec\nstack depth 8\nprocessed 9 insns\n",
        );
        assert_eq!(long, "the kernel does not take to_wire: R4 !read_ok");
        assert_eq!(
            refused("unknown func bpf_new#9999\n"),
            "the kernel does not take to_wire: unknown func bpf_new#9999"
        );
    }
}
