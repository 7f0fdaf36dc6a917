//! The congestion control of the lanes' TCP: Linux's default, whatever this machine is set to.
//!
//! Some machines are set to BBR, which paces. On a path of microseconds it mostly waits for timers,
//! and more so the faster the path is. Its figures say little about the system that carries the
//! packets.

use std::fs;

use anyhow::{Context as _, Result, ensure};

const SETTING: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
/// Linux's default since 2.6.19.
pub const USUAL: &str = "cubic";

/// While this value exists, new network namespaces start with [`USUAL`] and keep it.
pub struct Usual {
    before: String,
}

impl Usual {
    /// Sets it for this machine.
    ///
    /// # Errors
    /// The kernel does not have it.
    pub fn set() -> Result<Usual> {
        let available = fs::read_to_string(AVAILABLE).with_context(|| format!("read {AVAILABLE}"))?;
        ensure!(
            available.split_whitespace().any(|name| name == USUAL),
            "the kernel has no TCP congestion control {USUAL}, only {}: modprobe tcp_{USUAL}",
            available.trim()
        );
        let before = fs::read_to_string(SETTING).with_context(|| format!("read {SETTING}"))?;
        fs::write(SETTING, USUAL).with_context(|| format!("write {SETTING}"))?;
        Ok(Usual { before })
    }
}

impl Drop for Usual {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SETTING, &self.before) {
            eprintln!("{SETTING} could not be set back to {}: {error}", self.before.trim());
        }
    }
}
