//! The measures of each lane, and the rounds in which they are taken.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::usage::Clock;

use crate::Options;
use crate::cipher;
use crate::congestion::Usual;
use crate::lane::{Lane, Running};
use crate::measure::{Direction, Measure};
use crate::results::{Results, Taken};
use crate::system::System;

/// How often a sample with too much steal is repeated.
const TRIES: usize = 4;
/// Numbers of peers for measures that depend on it.
const PEERS: [usize; 2] = [10, 100];
/// The number of peers in a large cluster.
const MANY_PEERS: usize = 1000;

/// A measure, and the lanes it is taken on.
pub struct Step {
    measure: Measure,
    lanes: Vec<Lane>,
}

/// Encrypted traffic beside other userspace WireGuards, and beside the machine's own limit.
pub fn tunnel(options: &Options) -> Vec<Step> {
    let systems = chosen(&System::TUNNELS, options);
    let mut steps = everything(&systems, options.seconds);
    let has_peers = |system: &System| *system != System::Plaintext && !system.is_floor();
    let tunnels: Vec<System> = systems.into_iter().filter(has_peers).collect();
    let lanes = |peers: &[usize]| -> Vec<Lane> {
        tunnels.iter().flat_map(|system| peers.iter().map(|peers| Lane { system: *system, peers: *peers })).collect()
    };
    steps.push(Step {
        measure: Measure::Bulk { streams: 1, direction: Direction::Forward, seconds: options.seconds },
        lanes: lanes(&PEERS),
    });
    steps.push(Step { measure: Measure::Memory, lanes: lanes(&[1, MANY_PEERS]) });
    wanted(steps, options)
}

/// Traffic that is not encrypted, with hauberk and without.
pub fn classify(options: &Options) -> Vec<Step> {
    let systems = chosen(&[System::Plaintext, System::HauberkPlain], options);
    wanted(everything(&systems, options.seconds), options)
}

fn chosen(all: &[System], options: &Options) -> Vec<System> {
    let is_chosen = |system: &&System| options.systems.as_ref().is_none_or(|chosen| chosen.contains(system));
    all.iter().filter(is_chosen).copied().collect()
}

fn wanted(steps: Vec<Step>, options: &Options) -> Vec<Step> {
    let is_wanted = |step: &Step| {
        let name = step.measure.name();
        options.measures.as_ref().is_none_or(|wanted| wanted.iter().any(|wanted| name.starts_with(wanted.as_str())))
    };
    steps.into_iter().filter(is_wanted).collect()
}

fn everything(systems: &[System], seconds: u32) -> Vec<Step> {
    let bulk = |streams, direction| Measure::Bulk { streams, direction, seconds };
    let measures = [
        bulk(1, Direction::Forward),
        bulk(4, Direction::Forward),
        bulk(16, Direction::Forward),
        bulk(1, Direction::Reverse),
        bulk(1, Direction::Both),
        Measure::Datagrams { bytes: 64, seconds },
        Measure::Datagrams { bytes: 1400 - 28, seconds },
        Measure::Latency { loaded: false, seconds },
        Measure::Latency { loaded: true, seconds },
        Measure::Requests { fresh: false, seconds },
        Measure::Requests { fresh: true, seconds },
    ];
    let lanes: Vec<Lane> = systems.iter().copied().map(Lane::of).collect();
    measures.into_iter().map(|measure| Step { measure, lanes: lanes.clone() }).collect()
}

/// Takes all samples.
///
/// # Errors
/// A lane does not come up, or a sample cannot be taken.
pub fn run(name: &str, steps: &[Step], options: &Options) -> Result<Results> {
    ensure!(nix::unistd::geteuid().is_root(), "lanes are made of network namespaces, and those need root");
    let mut lanes: BTreeMap<Lane, Running> = BTreeMap::new();
    let usual = Usual::set()?;
    for lane in steps.iter().flat_map(|step| &step.lanes) {
        if !lanes.contains_key(lane) {
            eprintln!("bring up {lane}");
            lanes.insert(*lane, Running::start(*lane)?);
        }
    }
    drop(usual);
    ensure!(!lanes.is_empty(), "nothing is left to measure: do --systems and --measures name something?");
    let mut results = Results::new(name, options.rounds, options.steal_limit);
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        let clock = Clock::read()?;
        let cost = cipher::measure(Duration::from_millis(300));
        results.cipher(round, cost, clock.elapsed()?.steal_percent);
        for step in steps {
            for index in 0..step.lanes.len() {
                // In each round another lane is first.
                let lane = step.lanes[(index + round) % step.lanes.len()];
                let running = lanes.get_mut(&lane).context("a lane")?;
                sample(&mut results, running, lane, &step.measure, round)?;
            }
        }
    }
    Ok(results)
}

/// Takes one sample, and repeats it if the host took too much time away.
fn sample(results: &mut Results, running: &mut Running, lane: Lane, measure: &Measure, round: usize) -> Result<()> {
    for _ in 0..TRIES {
        let sample = running.measure(measure)?;
        let kept = sample.steal_percent <= results.steal_limit_percent;
        results.samples.push(Taken { system: lane.system.to_string(), peers: lane.peers, round, kept, sample });
        if kept {
            break;
        }
    }
    Ok(())
}
