//! What arrived encrypted is answered encrypted, whatever sends the answer.

use super::*;

/// A node's ICMP error to the other node, about a packet from there.
fn error(kind: u8, asker: &str, asked: &str) -> Vec<u8> {
    let quote = &udp(asker, asked)[14..];
    let mut frame = Vec::new();
    let content = [&[kind, 0, 0, 0, 0, 0, 0, 0], quote].concat();
    ip("192.168.0.1", "192.168.0.2").write(&mut frame, 1.into(), &content).unwrap();
    frame
}

#[test]
fn an_error_is_judged_by_what_it_quotes() {
    let mut bench = Bench::new(flag::SYNCED | flag::STACK);
    for kind in [3, 11, 12] {
        for _ in 0..2 {
            assert_eq!(bench.run_frame(Hook::ToWire, &error(kind, "192.168.0.2", "192.168.0.1"), 0), OK, "{kind}");
            assert_eq!(bench.run_frame(Hook::ToWire, &error(kind, "192.168.0.2", "10.0.1.1"), 0), REDIRECT, "{kind}");
            assert_eq!(bench.run_frame(Hook::ToWire, &error(kind, "10.0.2.1", "10.0.1.3"), 0), REDIRECT, "{kind}");
        }
    }
    // An echo request is not an error, whatever it quotes.
    assert_eq!(bench.run_frame(Hook::ToWire, &error(8, "192.168.0.2", "10.0.1.1"), 0), OK);
}
