//! All samples of a run, their summary, and the file they are written to.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use hauberk_netns::programs;
use serde::Serialize;

use crate::cipher::Cost;
use crate::measure::Sample;
use crate::system::System;

/// A run.
#[derive(Serialize)]
pub struct Results {
    #[serde(skip)]
    name: String,
    machine: Machine,
    rounds: usize,
    /// Samples with more steal than this are not counted.
    pub steal_limit_percent: f64,
    /// Those of `systems` that are not competitors, but limits of what a tunnel can reach on this
    /// machine.
    floors: Vec<String>,
    systems: BTreeMap<String, BTreeMap<String, Summary>>,
    /// Every sample, including those that are not counted.
    pub samples: Vec<Taken>,
}

/// The machine of the run.
#[derive(Serialize)]
struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    /// The congestion control of the lanes' TCP.
    congestion_control: &'static str,
}

/// One sample, and where it belongs.
#[derive(Serialize)]
pub struct Taken {
    /// The system's name.
    pub system: String,
    /// The number of peers that its nodes knew.
    pub peers: usize,
    /// The round, counted from 0.
    pub round: usize,
    /// Whether it is counted.
    pub kept: bool,
    /// Its numbers.
    #[serde(flatten)]
    pub sample: Sample,
}

/// The summary of all samples of one number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Half of the samples are above, half below.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
    /// The number of samples.
    pub n: usize,
}

impl Results {
    /// Results without samples.
    pub fn new(name: &str, rounds: usize, steal_limit_percent: f64) -> Results {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let machine = Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            processor: processor.trim_start_matches([' ', '\t', ':']).into(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            congestion_control: crate::congestion::USUAL,
        };
        Results {
            name: name.into(),
            machine,
            rounds,
            steal_limit_percent,
            floors: Vec::new(),
            systems: BTreeMap::new(),
            samples: Vec::new(),
        }
    }

    /// Records the cost of the cipher in this round.
    pub fn cipher(&mut self, round: usize, cost: Cost, steal_percent: f64) {
        let values = [
            ("seal_ns".to_owned(), cost.seal_ns),
            ("open_ns".to_owned(), cost.open_ns),
            ("cpu_s_per_gb".to_owned(), cost.seconds_per_gigabyte()),
        ];
        let sample = Sample { values: values.into(), steal_percent };
        let kept = steal_percent <= self.steal_limit_percent;
        self.samples.push(Taken { system: CIPHER.into(), peers: 1, round, kept, sample });
    }

    /// The summary of a number; none if no sample is counted.
    pub fn summary(&self, system: &str, metric: &str) -> Option<Summary> {
        self.systems.get(system)?.get(metric).copied()
    }

    /// The median of a number.
    pub fn median(&self, system: &str, metric: &str) -> Option<f64> {
        self.summary(system, metric).map(|summary| summary.median)
    }

    /// Names of the systems, in the order they were first measured.
    pub fn systems(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for taken in self.samples.iter().filter(|taken| taken.system != CIPHER) {
            if !names.contains(&taken.system.as_str()) {
                names.push(&taken.system);
            }
        }
        names
    }

    /// Names of the numbers that at least one system has.
    pub fn metrics(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for metric in
            self.systems.iter().filter(|(system, _)| *system != CIPHER).flat_map(|(_, numbers)| numbers.keys())
        {
            if !names.contains(&metric.as_str()) {
                names.push(metric);
            }
        }
        names
    }

    /// The number of samples that are not counted, and of all samples.
    pub fn discarded(&self) -> (usize, usize) {
        (self.samples.iter().filter(|taken| !taken.kept).count(), self.samples.len())
    }

    /// Computes the summaries, writes `target/bench/<name>.json`, and returns its path.
    ///
    /// # Errors
    /// File access fails.
    pub fn finish(&mut self) -> Result<PathBuf> {
        self.sum_up();
        let path = programs::target_directory()?.join("bench").join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(self).context("write JSON")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn sum_up(&mut self) {
        let mut numbers: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        for taken in self.samples.iter().filter(|taken| taken.kept) {
            for (metric, value) in &taken.sample.values {
                let metric = if taken.peers == 1 { metric.clone() } else { format!("{metric}_{}_peers", taken.peers) };
                numbers.entry((taken.system.clone(), metric)).or_default().push(*value);
            }
        }
        for ((system, metric), values) in numbers {
            let Some(summary) = Summary::of(values) else { continue };
            let numbers = self.systems.entry(system).or_default();
            // The usual figure has a second name.
            if metric == "tcp1_cpu_s_per_gb" {
                numbers.insert("cpu_s_per_gb".into(), summary);
            }
            numbers.insert(metric, summary);
        }
        self.floors = self.systems.keys().filter(|system| is_floor(system)).cloned().collect();
    }
}

/// Whether the numbers with that name are a limit of this machine and not of a competitor.
pub fn is_floor(name: &str) -> bool {
    name == CIPHER || name.parse().is_ok_and(System::is_floor)
}

/// The name of the cipher's own cost in the results.
pub const CIPHER: &str = "cipher";

impl Summary {
    fn of(mut values: Vec<f64>) -> Option<Summary> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Summary { median, min, max, n: values.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        assert_eq!(Summary::of(vec![]), None);
        assert_eq!(Summary::of(vec![3.0, 1.0, 2.0]), Some(Summary { median: 2.0, min: 1.0, max: 3.0, n: 3 }));
        assert_eq!(Summary::of(vec![4.0, 1.0]), Some(Summary { median: 2.5, min: 1.0, max: 4.0, n: 2 }));
    }

    #[test]
    fn what_the_host_spoilt_does_not_count() {
        let mut results = Results::new("test", 1, 5.0);
        for (kept, value) in [(true, 1.0), (false, 100.0), (true, 3.0)] {
            let sample = Sample { values: [("tcp1_gbps".to_owned(), value)].into(), steal_percent: 0.0 };
            results.samples.push(Taken { system: "a".into(), peers: 1, round: 0, kept, sample });
        }
        results.sum_up();
        assert_eq!(results.median("a", "tcp1_gbps"), Some(2.0));
        assert_eq!(results.discarded(), (1, 3));
    }

    #[test]
    fn limits_are_marked_and_competitors_are_not() {
        let mut results = Results::new("test", 1, 5.0);
        for system in System::TUNNELS.map(System::as_str).into_iter().chain([CIPHER]) {
            let sample = Sample { values: [("tcp1_gbps".to_owned(), 1.0)].into(), steal_percent: 0.0 };
            results.samples.push(Taken { system: system.into(), peers: 1, round: 0, kept: true, sample });
        }
        results.sum_up();
        assert_eq!(results.floors, [CIPHER, System::NullCipher.as_str()]);
    }
}
