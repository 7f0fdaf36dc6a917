//! Services: their tables, and the programs that lead sockets to backends.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use hauberk_abi::layout::probe;
use hauberk_core::services::{ServiceStep, Services};
use hauberk_fault as fault;
use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{ApplyError, Kernel};
use crate::config::Config;

impl Kernel {
    /// Reads which services the tables have.
    pub(super) fn read_services(&mut self) -> Result<Services, ApplyError> {
        self.datapath.maps_mut().tidy_services()?;
        let maps = self.datapath.maps();
        let sets: BTreeMap<_, _> =
            maps.sets()?.into_iter().map(|(number, backends)| (number, backends.into())).collect();
        Ok(Services {
            frontends: maps.frontends()?.into_iter().collect(),
            sets,
            sources: maps.sources()?.into_iter().collect(),
            masquerade: maps.masquerade()?,
        })
    }

    /// Carries out one step.
    pub(super) fn apply_service(&mut self, step: &ServiceStep) -> Result<(), ApplyError> {
        let maps = self.datapath.maps_mut();
        match step {
            ServiceStep::PutSet(number, backends) => maps.put_set(*number, backends)?,
            ServiceStep::PutFrontend(key, frontend) => maps.put_frontend(*key, *frontend)?,
            ServiceStep::RemoveFrontend(key) => maps.remove_frontend(*key)?,
            ServiceStep::RemoveSet(number) => maps.remove_set(*number)?,
            ServiceStep::PutSource(range) => maps.put_source(*range)?,
            ServiceStep::RemoveSource(range) => maps.remove_source(*range)?,
            ServiceStep::Masquerade(addresses) => maps.put_masquerade(*addresses)?,
        }
        Ok(())
    }

    /// Attaches the programs that lead sockets to backends, unless they are attached.
    ///
    /// # Errors
    /// [`ApplyError::Datapath`].
    pub fn lead_sockets(&mut self, cgroup: &Path) -> Result<(), ApplyError> {
        if !self.datapath.has_sockets() {
            fault::point("lead sockets to backends");
            self.datapath.attach_sockets(cgroup)?;
        }
        Ok(())
    }

    /// Attaches them once more, in the place of those that are attached but do not run: somebody
    /// has detached their links by force, which leaves the pins.
    ///
    /// # Errors
    /// [`ApplyError::Datapath`].
    pub fn lead_sockets_anew(&mut self, cgroup: &Path) -> Result<(), ApplyError> {
        fault::point("lead sockets to backends anew");
        Ok(self.datapath.attach_sockets(cgroup)?)
    }

    /// Detaches them.
    ///
    /// # Errors
    /// [`ApplyError::Datapath`].
    pub fn leave_sockets_alone(&mut self) -> Result<(), ApplyError> {
        fault::point("leave sockets alone");
        Ok(self.datapath.detach_sockets()?)
    }
}

/// Whether the programs run for this process: a connection to their probe address is refused.
///
/// # Errors
/// A sentence for the first family in which it is not.
pub fn prove_sockets() -> Result<(), String> {
    prove(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::from(probe::SOCKET_V4).into())?;
    prove(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from(probe::SOCKET).into())
}

fn prove(own: IpAddr, probe: IpAddr) -> Result<(), String> {
    let socket = match UdpSocket::bind(SocketAddr::new(own, 0)) {
        Ok(socket) => socket,
        // Without the family there are no such connections.
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => return Ok(()),
        Err(error) => return Err(format!("a probe's socket cannot be opened: {error}")),
    };
    // A datagram socket sends nothing when it is connected.
    match socket.connect(SocketAddr::new(probe, 9)) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        _ => Err(format!(
            "a probe to {probe} passed; is the agent outside of paths.cgroup, or did another program detach hauberk's?"
        )),
    }
}

/// The cgroup whose processes' sockets are led: the configured one, or all processes' root.
///
/// # Errors
/// A sentence that says what to configure.
pub fn cgroup(config: &Config) -> Result<PathBuf, String> {
    let Some(cgroup) = config.paths.cgroup.clone().or_else(cgroup_root) else {
        return Err("no cgroup2 file system is mounted; mount one and name it in paths.cgroup".into());
    };
    match statfs(&cgroup) {
        Ok(system) if system.filesystem_type() == CGROUP2_SUPER_MAGIC => {}
        Ok(_) => {
            return Err(format!("{} is on no cgroup2 file system; name a cgroup in paths.cgroup", cgroup.display()));
        }
        Err(error) => return Err(format!("paths.cgroup is {}: {}", cgroup.display(), error.desc())),
    }
    // The root of all cgroups is the one that lacks this file.
    if config.paths.cgroup.is_none() && cgroup.join("cgroup.type").exists() {
        return Err(format!(
            "the cgroup2 file system at {} shows a container's cgroups alone; mount the node's and name it in paths.cgroup",
            cgroup.display()
        ));
    }
    Ok(cgroup)
}

/// The root of the cgroup2 file system, as this process sees it.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    // Fields before " - " and after it: see proc_pid_mountinfo(5).
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}
