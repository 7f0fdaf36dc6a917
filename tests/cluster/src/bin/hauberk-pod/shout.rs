//! Datagrams from the first moment of a pod on.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// Sends `text` until the process ends.
pub fn shout(target: SocketAddr, text: &str) {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let started = Instant::now();
    let (mut sent, mut refused) = (0_u64, 0_u64);
    loop {
        // A new socket each time: an error from an earlier datagram must not affect this one.
        match UdpSocket::bind(any).and_then(|socket| socket.send_to(text.as_bytes(), target)) {
            Ok(_) => sent += 1,
            Err(_) => refused += 1,
        }
        if (sent + refused).is_power_of_two() {
            println!("sent {sent}, refused by the kernel {refused}");
        }
        let pause = if started.elapsed() < Duration::from_secs(1) { 1 } else { 100 };
        thread::sleep(Duration::from_millis(pause));
    }
}
