//! The report on the terminal: every number of every system, and whether hauberk meets its goals.

use anyhow::{Context as _, Result};

use crate::plot;
use crate::results::{CIPHER, Results, is_floor};
use crate::system::System;

/// A goal: the compared value and its limit.
struct Goal {
    what: &'static str,
    value: Option<f64>,
    limit: f64,
    at_least: bool,
}

impl Goal {
    fn at_least(what: &'static str, value: Option<f64>, limit: f64) -> Goal {
        Goal { what, value, limit, at_least: true }
    }

    fn at_most(what: &'static str, value: Option<f64>, limit: f64) -> Goal {
        Goal { what, value, limit, at_least: false }
    }

    fn print(&self) {
        let sign = if self.at_least { ">=" } else { "<=" };
        let (value, verdict) = match self.value {
            None => ("-".to_owned(), "not measured"),
            Some(value) if (value >= self.limit) == self.at_least || value == self.limit => {
                (format!("{value:.2}"), "met")
            }
            Some(value) => (format!("{value:.2}"), "MISSED"),
        };
        println!("  {:<58} {value:>8}  {sign} {:<6} {verdict}", self.what, self.limit);
    }
}

/// Prints the results of the tunnel's benchmark, and draws them.
///
/// # Errors
/// File access fails.
pub fn tunnel(results: &mut Results) -> Result<()> {
    let path = results.finish()?;
    table(results);
    let (ours, peer, plain) = (System::Hauberk.as_str(), System::WireguardGo.as_str(), System::Plaintext.as_str());
    let ratio = |metric| Some(results.median(ours, metric)? / results.median(peer, metric)?);
    let best_peer = |metric| {
        let peers = [System::WireguardGo, System::BoringtunCli, System::GotatunCli];
        let best = peers.iter().filter_map(|peer| results.median(peer.as_str(), metric)).reduce(f64::min)?;
        Some(results.median(ours, metric)? / best)
    };
    let above = || {
        let floor = results.median(plain, "cpu_s_per_gb")? + results.median(CIPHER, "cpu_s_per_gb")?;
        Some(results.median(ours, "cpu_s_per_gb")? - floor)
    };
    limits(results);
    println!("\ngoals, as ratios to {peer} within this run where nothing else is said:");
    for goal in [
        Goal::at_least("TCP, 1 stream", ratio("tcp1_gbps"), 2.0),
        Goal::at_least("TCP, 4 streams", ratio("tcp4_gbps"), 2.0),
        Goal::at_most("CPU for a gigabyte", ratio("cpu_s_per_gb"), 0.5),
        Goal::at_most("CPU above plaintext and the cipher's own, s/GB", above(), 1.5),
        Goal::at_most("latency, idle, median", ratio("latency_p50_us"), 0.5),
        Goal::at_most("latency, beside a bulk stream, p99", ratio("latency_loaded_p99_us"), 0.5),
        Goal::at_most("latency, idle, median, to the best of all peers", best_peer("latency_p50_us"), 1.0),
        Goal::at_most("latency, loaded, p99, to the best of all peers", best_peer("latency_loaded_p99_us"), 1.0),
        Goal::at_least("UDP packets of 64 bytes", ratio("udp64_mpps"), 2.0),
        Goal::at_most("resident memory with 1,000 peers, MB", results.median(ours, "rss_mb_1000_peers"), 64.0),
    ] {
        goal.print();
    }
    let plot = path.with_extension("svg");
    std::fs::write(&plot, plot::tunnel(results)).with_context(|| format!("write {}", plot.display()))?;
    println!("\n{}\n{}", path.display(), plot.display());
    Ok(())
}

/// Prints what a tunnel can reach on this machine. Only the tunnel that is built on the same engine
/// can be compared with it. That tunnel can be slightly below the two limits together: its eBPF
/// programs bring packets to the device, where the floor's nodes use the kernel's routing.
fn limits(results: &Results) {
    if let (Some(seal), Some(open)) = (results.median(CIPHER, "seal_ns"), results.median(CIPHER, "open_ns")) {
        println!("\nthe cipher alone: {seal:.0} ns to seal a full packet, {open:.0} ns to open one");
    }
    let floor = |metric| results.median(System::NullCipher.as_str(), metric);
    let rates =
        [("tcp1_gbps", "Gb/s with 1 stream"), ("tcp4_gbps", "Gb/s with 4"), ("udp64_mpps", "million small packets/s")];
    let rates: Vec<String> =
        rates.iter().filter_map(|(metric, unit)| Some(format!("{} {unit}", short(floor(metric)?)))).collect();
    if !rates.is_empty() {
        println!("the I/O alone, with a cipher that does nothing: {}", rates.join(", "));
    }
    if let (Some(io), Some(cipher)) = (floor("cpu_s_per_gb"), results.median(CIPHER, "cpu_s_per_gb")) {
        let ours = results.median(System::Hauberk.as_str(), "cpu_s_per_gb").map_or("not measured".into(), short);
        println!(
            "CPU s/GB: the I/O {}, the cipher {}, both together {}; {} {ours}",
            short(io),
            short(cipher),
            short(io + cipher),
            System::Hauberk
        );
    }
}

/// Prints what hauberk costs traffic that is not encrypted.
///
/// # Errors
/// File access fails.
pub fn classify(results: &mut Results) -> Result<()> {
    let path = results.finish()?;
    table(results);
    let (with, without) = (System::HauberkPlain.as_str(), System::Plaintext.as_str());
    let ratio = |metric| Some(results.median(with, metric)? / results.median(without, metric)?);
    let more = |metric| Some(results.median(with, metric)? - results.median(without, metric)?);
    println!("\ngoals, as ratios of with hauberk to without:");
    for goal in [
        Goal::at_least("TCP, 1 stream", ratio("tcp1_gbps"), 0.97),
        Goal::at_least("TCP, 4 streams", ratio("tcp4_gbps"), 0.97),
        Goal::at_least("connections a second", ratio("http_connections_per_s"), 0.97),
        Goal::at_least("UDP packets of 64 bytes", ratio("udp64_mpps"), 0.97),
        Goal::at_most("latency, idle, median: microseconds more", more("latency_p50_us"), 1.0),
    ] {
        goal.print();
    }
    println!("\n{}", path.display());
    Ok(())
}

fn table(results: &Results) {
    let systems = results.systems();
    print!("\n{:<28}", "median (min - max)");
    for system in &systems {
        let name = if is_floor(system) { format!("{system} (floor)") } else { (*system).to_owned() };
        print!(" {name:>24}");
    }
    println!();
    for metric in results.metrics() {
        print!("{metric:<28}");
        for system in &systems {
            match results.summary(system, metric) {
                Some(found) => {
                    let text = format!("{} ({} - {})", short(found.median), short(found.min), short(found.max));
                    print!(" {text:>24}");
                }
                None => print!(" {:>24}", "-"),
            }
        }
        println!();
    }
    if systems.iter().any(|system| is_floor(system)) {
        println!(
            "(floor): no competitor and nothing encrypted, but about what a tunnel with hauberk's I/O can reach at most here"
        );
    }
    let (discarded, all) = results.discarded();
    println!(
        "{discarded} of {all} samples do not count: the host took more than {} % of the CPUs' time",
        results.steal_limit_percent
    );
}

/// Three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        magnitude if magnitude >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
