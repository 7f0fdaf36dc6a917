//! Measures the time per message: `cargo run --release -p hauberk-cipher --example speed`.
//!
//! The implementations alternate, so that other load on the machine affects both equally. Each
//! figure is nanoseconds per message: the median of all rounds, the lowest and the highest.

use std::hint::black_box;
use std::time::Instant;

use hauberk_cipher::{Implementation, Key, TAG};

const ROUNDS: usize = 101;

/// Bytes sealed in a round.
const ROUND: usize = 200_000;

/// One measurement, and the times of its rounds.
struct Measure {
    name: String,
    run: Box<dyn FnMut()>,
    times: Vec<f64>,
}

fn main() {
    println!("best here: {}; ns per message: median (least .. most)", Implementation::best().name());
    for size in [64, 256, 512, 1_424, 9_000] {
        let messages = ROUND / (size + 100);
        let mut measures = Vec::new();
        for implementation in [Implementation::Ring, Implementation::Avx512] {
            measures.push(seal(implementation, size));
            measures.push(open(implementation, size));
        }
        for _ in 0..ROUNDS {
            for measure in &mut measures {
                let start = Instant::now();
                for _ in 0..messages {
                    (measure.run)();
                }
                measure.times.push(start.elapsed().as_nanos() as f64 / messages as f64);
            }
        }
        for Measure { name, mut times, .. } in measures {
            times.sort_by(f64::total_cmp);
            let (least, median, most) = (times[0], times[times.len() / 2], times[times.len() - 1]);
            println!("{size:5} bytes  {name:12} {median:7.0} ({least:.0} .. {most:.0})");
        }
    }
}

fn seal(implementation: Implementation, size: usize) -> Measure {
    let key = Key::new(&[7; 32], implementation);
    let (packet, mut sealed) = (vec![42; size], vec![0; size + TAG]);
    let mut counter = 0;
    let run = Box::new(move || {
        counter += 1;
        key.seal(counter, black_box(&packet), &mut sealed);
        black_box(&mut sealed);
    });
    Measure { name: format!("{} seal", implementation.name()), run, times: Vec::new() }
}

fn open(implementation: Implementation, size: usize) -> Measure {
    let key = Key::new(&[7; 32], implementation);
    let (mut packet, mut sealed) = (vec![42; size], vec![0; size + TAG]);
    key.seal(1, &packet, &mut sealed);
    let run = Box::new(move || {
        key.open(1, black_box(&sealed), &mut packet).expect("it was just sealed");
        black_box(&mut packet);
    });
    Measure { name: format!("{} open", implementation.name()), run, times: Vec::new() }
}
