//! What the cipher itself costs on this machine: no tunnel can be cheaper than sealing and opening each byte once.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::system::INNER_MTU;

/// Packets between two looks at the clock.
const RUN: usize = 200;

/// Nanoseconds to seal a full packet, and to open one.
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

/// Measures for about this long.
///
/// # Errors
/// The cipher refuses, which it never does.
pub fn measure(length: Duration) -> Result<Cost> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).ok().context("make a key")?;
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let mut packet = vec![0x42; INNER_MTU as usize];
    let (mut seal, mut open, mut packets) = (Duration::ZERO, Duration::ZERO, 0);
    let started = Instant::now();
    let mut tags = Vec::with_capacity(RUN);
    while started.elapsed() < length {
        let before = Instant::now();
        for _ in 0..RUN {
            let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), black_box(&mut packet));
            tags.push(tag.ok().context("seal")?);
        }
        seal += before.elapsed();
        packet.extend_from_slice(tags.last().context("a tag")?.as_ref());
        let sealed = packet.clone();
        let mut opened = vec![sealed; RUN];
        let before = Instant::now();
        for packet in &mut opened {
            key.open_in_place(nonce(), Aad::empty(), black_box(packet)).ok().context("open")?;
        }
        open += before.elapsed();
        packet.truncate(INNER_MTU as usize);
        tags.clear();
        packets += RUN;
    }
    let each = |time: Duration| time.as_nanos() as f64 / packets as f64;
    Ok(Cost { seal_ns: each(seal), open_ns: each(open) })
}
