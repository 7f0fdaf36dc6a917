//! Puts the CNI plugin and its configuration where the container runtime looks for them, and keeps
//! them there.
//!
//! The plugin's binary is copied whenever it differs. The configuration is written only while this
//! node can keep what it promises to pods ([`crate::state::AgentState::is_ready`]): before that, a
//! new node's runtime finds none, and the node is not ready. The configuration stays when the agent
//! stops or the node restarts; the plugin then asks the runtime to try again until the agent is
//! back.
//!
//! As `primary` the list is hauberk's own. As `chained` it is another plugin's list with
//! hauberk-cni appended, in a file of hauberk's own that the runtime reads first ([`list`]) and
//! that is no more readable than the other one. The other file is never touched, so its owner can
//! replace or remove it at any time, and the list follows. Other programs' files are never changed
//! here, and only the list is ever written beside them.

mod files;
mod list;
mod versions;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hauberk_api::{Problem, Severity};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::config::{Cni, CniInstall, Config};
use crate::state::SharedState;

pub use list::ListError;

/// The plugin's file.
const PLUGIN: &str = "hauberk-cni";
/// Where the plugin is in the image, if it is not beside the agent's program.
const IMAGE_FOLDER: &str = "/opt/hauberk/bin";
/// Between looks without a reason.
const LOOK_AROUND: Duration = Duration::from_secs(10);
/// Between looks while something is missing or wrong.
const SOON: Duration = Duration::from_millis(500);
/// Between two writes of the list, which limits the contest with a program that keeps changing it
/// back.
const CALM: Duration = Duration::from_secs(1);

/// The plugin or its configuration could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be read, written or removed.
    #[error("cannot {action} {path}: {source}; is the host's folder mounted here and writable?")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no plugin to copy.
    #[error("the CNI plugin is neither beside this program ({beside}) nor in {IMAGE_FOLDER}: is the image complete?")]
    NoPlugin {
        /// Where it was searched.
        beside: String,
    },
    /// There is no list to write.
    #[error(transparent)]
    List(#[from] ListError),
}

/// The result of one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// Everything was as it should be.
    Already,
    /// The list was written.
    Written,
    /// The list was removed, or must not be there yet.
    Absent,
}

/// See the module.
pub struct Installer {
    cni: Cni,
    socket: PathBuf,
    agent: SharedState,
    adopted: watch::Receiver<bool>,
    in_place: watch::Sender<bool>,
}

impl Installer {
    /// Installs what `config` says once the node is ready and `adopted` says that existing pods are
    /// guarded. `in_place` receives whether the runtime finds the configuration.
    pub fn new(
        config: &Config,
        agent: SharedState,
        adopted: watch::Receiver<bool>,
        in_place: watch::Sender<bool>,
    ) -> Installer {
        let (cni, socket) = (config.cni.clone(), config.paths.socket.clone());
        Installer { cni, socket, agent, adopted, in_place }
    }

    /// Runs until the agent ends. Returns at once if nothing is to be installed.
    pub async fn run(mut self) {
        if self.cni.install == CniInstall::None {
            return;
        }
        let touched = Arc::new(Notify::new());
        let mut watcher = None;
        loop {
            // A folder that is new, or was replaced, is watched as soon as it exists.
            if watcher.is_none() {
                watcher = watch_folder(&self.cni.configuration_directory, Arc::clone(&touched));
            }
            let ready = self.agent.read().is_ready() && *self.adopted.borrow();
            let pause = match self.look(ready).await {
                Ok(Placed::Written) => {
                    tokio::time::sleep(CALM).await;
                    LOOK_AROUND
                }
                Ok(Placed::Already) => LOOK_AROUND,
                Ok(Placed::Absent) | Err(_) => SOON,
            };
            let _ = tokio::time::timeout(pause, touched.notified()).await;
        }
    }

    async fn look(&mut self, ready: bool) -> Result<Placed, InstallError> {
        let (cni, socket) = (self.cni.clone(), self.socket.clone());
        // Before the node is ready nothing is written, but an existing list stays: the plugin makes
        // pods wait.
        let done = tokio::task::spawn_blocking(move || place(&cni, &socket, ready)).await;
        let done = done.unwrap_or_else(|error| {
            Err(InstallError::File {
                action: "look at",
                path: self.cni.configuration_directory.clone(),
                source: error.into(),
            })
        });
        let path = self.cni.configuration_directory.join(&self.cni.configuration_name);
        if matches!(done, Ok(Placed::Written)) {
            info!(path = %path.display(), "the CNI configuration is in place");
        }
        self.tell(done.as_ref().err());
        let in_place = matches!(done, Ok(Placed::Already | Placed::Written));
        self.in_place.send_if_modified(|now| std::mem::replace(now, in_place) != in_place);
        done
    }

    /// Sets the problem in the status, until a look finds none.
    fn tell(&self, error: Option<&InstallError>) {
        let problem = error.map(|error| Problem {
            severity: Severity::Critical,
            object: "cni".to_owned(),
            message: error.to_string(),
        });
        let told = &mut self.agent.write().cni;
        if *told == problem {
            return;
        }
        if let Some(problem) = &problem {
            warn!("{}", problem.message);
        }
        *told = problem;
    }
}

/// One look: first the plugin, then the list.
fn place(cni: &Cni, socket: &Path, ready: bool) -> Result<Placed, InstallError> {
    files::install_plugin(&plugin()?, &cni.binary_directory.join(PLUGIN))?;
    place_list(cni, socket, ready)
}

fn place_list(cni: &Cni, socket: &Path, ready: bool) -> Result<Placed, InstallError> {
    let (folder, own) = (&cni.configuration_directory, cni.configuration_name.as_str());
    let path = folder.join(own);
    if cni.install == CniInstall::None {
        return Ok(Placed::Already);
    }
    list::refuse_earlier(folder, own)?;
    let wanted = match cni.install {
        CniInstall::Chained => match list::chained(folder, own, socket) {
            Ok(list) => list,
            Err(error) => {
                // The list that it followed is gone: pods must wait until there is one again.
                if matches!(error, ListError::NobodyElse { .. }) {
                    files::remove_list(&path)?;
                }
                return Err(error.into());
            }
        },
        _ => list::primary(socket),
    };
    let placed = match files::holds(&path, wanted.text.as_bytes(), wanted.mode)? {
        true => Placed::Already,
        false if !ready => return Ok(Placed::Absent),
        false => {
            files::write(&path, wanted.text.as_bytes(), wanted.mode)?;
            Placed::Written
        }
    };
    // Multus finds the list only once it exists, so this check is the last.
    list::refuse_detour(folder, own, &wanted.name)?;
    Ok(placed)
}

/// Removes the list, then the plugin: in this order the runtime never runs a missing plugin.
///
/// # Errors
/// [`InstallError::File`].
pub fn uninstall(cni: &Cni) -> Result<(), InstallError> {
    if cni.install == CniInstall::None {
        return Ok(());
    }
    files::remove_list(&cni.configuration_directory.join(&cni.configuration_name))?;
    files::remove(&cni.binary_directory.join(PLUGIN))?;
    files::sweep(&cni.configuration_directory)?;
    files::sweep(&cni.binary_directory)
}

fn plugin() -> Result<PathBuf, InstallError> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PLUGIN)));
    let candidates = beside.iter().cloned().chain([Path::new(IMAGE_FOLDER).join(PLUGIN)]);
    let found = candidates.into_iter().find(|candidate| candidate.is_file());
    found.ok_or_else(|| InstallError::NoPlugin {
        beside: beside.map(|path| path.display().to_string()).unwrap_or_default(),
    })
}

/// Notifies of every change in the folder; none if it cannot be watched (yet), and then the
/// periodic look finds changes.
fn watch_folder(folder: &Path, touched: Arc<Notify>) -> Option<RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| {
        // The agent's own reads are events too.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            touched.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(tell).ok()?;
    watcher.watch(folder, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

#[cfg(test)]
mod tests;
