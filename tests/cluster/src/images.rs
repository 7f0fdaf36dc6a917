//! The images that the cluster's nodes get.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::programs;

use crate::image::Image;
use crate::node::POD_IMAGE;
use crate::tools;

/// CoreDNS.
pub const DNS_IMAGE: &str = "hauberk.test/coredns:1";

/// Archives of the images that every node has. They are made again if their contents are newer.
///
/// # Errors
/// A program is not built.
pub fn archives() -> Result<Vec<PathBuf>> {
    let folder = programs::target_directory()?.join("cluster/images");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let pod = Image {
        name: POD_IMAGE.into(),
        programs: vec![
            (programs::ours("hauberk-pod")?, "/usr/bin/hauberk-pod".into()),
            (tools::installed("getent", "libc-bin")?, "/usr/bin/getent".into()),
        ],
        entrypoint: vec!["/usr/bin/hauberk-pod".into()],
    };
    let dns = Image {
        name: DNS_IMAGE.into(),
        programs: vec![(tools::built("coredns")?, "/usr/bin/coredns".into())],
        entrypoint: vec!["/usr/bin/coredns".into()],
    };
    Ok(vec![up_to_date(&pod, &folder.join("pod.tar"))?, up_to_date(&dns, &folder.join("coredns.tar"))?])
}

/// The agent's image, which `tests/cluster/tools/image` makes, or the one that `HAUBERK_IMAGE`
/// names.
///
/// # Errors
/// There is none.
pub fn agent() -> Result<PathBuf> {
    let path = match std::env::var_os("HAUBERK_IMAGE") {
        Some(path) => PathBuf::from(path),
        None => programs::target_directory()?.join("cluster/images/hauberk.tar"),
    };
    ensure!(path.is_file(), "{} is missing: run tests/cluster/tools/image", path.display());
    Ok(path)
}

fn up_to_date(image: &Image, archive: &Path) -> Result<PathBuf> {
    let made = modified(archive);
    let mut newest = None;
    for (program, _) in &image.programs {
        newest = newest.max(Some(modified(program).with_context(|| format!("{} is missing", program.display()))?));
    }
    if made.is_none() || made < newest {
        // Several test programs may do this at once: each makes its own file, and the last rename
        // wins.
        let own = archive.with_extension(format!("{}.tar", std::process::id()));
        image.write(&own, &own.with_extension("parts"))?;
        fs::rename(&own, archive).with_context(|| format!("rename {}", own.display()))?;
    }
    Ok(archive.into())
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}
