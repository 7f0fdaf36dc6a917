//! The paths of the programs under test and of the programs they are tested with.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The profile folder of the cargo target directory that this test was built into (`target/debug`).
fn profile_directory() -> Result<PathBuf> {
    let test = std::env::current_exe().context("own path")?;
    let directory = test.parent().context("own directory")?;
    let is_deps = directory.file_name().is_some_and(|name| name == "deps");
    let directory = if is_deps { directory.parent().context("profile directory")? } else { directory };
    Ok(directory.to_owned())
}

/// The cargo target directory.
///
/// # Errors
/// This program is not in a target directory.
pub fn target_directory() -> Result<PathBuf> {
    Ok(profile_directory()?.parent().context("target directory")?.to_owned())
}

/// One of hauberk's programs: `hauberkd`, `hauberk`, `hauberk-cni`.
///
/// # Errors
/// The program is not built; the message says how to build it.
pub fn ours(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("HAUBERK_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => profile_directory()?,
    };
    existing(directory.join(name), "build it with `cargo build` or name its folder in HAUBERK_BIN_DIR")
}

/// One of the programs in `target/tools`: `tests/netns/tools/build` makes those of the suites,
/// `scripts/bench` those of the benchmarks.
///
/// # Errors
/// The program is not built; the message says how to build it.
pub fn tool(name: &str) -> Result<PathBuf> {
    existing(
        target_directory()?.join("tools").join(name),
        "run tests/netns/tools/build (for the benchmarks: scripts/bench)",
    )
}

fn existing(path: PathBuf, remedy: &str) -> Result<PathBuf> {
    if !Path::new(&path).is_file() {
        bail!("{} is missing: {remedy}", path.display());
    }
    std::path::absolute(&path).with_context(|| format!("absolute path of {}", path.display()))
}
