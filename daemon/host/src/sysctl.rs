//! Kernel settings (kernel documentation, networking/ip-sysctl). They are written only where they
//! differ. `uninstall` does not undo them, because other programs may rely on them by then.

use std::fs;
use std::io;
use std::path::Path;

use super::HostError;

/// Where the settings are. A container's own /proc/sys is read-only, so the host's is mounted at
/// the first path there.
const ROOTS: [&str; 2] = ["/host/proc/sys", "/proc/sys"];

/// Lets the host forward packets of both families. An uplink that took its address from router
/// advertisements keeps accepting them: a forwarding host ignores them unless `accept_ra` is 2.
/// Returns the forwarding settings that were changed.
///
/// # Errors
/// [`HostError::Sysctl`].
pub fn prepare_host(uplinks: &[String]) -> Result<Vec<String>, HostError> {
    let mut changed = Vec::new();
    if has_ipv6() && read("net/ipv6/conf/all/forwarding").as_deref() == Some("0") {
        for uplink in uplinks {
            let name = format!("net/ipv6/conf/{uplink}/accept_ra");
            if read(&name).as_deref() == Some("1") {
                write(&name, "2")?;
            }
        }
    }
    put("net/ipv4/ip_forward", "1", &mut changed)?;
    for uplink in uplinks {
        // Answers from the world arrive here. A device forwards only if its own setting says so.
        let name = format!("net/ipv4/conf/{uplink}/forwarding");
        if read(&name).as_deref() == Some("0") {
            put(&name, "1", &mut changed)?;
        }
    }
    if has_ipv6() {
        put("net/ipv6/conf/all/forwarding", "1", &mut changed)?;
    }
    Ok(changed)
}

/// Lets a network card that was added later accept router advertisements, if the host's other
/// uplinks accept them although it forwards. Other devices do not accept them: a pod or a container
/// may be at the other end.
///
/// # Errors
/// [`HostError::Sysctl`].
pub fn accept_advertisements_as(others: &[String], device: &str) -> Result<(), HostError> {
    let setting = |device: &str| format!("net/ipv6/conf/{device}/accept_ra");
    let others_do = others.iter().any(|other| read(&setting(other)).as_deref() == Some("2"));
    if others_do && read(&setting(device)).as_deref() == Some("1") {
        return write(&setting(device), "2");
    }
    Ok(())
}

/// Lets decrypted packets in: their sources are routed by the uplink, which a strict reverse-path
/// filter would refuse. Returns the settings that were changed.
///
/// # Errors
/// [`HostError::Sysctl`].
pub fn prepare_tunnel(device: &str) -> Result<Vec<String>, HostError> {
    let mut changed = Vec::new();
    put(&format!("net/ipv4/conf/{device}/rp_filter"), "2", &mut changed)?;
    put(&format!("net/ipv4/conf/{device}/forwarding"), "1", &mut changed)?;
    if has_ipv6() {
        put(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0", &mut changed)?;
        put(&format!("net/ipv6/conf/{device}/forwarding"), "1", &mut changed)?;
        // No other host talks to the tunnel device itself: it needs no link-local address and sends
        // no router solicitations.
        put(&format!("net/ipv6/conf/{device}/addr_gen_mode"), "1", &mut changed)?;
        put(&format!("net/ipv6/conf/{device}/accept_ra"), "0", &mut changed)?;
    }
    Ok(changed)
}

/// Prepares the host side of a pod's interface while it is down: it forwards, sends no redirects,
/// accepts no router advertisements, and has no address but the gateways. Returns the settings that
/// were changed.
///
/// # Errors
/// [`HostError::Sysctl`].
pub fn prepare_pod_interface(device: &str, ipv6: bool) -> Result<Vec<String>, HostError> {
    let mut changed = Vec::new();
    put(&format!("net/ipv4/conf/{device}/forwarding"), "1", &mut changed)?;
    put(&format!("net/ipv4/conf/{device}/send_redirects"), "0", &mut changed)?;
    put(&format!("net/ipv4/conf/{device}/accept_redirects"), "0", &mut changed)?;
    if !has_ipv6() {
        return Ok(changed);
    }
    put(&format!("net/ipv6/conf/{device}/accept_ra"), "0", &mut changed)?;
    put(&format!("net/ipv6/conf/{device}/addr_gen_mode"), "1", &mut changed)?;
    if ipv6 {
        put(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0", &mut changed)?;
        put(&format!("net/ipv6/conf/{device}/forwarding"), "1", &mut changed)?;
    }
    Ok(changed)
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

fn put(name: &str, value: &str, changed: &mut Vec<String>) -> Result<(), HostError> {
    if read(name).as_deref() != Some(value) {
        write(name, value)?;
        changed.push(name.replace('/', "."));
    }
    Ok(())
}

fn write(name: &str, value: &str) -> Result<(), HostError> {
    if read(name).as_deref() == Some(value) {
        return Ok(());
    }
    hauberk_fault::point("write a kernel setting");
    let failed = |source: io::Error| HostError::Sysctl { name: name.to_owned(), value: value.to_owned(), source };
    fs::write(root().join(name), value).map_err(failed)
}
