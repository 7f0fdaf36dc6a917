//! The programs at a cgroup, which lead connections to services to a backend. They outlive the
//! agent: their links are pinned.

use std::fs::File;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};

use crate::loader::attempt;
use crate::{Datapath, DatapathError, chain};

/// The programs. The first ones attached are those that say addresses, so that a socket is told
/// the service's address from the first moment on.
const PROGRAMS: [&str; 8] =
    ["peer_name4", "peer_name6", "receive4", "receive6", "connect4", "connect6", "send4", "send6"];

/// Links of the socket programs, which keep them attached if another program removes the pins.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Vec<PinnedLink>);

impl Datapath {
    /// Attaches the programs to the cgroup, in place of those of an earlier agent. In between, both
    /// run: the second finds nothing left to do.
    ///
    /// # Errors
    /// [`DatapathError::Cgroup`], [`DatapathError::Program`].
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), DatapathError> {
        let refused = |program, reason| DatapathError::Cgroup { program, cgroup: cgroup.to_owned(), reason };
        let folder = self.pins.sockets();
        std::fs::create_dir_all(&folder).map_err(|source| DatapathError::Pins { path: folder.clone(), source })?;
        let mut links = Vec::new();
        for name in PROGRAMS {
            load(&mut self.ebpf, name)?;
            hauberk_fault::point("attach a socket program");
            let program = program(&mut self.ebpf, name)?;
            let link = File::open(cgroup)
                .map_err(|error| error.to_string())
                .and_then(|cgroup| attach(program, &cgroup, &folder, name));
            links.push(link.map_err(|reason| refused(name, reason))?);
        }
        self.sockets = Sockets(links);
        Ok(())
    }

    /// Whether the programs have been attached and their pins are there.
    pub fn has_sockets(&self) -> bool {
        !self.sockets.0.is_empty() && PROGRAMS.iter().all(|name| self.pins.sockets().join(name).exists())
    }

    /// Detaches the programs of this agent and of an earlier one. Connections stay as they are.
    ///
    /// # Errors
    /// [`DatapathError::Pins`].
    pub fn detach_sockets(&mut self) -> Result<(), DatapathError> {
        self.sockets.0.clear();
        let path = self.pins.sockets();
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(DatapathError::Pins { path, source }),
            _ => Ok(()),
        }
    }
}

/// Attaches the program and pins its link in the place of an earlier one's.
fn attach(program: &mut CgroupSockAddr, cgroup: &File, folder: &Path, name: &str) -> Result<PinnedLink, String> {
    // The kernel lets links of several programs run, whatever the mode: see cgroup_bpf_link_attach.
    let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(|error| chain(&error))?;
    let link = program.take_link(id).map_err(|error| chain(&error))?;
    let next: PathBuf = folder.join(format!("next-{name}"));
    drop(std::fs::remove_file(&next));
    FdLink::try_from(link).map_err(|error| chain(&error))?.pin(&next).map_err(|error| chain(&error))?;
    std::fs::rename(&next, folder.join(name)).map_err(|error| error.to_string())?;
    PinnedLink::from_pin(folder.join(name)).map_err(|error| chain(&error))
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    let program = program(ebpf, name)?;
    match attempt(|| program.load()) {
        Err(error) if !matches!(error, ProgramError::AlreadyLoaded) => {
            Err(DatapathError::Program { program: name, reason: chain(&error) })
        }
        _ => Ok(()),
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, program: &'static str) -> Result<&'a mut CgroupSockAddr, DatapathError> {
    let refused = |reason: String| DatapathError::Program { program, reason };
    ebpf.program_mut(program)
        .ok_or_else(|| refused("it is not in the object this agent was built with".into()))?
        .try_into()
        .map_err(|error: ProgramError| refused(chain(&error)))
}
