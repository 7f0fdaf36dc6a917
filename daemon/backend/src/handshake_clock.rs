//! The timestamps of this node's handshakes, in nanoseconds since 1970: a number in, a number out.
//!
//! Peers refuse a handshake whose timestamp is not later than the last one (WireGuard paper, 5.1).
//! The agent keeps the last one over a restart, in case the clock is set back meanwhile. The clock
//! is the process's, so it exists before a backend does.

/// The timestamp of the last handshake that was started; 0 before the first.
pub fn latest() -> u64 {
    hauberk_wireguard::handshake_clock::latest()
}

/// Makes the timestamps of all later handshakes later than `earliest`.
pub fn not_before(earliest: u64) {
    hauberk_wireguard::handshake_clock::not_before(earliest);
}
