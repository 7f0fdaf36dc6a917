//! A request on the WireGuard socket.
#![no_main]

use hauberk_agent::uapi::request::{Progress, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Progress::Complete { length, request } = parse(bytes) else { return };
    assert!(length <= bytes.len() && bytes[..length].ends_with(b"\n\n"));
    // The rest belongs to the next request.
    assert_eq!(parse(&bytes[..length]), Progress::Complete { length, request });
});
