//! Ports of services and of their endpoints.

use hauberk_abi::packet::protocol;

/// A transport protocol by its name in objects; TCP if there is none.
pub(super) fn protocol(given: Option<&str>) -> Result<u8, String> {
    match given {
        None | Some("" | "TCP") => Ok(protocol::TCP),
        Some("UDP") => Ok(protocol::UDP),
        Some("SCTP") => Ok(protocol::SCTP),
        Some(other) => Err(format!("the protocol {other:?}, which is not TCP, UDP or SCTP")),
    }
}

/// A port by its number in objects.
pub(super) fn port(given: i64) -> Result<u16, String> {
    match u16::try_from(given) {
        Ok(0) | Err(_) => Err(format!("{given}, which is no port")),
        Ok(port) => Ok(port),
    }
}
