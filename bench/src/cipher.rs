//! The cost of the cipher alone on this machine: no tunnel can be cheaper than sealing and opening
//! each byte once.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hauberk_cipher::{Implementation, Key, TAG};

use crate::system::INNER_MTU;

/// Packets between two readings of the clock.
const RUN: u64 = 200;

/// Cost of a full packet, nanoseconds.
pub struct Cost {
    /// To seal.
    pub seal_ns: f64,
    /// To open.
    pub open_ns: f64,
}

impl Cost {
    /// CPU seconds to seal and open a gigabyte.
    pub fn seconds_per_gigabyte(&self) -> f64 {
        (self.seal_ns + self.open_ns) / f64::from(INNER_MTU)
    }
}

/// Measures for about `length`, with the fastest code that this machine can run.
pub fn measure(length: Duration) -> Cost {
    let key = Key::new(&[7; 32], Implementation::best());
    let packet = vec![0x42; INNER_MTU as usize];
    let mut sealed = vec![0; packet.len() + TAG];
    let mut opened = packet.clone();
    let (mut seal, mut open, mut packets) = (Duration::ZERO, Duration::ZERO, 0u64);
    let started = Instant::now();
    while started.elapsed() < length {
        let before = Instant::now();
        for counter in 0..RUN {
            key.seal(counter, black_box(&packet), black_box(&mut sealed));
        }
        seal += before.elapsed();
        let before = Instant::now();
        for _ in 0..RUN {
            let result = key.open(RUN - 1, black_box(&sealed), black_box(&mut opened));
            assert_eq!(result, Ok(()), "what was sealed opens");
        }
        open += before.elapsed();
        packets += RUN;
    }
    let each = |time: Duration| time.as_nanos() as f64 / packets as f64;
    Cost { seal_ns: each(seal), open_ns: each(open) }
}
