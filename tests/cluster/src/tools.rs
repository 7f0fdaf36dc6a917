//! The paths of the cluster's programs.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};
use hauberk_netns::programs;

/// One of the programs that `tests/cluster/tools/build` makes: `kube-apiserver`, `containerd`, ...
///
/// # Errors
/// The program is not built; the message says how to build it.
pub fn built(name: &str) -> Result<PathBuf> {
    let path = programs::target_directory()?.join("tools").join(name);
    if !path.is_file() {
        bail!("{} is missing: run tests/cluster/tools/build", path.display());
    }
    Ok(path)
}

/// A program of the system: `etcd`, `runc`, `openssl`.
///
/// # Errors
/// The program is not installed; the message names its package.
pub fn installed(name: &str, package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    match folders.map(|folder| folder.join(name)).find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => bail!("`{name}` is missing: install the package {package}"),
    }
}
