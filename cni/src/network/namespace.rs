//! Network namespaces. The plugin's own thread never leaves the node's namespace; work inside a pod
//! runs on a separate thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::error::CniError;

/// An open network namespace, which exists as long as this value does.
pub(crate) struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Opens a pod's namespace. Refuses a path that is no namespace, and the node's own: a pod in
    /// it has no interface of its own.
    pub(crate) fn open(path: &Path) -> Result<Namespace, CniError> {
        let unusable = |problem: String| CniError::Namespace { path: path.display().to_string(), problem };
        // Non-blocking, in case the path is a pipe.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|error| unusable(error.to_string()))?;
        let filesystem = fstatfs(&file).map_err(|error| unusable(error.to_string()))?.filesystem_type();
        if filesystem != NSFS_MAGIC {
            return Err(unusable(
                "it is not a namespace (any more): the runtime has probably torn it down".to_string(),
            ));
        }
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        let own = File::open("/proc/thread-self/ns/net").and_then(|own| identity(&own));
        let same = own.and_then(|own| Ok(own == identity(&file)?)).map_err(|error| unusable(error.to_string()))?;
        if same {
            return Err(unusable("it is the node's own: pods on the host network get no interface".to_string()));
        }
        Ok(Namespace { file, path: path.to_path_buf() })
    }

    /// The same for a caller that has nothing to do if the namespace does not exist any more.
    pub(crate) fn open_if_there(path: &Path) -> Option<Namespace> {
        Namespace::open(path).ok()
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let enter = || {
            nix::sched::setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        };
        std::thread::scope(|scope| {
            scope.spawn(enter).join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace died")))
        })
    }

    /// Sets a sysctl of one interface inside the namespace; `family` is `ipv4` or `ipv6`.
    pub(crate) fn set_interface_sysctl(
        &self,
        family: &str,
        interface: &str,
        key: &str,
        value: &str,
    ) -> Result<(), CniError> {
        // The content of /proc/sys/net depends on the namespace of the thread that opens it.
        let path = format!("/proc/sys/net/{family}/conf/{interface}/{key}");
        self.inside(|| std::fs::write(&path, value)).map_err(|source| CniError::Kernel {
            action: format!("set {path} to {value}"),
            place: self.to_string(),
            source,
        })
    }

    /// For netlink messages that refer to a namespace.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_network_namespace_will_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = |path: &Path| Namespace::open(path).err().unwrap().to_string();
        assert!(error(file.path()).contains("not a namespace"));
        assert!(error(Path::new("/nonexistent/ns")).contains("No such file"));
        assert!(error(Path::new("/proc/self/ns/net")).contains("the node's own"));

        let pipe = file.path().with_extension("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(error(&pipe).contains("not a namespace"));
        std::fs::remove_file(pipe).unwrap();
    }
}
