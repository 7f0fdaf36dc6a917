//! Programs on interfaces. A TCX link is pinned under `links/<hook>@<interface>`. A clsact filter
//! has no link to pin, so an empty folder of that name records it.

use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact};
use aya::programs::{Link as _, ProgramError, SchedClassifier, TcAttachType};
use hauberk_abi::layout::Hook;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::{DatapathError, chain, query};

/// Runs before every filter that was added without a preference.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, CLSACT_MINOR);
/// The handle's minor number that marks hauberk's filters on a clsact queueing discipline.
pub const CLSACT_MINOR: u16 = 0x6861;
/// The minor number of the filter that stands in while hauberk's own is moved to its place.
pub const CLSACT_NEXT_MINOR: u16 = 0x6863;
const CLSACT_NEXT: TcHandle = TcHandle::new(0, CLSACT_NEXT_MINOR);
/// The preference of the leak detector's filters.
const OBSERVER_PRIORITY: u16 = 0xfff0;
const OBSERVER: TcHandle = TcHandle::new(0, query::OBSERVER_MINOR);

/// Takes a hook's place in the record of a queueing discipline that an agent made.
const QDISC: &str = "clsact";

/// How programs are to be attached to devices: the field `attach` of the agent's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links (kernel 6.6).
    Tcx,
    /// Filters on a clsact queueing discipline.
    Clsact,
}

/// How a program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// A TCX link.
    Tcx,
    /// A filter on the clsact queueing discipline.
    Clsact,
}

impl How {
    /// In lower case, as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            How::Tcx => "tcx",
            How::Clsact => "clsact",
        }
    }
}

/// Whether a program runs where it was attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seat {
    /// It does not run.
    Missing,
    /// It runs.
    Attached {
        /// Ids of other programs that run before it. It does not see the packets that they let
        /// pass, redirect or drop.
        before: Vec<u32>,
        /// Ids of other programs that run after it. It does not see what they do to a packet.
        behind: Vec<u32>,
    },
}

/// An attached program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The program.
    pub hook: Hook,
    /// The interface.
    pub interface: String,
    /// How it is attached.
    pub how: How,
}

/// Resolves `auto`: TCX if the kernel has it, else clsact.
pub(crate) fn choose(mode: AttachMode) -> AttachMode {
    match mode {
        AttachMode::Auto if query::has_tcx() => AttachMode::Tcx,
        AttachMode::Auto => AttachMode::Clsact,
        chosen => chosen,
    }
}

pub(crate) fn attach(
    program: &mut SchedClassifier,
    links: &Path,
    mode: AttachMode,
    hook: Hook,
    interface: &str,
) -> Result<(), DatapathError> {
    let refused =
        |reason: String| DatapathError::Attach { program: hook.as_str(), interface: interface.into(), reason };
    let pin = pin_path(links, hook, interface);
    match mode {
        AttachMode::Clsact => attach_clsact(program, &pin, hook, interface).map_err(refused),
        _ => attach_tcx(program, &pin, hook, interface).map_err(refused),
    }
}

fn attach_tcx(program: &mut SchedClassifier, pin: &Path, hook: Hook, interface: &str) -> Result<(), String> {
    if pin.exists() {
        let pinned = PinnedLink::from_pin(pin).map_err(|error| chain(&error))?;
        if let Ok(link) = SchedClassifierLink::try_from(FdLink::from(pinned))
            && let Ok(id) = program.attach_to_link(link)
        {
            // The pin keeps the link, so this handle can be closed.
            drop(FdLink::try_from(program.take_link(id).map_err(|error| chain(&error))?));
            return Ok(());
        }
        // The device was replaced by one of the same name: the old link leads nowhere.
        std::fs::remove_file(pin).map_err(|error| error.to_string())?;
    }
    attach_tcx_anew(program, pin, hook, interface)
}

/// Attaches in front of all other programs: TCX ends at the first program that lets a packet pass,
/// redirects or drops it, and the programs behind it do not run.
fn attach_tcx_anew(program: &mut SchedClassifier, pin: &Path, hook: Hook, interface: &str) -> Result<(), String> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(interface, direction(hook), options).map_err(|error| chain(&error))?;
    let link = program.take_link(id).map_err(|error| chain(&error))?;
    FdLink::try_from(link).map_err(|error| chain(&error))?.pin(pin).map_err(|error| chain(&error))?;
    Ok(())
}

/// Where the first of the `own` programs is in the interface's chain.
pub(crate) fn seat(own: &[u32], hook: Hook, interface: &str) -> Result<Seat, DatapathError> {
    let attached = query::tcx_programs(interface, direction(hook)).map_err(|error| refused(hook, interface, &error))?;
    let is_own = |id: &u32| own.contains(id);
    let Some(place) = attached.iter().position(is_own) else { return Ok(Seat::Missing) };
    let (before, behind) = attached.split_at(place);
    let others = |ids: &[u32]| ids.iter().copied().filter(|id| !is_own(id) && !query::is_observer(*id)).collect();
    Ok(Seat::Attached { before: others(before), behind: others(behind) })
}

/// Whether the program runs on the interface.
pub(crate) fn is_attached(program: u32, hook: Hook, interface: &str) -> Result<bool, DatapathError> {
    let attached = query::tcx_programs(interface, direction(hook)).map_err(|error| refused(hook, interface, &error))?;
    Ok(attached.contains(&program))
}

/// Attaches the program in front of all others. The copy of it elsewhere in the chain is detached
/// once this one runs.
pub(crate) fn reseat(
    program: &mut SchedClassifier,
    links: &Path,
    hook: Hook,
    interface: &str,
) -> Result<(), DatapathError> {
    let next = next_path(links, hook, interface);
    remove(&next).map_err(|error| refused(hook, interface, &error))?;
    attach_tcx_anew(program, &next, hook, interface).map_err(|reason| DatapathError::Attach {
        program: hook.as_str(),
        interface: interface.into(),
        reason,
    })?;
    hauberk_fault::point("let go of a program's former place");
    std::fs::rename(&next, pin_path(links, hook, interface)).map_err(|error| refused(hook, interface, &error))
}

fn refused(hook: Hook, interface: &str, error: &io::Error) -> DatapathError {
    DatapathError::Attach { program: hook.as_str(), interface: interface.into(), reason: error.to_string() }
}

/// Where a link is pinned until it replaces another. No hook has that name. If an agent ended in
/// between, the pin it left disturbs nothing and is removed before the next use.
fn next_path(links: &Path, hook: Hook, interface: &str) -> PathBuf {
    links.join(format!("next-{}@{}", hook.as_str(), escape(interface)))
}

fn remove(pin: &Path) -> io::Result<()> {
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn attach_clsact(program: &mut SchedClassifier, record: &Path, hook: Hook, interface: &str) -> Result<(), String> {
    match qdisc_add_clsact(interface) {
        Ok(()) => note_discipline(record.parent().unwrap_or(record), interface)?,
        Err(error) if is_there_already(&error) => {}
        Err(error) => return Err(chain(&error)),
    }
    let known = SchedClassifierLink::attached(interface, direction(hook), CLSACT_PRIORITY, CLSACT_HANDLE, None)
        .map_err(|error| error.to_string())?;
    // If hauberk's filter exists, this replaces it in one step.
    let id = match program.attach_to_link(known) {
        Ok(id) => id,
        Err(_) => return add_filter(program, CLSACT_HANDLE, hook, interface).and_then(|()| note(record)),
    };
    // Dropping the link would detach the filter, which must outlive the agent.
    std::mem::forget(program.take_link(id).map_err(|error| chain(&error))?);
    note(record)
}

/// Among filters of one preference the kernel runs the newest first.
fn add_filter(program: &mut SchedClassifier, handle: TcHandle, hook: Hook, interface: &str) -> Result<(), String> {
    let options = NlOptions { priority: CLSACT_PRIORITY, handle, classid: None };
    let id = program
        .attach_with_options(interface, direction(hook), TcAttachOptions::Netlink(options))
        .map_err(|error| chain(&error))?;
    std::mem::forget(program.take_link(id).map_err(|error| chain(&error))?);
    Ok(())
}

/// Removes hauberk's filter. It is no error if the filter, its queueing discipline or the device is
/// gone already.
fn remove_filter(handle: TcHandle, hook: Hook, interface: &str) -> io::Result<()> {
    let removed = match SchedClassifierLink::attached(interface, direction(hook), CLSACT_PRIORITY, handle, None) {
        Ok(filter) => filter.detach().map_err(|error| match error {
            ProgramError::NetlinkError(error) => {
                error.raw_os_error().map_or_else(|| io::Error::other(chain(&error)), io::Error::from_raw_os_error)
            }
            error => io::Error::other(chain(&error)),
        }),
        Err(error) => Err(error),
    };
    // The kernel says EINVAL where there is no queueing discipline.
    let gone = [Errno::ENOENT, Errno::EINVAL, Errno::ENODEV].map(|errno| errno as i32);
    removed.or_else(
        |error| if error.raw_os_error().is_some_and(|errno| gone.contains(&errno)) { Ok(()) } else { Err(error) },
    )
}

/// Makes the program's filter the first to run, in place of the one that runs later. A second
/// filter stands in meanwhile.
pub(crate) fn reseat_filter(program: &mut SchedClassifier, hook: Hook, interface: &str) -> Result<(), DatapathError> {
    let refused =
        |reason: String| DatapathError::Attach { program: hook.as_str(), interface: interface.into(), reason };
    let remove = |handle| remove_filter(handle, hook, interface).map_err(|error| refused(error.to_string()));
    remove(CLSACT_NEXT)?;
    add_filter(program, CLSACT_NEXT, hook, interface).map_err(refused)?;
    hauberk_fault::point("let go of a filter's former place");
    remove(CLSACT_HANDLE)?;
    add_filter(program, CLSACT_HANDLE, hook, interface).map_err(refused)?;
    hauberk_fault::point("let go of a filter that stood in");
    remove(CLSACT_NEXT)
}

/// Removes the leak detector's filter, which an agent that was killed leaves behind.
pub(crate) fn remove_observer(interface: &str) {
    drop(SchedClassifierLink::attached(interface, TcAttachType::Egress, OBSERVER_PRIORITY, OBSERVER, None));
}

/// Notes that the interface had no clsact queueing discipline before one was made here.
pub(crate) fn note_discipline(links: &Path, interface: &str) -> Result<(), String> {
    note(&links.join(format!("{QDISC}@{}", escape(interface))))
}

/// Creates the empty folder that records what has no link to pin.
fn note(record: &Path) -> Result<(), String> {
    match std::fs::create_dir(record) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Whether a clsact queueing discipline could not be made because the interface has one.
pub(crate) fn is_there_already(error: &TcError) -> bool {
    match error {
        TcError::AlreadyAttached => true,
        TcError::NetlinkError(error) => error.raw_os_error() == Some(Errno::EEXIST as i32),
        _ => false,
    }
}

pub(crate) fn detach(links: &Path, mode: AttachMode, hook: Hook, interface: &str) -> Result<(), DatapathError> {
    let pin = pin_path(links, hook, interface);
    let removed = if mode == AttachMode::Clsact {
        // Without its record the filter would be forgotten, so the record goes last.
        remove_filter(CLSACT_NEXT, hook, interface)
            .and_then(|()| remove_filter(CLSACT_HANDLE, hook, interface))
            .and_then(|()| std::fs::remove_dir(&pin))
    } else {
        remove(&next_path(links, hook, interface)).and_then(|()| remove(&pin))
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(hook, interface, &error)),
        _ => Ok(()),
    }
}

/// Removes the record of a clsact filter and leaves the filter.
pub(crate) fn forget(links: &Path, hook: Hook, interface: &str) -> Result<(), DatapathError> {
    match std::fs::remove_dir(pin_path(links, hook, interface)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Pins { path: links.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Renames the records of an interface to `new`.
pub(crate) fn rename(links: &Path, old: &str, new: &str) -> Result<(), DatapathError> {
    for (program, interface, _) in records(links)? {
        if interface == old {
            let path = |name: &str| links.join(format!("{program}@{}", escape(name)));
            std::fs::rename(path(old), path(new))
                .map_err(|source| DatapathError::Pins { path: links.to_owned(), source })?;
        }
    }
    Ok(())
}

pub(crate) fn list(links: &Path) -> Result<Vec<Attachment>, DatapathError> {
    let mut attachments = Vec::new();
    for (program, interface, is_folder) in records(links)? {
        let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.as_str() == program) else { continue };
        let how = if is_folder { How::Clsact } else { How::Tcx };
        attachments.push(Attachment { hook, interface, how });
    }
    attachments.sort_by(|a, b| (&a.interface, a.hook).cmp(&(&b.interface, b.hook)));
    Ok(attachments)
}

/// Interfaces on which an agent made a clsact queueing discipline.
pub(crate) fn made_disciplines(links: &Path) -> Result<Vec<String>, DatapathError> {
    let records = records(links)?.into_iter();
    Ok(records.filter(|(program, ..)| program == QDISC).map(|(_, interface, _)| interface).collect())
}

/// Everything that is pinned or recorded: program, interface, and whether it is a folder.
fn records(links: &Path) -> Result<Vec<(String, String, bool)>, DatapathError> {
    let failed = |source| DatapathError::Pins { path: links.to_owned(), source };
    let mut records = Vec::new();
    let entries = match std::fs::read_dir(links) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((program, interface)) = name.split_once('@') {
            records.push((program.to_owned(), unescape(interface), entry.path().is_dir()));
        }
    }
    Ok(records)
}

pub(crate) fn pin_path(links: &Path, hook: Hook, interface: &str) -> PathBuf {
    links.join(format!("{}@{}", hook.as_str(), escape(interface)))
}

/// BPF file systems refuse dots in names, which VLAN interfaces have.
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn unescape(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::FromPod | Hook::FromTunnel | Hook::FromWire => TcAttachType::Ingress,
        Hook::ToPod | Hook::ToWire => TcAttachType::Egress,
    }
}
