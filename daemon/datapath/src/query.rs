//! The programs that TCX runs on an interface, by id, in the order in which they run
//! (BPF_PROG_QUERY, bpf(2)).
//!
//! aya's own query also opens each program, which the kernel allows only with CAP_SYS_ADMIN. In a
//! cluster the agent does not have it.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use aya::programs::{ProgramInfo, TcAttachType, loaded_programs};
use hauberk_host::Filter;

use crate::links::{CLSACT_MINOR, CLSACT_NEXT_MINOR};
use crate::syscalls;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
const TCX: [u32; 2] = [46, 47];

/// The ids of the programs at one hook of the interface.
///
/// # Errors
/// The kernel's error, for example if there is no such interface.
pub(crate) fn tcx_programs(interface: &str, direction: TcAttachType) -> io::Result<Vec<u32>> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    syscalls::attached_programs(index, TCX[usize::from(!matches!(direction, TcAttachType::Ingress))])
}

/// Whether the kernel has TCX (Linux 6.6). Without it, the query of an interface's TCX programs
/// fails; the query changes nothing.
pub fn has_tcx() -> bool {
    tcx_programs("lo", TcAttachType::Ingress).is_ok()
}

/// The program's name, or its id if the agent is not allowed to read the name.
pub fn name_of(id: u32) -> String {
    let named = |program: &ProgramInfo| program.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned);
    let found = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    found.as_ref().and_then(named).unwrap_or_else(|| format!("program {id}"))
}

/// The handle's minor number that marks the leak detector's filters on a clsact queueing
/// discipline.
pub const OBSERVER_MINOR: u16 = 0x6862;

/// Whether a filter is hauberk's: the guard's or the leak detector's.
pub fn is_own(filter: &Filter) -> bool {
    [CLSACT_MINOR, CLSACT_NEXT_MINOR, OBSERVER_MINOR].contains(&filter.handle)
}

/// Ids of the leak detector's programs in this process.
static OBSERVERS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Notes that a program is the leak detector's: its place is after the guard.
pub(crate) fn note_observer(id: u32) {
    OBSERVERS.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
}

/// Whether the program is the leak detector's.
pub(crate) fn is_observer(id: u32) -> bool {
    OBSERVERS.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
}
