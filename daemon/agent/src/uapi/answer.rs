//! Answers to clients of the WireGuard interface.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::{Interface, PeerView, Request};

/// Errors are negative errno values: `wg` negates them back (EPERM 1, EINVAL 22).
const REFUSED: &str = "errno=-1\n\n";
const NOT_UNDERSTOOD: &str = "errno=-22\n\n";

/// The answer to a request, with the empty line that ends it. The interface is read only if the
/// request asks for it.
pub fn answer(request: Request, interface: impl FnOnce() -> Interface) -> String {
    match request {
        Request::Get => describe(&interface()),
        Request::Set => REFUSED.to_owned(),
        Request::Unknown => NOT_UNDERSTOOD.to_owned(),
    }
}

fn describe(interface: &Interface) -> String {
    let mut text = format!("listen_port={}\n", interface.port);
    for peer in &interface.peers {
        describe_peer(peer, &mut text);
    }
    text.push_str("errno=0\n\n");
    text
}

fn describe_peer(peer: &PeerView, text: &mut String) {
    text.push_str("public_key=");
    for byte in peer.public_key {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    if let Some(endpoint) = peer.endpoint {
        let _ = writeln!(text, "endpoint={endpoint}");
    }
    let handshake = peer
        .latest_handshake
        .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
        .unwrap_or(Duration::ZERO);
    let _ = writeln!(text, "last_handshake_time_sec={}", handshake.as_secs());
    let _ = writeln!(text, "last_handshake_time_nsec={}", handshake.subsec_nanos());
    let _ = writeln!(text, "rx_bytes={}\ntx_bytes={}", peer.received_bytes, peer.sent_bytes);
    let _ = writeln!(text, "persistent_keepalive_interval={}", peer.keepalive_seconds);
    for allowed in &peer.allowed_ips {
        let _ = writeln!(text, "allowed_ip={allowed}");
    }
    text.push_str("protocol_version=1\n");
}
