//! Images for the cluster's nodes, made from local files: an archive in the format of `docker
//! save`, which `ctr images import` reads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::netns::feed;
use serde_json::json;

/// An image of a few programs and the shared libraries they need.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its full name: `hauberk.test/pod:1`.
    pub name: String,
    /// Programs: the local file, and its path in the image.
    pub programs: Vec<(PathBuf, String)>,
    /// The command, with the path in the image.
    pub entrypoint: Vec<String>,
}

impl Image {
    /// Writes the image to a file; `scratch` is for its parts.
    ///
    /// # Errors
    /// A program is missing, or file access fails.
    pub fn write(&self, archive: &Path, scratch: &Path) -> Result<()> {
        let (root, parts) = (scratch.join("root"), scratch.join("parts"));
        for folder in ["tmp", "etc", "proc", "sys", "dev", "run", "usr/bin", "lib64"].map(|name| root.join(name)) {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        fs::create_dir_all(&parts).with_context(|| format!("create {}", parts.display()))?;
        write(&root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
        write(&root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
        for (program, path) in &self.programs {
            copy(program, &root.join(path.trim_start_matches('/')))?;
            for library in libraries(program)? {
                copy(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
            }
        }
        pack(&root, &parts.join("layer.tar"))?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&parts.join("layer.tar"))?)]},
        });
        write(&parts.join("config.json"), &config.to_string())?;
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]);
        write(&parts.join("manifest.json"), &manifest.to_string())?;
        pack(&parts, archive)?;
        fs::remove_dir_all(scratch).with_context(|| format!("remove {}", scratch.display()))
    }
}

/// The shared libraries of a program. For programs that look up names this includes the libraries
/// that glibc loads later.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut command = Command::new("ldd");
    command.arg(program);
    let output = command.output().context("run ldd")?;
    // `ldd` fails for static programs, which need no libraries.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.contains("not found"), "{} needs libraries that are not here:\n{text}", program.display());
    let mut found: BTreeSet<PathBuf> = text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && word.contains(".so"))
        .map(PathBuf::from)
        .collect();
    if let Some(folder) = found.iter().find(|path| path.ends_with("libc.so.6")).and_then(|path| path.parent()) {
        let later = ["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"].map(|name| folder.join(name));
        found.extend(later.into_iter().filter(|path| path.exists()));
    }
    Ok(found)
}

fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-C"]).arg(folder);
    command.arg("-cf").arg(archive).arg(".").args(["--transform", "s|^\\./||"]);
    feed(command, "").with_context(|| format!("pack {}", folder.display()))?;
    Ok(())
}

fn digest(file: &Path) -> Result<String> {
    let mut command = Command::new("sha256sum");
    command.arg(file);
    let output = feed(command, "")?;
    Ok(output.split_whitespace().next().unwrap_or_default().to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
