//! Programs of another hauberk on a device. An agent that pinned its programs elsewhere left them
//! there, or a second agent runs. They judge packets too, by their own tables, although no program
//! of this agent was detached.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aya::programs::TcAttachType;
use aya::programs::links::{FdLink, PinnedLink};
use hauberk_abi::framing::Framing;
use hauberk_abi::layout::Hook;

use crate::links::pin_path;
use crate::{BPF_FILE_SYSTEM, Pins, query};

/// Which other hauberk's programs are attached to the device, and what to do about them. None if
/// there are none. With clsact the agents' programs replace each other, so there are none.
pub fn words(own: &Pins, device: &str) -> Option<String> {
    let strangers = strangers(own, device);
    if strangers.is_empty() {
        return None;
    }
    let places: BTreeSet<PathBuf> = folders(own).into_iter().filter(|links| has(links, device, &strangers)).collect();
    // Above `vN/links`.
    let roots: BTreeSet<String> =
        places.iter().filter_map(|links| links.ancestors().nth(2)).map(|root| root.display().to_string()).collect();
    let whose = match roots.is_empty() {
        false => format!("pinned in {}", roots.into_iter().collect::<Vec<_>>().join(" and ")),
        true => {
            let names: BTreeSet<String> = strangers.iter().map(|id| query::name_of(*id)).collect();
            let is_ours = |name: &&String| Framing::PROGRAMS.contains(&name.as_str());
            let names: Vec<&str> = names.iter().filter(is_ours).map(String::as_str).collect();
            if names.is_empty() {
                return None;
            }
            format!("{}, pinned elsewhere", names.join(" and "))
        }
    };
    Some(format!(
        "programs of another hauberk ({whose}) are attached to {device} too, and judge packets by what that one knew: paths.pins was changed \
         without `hauberkd uninstall`, or a second agent runs on this node; stop the agents, run `hauberkd uninstall` with the \
         configuration that names that path, and start this agent again"
    ))
}

/// Ids of the programs on the device that are not this agent's.
fn strangers(own: &Pins, device: &str) -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        ids.extend(query::tcx_programs(device, direction).unwrap_or_default());
    }
    let links = own.links();
    let is_own = |id: &u32| Hook::ALL.into_iter().any(|hook| pinned(&pin_path(&links, hook, device)) == Some(*id));
    ids.retain(|id| !query::is_observer(*id) && !is_own(id));
    ids
}

/// The folders in which other agents, or earlier versions of this one, may have pinned links.
fn folders(own: &Pins) -> Vec<PathBuf> {
    let beside = own.root.parent().unwrap_or(&own.root);
    let roots = [beside, Path::new(BPF_FILE_SYSTEM)].into_iter().flat_map(list).chain([own.root.clone()]);
    let links = roots.flat_map(|root| list(&root)).map(|version| version.join("links"));
    links.filter(|links| *links != own.links()).collect()
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Whether one of the programs is pinned in the folder. The name is not enough: a device in another
/// network namespace may have the same one.
fn has(links: &Path, device: &str, programs: &BTreeSet<u32>) -> bool {
    let mut pins = Hook::ALL.into_iter().map(|hook| pin_path(links, hook, device));
    pins.any(|pin| pinned(&pin).is_some_and(|id| programs.contains(&id)))
}

/// The program of a pinned link.
fn pinned(pin: &Path) -> Option<u32> {
    if !pin.is_file() {
        return None;
    }
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    Some(link.info().ok()?.program_id())
}
