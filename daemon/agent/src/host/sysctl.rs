//! Kernel settings (kernel documentation, networking/ip-sysctl). Only written where they differ. They are not undone by
//! `uninstall`: others may rely on them by then.

use std::fs;
use std::io;
use std::path::Path;

use super::HostError;

/// Where the settings are. A container's own /proc/sys is read-only: there the host's is mounted under the first path.
const ROOTS: [&str; 2] = ["/host/proc/sys", "/proc/sys"];

/// Lets the host forward packets of both families. Uplinks that took their address from router advertisements go on doing
/// so: a forwarding host stops to, unless told otherwise (`accept_ra` 2).
///
/// # Errors
/// [`HostError::Sysctl`].
pub fn prepare_host(uplinks: &[String]) -> Result<(), HostError> {
    if has_ipv6() && read("net/ipv6/conf/all/forwarding").as_deref() == Some("0") {
        for uplink in uplinks {
            let name = format!("net/ipv6/conf/{uplink}/accept_ra");
            if read(&name).as_deref() == Some("1") {
                write(&name, "2")?;
            }
        }
    }
    write("net/ipv4/ip_forward", "1")?;
    if has_ipv6() {
        write("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Lets decrypted packets in: their sources are routed by the uplink, which a strict reverse-path filter would not take.
///
/// # Errors
/// [`HostError::Sysctl`].
pub fn prepare_tunnel(device: &str) -> Result<(), HostError> {
    write(&format!("net/ipv4/conf/{device}/rp_filter"), "2")?;
    if has_ipv6() {
        // Nobody talks to the tunnel device itself: no link-local address, no router solicitations into the tunnel.
        write(&format!("net/ipv6/conf/{device}/addr_gen_mode"), "1")?;
        write(&format!("net/ipv6/conf/{device}/accept_ra"), "0")?;
    }
    Ok(())
}

/// Prepares the host side of a pod's interface, while it is down: it forwards, tells the pod of no better way, takes no
/// advertisement from it, and has no address but the gateways.
///
/// # Errors
/// [`HostError::Sysctl`].
pub fn prepare_pod_interface(device: &str, ipv6: bool) -> Result<(), HostError> {
    write(&format!("net/ipv4/conf/{device}/forwarding"), "1")?;
    write(&format!("net/ipv4/conf/{device}/send_redirects"), "0")?;
    write(&format!("net/ipv4/conf/{device}/accept_redirects"), "0")?;
    if !has_ipv6() {
        return Ok(());
    }
    write(&format!("net/ipv6/conf/{device}/accept_ra"), "0")?;
    write(&format!("net/ipv6/conf/{device}/addr_gen_mode"), "1")?;
    if ipv6 {
        write(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0")?;
        write(&format!("net/ipv6/conf/{device}/forwarding"), "1")?;
    }
    Ok(())
}

fn has_ipv6() -> bool {
    root().join("net/ipv6").exists()
}

fn root() -> &'static Path {
    Path::new(if Path::new(ROOTS[0]).exists() { ROOTS[0] } else { ROOTS[1] })
}

fn read(name: &str) -> Option<String> {
    fs::read_to_string(root().join(name)).ok().map(|value| value.trim().to_owned())
}

fn write(name: &str, value: &str) -> Result<(), HostError> {
    if read(name).as_deref() == Some(value) {
        return Ok(());
    }
    let failed = |source: io::Error| HostError::Sysctl { name: name.to_owned(), value: value.to_owned(), source };
    fs::write(root().join(name), value).map_err(failed)
}
